"""The storm: mail is delivered, read, filed and junked faster than the watcher can look, and the watcher is killed.

    python -m tests.storm [--messages 30000] [--kills 5] [--seed N]

Three processes deliver into three watched Maildirs of one daemon (with the fake scorer). Three scenes: a user acts on
the mail meanwhile and the watcher is killed with SIGKILL; all comes at once; it comes steadily. Exit status 1 if a
message is lost, altered, doubled, not judged exactly once, in the wrong folder or under a wrong label.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .storm_ledger import ACTS, AGAIN, LABELLED, MOVED, TAKEN, Judgement, judge
from .storm_scene import Scene

STEADY_RATE = 50  # messages a second
STEADY_SHARE = 20


@dataclass
class Outcome:
    name: str
    scene: Scene
    seconds: float
    judgement: Judgement

    @property
    def complaints(self) -> list[str]:
        return [*self.judgement.complaints, *self.scene.unmet]


def _outcome(name: str, scene: Scene, began: float) -> Outcome:
    return Outcome(name, scene, time.monotonic() - began, judge(scene.evidence()))


def killed(scene: Scene, kills: int, linger_s: float = 20) -> Outcome:
    """A user is at work and the watcher is killed, while mail arrives and is judged, and the user for longer."""
    began = time.monotonic()
    with scene.running():
        scene.begin(user=True)
        scene.kill_at_random_moments(kills)
        scene.settle(linger_s)
    return _outcome("killed", scene, began)


def undisturbed(name: str, scene: Scene) -> Outcome:
    """Nothing but mail."""
    began = time.monotonic()
    with scene.running():
        scene.begin(user=False)
        scene.settle()
    return _outcome(name, scene, began)


def percentile(values: Sequence[float], share: float) -> str:
    if not values:
        return "-"
    return f"{sorted(values)[min(len(values) - 1, int(share * len(values)))]:.2f} s"


def _per_second(outcome: Outcome) -> str:
    """From the first delivery to the last verdict."""
    delays = outcome.judgement.delays
    return f"{len(delays) / outcome.judgement.seconds:,.0f}" if delays else "-"


ROWS: dict[str, Callable[[Outcome], object]] = {
    "messages": lambda it: f"{len(it.scene.load):,}",
    "times killed": lambda it: len(it.scene.lives) - 1,
    ACTS: lambda it: f"{it.judgement.counts[ACTS]:,}",
    "judged": lambda it: f"{len(it.judgement.delays):,}",
    AGAIN: lambda it: it.judgement.counts[AGAIN],
    TAKEN: lambda it: f"{it.judgement.counts[TAKEN]:,}",
    MOVED: lambda it: f"{it.judgement.counts[MOVED]:,}",
    LABELLED: lambda it: f"{it.judgement.counts[LABELLED]:,}",
    "last label after the user's end": lambda it: f"{it.scene.labels_late:.0f} s" if it.scene.labels_late else "-",
    "delay p50, delivered while it was up": lambda it: percentile(it.judgement.delays_up, 0.5),
    "delay p99": lambda it: percentile(it.judgement.delays_up, 0.99),
    "delay p50, all": lambda it: percentile(it.judgement.delays, 0.5),
    "delay p99, all": lambda it: percentile(it.judgement.delays, 0.99),
    "judged a second": _per_second,
    "seconds in all": lambda it: round(it.seconds),
    "faults": lambda it: sum(map(len, it.judgement.faults.values())) + len(it.scene.unmet),
}


def report(outcomes: Sequence[Outcome], console: Console) -> bool:
    """Print what happened; whether all is well."""
    table = Table("", *(outcome.name for outcome in outcomes))
    for name, value in ROWS.items():
        table.add_row(name, *(str(value(outcome)) for outcome in outcomes))
    console.print(table)
    for outcome in outcomes:
        for complaint in outcome.complaints:
            console.print(f"{outcome.name}: FAILED: {complaint}", style="red", markup=False)
    return not any(outcome.complaints for outcome in outcomes)


def play(name: str, scene: Scene, act: Callable[[Scene], Outcome]) -> Outcome:
    """Show progress on a terminal until the act is over."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=len(scene.load))
        scene.progress = lambda judged: progress.update(task, completed=judged)
        return act(scene)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5, help="times that the watcher is killed; 5")
    parser.add_argument("--messages", type=int, default=30_000, help="messages of the first two scenes; 30000")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="default: any")
    options = parser.parse_args()
    messages, seed, outcomes = options.messages, options.seed, list[Outcome]()
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(f"seed {seed}")
    with tempfile.TemporaryDirectory(prefix="spamguard-storm-") as name:
        folder = Path(name)
        scene = Scene(folder / "killed", messages, seed, old=messages // 100, fsync=True, rescan_s=5)
        outcomes.append(play("killed", scene, lambda scene: killed(scene, options.kills)))
        scene = Scene(folder / "at-once", messages, seed)
        outcomes.append(play("at once", scene, lambda scene: undisturbed("at once", scene)))
        scene = Scene(folder / "steady", messages // STEADY_SHARE, seed, rate=STEADY_RATE)
        outcomes.append(play("steady", scene, lambda scene: undisturbed(f"{STEADY_RATE} a second", scene)))
    raise SystemExit(0 if report(outcomes, console) else 1)


if __name__ == "__main__":
    main()
