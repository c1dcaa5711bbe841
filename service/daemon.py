"""The daemon: builds the parts and joins them, says when it is ready, reloads, and stops in order."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from spamguard import __version__
from spamguard.config import Config, NextHopTable
from spamguard.config_file import Loaded, load
from spamguard.errors import ConfigError
from spamguard.policy import Policy

from . import batcher
from .batcher import Batcher
from .delivery import Delivery
from .hop import tls_context
from .journal import Journal
from .listener import Listener, bind, is_ourselves, server_tls
from .maildir import Maildir, MaildirDelivery
from .notify import notify, reloading
from .pipeline import Pipeline
from .quarantine import Quarantine
from .refit import Refit
from .relay import NextHop, Relay
from .remember import Remember
from .retention import expire_hourly
from .watch import Watcher

# Tables whose change takes effect only in a new process.
_FIXED = ("state_dir", "listen", "next_hop", "maildir", "watch", "quarantine", "limits", "log")

# What is open beside the connections: libraries, the model's files, threads' pipes, the feature store.
_OTHER_FILES = 200

# How often is looked whether another head has been put in service.
_LOOK_S = 1.0

_GARBAGE = 10_000  # objects; what a message leaves behind in cycles is a few dozen


class Scorer(batcher.Scorer[Any], Protocol):
    """What the daemon needs of a scorer: to name it, and to keep its encoder when only the head changes."""

    @property
    def head_id(self) -> str: ...

    @property
    def encoder_id(self) -> str: ...

    @property
    def encoder(self) -> Any: ...


LoadScorer = Callable[[Config, Any], Scorer]


def run(loaded: Loaded, load_scorer: LoadScorer | None = None) -> None:
    """Serve until SIGTERM or SIGINT. Raises SpamguardError if it cannot start."""
    asyncio.run(Daemon(loaded, load_scorer).run())


class Daemon:
    scorer: Scorer
    pipeline: Pipeline

    def __init__(self, loaded: Loaded, load_scorer: LoadScorer | None = None, journal: Journal | None = None) -> None:
        self.loaded = loaded
        self.journal = journal or Journal(loaded.config.log)
        self.batcher: Batcher | None = None
        self.listener: Listener | None = None
        self.next_hop: NextHop | None = None
        self.watcher: Watcher | None = None
        self._expiry: asyncio.Task[None] | None = None
        self.refit: Refit | None = None
        self._remember = Remember(lambda: self.loaded.config, self.journal)
        self._reload_wanted = asyncio.Event()
        self._current = ""  # what heads/current pointed at when a head was loaded last
        self._started_with = loaded.config
        self._load_scorer = load_scorer or _load_scorer

    async def run(self) -> None:
        adopted = self.journal.adopt_logging()
        loop = asyncio.get_running_loop()
        stop, reload = asyncio.Event(), self._reload_wanted
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, reload.set)
        starting, stopping = asyncio.create_task(self.start()), asyncio.create_task(stop.wait())
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.wait([starting])
            return
        try:
            await starting
            # What is loaded now stays: the collector need not look at it again and again, nor after so few objects.
            gc.collect()
            gc.freeze()
            gc.set_threshold(_GARBAGE, 20, 20)
            reloads = asyncio.create_task(self._reload_whenever(reload))
            await stopping
            reloads.cancel()
            await asyncio.wait([reloads])
            await self.stop()
        finally:
            stopping.cancel()
            logging.getLogger().removeHandler(adopted)

    async def start(self) -> None:
        """Return when the model is warm and clients are let in. Raises SpamguardError, with nothing left open."""
        began = time.monotonic()
        config = self.loaded.config
        hostname = config.listen.hostname or socket.gethostname()
        notify("STATUS=Loading the model")
        bound = None if config.listen.protocol == "off" else bind(config.listen)
        try:
            if bound and config.next_hop.exists and await asyncio.to_thread(is_ourselves, bound, config.next_hop):
                raise ConfigError(f"next_hop: {_name(config.next_hop)} is our own listener")
            tls = server_tls(config.listen)
            quarantine = Quarantine(config.quarantine_path)
            self._create("state_dir", lambda: config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True))
            self._create("quarantine.path", quarantine.create)
            way_out = self._way_out(config, hostname) if bound else None
            self._current = _pointer(config)
            self.scorer = await asyncio.to_thread(self._load_scorer, config, None)
            self.batcher = Batcher(self.scorer, config.batch)
            await self.batcher.start()
            await self.batcher.warm_up(self.scorer)
            self._remember.start()
            policy, key = Policy(config.policy), config.release_key
            self.pipeline = Pipeline(self.batcher, policy, self.journal.count, key, self._remember.note)
            self._raise_limit_of_files(config)
            if config.watch.maildirs:
                watcher = Watcher(config, self.pipeline, quarantine, self.journal)
                self.watcher = watcher
                await watcher.start()
            if bound and way_out:
                ends = self.next_hop.ends if self.next_hop else set()
                listener = Listener(config, hostname, self.pipeline, quarantine, self.journal, way_out, ends, tls)
                await listener.start(bound)
                self.listener = listener
            self._expiry = asyncio.create_task(expire_hourly(quarantine, config.quarantine, self.journal))
            self.refit = Refit(lambda: self.loaded, self.batcher, self.journal, self._reload_wanted.set)
            self.refit.start()
        except BaseException:
            if bound:
                bound.close()
            await self.stop()
            raise
        self._announce(time.monotonic() - began)

    def _way_out(self, config: Config, hostname: str) -> Callable[[], Delivery]:
        """What makes the way out of each client session."""
        if config.next_hop.exists:
            self.next_hop = next_hop = NextHop(config.next_hop, hostname, tls_context(config.next_hop))
            return lambda: Relay(next_hop)
        maildir = Maildir(config.maildir_path, config.maildir.junk)
        self._create("maildir.path", maildir.create)
        return lambda: MaildirDelivery(maildir, hostname)

    def _create(self, key: str, create: Callable[[], None]) -> None:
        try:
            create()
        except OSError as error:
            raise ConfigError(f"{key}: {error}") from error

    def _raise_limit_of_files(self, config: Config) -> None:
        """Each connection may need one to its client, one to the next hop, and a spool."""
        wanted = 3 * config.limits.connections + _OTHER_FILES
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if soft != resource.RLIM_INFINITY and soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        if most < wanted:
            self.journal.write("warning", "few open files are allowed", limit=most, wanted=wanted)

    def _announce(self, seconds: float) -> None:
        config = self.loaded.config
        to = _name(config.next_hop) if config.next_hop.exists else str(config.maildir_path)
        watched = self.watcher.maildirs if self.watcher else []
        head, encoder, megabytes = self.scorer.head_id, self.scorer.encoder_id, _resident_megabytes()
        if self.journal.on_terminal:
            goes = f", mail goes to {to}" if self.listener else ""
            self.journal.say(
                f"spamguard {__version__} is ready after {seconds:.1f} s, {megabytes} MB resident: "
                f"{self._what()}{goes}; head {head}, encoder {encoder}. Ctrl-C stops it."
            )
        else:
            self.journal.write(
                "info",
                "ready",
                version=__version__,
                listen=self._listens_on() if self.listener else None,
                to=to if self.listener else None,
                watch=watched,
                head=head,
                encoder=encoder,
                seconds=round(seconds, 2),
                resident_mb=megabytes,
            )
        self._notify_ready()

    def _notify_ready(self) -> None:
        notify("READY=1", f"STATUS={self._what()}, head {self.scorer.head_id}")

    def _what(self) -> str:
        """What is served, in words."""
        parts = []
        if self.listener is not None:
            parts.append(f"{self.loaded.config.listen.protocol.upper()} on {self._listens_on()}")
        if self.watcher is not None:
            count = len(self.watcher.maildirs)
            parts.append(f"watching {count} Maildir{'' if count == 1 else 's'}")
        return ", ".join(parts)

    @property
    def address(self) -> tuple[str, int] | str:
        """Host and port, or the path of the Unix socket."""
        assert self.listener is not None
        return self.listener.address

    def _listens_on(self) -> str:
        return self.address if isinstance(self.address, str) else "{}:{}".format(*self.address)

    async def stop(self) -> None:
        """Stop accepting, end the sessions, then the scoring they wait for."""
        notify("STOPPING=1")
        if self._expiry is not None:
            self._expiry.cancel()
            await asyncio.wait([self._expiry])
        late = await self.listener.stop(self.loaded.config.limits.shutdown_s) if self.listener is not None else 0
        if self.watcher is not None:
            await self.watcher.stop()
        await self._remember.stop()
        if self.listener is not None or self.watcher is not None:
            self.journal.write("info", "stopped", broken_off=late, **dict(self.journal.counters))
        if self.next_hop is not None:
            self.next_hop.close()
        if self.refit is not None:
            await self.refit.stop()
        if self.batcher is not None:
            await self.batcher.stop()

    async def _reload_whenever(self, wanted: asyncio.Event) -> None:
        """At SIGHUP and after a refit all is read again; if another head was put in service, that head alone."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await wanted.wait()
            if wanted.is_set():
                wanted.clear()
                await self.reload()
            elif _pointer(self.loaded.config) != self._current:
                await self.reload(self.loaded)

    async def reload(self, loaded: Loaded | None = None) -> bool:
        """Swap in the head and cut-offs of `loaded`, else of the file, which is read again. What is wrong is logged
        and changes nothing.
        """
        assert self.batcher is not None
        reloading()
        old = self.loaded.config
        try:
            if loaded is None:
                loaded = await asyncio.to_thread(load, self.loaded.file)
            new = loaded.config
            # Noted first: a head that is put in service meanwhile is loaded next, one that cannot be is tried once.
            self._current = _pointer(new)
            encoder = self.scorer.encoder if new.encoder == old.encoder else None
            scorer = await asyncio.to_thread(self._load_scorer, new, encoder)
            await self.batcher.warm_up(scorer)
        except Exception as error:
            self.journal.write("error", "reload failed, nothing has changed", cause=str(error))
            self._notify_ready()
            return False
        fixed = [name for name in _FIXED if getattr(new, name) != getattr(self._started_with, name)]
        if fixed:
            self.journal.write("warning", "these tables need a restart", tables=fixed)
        self.loaded, self.scorer = loaded, scorer
        self.batcher.scorer, self.batcher.table = scorer, new.batch
        self.pipeline.policy = Policy(new.policy)
        self.journal.write("info", "reloaded", head=scorer.head_id, encoder=scorer.encoder_id)
        self._notify_ready()
        return True


def _load_scorer(config: Config, encoder: Any) -> Scorer:
    from spamguard.scorer import Scorer as BertScorer  # torch; not before the port is ours

    return BertScorer.from_config(config, encoder)


def _pointer(config: Config) -> str:
    """What heads/current points at. A call of no account: the state folder is local."""
    from spamguard.heads_dir import pointer  # numpy; not before the port is ours

    return pointer(config.heads_dir)


def _name(hop: NextHopTable) -> str:
    return str(hop.socket) if hop.socket else f"{hop.host}:{hop.port}"


def _resident_megabytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return pages * resource.getpagesize() // 2**20
