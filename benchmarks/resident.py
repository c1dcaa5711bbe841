"""Resident size of the daemon: flat over many messages, and bounded under many large ones at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from .contestants import SESSIONS, ours, sink, source

Tick = Callable[[int], None]
LARGE_BYTES = 20_000_000
FLAT = 0.05  # of the size after the first tenth


def over(messages: int, length: int, folder: Path, tick: Tick) -> tuple[list[str], bool]:
    """Send that many messages in tenths, half of each tenth with a connection a message.

    Return the lines of a table, and whether the size stayed flat.
    """
    with sink(folder) as port, ours(port, folder) as daemon:
        sizes = [daemon.memory()]
        for _ in range(10):
            for keep in (True, False):
                _finish(source(daemon.port, messages // 20, keep=keep, length=length).wait())
            sizes.append(daemon.memory())
            tick(messages // 10)
    rise = sizes[-1] - sizes[1]
    slope = _slope([tenth * messages / 10_000 for tenth in range(1, 11)], sizes[1:]) * 1024
    flat = rise <= FLAT * sizes[1]
    lines = [
        f"## Resident size over {messages:,} messages of {length:,} bytes, {SESSIONS} connections\n",
        "| messages | resident, MB |",
        "|---:|---:|",
        *(f"| {tenth * messages // 10:,} | {size:.1f} |" for tenth, size in enumerate(sizes)),
        "",
        f"After the first tenth: {rise:+.1f} MB in all, {slope:+.1f} KB a thousand messages (least squares): "
        f"{'flat' if flat else 'NOT flat'} (limit {FLAT:.0%}).",
    ]
    return lines, flat


def _slope(x: list[float], y: list[float]) -> float:
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - middle_x) ** 2 for a in x)


def large(count: int, folder: Path, tick: Tick) -> list[str]:
    """Send that many 20 MB messages, all at once."""
    limits = {"message_bytes": LARGE_BYTES + 1_000_000, "connections": count + 100}
    limits |= {"idle_s": 3600, "data_s": 3600}
    with sink(folder) as port, ours(port, folder, limits) as daemon:
        idle, peak, began = daemon.memory(), 0.0, time.monotonic()
        sending = source(daemon.port, count, keep=False, length=LARGE_BYTES, sessions=count)
        while sending.poll() is None:
            peak = max(peak, daemon.memory())
            time.sleep(0.1)
        _finish(sending.returncode)
        seconds = time.monotonic() - began
        tick(count)
        peak, after = max(peak, daemon.memory("VmHWM")), daemon.memory()
    return [
        f"## Resident size with {count} messages of {LARGE_BYTES:,} bytes at once\n",
        "| idle, MB | peak, MB | afterwards, MB | above idle, KB a message | seconds |",
        "|---:|---:|---:|---:|---:|",
        f"| {idle:.1f} | {peak:.1f} | {after:.1f} | {(peak - idle) * 1024 / count:,.0f} | {seconds:.0f} |",
    ]


def _finish(code: int) -> None:
    if code:
        raise SystemExit(f"smtp-source failed with {code}: not every message was taken")
