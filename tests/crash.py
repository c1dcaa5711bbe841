"""The crash rig: daemon and next hop are killed and starved under load, and nothing answered 250 may be lost.

    python -m tests.crash [--kills 50] [--messages 20000] [--seed N]

Twenty senders give mail to the whole daemon (with the fake scorer), which passes it on to a next hop that has each
message on the disk before it answers, or puts spam into the quarantine. Three scenes: processes are killed with
SIGKILL or hang at random moments; the disk of the spool is full; file descriptors run out. Exit status 1 if a message
is lost, torn, refused for good or there twice without a reason.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .crash_ledger import DAEMON_KILLED, HOP_HUNG, HOP_KILLED, Judgement, judge
from .crash_scene import Scene

FILES = 96  # enough for twenty senders, each with a way out and a spooled message
CROWD = 300
IDLE_CPU = 0.15  # of one core, while nobody sends anything

_TICK = os.sysconf("SC_CLK_TCK")


class Unmountable(Exception):
    """There can be no small disk here."""


@dataclass
class Outcome:
    name: str
    scene: Scene
    seconds: float
    judgement: Judgement
    more: dict[str, str] = field(default_factory=dict)

    @property
    def complaints(self) -> list[str]:
        return [*self.judgement.complaints, *self.scene.unmet]


def _outcome(name: str, scene: Scene, began: float, **more: str) -> Outcome:
    return Outcome(name, scene, time.monotonic() - began, judge(scene.load, scene.copies(), scene.faults), more)


async def killed(scene: Scene, count: int) -> Outcome:
    """SIGKILL for the daemon that many times, for the next hop half as often, and a fifth as often that hangs."""
    began = time.monotonic()
    to_hop = [scene.kill_hop] * (count // 2) + [scene.hang_hop] * max(1, count // 5)
    scene.rng.shuffle(to_hop)
    async with scene.running(), asyncio.TaskGroup() as group:
        group.create_task(scene.spread([scene.kill_daemon] * count))
        group.create_task(scene.spread(to_hop))
    return _outcome("killed and hung", scene, began)


async def disk_full(scene: Scene) -> Outcome:
    """The disk of the spool is full, then nearly full, then free."""
    began, senders = time.monotonic(), scene.senders
    scene.state.mkdir()
    with _small_disk(scene.state, megabytes=8 + len(scene.load) // 20):
        put_off = 0
        async with scene.running():
            await scene.reached(len(scene.load) // 10)
            ballast = scene.state / "ballast"
            _fill(ballast)
            before = senders.put_off.total()
            await asyncio.sleep(3)
            put_off = senders.put_off.total() - before
            os.truncate(ballast, max(0, ballast.stat().st_size - 500_000))  # room for two messages of twenty
            await asyncio.sleep(1)
            ballast.unlink()
        if not put_off:
            scene.unmet.append("nothing was put off while the disk was full")
        return _outcome("disk full", scene, began, **{"4xx while the disk was full": f"{put_off}"})


async def descriptors_exhausted(scene: Scene) -> Outcome:
    """A crowd of idle connections takes all file descriptors, and leaves again. The scene must have FILES of them."""
    began, share, held = time.monotonic(), 0.0, 0
    async with scene.running(), contextlib.AsyncExitStack() as crowd:
        await scene.reached(len(scene.load) // 4)
        for _ in range(CROWD):
            _, writer = await asyncio.open_connection("127.0.0.1", scene.port)
            crowd.callback(writer.close)
        await asyncio.sleep(2)
        scene.senders.going.clear()
        await asyncio.sleep(1)
        pid = scene.daemon.popen.pid
        share = await _cpu_share(pid, 3)
        held = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        scene.senders.going.set()
        await asyncio.sleep(1)
    if share > IDLE_CPU:
        scene.unmet.append(f"the daemon spins: {share:.0%} of a core while nobody sends anything")
    more = {"CPU beside the idle crowd": f"{share:.0%}", "descriptors taken": f"{held} of {FILES}"}
    return _outcome("descriptors exhausted", scene, began, **more)


async def _cpu_share(pid: int, seconds: float) -> float:
    def used() -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / _TICK

    before, began = used(), time.monotonic()
    await asyncio.sleep(seconds)
    return (used() - before) / (time.monotonic() - began)


@contextlib.contextmanager
def _small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise Unmountable(str(error)) from error
    if done.returncode:
        raise Unmountable(done.stderr.strip())
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _fill(file: Path) -> None:
    with file.open("wb", buffering=0) as out:
        for size in (65_536, 4096):
            with contextlib.suppress(OSError):
                while out.write(bytes(size)) == size:
                    pass


ROWS: dict[str, Callable[[Outcome], object]] = {
    "messages": lambda it: f"{len(it.scene.load):,}",
    "answered 250": lambda it: f"{it.scene.senders.accepted:,}",
    DAEMON_KILLED: lambda it: _times(it, DAEMON_KILLED),
    HOP_KILLED: lambda it: _times(it, HOP_KILLED),
    HOP_HUNG: lambda it: _times(it, HOP_HUNG),
    "answered 4xx, sent again": lambda it: it.scene.senders.put_off.total(),
    "not answered, sent again": lambda it: it.scene.senders.unanswered,
    "found at the next hop": lambda it: f"{it.judgement.found['next hop']:,}",
    "found in the quarantine": lambda it: f"{it.judgement.found['quarantine']:,}",
    "lost": lambda it: len(it.judgement.lost),
    "torn": lambda it: len(it.judgement.torn),
    "refused for good": lambda it: len(it.judgement.refused),
    "duplicates": lambda it: it.judgement.duplicates.total(),
    "seconds to start": lambda it: f"{sum(it.scene.starts) / len(it.scene.starts):.1f}",
    "seconds in all": lambda it: round(it.seconds),
}


def _times(outcome: Outcome, kind: str) -> int:
    return sum(fault.kind == kind for fault in outcome.scene.faults)


def report(outcomes: Sequence[Outcome], console: Console) -> bool:
    """Print what happened; whether all is well."""
    table = Table("", *(outcome.name for outcome in outcomes))
    for name, value in ROWS.items():
        table.add_row(name, *(str(value(outcome)) for outcome in outcomes))
    console.print(table)
    for outcome in outcomes:
        reasons = Counter({f"duplicates: {why}": count for why, count in outcome.judgement.duplicates.items()})
        for what, count in sorted((outcome.scene.senders.put_off | reasons).items()):
            console.print(f"{outcome.name}: {count} x {what}")
        for what, measured in outcome.more.items():
            console.print(f"{outcome.name}: {what}: {measured}")
        for complaint in outcome.complaints:
            console.print(f"{outcome.name}: FAILED: {complaint}", style="red")
    return not any(outcome.complaints for outcome in outcomes)


async def play(name: str, scene: Scene, act: Awaitable[Outcome]) -> Outcome:
    """Show progress on a terminal until the act is over."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task, acting = progress.add_task(name, total=len(scene.load)), asyncio.ensure_future(act)
        while not acting.done():
            await asyncio.wait([acting], timeout=0.2)
            progress.update(task, completed=scene.senders.settled)
    return await acting


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="times that the daemon is killed; 50")
    parser.add_argument("--messages", type=int, default=20_000, help="messages of the first scene; 20000")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="default: any")
    options = parser.parse_args()
    few, seed, outcomes = max(200, options.messages // 20), options.seed, list[Outcome]()
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(f"seed {seed}")
    with tempfile.TemporaryDirectory(prefix="spamguard-crash-") as folder:
        for name in ("kills", "disk", "files"):
            Path(folder, name).mkdir()
        scene = Scene(Path(folder, "kills"), options.messages, seed)
        outcomes.append(asyncio.run(play("kills", scene, killed(scene, options.kills))))
        scene = Scene(Path(folder, "disk"), few, seed, large=0.5)
        try:
            outcomes.append(asyncio.run(play("disk full", scene, disk_full(scene))))
        except Unmountable as error:
            console.print(f"disk full: skipped, no small disk can be mounted: {error}")
        scene = Scene(Path(folder, "files"), few, seed, pause_s=0.1, files=FILES)
        outcomes.append(asyncio.run(play("descriptors", scene, descriptors_exhausted(scene))))
    raise SystemExit(0 if report(outcomes, console) else 1)


if __name__ == "__main__":
    main()
