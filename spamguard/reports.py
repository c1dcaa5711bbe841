"""Where the page of each retrained head lies: `state_dir/reports/ID/report.html`, and its figures beside it."""

from __future__ import annotations

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
