"""Tables of labelled texts: CSV, TSV and Parquet with a column of labels and one of texts."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from spamguard.errors import CorpusError

SUFFIXES = frozenset({".csv", ".tsv", ".parquet"})
# Names that the columns go by, the likeliest first.
LABEL_NAMES = ("label", "class", "category", "target", "spam", "is_spam", "spam/ham", "type", "v1")
TEXT_NAMES = ("text", "message", "body", "content", "email", "mail", "sms", "v2")
HAM_VALUES = frozenset("ham 0 0.0 false no nonspam notspam legitimate legit normal".split())
SPAM_VALUES = frozenset("spam 1 1.0 true yes junk phishing".split())
csv.field_size_limit(min(sys.maxsize, 64 << 20))


def rows(
    file: Path, label_column: str | None, text_column: str | None, tell: Callable[[str], object]
) -> Iterator[tuple[int, int, str]]:
    """(row, label, text) of a table; the row is that of a spreadsheet, in which the names are row 1. 1 is spam.

    Without names of the columns those of LABEL_NAMES and TEXT_NAMES are looked for. Rows whose label is none of
    HAM_VALUES and SPAM_VALUES are left out, and `tell` is told how many. Raises CorpusError, OSError.
    """
    names, records = _parquet(file) if file.suffix.lower() == ".parquet" else _csv(file)
    label_at, text_at = _column(file, names, label_column, LABEL_NAMES), _column(file, names, text_column, TEXT_NAMES)
    if label_at == text_at:
        raise CorpusError(f"{file}: the label and the text cannot both be column {names[label_at]!r}")
    odd: list[str] = []
    try:
        for number, record in records:
            said = record[label_at] if label_at < len(record) else ""
            key = said.strip().lower().replace(" ", "").replace("-", "").replace("_", "")
            if key in HAM_VALUES or key in SPAM_VALUES:
                yield number, int(key in SPAM_VALUES), record[text_at] if text_at < len(record) else ""
            else:
                odd.append(f"row {number}: {said[:40]!r}")
    except csv.Error as error:
        tell(f"{file}: row {number + 1}: {error}; the rows from there on are left out")
    if odd:
        tell(
            f"{file}: {len(odd)} of its rows left out, their label in {names[label_at]!r} is none of ham, spam, 0, "
            f"1, true, false and the like ({odd[0]})"
        )


def _column(file: Path, names: Sequence[str], wanted: str | None, usual: Sequence[str]) -> int:
    """Which column it is. Raises CorpusError."""
    plain = [name.strip().lower() for name in names]
    for name in (wanted.strip().lower(),) if wanted else usual:
        if name in plain:
            return plain.index(name)
    option = "--label-column" if usual is LABEL_NAMES else "--text-column"
    lacking = (
        f"no column {wanted!r}"
        if wanted
        else f"no column is named {', '.join(usual[:4])} or the like: say which by {option}"
    )
    raise CorpusError(f"{file}: {lacking} (there are: {', '.join(map(repr, names[:20])) or 'none'})")


def _csv(file: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Names of the columns, and each row that is not empty. UTF-8, or Latin-1 where it is not."""
    data = file.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", "replace")
    head = text.partition("\n")[0]
    # Spreadsheets of half of Europe write semicolons.
    separator = "\t" if file.suffix.lower() == ".tsv" else max(",;\t", key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        names = next(reader, [])
    except csv.Error as error:
        raise CorpusError(f"{file}: {error}") from error
    return names, ((number, record) for number, record in enumerate(reader, 2) if record)


def _parquet(file: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    with file.open("rb"):  # pandas takes a file that cannot be opened for many things
        pass
    try:
        table = pd.read_parquet(file)
    except ImportError as error:
        raise CorpusError(f"{file}: to read Parquet, install the extra: pip install 'spamguard[parquet]'") from error
    except Exception as error:  # pyarrow's own kinds of errors, of which we know no module
        raise CorpusError(f"{file}: no Parquet that can be read: {str(error).splitlines()[0][:200]}") from error
    names = [str(name) for name in table.columns]
    columns = [table.iloc[:, i] for i in range(len(names))]
    texts = [["" if gone else str(value) for value, gone in zip(c, c.isna(), strict=True)] for c in columns]
    return names, ((number, list(record)) for number, record in enumerate(zip(*texts, strict=True), 2))
