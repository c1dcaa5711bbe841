"""Labelled mail on disk -> one table: folders, Maildir++ trees, mbox pairs, and tables of label and text."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from pathlib import Path

import pandas as pd

from spamguard.config import Config
from spamguard.encoder import Encoder
from spamguard.errors import CorpusError
from spamguard.featurestore import FeatureStore, content_hash
from spamguard.head import Row
from spamguard.headers import fields
from spamguard.labels import FOLDER, FOUND, SENT
from spamguard.own_moves import moved_to_junk
from spamguard.scorer import look, prepare

from . import tables
from .folder_names import Kind, Kinds

LABELS = {Kind.SPAM: 1, Kind.HAM: 0, Kind.SENT: 0}
MAIL_LIMIT = 64 << 20  # a larger file is no mail
MESSAGES_A_STEP = 64
MOST_NAMED = 20  # complaints of one kind; the others are counted
DATE_LENGTH = 100  # bytes; a longer one is no date
Tell = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Reading:
    """How labelled mail is read: what folders' names say, which columns of tables hold label and text (None: by their
    names), and `own`, the contents that the watcher moved into Junk by itself and nobody has confirmed.
    """

    kinds: Kinds = field(default_factory=Kinds)
    label_column: str | None = None
    text_column: str | None = None
    own: Collection[str] = frozenset()

    @classmethod
    def configured(cls, config: Config, label_column: str | None = None, text_column: str | None = None) -> Reading:
        """As the configuration says. Raises OwnMovesError."""
        return cls(Kinds.configured(config), label_column, text_column, moved_to_junk(config.watch_file))


@dataclass(frozen=True, slots=True)
class Labelled:
    """One labelled message: label (1 is spam), where it lies, the collection it belongs to, its bytes and weight.

    `in_maildir` says that it lies where the watcher may have put it.
    """

    label: int
    where: str
    source: str
    read: Callable[[], bytes]
    weight: float = 1.0
    in_maildir: bool = False


def refuse(complaint: str) -> None:
    raise CorpusError(complaint)


def find(paths: Iterable[Path], reading: Reading | None = None, tell: Tell = refuse) -> Iterator[Labelled]:
    """All labelled messages below the paths; `tell` hears one line of each folder or file that cannot be read.

    Raises CorpusError naming a path that holds no labelled mail, and by default of all that `tell` would hear.
    """
    for path in paths:
        found, heard = False, list[str]()

        def note(complaint: str, heard: list[str] = heard) -> None:
            heard.append(complaint)
            tell(complaint)

        for item in _Search(reading or Reading(), note).path(path):
            found = True
            yield item
        if not found and heard:
            raise CorpusError(heard[0])
        if not found:
            raise CorpusError(
                f"{path}: no labelled mail (a Maildir with a Junk or Spam folder, folders named ham and spam, "
                "ham.mbox and spam.mbox, or a CSV, TSV or Parquet file with columns of labels and texts)"
            )


def tabulate(
    paths: Iterable[Path],
    encoder: Encoder,
    store: FeatureStore,
    progress: Callable[[int, int], None] | None = None,
    settled: Collection[str] = (),
    reading: Reading | None = None,
) -> tuple[pd.DataFrame, list[str]]:
    """Read all mail below the paths, as `tabulate_items` does; what cannot be read is one complaint each.

    Raises CorpusError if there is no labelled mail below a path.
    """
    heard: list[str] = []
    items = list(find(paths, reading, heard.append))
    table, complaints = tabulate_items(items, encoder, store, progress, settled, reading.own if reading else ())
    return table, _named(heard, "folders and files could not be read") + complaints


def tabulate_items(
    items: Sequence[Labelled],
    encoder: Encoder,
    store: FeatureStore,
    progress: Callable[[int, int], None] | None = None,
    settled: Collection[str] = (),
    own: Collection[str] = (),
) -> tuple[pd.DataFrame, list[str]]:
    """Read mail, encode what the store does not hold yet, and list it.

    Columns: content, label, source, where, weight, and time (of arrival, seconds since 1970; NaN if unknown). Each
    content stands once; mail that carries both labels is left out, and so is what is `settled`: contents of which the
    user has said what they are, and spam of our `own` making. Returns the table and complaints (files that could not
    be read, contradictions), one line each. `progress` is told (messages done, messages in all).
    """
    rows: list[tuple[str, int, str, str, float, float]] = []
    unreadable: list[str] = []
    ours = set[str]()
    for start in range(0, len(items), MESSAGES_A_STEP):
        step: dict[str, bytes] = {}
        for item in items[start : start + MESSAGES_A_STEP]:
            try:
                raw = item.read()
            except OSError as error:
                unreadable.append(f"{item.where}: {error.strerror}")
                continue
            content = content_hash(raw)
            if item.in_maildir and item.label == 1 and content in own and content not in settled:
                ours.add(content)
                continue
            step[content] = raw
            rows.append((content, item.label, text(item.source), text(item.where), item.weight, arrival(raw)))
        encode(list(step), step.get, encoder, store)
        if progress:
            progress(min(start + MESSAGES_A_STEP, len(items)), len(items))
    table = pd.DataFrame(rows, columns=["content", "label", "source", "where", "weight", "time"])
    table = table[~table["content"].isin(settled)]
    both = table.groupby("content")["label"].transform("nunique") > 1
    complaints = _named(unreadable, "messages could not be read")
    complaints += _named(
        [f"{where}: labelled both ham and spam, left out" for where in table["where"][both]],
        "files are labelled both ham and spam, left out",
    )
    if ours:
        complaints.append(
            f"{len(ours)} messages in Junk left out: spamguard moved them there, and nobody has called them spam"
        )
    # Of copies the one of the greatest weight stands for all: mail to oneself lies in Sent, too.
    table = table[~both].sort_values("weight", ascending=False, kind="stable").drop_duplicates("content").sort_index()
    return table.reset_index(drop=True), complaints


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


def arrival(raw: bytes) -> float:
    """When a message came, in seconds since 1970: by the topmost Received, else by Date (RFC 5322), else NaN."""
    sent = math.nan
    for name, value in fields(raw):
        if name == b"received" and not math.isnan(received := _seconds(value.rpartition(b";")[2])):
            return received
        if name == b"date" and math.isnan(sent):
            sent = _seconds(value)
    return sent


def _seconds(date: bytes) -> float:
    try:
        moment = parsedate_to_datetime(date[:DATE_LENGTH].decode("ascii"))
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return math.nan


def text(name: str) -> str:
    """Names of files need not be UTF-8, and pandas with pyarrow takes no other text."""
    return name.encode("utf-8", "backslashreplace").decode()


def _named(complaints: list[str], what: str) -> list[str]:
    """The first of them, and how many there are where that is not all."""
    if len(complaints) <= MOST_NAMED:
        return complaints
    return [*complaints[:MOST_NAMED], f"{len(complaints)} {what}; the first {MOST_NAMED} are named above"]


@dataclass(frozen=True, slots=True)
class _Search:
    """Finds labelled mail; `tell` hears of what cannot be read, and the search goes on."""

    reading: Reading
    tell: Tell

    def path(self, path: Path) -> Iterator[Labelled]:
        """All labelled mail of a file or folder."""
        try:
            if not path.exists():
                raise CorpusError(f"{path}: no such file or folder")
            if path.is_file():
                yield from self._file(path, path.absolute().parent.name)
                return
        except OSError as error:
            self.tell(f"{error.filename or path}: {error.strerror}")
            return
        except CorpusError as error:
            self.tell(str(error))
            return
        there = self._entries(path)
        if _is_maildir(there):
            yield from self._maildir(path, there)
        elif (kind := self._kind(path.name)) in LABELS:
            yield from self._folder(path, kind, path.absolute().parent.name)
        else:
            for entry in there:
                if Path(entry).is_file() or entry.is_dir(follow_symlinks=False):
                    yield from self.path(path / entry.name)

    def _kind(self, name: str) -> Kind | None:
        return self.reading.kinds.of(_parts(name))

    def _entries(self, folder: Path) -> list[os.DirEntry[str]]:
        """What lies in a folder, in the order of names; nothing, and a complaint, if it cannot be listed."""
        try:
            with os.scandir(folder) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            self.tell(f"{folder}: {error.strerror}")
            return []

    def _file(self, file: Path, source: str) -> Iterator[Labelled]:
        suffix = file.suffix.lower()
        if suffix in tables.SUFFIXES:
            columns = self.reading.label_column, self.reading.text_column
            for number, label, text in tables.rows(file, *columns, self.tell):
                yield Labelled(label, f"{file}:{number}", file.stem, _TextReader(text))
        elif suffix in {".mbox", ""} and (kind := self._kind(file.stem)) in LABELS:
            for number, (start, end) in enumerate(_mbox_spans(file)):
                yield _labelled(kind, f"{file}:{number}", source, _MboxReader(file, start, end))

    def _folder(self, folder: Path, kind: Kind, source: str) -> Iterator[Labelled]:
        for entry in self._entries(folder):
            if entry.is_dir(follow_symlinks=False):
                yield from self._folder(folder / entry.name, kind, source)
            elif entry.is_file(follow_symlinks=False) and not entry.name.startswith("."):
                yield _labelled(kind, str(folder / entry.name), source, _Reader(folder / entry.name))

    def _maildir(self, path: Path, there: list[os.DirEntry[str]]) -> Iterator[Labelled]:
        """All folders of a Maildir, as Maildir++ (`.Lists.Junk`) or Dovecot's LAYOUT=fs (`Lists/Junk`) has them.

        Mail in Junk is spam; what the user sent is ham of little weight; the rest is ham if it was seen and is not
        deleted. Unread mail in a folder's `new` was filed by a machine, perhaps by us: it says nothing. The Maildir
        itself may be such a folder: `retrain ~/Maildir/.Junk` is spam and nothing else.
        """
        kind = self._kind(path.name)
        if kind is not Kind.IGNORED:
            yield from self._messages(path, kind, path.name, ("cur", "new"))
        yield from self._folders(path, there, (), path.name)

    def _folders(
        self, folder: Path, there: list[os.DirEntry[str]], above: tuple[str, ...], source: str
    ) -> Iterator[Labelled]:
        for entry in there:
            if entry.name in ("cur", "new", "tmp") or not entry.is_dir(follow_symlinks=False):
                continue
            inside, names = folder / entry.name, (*above, *_parts(entry.name))
            below = self._entries(inside)
            kind = self.reading.kinds.of(names)
            if kind is not Kind.IGNORED and _is_maildir(below):
                yield from self._messages(inside, kind, source, ("cur",))
            yield from self._folders(inside, below, names, source)

    def _messages(self, folder: Path, kind: Kind | None, source: str, parts: Iterable[str]) -> Iterator[Labelled]:
        for part in parts:
            for entry in self._entries(folder / part):
                flags = entry.name.partition(":2,")[2]
                kept = kind is not None or ("S" in flags and "T" not in flags)
                if kept and entry.is_file(follow_symlinks=False):
                    file = folder / part / entry.name
                    yield _labelled(kind, str(file), source, _Reader(file), in_maildir=True)


def _labelled(
    kind: Kind | None, where: str, source: str, read: Callable[[], bytes], in_maildir: bool = False
) -> Labelled:
    weight = FOUND[SENT if kind is Kind.SENT else FOLDER]
    return Labelled(LABELS[kind or Kind.HAM], where, source, read, weight, in_maildir)


def _parts(name: str) -> tuple[str, ...]:
    """The folders that a name on the disk stands for: `.Lists.Junk` is Junk in Lists."""
    return tuple(name[1:].split(".")) if name.startswith(".") else (name,)


def _is_maildir(there: list[os.DirEntry[str]]) -> bool:
    # By Path, to which a link that leads round in a circle is no folder, and no error.
    return {"cur", "new"} <= {entry.name for entry in there if Path(entry).is_dir()}


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads a file when asked, so that a large archive is never in memory at once."""

    file: Path

    def __call__(self) -> bytes:
        with self.file.open("rb") as stream:
            return stream.read(MAIL_LIMIT)


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


@dataclass(frozen=True, slots=True)
class _TextReader:
    """A text of a table as a message, so that it goes the road of all mail."""

    text: str

    def __call__(self) -> bytes:
        return b"Content-Type: text/plain; charset=utf-8\n\n" + self.text.encode("utf-8", "replace")
