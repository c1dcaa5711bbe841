"""The report of a retrain: one HTML page that needs nothing else, and its figures as JSON."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spamguard.errors import ReportError
from spamguard.headers import printable
from spamguard.reports import FIGURES, PAGE

from . import pictures
from .learning_curve import Point as Point
from .summary import Before as Before
from .summary import Gate as Gate
from .summary import Run as Run
from .summary import summary

TEMPLATE = Path(__file__).with_name("page.html.jinja")
NAME_LIMIT = 300  # of a file's name; longer ones are cut
UNKNOWN = "–"
SHOWN = frozenset(
    {"created", "ham", "spam", "sources", "gate", "figures"}
)  # of the provenance, elsewhere on the page


def write(run: Run, folder: Path, *, private: bool) -> Path:
    """Write `report.json` and `report.html` into the folder, each whole or not at all; returns the page's path.

    `private` leaves out the names of files and folders. Whatever goes wrong is a ReportError of one line, also when
    the page is there but without a picture: the retrain is done all the same, so the caller makes a complaint of it.
    """
    try:
        found = summary(run, private=private)
        drawn, faults = pictures.draw(found)
        html = page(found, drawn)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _replace(folder / FIGURES, json.dumps(found, indent=1, allow_nan=False) + "\n")
        _replace(folder / PAGE, html)
    except OSError as error:
        raise ReportError(f"{error.filename or folder}: the report cannot be written: {error.strerror}") from error
    except Exception as error:  # a report must never fail the retrain that it is about
        raise ReportError(" ".join(f"{folder}: no report: {type(error).__name__}: {error}".split())) from error
    if faults:
        raise ReportError(f"{folder / PAGE}: {'; '.join(faults)}")
    return folder / PAGE


def page(found: dict[str, Any], drawn: dict[str, str]) -> str:
    """The page of these numbers and pictures; every text in it is escaped, the pictures are ours."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "count": count, "name": _name, "when": when, "score": score}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(found | _rows(found), pictures=drawn)


def _rows(found: dict[str, Any]) -> dict[str, Any]:
    """The numbers of the pictures as rows of text, for the tables beside them."""
    scores, lengths = found["scores"], found["lengths"]
    hit = found["figures"]["fnr_at_fpr"] or {}
    return {
        "roc_rows": [(percent(rate), percent(1 - missed, 2)) for rate, missed in hit.items()],
        "score_rows": [
            (f"{edge:.2f}", count(ham), count(spam))
            for edge, ham, spam in zip(scores["edges"], scores["ham"], scores["spam"], strict=False)
        ],
        "reliability_rows": [
            (
                f"{percent(one['from'], 0)} to {percent(one['to'], 0)}",
                count(one["n"]),
                percent(one["said"]),
                percent(one["spam"]),
                f"{percent(one['low'])} to {percent(one['high'])}",
            )
            for one in found["reliability"]
        ],
        "length_rows": [
            (f"{share} %", f"{count(tokens)} tokens" if tokens < lengths["counted"] else f"{count(tokens)} or more")
            for share, tokens in (lengths["percentiles"].items() if lengths else ())
        ],
        "curve_rows": [
            (count(point["messages"]), percent(point["f1"]), percent(point["low"]), percent(point["high"]))
            for point in found["learning_curve"] or ()
        ],
        "provenance_rows": [
            (key.replace("_", " "), _words(value)) for key, value in found["provenance"].items() if key not in SHOWN
        ],
    }


def _words(value: Any) -> str:
    """A value of the provenance, which may be a table or a list, in one line."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return UNKNOWN if value is None else str(value)


def percent(share: float | None, digits: int = 1) -> str:
    """0.9987 -> 99.9 %. What is nearly all or nothing does not look like it."""
    if share is None:
        return UNKNOWN
    number, least = round(share * 100, digits), 10**-digits
    if share in (0, 1):
        text = f"{number:.0f}"
    elif number == 0:
        text = f"< {least:.{digits}f}"
    elif number == 100:
        text = f"> {100 - least:.{digits}f}"
    else:
        text = f"{number:.{digits}f}"
    return f"{text} %".replace(" ", "\N{NO-BREAK SPACE}")


def when(moment: object) -> str:
    """2026-11-23T05:12:09+00:00 -> 23 November 2026, 05:12 UTC; anything else as it is."""
    try:
        return f"{datetime.fromisoformat(str(moment)).astimezone(UTC):%-d %B %Y, %H:%M} UTC"
    except ValueError:
        return str(moment)


def count(number: int | None) -> str:
    return UNKNOWN if number is None else f"{number:,}"


def score(probability: float) -> str:
    """A probability so that the ends, where scores crowd, can be told apart."""
    return f"{probability:.4f}"


def _name(text: object) -> str:
    """A name from outside on one line: control characters become blanks, autoescape does the rest."""
    return printable(str(text), NAME_LIMIT)


def _replace(file: Path, text: str) -> None:
    draft = file.with_name(f".{file.name}-{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
