"""Labelled mail on disk -> one table: folders, Maildir++ trees, mbox pairs and CSV files of label and text."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from spamguard.encoder import Encoder
from spamguard.errors import CorpusError
from spamguard.featurestore import FeatureStore, content_hash
from spamguard.head import Row
from spamguard.scorer import look, prepare

SPAM_NAMES = frozenset({"spam", "junk", "junk e-mail", "junk email", "bulk mail"})
HAM_NAMES = frozenset({"ham", "nonspam", "not spam"})
# Folders of a Maildir++ that say nothing of what the user thinks of a message.
SILENT_NAMES = frozenset(
    {"trash", "deleted", "deleted items", "deleted messages", "drafts", "outbox", "sent", "sent items", "templates"}
)
LABELS = {"ham": 0, "0": 0, "spam": 1, "1": 1}
MAIL_LIMIT = 64 << 20  # a larger file is no mail
MESSAGES_A_STEP = 64
csv.field_size_limit(min(sys.maxsize, MAIL_LIMIT))


@dataclass(frozen=True, slots=True)
class Labelled:
    """One labelled message: label (1 is spam), where it lies, the collection it belongs to, and its bytes."""

    label: int
    where: str
    source: str
    read: Callable[[], bytes]


def find(paths: Iterable[Path]) -> Iterator[Labelled]:
    """All labelled messages below the paths. Raises CorpusError naming a path that holds none."""
    for path in paths:
        found = False
        try:
            for item in _in_path(path):
                found = True
                yield item
        except OSError as error:  # a folder, mbox or CSV that may not be opened
            raise CorpusError(f"{error.filename or path}: {error.strerror}") from error
        if not found:
            raise CorpusError(
                f"{path}: no labelled mail (a Maildir with a Junk or Spam folder, folders named ham and spam, "
                "ham.mbox and spam.mbox, or a CSV of label,text)"
            )


def tabulate(
    paths: Iterable[Path],
    encoder: Encoder,
    store: FeatureStore,
    progress: Callable[[int, int], None] | None = None,
    settled: Collection[str] = (),
) -> tuple[pd.DataFrame, list[str]]:
    """Read all mail below the paths, as `tabulate_items` does. Raises CorpusError."""
    return tabulate_items(list(find(paths)), encoder, store, progress, settled)


def tabulate_items(
    items: Sequence[Labelled],
    encoder: Encoder,
    store: FeatureStore,
    progress: Callable[[int, int], None] | None = None,
    settled: Collection[str] = (),
) -> tuple[pd.DataFrame, list[str]]:
    """Read mail, encode what the store does not hold yet, and list it: content, label, source, where.

    Each content stands once; mail that carries both labels is left out, and so is what is `settled`: contents of
    which the user has said what they are. Returns the table and complaints (files that could not be read,
    contradictions), one line each. `progress` is told (messages done, messages in all).
    """
    rows: list[tuple[str, int, str, str]] = []
    complaints: list[str] = []
    for start in range(0, len(items), MESSAGES_A_STEP):
        step: dict[str, bytes] = {}
        for item in items[start : start + MESSAGES_A_STEP]:
            try:
                raw = item.read()
            except OSError as error:
                complaints.append(f"{item.where}: {error.strerror}")
                continue
            content = content_hash(raw)
            step[content] = raw
            rows.append((content, item.label, item.source, item.where))
        encode(list(step), step.get, encoder, store)
        if progress:
            progress(min(start + MESSAGES_A_STEP, len(items)), len(items))
    table = pd.DataFrame(rows, columns=["content", "label", "source", "where"])
    table = table[~table["content"].isin(settled)]
    both = table.groupby("content")["label"].transform("nunique") > 1
    complaints += [f"{where}: labelled both ham and spam, left out" for where in table["where"][both]]
    return table[~both].drop_duplicates("content", ignore_index=True), complaints


def encode(
    contents: Sequence[str], read: Callable[[str], bytes | None], encoder: Encoder, store: FeatureStore
) -> None:
    """Encode those messages that the store does not hold yet; `read` gives None for one that is gone.

    Raises ScoringError or FeatureStoreError.
    """
    missing = sorted(set(contents) - store.known(contents))
    batch = {content: prepare(encoder, raw) for content in missing if (raw := read(content)) is not None}
    if batch:
        seen = look(encoder, list(batch.values()))
        store.put(zip(batch, map(Row, seen.deep, seen.wide, seen.structure), strict=True))


def _in_path(path: Path) -> Iterator[Labelled]:
    if not path.exists():
        raise CorpusError(f"{path}: no such file or folder")
    if path.is_file():
        yield from _in_file(path, path.parent.name)
    elif _is_maildir(path):
        yield from _in_maildir(path)
    elif (label := _label_of(path.name)) is not None:
        yield from _in_folder(path, label, path.absolute().parent.name)
    else:
        for below in sorted(path.iterdir()):
            if below.is_file():
                yield from _in_file(below, path.name)
            elif below.is_dir() and not below.is_symlink():
                yield from _in_path(below)


def _label_of(name: str) -> int | None:
    name = name.lower().removeprefix(".").removeprefix("inbox.")
    return 1 if name in SPAM_NAMES else 0 if name in HAM_NAMES else None


def _in_file(file: Path, source: str) -> Iterator[Labelled]:
    if file.suffix.lower() in {".csv", ".tsv"}:
        yield from _in_table(file)
    elif file.suffix.lower() in {".mbox", ""} and (label := _label_of(file.stem)) is not None:
        yield from _in_mbox(file, label, source)


def _in_folder(folder: Path, label: int, source: str) -> Iterator[Labelled]:
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not file.is_symlink() and not file.name.startswith("."):
            yield Labelled(label, str(file), source, _Reader(file))


def _is_maildir(path: Path) -> bool:
    return (path / "cur").is_dir() and (path / "new").is_dir()


def _in_maildir(path: Path) -> Iterator[Labelled]:
    """Junk and Spam are spam, with all folders below them; the rest is ham if it was seen and is not deleted.

    Unread mail in a folder's `new` was filed by a machine, perhaps by us: it says nothing. The Maildir itself may be
    such a folder: `retrain ~/Maildir/.Junk` is spam and nothing else.
    """
    for folder in [path, *sorted(f for f in path.iterdir() if f.name.startswith(".") and _is_maildir(f))]:
        names = set(folder.name.lower().removeprefix(".").split(".")) if folder.name.startswith(".") else set()
        label = 1 if names & SPAM_NAMES else _label_of(folder.name)
        if names & SILENT_NAMES:
            continue
        for name in ("cur", "new") if folder == path else ("cur",):
            for file in sorted((folder / name).iterdir()):
                flags = file.name.partition(":2,")[2]
                kept = label is not None or ("S" in flags and "T" not in flags)
                if file.is_file() and not file.is_symlink() and kept:
                    yield Labelled(label or 0, str(file), path.name, _Reader(file))


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads a file when asked, so that a large archive is never in memory at once."""

    file: Path

    def __call__(self) -> bytes:
        with self.file.open("rb") as stream:
            return stream.read(MAIL_LIMIT)


def _in_mbox(file: Path, label: int, source: str) -> Iterator[Labelled]:
    for number, (start, end) in enumerate(_mbox_spans(file)):
        yield Labelled(label, f"{file}:{number}", source, _MboxReader(file, start, end))


def _mbox_spans(file: Path) -> list[tuple[int, int]]:
    """Where each message begins, below its "From " line, and ends. (mailbox.mbox would open the file for writing.)"""
    starts, ends, position, blank = [], [], 0, True
    with file.open("rb") as stream:
        for line in stream:
            if blank and line.startswith(b"From "):
                ends.append(position)
                starts.append(position + len(line))
            elif not starts:
                break
            blank = line in (b"\n", b"\r\n")
            position += len(line)
    if not starts:
        raise CorpusError(f"{file}: not an mbox file (it must begin with 'From ')")
    return list(zip(starts, [*ends[1:], position], strict=True))


@dataclass(frozen=True, slots=True)
class _MboxReader:
    file: Path
    start: int
    end: int

    def __call__(self) -> bytes:
        with self.file.open("rb") as stream:
            stream.seek(self.start)
            raw = stream.read(min(self.end - self.start, MAIL_LIMIT))
        # The empty line before the next "From " line is not part of the message.
        return next((raw[: -len(eol)] for eol in (b"\r\n", b"\n") if raw.endswith(eol * 2)), raw)


def _in_table(file: Path) -> Iterator[Labelled]:
    """Rows of a CSV or TSV with columns `label` (ham, spam, 0, 1) and `text`; the text becomes a message's body."""
    separator = "\t" if file.suffix.lower() == ".tsv" else ","
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
        reader = csv.DictReader(stream, delimiter=separator)
        if not {"label", "text"} <= set(reader.fieldnames or ()):
            raise CorpusError(f"{file}: needs the columns label and text, has {', '.join(reader.fieldnames or ())}")
        for number, row in enumerate(reader, 2):
            label = LABELS.get((row["label"] or "").strip().lower())
            if label is None:
                raise CorpusError(f"{file}: row {number}: label {row['label']!r} is none of ham, spam, 0, 1")
            yield Labelled(label, f"{file}:{number}", file.stem, _TextReader(row["text"] or ""))


@dataclass(frozen=True, slots=True)
class _TextReader:
    text: str

    def __call__(self) -> bytes:
        return b"Content-Type: text/plain; charset=utf-8\n\n" + self.text.encode("utf-8", "replace")
