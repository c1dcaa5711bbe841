"""Where the page of each retrained head lies: `state_dir/reports/ID/report.html`, and its figures beside it."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from .errors import ReportError

PAGE, FIGURES = "report.html", "report.json"


def find(folder: Path, head: str = "") -> Path:
    """The page of the head whose id begins so, the newest page if none is given. Raises ReportError."""
    pages = [page for page in folder.glob(f"*/{PAGE}") if page.parent.name.startswith(head)]
    ids = sorted(page.parent.name for page in pages)
    if not ids:
        raise ReportError(f"{folder}: " + (f"no report of a head {head}" if head else "no report yet"))
    if head in ids:
        return folder / head / PAGE
    if head and len(ids) > 1:
        raise ReportError(f"{folder}: {head} may be any of {', '.join(ids)}")
    return max(pages, key=lambda page: (page.stat().st_mtime_ns, page))


def forget(folder: Path, contents: Collection[str]) -> int:
    """Remove each page that lists one of these messages, named by content hash; how many. Raises ReportError."""
    gone = []
    for figures in sorted(folder.glob(f"*/{FIGURES}")):
        try:
            shown = figures.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise ReportError(f"{figures}: {error.strerror}") from error
        if any(content in shown for content in contents):
            gone.append(figures.parent)
    remove(folder, [page.name for page in gone])
    return len(gone)


def remove(folder: Path, heads: Collection[str]) -> None:
    """Remove the pages of these heads. Raises ReportError."""
    for head in heads:
        try:
            shutil.rmtree(folder / head)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise ReportError(f"{error.filename or folder / head}: {error.strerror}") from error
