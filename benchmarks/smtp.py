"""Throughput of the SMTP path with a scorer that costs nothing, beside its peers in the same run, as ratios.

    python -m benchmarks.smtp [--messages N] [--rounds N]
    python -m benchmarks.smtp --memory [N]      resident size over N messages
    python -m benchmarks.smtp --large [N]       resident size with N messages of 20 MB at once

smtp-source sends 5 KB mail over ten connections through each contestant to one smtp-sink: with many messages a
connection (-d) and with one. Each relay has one core to itself, source and sink have the others. The runs of the
contestants alternate; given are the median of the rounds and the least and the greatest, CPU time of the relay alone,
and the median of the ratios to the plain relay of the same round. Absolute figures do not travel.

Needs smtp-source and smtp-sink (Debian: postfix) and, for two of the rows, spampd and root. spampd filters with
SpamAssassin; with `--maxsize=0` it scans nothing and relays only, which is the row to compare with.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import picture, resident
from .contestants import (
    ROOT,
    SESSIONS,
    Running,
    Unavailable,
    direct,
    ours,
    plain,
    pooled,
    sink,
    source,
    spampd_relaying,
    spampd_scanning,
)

RESULTS = ROOT / "benchmarks/results"
MODES = {"many messages a connection": True, "one message a connection": False}
PLAIN, OURS = "plain aiosmtpd + aiosmtplib relay", "spamguard, null scorer"
DIRECT = "smtp-source straight to smtp-sink"
WARM_UP = 10


@dataclass(frozen=True)
class Contestant:
    name: str
    start: Callable[[int, Path], contextlib.AbstractContextManager[Running]]
    share: float  # of --messages: a quick one sends more, so that a run is long enough to be measured

    def messages(self, options: argparse.Namespace) -> int:
        return max(int(options.messages * self.share), WARM_UP)


CONTESTANTS = (
    Contestant(DIRECT, direct, 4),
    Contestant(OURS, ours, 2),
    Contestant("the plain relay, next hop pooled", pooled, 1),
    Contestant(PLAIN, plain, 1),
    Contestant("spampd, nothing scanned (--maxsize=0)", spampd_relaying, 0.5),
    Contestant("spampd, SpamAssassin's local rules", spampd_scanning, 0.03),
)


@dataclass
class Figures:
    """Of one contestant in one mode, a value a round."""

    rates: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)

    def ratios(self, to: Figures) -> list[float]:
        return [mine / theirs for mine, theirs in zip(self.rates, to.rates, strict=True)]

    def cpu(self, to: Figures) -> str:
        if not any(self.cpu_ms):
            return "|"
        return f"{median(self.cpu_ms):.2f} | {median(self.cpu_ms) / median(to.cpu_ms):.2f}"


Results = dict[str, dict[str, Figures]]


def measure(running: Running, messages: int, length: int, keep: bool, into: Figures | None) -> None:
    cpu, began = running.cpu_seconds(), time.monotonic()
    code = source(running.port, messages, keep=keep, length=length).wait()
    seconds = time.monotonic() - began
    if code:
        raise SystemExit(f"smtp-source failed with {code}")
    if into is not None:
        into.rates.append(messages / seconds)
        into.cpu_ms.append((running.cpu_seconds() - cpu) * 1000 / messages)


def throughput(options: argparse.Namespace, folder: Path, progress: Progress) -> tuple[Results, list[str]]:
    """Figures by contestant and mode, and notes on who could not run."""
    results: Results = {}
    notes: list[str] = []
    task = progress.add_task("starting", total=None)
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(sink(folder))
        there: list[tuple[Contestant, Running]] = []
        for contestant in CONTESTANTS:
            progress.update(task, description=f"starting {contestant.name}")
            try:
                there.append((contestant, stack.enter_context(contestant.start(port, folder))))
            except Unavailable as error:
                notes.append(f"{contestant.name}: {error}")
                continue
            results[contestant.name] = {mode: Figures() for mode in MODES}
        progress.update(task, total=options.rounds * len(MODES) * len(there))
        for number in range(options.rounds + 1):  # The first one warms up.
            for mode, keep in MODES.items():
                for contestant, running in there:
                    progress.update(task, description=f"round {number}, {mode}: {contestant.name}")
                    messages = contestant.messages(options) if number else WARM_UP
                    into = results[contestant.name][mode] if number else None
                    measure(running, messages, options.length, keep, into)
                    progress.advance(task, 1 if number else 0)
    return results, notes


def table(results: Results) -> Iterator[str]:
    for mode in MODES:
        yield f"### {mode.capitalize()}\n"
        yield "| | msg/s, median (least..greatest) | ratio to the plain relay | CPU ms a message | ratio of CPU |"
        yield "|---|---:|---:|---:|---:|"
        for name, modes in results.items():
            one = modes[mode]
            ratios = one.ratios(results[PLAIN][mode])
            spread = f"{min(one.rates):,.0f}..{max(one.rates):,.0f}"
            ratio = f"{median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})"
            yield f"| {name} | {median(one.rates):,.0f} ({spread}) | {ratio} | {one.cpu(results[PLAIN][mode])} |"
        yield ""


def machine() -> str:
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    cores = os.cpu_count()
    return (
        f"{time.strftime('%Y-%m-%d')}, {cores} x {model}, Python {platform.python_version()}, {done.stdout.strip()}"
    )


def report(options: argparse.Namespace, folder: Path, progress: Progress) -> tuple[str, list[str]]:
    """(name of the file, lines of Markdown)."""
    if options.memory or options.large:
        task = progress.add_task("sending", total=options.memory or options.large)
        tick: Callable[[int], None] = lambda count: progress.advance(task, count)  # noqa: E731
        if options.memory:
            return "smtp-memory", resident.over(options.memory, options.length, folder, tick)[0]
        return "smtp-large", resident.large(options.large, folder, tick)
    results, notes = throughput(options, folder, progress)
    title = (
        f"{options.length / 1000:g} KB mail, {SESSIONS} connections, {options.rounds} rounds, a core for the relay"
    )
    if PLAIN not in results:
        raise SystemExit("\n".join(notes))
    ratios = {
        name: {mode: median(one.ratios(results[PLAIN][mode])) for mode, one in modes.items()}
        for name, modes in results.items()
        if name != DIRECT  # no relay, and it would dwarf them all
    }
    notes.append("Messages a run: " + "; ".join(f"{one.name} {one.messages(options):,}" for one in CONTESTANTS))
    (RESULTS / "smtp.svg").write_text(picture.bars(f"SMTP path, ratio to the plain relay: {title}", ratios, OURS))
    return "smtp", [f"## SMTP path with a null scorer: {title}\n", *table(results), *(f"- {note}" for note in notes)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=2000, help="messages a run of the plain relay; 2000")
    parser.add_argument("--rounds", type=int, default=3, help="measured runs of each; 3")
    parser.add_argument("--length", type=int, default=5000, help="bytes of a message; 5000")
    parser.add_argument("--memory", type=int, nargs="?", const=100_000, help="resident size over N messages; 100000")
    parser.add_argument("--large", type=int, nargs="?", const=200, help="resident size with N x 20 MB at once; 200")
    options = parser.parse_args()
    if missing := [name for name in ("smtp-source", "smtp-sink") if not shutil.which(name)]:
        raise SystemExit(f"not installed (Debian: postfix): {', '.join(missing)}")
    RESULTS.mkdir(exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with (
        tempfile.TemporaryDirectory(prefix="spamguard-bench-") as folder,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        name, lines = report(options, Path(folder), progress)
    text = "\n".join([*lines, "", machine(), ""])
    (RESULTS / f"{name}.md").write_text(text)
    if sys.stdout.isatty():
        Console().print(Markdown(text))
    else:
        print(text)


if __name__ == "__main__":
    main()
