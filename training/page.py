"""The report of a retrain: one HTML page that needs nothing else, and its figures as JSON."""

from __future__ import annotations

import json
import os
from html import escape
from pathlib import Path
from typing import Any

from spamguard.errors import ReportError
from spamguard.reports import FIGURES, PAGE

from .summary import Before as Before
from .summary import CurvePoint as CurvePoint
from .summary import Gate as Gate
from .summary import Run as Run
from .summary import summary


def write(run: Run, folder: Path, *, private: bool) -> Path:
    """Write `report.json` and `report.html` into the folder, each whole or not at all; the page's path.

    `private` leaves out the names of files and folders. Whatever goes wrong is a ReportError: the retrain is done
    all the same, so the caller makes a complaint of it. The one exception that must be caught.
    """
    try:
        found = summary(run, private=private)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _replace(folder / FIGURES, json.dumps(found, indent=1, allow_nan=False) + "\n")
        _replace(folder / PAGE, _page(found))
    except OSError as error:
        raise ReportError(f"{error.filename or folder}: the report cannot be written: {error.strerror}") from error
    except Exception as error:  # a report must never fail the retrain that it is about
        raise ReportError(f"{folder}: no report: {type(error).__name__}: {error}") from error
    return folder / PAGE


def _replace(file: Path, text: str) -> None:
    draft = file.with_name(f".{file.name}-{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def _page(found: dict[str, Any]) -> str:
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Head {escape(found["head"])}</title>'
