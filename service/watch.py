"""Ingress for Maildirs: judges new mail where it lies, and sees what the user moves.

Events (inotify, by watchdog) say at once what has come; a look at everything, at the start and every few minutes,
finds what no event told. Either only says that there is something to look at, so none can be believed too much.
"""

from __future__ import annotations

import asyncio
import contextlib
import glob
import os
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from watchdog.events import (
    DirCreatedEvent,
    DirMovedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    FileSystemEvent,
)
from watchdog.observers import Observer

from spamguard import headers
from spamguard.config import INBOX, Config
from spamguard.errors import ConfigError

from .filing import Arrival, Filing
from .journal import Journal
from .mailbox import KEYWORD_FILE, Mailbox, Refused, Spot, TooLarge
from .moves import HAM, Moves
from .pipeline import Pipeline
from .quarantine import Quarantine
from .sightings import Known, Sightings
from .watched import Watched, fault

T = TypeVar("T")

_EVENTS: list[type[FileSystemEvent]] = [
    *(FileCreatedEvent, FileMovedEvent, FileDeletedEvent),
    *(DirCreatedEvent, DirMovedEvent),
]
# The kernel keeps so many events that nobody has fetched, and drops the rest (inotify(7)).
_KERNEL_LIMIT, _USUAL_LIMIT = Path("/proc/sys/fs/inotify/max_queued_events"), 16_384
_TICK_S = 1.0
_WITHOUT_EVENTS_S = 10.0  # between two looks
# A delivery that puts a copy into another folder (fileinto :copy) has ended by then.
_ONE_DELIVERY_S = 60.0
_THREADS = 8
_PRUNE_S = 86_400.0
_WARNINGS = 10_000

_Key = tuple[str, str, str]  # Maildir, folder, and what is unique in the name


class Watcher:
    """Start it when the pipeline works; stop it before the batcher."""

    def __init__(self, config: Config, pipeline: Pipeline, quarantine: Quarantine, journal: Journal) -> None:
        self._table = config.watch
        self._limits = config.limits
        self._one_large = asyncio.Semaphore(1)  # or `concurrency` times the largest would be in memory
        # What comes by SMTP into a Maildir of ours has been judged; only what the user moves there is of interest.
        serves = config.listen.protocol != "off" and not config.next_hop.exists
        self._ours = os.path.realpath(config.maildir_path) if serves else None
        self._journal = journal
        self._threads = ThreadPoolExecutor(min(config.watch.concurrency, _THREADS), "watch")
        self._sightings = Sightings(config.watch_file)
        self._filing = Filing(config, pipeline, quarantine, self._sightings, journal, self._threads)
        self._moves = Moves(config, self._sightings, journal)
        self._watched: dict[str, Watched] = {}
        self._observer: Any = None
        self._waiting: dict[_Key, tuple[Watched, Spot]] = {}
        self._queue: asyncio.Queue[_Key] = asyncio.Queue()
        self._busy: set[_Key] = set()
        self._warned: set[str] = set()
        self._events = 0
        self._rescan = asyncio.Event()
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop

    @property
    def maildirs(self) -> list[str]:
        return sorted(self._watched)

    async def start(self) -> None:
        """Return when events come in; what is there already is judged from now on. Raises ConfigError."""
        self._loop = asyncio.get_running_loop()
        await self._in_thread(self._find, True)
        await self._in_thread(self._finish)
        await self._in_thread(self._listen)
        self._tasks = [asyncio.create_task(self._work()) for _ in range(self._table.concurrency)]
        self._tasks += [asyncio.create_task(self._look_around()), asyncio.create_task(self._tick())]

    async def stop(self) -> None:
        """Finish what is being filed; the rest stays where it is, for the next start."""
        self._stopping = True
        if self._observer is not None:
            await asyncio.to_thread(self._observer.stop)
        for task in self._tasks[self._table.concurrency :]:
            task.cancel()
        if self._tasks:
            for _ in range(self._table.concurrency):
                self._queue.put_nowait(("", "", ""))
            _, late = await asyncio.wait(self._tasks, timeout=self._limits.shutdown_s)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        await asyncio.to_thread(self._threads.shutdown)
        self._sightings.close()

    # What there is to watch.

    def _find(self, starting: bool = False) -> None:
        """Take in the Maildirs that the configuration names. Raises ConfigError at the start."""
        for pattern in map(str, self._table.maildirs):
            by_name = not glob.has_magic(pattern)
            for given in [pattern] if by_name else sorted(glob.glob(pattern)):  # noqa: PTH207
                path = os.path.realpath(given)  # so that one with two names is watched once
                if path not in self._watched and (wrong := self._take_in(path, by_name)):
                    if starting and by_name:
                        raise ConfigError(f"watch.maildirs: {given}: {wrong}")
                    self._warn(path, "Maildir not watched", maildir=given, cause=wrong)
        if starting and not self._watched:
            self._journal.write("warning", "no Maildir matches watch.maildirs yet")

    def _take_in(self, path: str, by_name: bool) -> str | None:
        """Why a Maildir cannot be watched; None: it is from now on. What only matches a pattern may be none."""
        box = Mailbox(Path(path))
        try:
            if not by_name and not (box.path / "new").exists():
                return None
            if wrong := fault(box, self._table):
                return wrong
            self._sightings.begin(path, partial(self._old, box))
        except OSError as error:
            return str(error)
        self._watched[path] = Watched(box, judges=path != self._ours)
        return None

    def _old(self, box: Mailbox) -> list[Spot]:
        """What is no new mail at our first start: all but what lies in new/ of a folder that is judged."""
        return [
            spot
            for folder in box.folders()
            for spot in box.spots(folder)
            if spot.part == "cur" or folder not in self._table.folders
        ]

    def _finish(self) -> None:
        """End what the last process was at."""
        for maildir, known in self._sightings.unfinished():
            try:
                self._filing.finish(Mailbox.at(maildir), known)
            except OSError as error:
                self._journal.write("error", "not finished", maildir=maildir, content=known.content, cause=str(error))

    def _listen(self) -> None:
        """See to it that events of all Maildirs come in, also of one that was removed and made again."""
        if self._table.poll_s or self._stopping:
            return
        if self._observer is None:
            # watchdog 7 says so when a folder and what is in it are made at once; it has what it needs all the same.
            warnings.filterwarnings("ignore", "Callback with id", RuntimeWarning)
            self._observer = Observer()
            self._observer.start()
        alive = {emitter.watch for emitter in self._observer.emitters if emitter.is_alive()}
        for watched in self._watched.values():
            try:
                inode = watched.box.inode
                if watched.watch in alive and watched.inode == inode:
                    continue
                if watched.watch is not None:
                    with contextlib.suppress(KeyError):
                        self._observer.unschedule(watched.watch)
                watched.watch = None
                handler = _Handler(partial(self._told, watched))
                watched.watch = self._observer.schedule(
                    handler, watched.maildir, recursive=True, event_filter=_EVENTS
                )
                watched.inode = inode
            except OSError as error:
                self._warn(f"events {watched.maildir}", "no events", maildir=watched.maildir, cause=str(error))

    # Events and rescans: both end in notice().

    def _told(self, watched: Watched, event: FileSystemEvent) -> None:
        """Called in watchdog's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._take_event, watched, event)

    def _take_event(self, watched: Watched, event: FileSystemEvent) -> None:
        self._events += 1
        here, there = os.fsdecode(event.src_path), os.fsdecode(event.dest_path)
        # Dovecot gives a message the letter of a new keyword first, and says what the letter means after that.
        if event.is_directory or (there or here).endswith(f"/{KEYWORD_FILE}"):
            self._rescan.set()
            return
        source = watched.box.spot(here)
        goes = watched.box.spot(there) if there else None
        if isinstance(event, FileCreatedEvent):
            goes = source
        elif source is not None and (goes is None or goes.folder != source.folder):
            watched.left[source.folder].add(source.unique)
        if goes is not None:
            self._notice(watched, goes)

    def _notice(self, watched: Watched, spot: Spot) -> None:
        """Have a message looked at; if it is waiting already, at its newest place."""
        key = (watched.maildir, spot.folder, spot.unique)
        if key not in self._waiting and key not in self._busy:
            self._queue.put_nowait(key)
        self._waiting[key] = (watched, spot)

    async def _look_around(self) -> None:
        """Look at everything, now and again and whenever there is a reason to."""
        pruned = -_PRUNE_S
        while True:
            self._rescan.clear()
            try:
                if time.monotonic() > pruned + _PRUNE_S:
                    pruned = time.monotonic()
                    await self._in_thread(self._sightings.prune)
                await self._in_thread(self._find)
                await self._in_thread(self._listen)
                await self._in_thread(self._finish)
                for watched in list(self._watched.values()):
                    await self._scan(watched)
            except Exception as error:
                self._journal.write("error", "rescan failed", cause=str(error) or repr(error))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._rescan.wait(), self._pause())
                await asyncio.sleep(_TICK_S)  # what gives one reason often gives more

    def _pause(self) -> float:
        if self._table.poll_s:
            return self._table.poll_s
        deaf = any(watched.watch is None for watched in self._watched.values())
        return min(self._table.rescan_s, _WITHOUT_EVENTS_S) if deaf else self._table.rescan_s

    async def _scan(self, watched: Watched) -> None:
        try:
            for spot in await self._in_thread(self._unknown, watched.box):
                self._notice(watched, spot)
        except OSError as error:
            self._warn(f"scan {watched.maildir}", "Maildir cannot be read", maildir=watched.maildir, cause=str(error))
        else:
            self._warned.discard(f"scan {watched.maildir}")

    def _unknown(self, box: Mailbox) -> list[Spot]:
        """What is not known to lie where it lies, and what may have another keyword by now."""
        found: list[Spot] = []
        folders = box.folders()
        if INBOX not in folders:
            raise NotADirectoryError("it has no folders new and cur any more")
        for folder in folders:
            spots: list[Spot] = []
            found += self._sightings.reconcile(str(box.path), folder, partial(_listed, box, folder, spots))
            found += [spot for spot in spots if any(letter.islower() for letter in spot.flags)]
        self._sightings.keep_folders(str(box.path), folders)
        return found

    async def _tick(self) -> None:
        """Believe what has waited long enough. After a burst that the kernel may have cut, look at everything."""
        burst, limit = 0, _queued_events()
        while True:
            await asyncio.sleep(_TICK_S)
            try:
                for watched in list(self._watched.values()):
                    left, watched.left = watched.left, defaultdict(set)
                    for folder, gone in left.items():
                        for spot in await self._in_thread(self._forget_gone, watched.box, folder, gone):
                            self._notice(watched, spot)
                if not await self._in_thread(self._moves.settle):
                    self._rescan.set()
                self._warned.discard("labels")
            except Exception as error:
                self._warn("labels", "labels from moves are not written", cause=str(error) or repr(error))
            burst = burst + self._events if self._events else 0
            self._events = 0
            if burst > limit // 2:
                burst = 0
                self._rescan.set()

    def _forget_gone(self, box: Mailbox, folder: str, gone: set[str]) -> list[Spot]:
        """Only what is known to have left a folder can come back to it under the same name. What has, already."""
        back = [spot for spot in box.spots(folder) if spot.unique in gone] if box.has(folder) else []
        self._sightings.gone(str(box.path), folder, gone, {spot.unique for spot in back})
        return back

    # One message.

    async def _work(self) -> None:
        while not self._stopping:
            key = await self._queue.get()
            try:
                if found := self._waiting.pop(key, None):
                    self._busy.add(key)
                    await self._look(*found)
            except Exception as error:
                maildir, folder, name = key
                cause = str(error) or repr(error)
                self._warn(f"{key}", "not looked at", maildir=maildir, folder=folder, name=name, cause=cause)
            finally:
                self._busy.discard(key)
                if key in self._waiting:
                    self._queue.put_nowait(key)

    async def _look(self, watched: Watched, spot: Spot) -> None:
        try:
            try:
                await self._take(watched, spot, self._limits.memory_bytes)
            except TooLarge:
                async with self._one_large:
                    await self._take(watched, spot, self._limits.message_bytes)
        except FileNotFoundError:
            pass  # It has another name by now, and there will be, or was, an event for that.
        except (Refused, OSError) as error:
            cause = error.strerror if isinstance(error, OSError) else str(error)
            file = f"{watched.maildir}/{spot}"
            self._warn(file, "not judged", file=file, cause=cause)

    async def _take(self, watched: Watched, spot: Spot, limit: int) -> None:
        if arrival := await self._in_thread(self._identify, watched, spot, limit):
            await self._filing.judge(arrival)

    def _identify(self, watched: Watched, spot: Spot, limit: int) -> Arrival | None:
        """Note where a message lies, and what that says of it if it is known. If it is to be judged, return it."""
        box, maildir, sightings = watched.box, watched.maildir, self._sightings
        stamp, keyword = box.stamp(spot), box.keyword(spot)
        place = sightings.place(maildir, spot)
        if place and place.content and place.stamp == stamp:
            if place.keyword != (keyword.value if keyword else None):
                self._moves.flagged(box, place, spot, keyword)
            return None
        raw = box.read(spot, limit)
        if headers.end(raw[: self._limits.memory_bytes]) >= self._limits.memory_bytes:
            raise Refused("the header block is larger than limits.memory_bytes")
        content = headers.content_hash(raw)
        is_new = watched.judges and spot.folder in self._table.folders and (place is None or bool(place.content))
        known = sightings.message(maildir, content)
        if known and not (is_new and self._is_copy(watched, known)):
            self._moves.arrived(box, known, spot, stamp, keyword)
            return None
        if is_new:
            return Arrival(box, spot, stamp, raw, content, keyword)
        side = self._moves.first_side(spot.folder)
        at = 0.0 if place else None
        sightings.judged(maildir, content, spot, state="seen", side=side, stamp=stamp, keyword=keyword, at=at)
        return None

    def _is_copy(self, watched: Watched, known: Known) -> bool:
        """Whether the same delivery has put a copy into a folder that is not judged, and we saw that one first."""
        if known.state != "seen" or known.side != HAM or not 0 <= time.time() - known.at < _ONE_DELIVERY_S:
            return False
        return any(watched.box.find(*place) for place in self._sightings.places(watched.maildir, known.content))

    def _warn(self, what: str, event: str, **fields: Any) -> None:
        """Say it once, however often it is found again."""
        if what not in self._warned:
            if len(self._warned) >= _WARNINGS:
                self._warned.clear()
            self._warned.add(what)
            self._journal.count("watch.refused")
            self._journal.write("warning", event, **fields)

    async def _in_thread(self, step: Callable[..., T], *arguments: Any) -> T:
        return await self._loop.run_in_executor(self._threads, step, *arguments)


class _Handler:
    """What watchdog wants of a handler."""

    def __init__(self, told: Callable[[FileSystemEvent], None]) -> None:
        self.dispatch = told


def _listed(box: Mailbox, folder: str, spots: list[Spot]) -> list[Spot]:
    spots += box.spots(folder)
    return spots


def _queued_events() -> int:
    try:
        return int(_KERNEL_LIMIT.read_text())
    except (OSError, ValueError):
        return _USUAL_LIMIT
