"""The daemon: builds the parts and joins them, says when it is ready, reloads, and stops in order."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from spamguard import __version__
from spamguard.config import Config, Loaded, load
from spamguard.errors import ConfigError
from spamguard.policy import Policy

from . import batcher
from .batcher import Batcher
from .delivery import Delivery
from .journal import Journal
from .listener import Listener, bind
from .maildir import Maildir, MaildirDelivery
from .notify import notify, reloading
from .pipeline import Pipeline
from .relay import Relay

# Tables whose change takes effect only in a new process.
_FIXED = ("state_dir", "listen", "next_hop", "maildir", "limits", "log")


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
        self._started_with = loaded.config
        self._load_scorer = load_scorer or _load_scorer

    async def run(self) -> None:
        adopted = self.journal.adopt_logging()
        loop = asyncio.get_running_loop()
        stop, reload = asyncio.Event(), asyncio.Event()
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
        bound = bind(config.listen)
        try:
            way_out = self._way_out(config, hostname)
            self.scorer = await asyncio.to_thread(self._load_scorer, config, None)
            self.batcher = Batcher(self.scorer, config.batch)
            await self.batcher.start()
            await self.batcher.warm_up(self.scorer)
            self.pipeline = Pipeline(self.batcher, Policy(config.policy))
            listener = Listener(config, hostname, self.pipeline, self.journal, way_out)
            await listener.start(bound)
            self.listener = listener
        except BaseException:
            bound.close()
            await self.stop()
            raise
        self._announce(time.monotonic() - began)

    def _way_out(self, config: Config, hostname: str) -> Callable[[], Delivery]:
        """What makes the way out of each client session."""
        if config.next_hop.host:
            return lambda: Relay(config.next_hop, hostname)
        maildir = Maildir(config.maildir_path, config.maildir.junk)
        try:
            maildir.create()
        except OSError as error:
            raise ConfigError(f"maildir.path: {error}") from error
        return lambda: MaildirDelivery(maildir, hostname)

    def _announce(self, seconds: float) -> None:
        config = self.loaded.config
        host, port = self.address
        to = f"{config.next_hop.host}:{config.next_hop.port}" if config.next_hop.host else str(config.maildir_path)
        head, encoder, megabytes = self.scorer.head_id, self.scorer.encoder_id, _resident_megabytes()
        if self.journal.on_terminal:
            self.journal.say(
                f"spamguard {__version__} is ready after {seconds:.1f} s, {megabytes} MB resident: "
                f"SMTP on {host}:{port}, mail goes to {to}; head {head}, encoder {encoder}. Ctrl-C stops it."
            )
        else:
            self.journal.write(
                "info",
                "ready",
                version=__version__,
                listen=f"{host}:{port}",
                to=to,
                head=head,
                encoder=encoder,
                seconds=round(seconds, 2),
                resident_mb=megabytes,
            )
        self._notify_ready()

    def _notify_ready(self) -> None:
        host, port = self.address
        notify("READY=1", f"STATUS=SMTP on {host}:{port}, head {self.scorer.head_id}")

    @property
    def address(self) -> tuple[str, int]:
        assert self.listener is not None
        return self.listener.address

    async def stop(self) -> None:
        """Stop accepting, end the sessions, then the scoring they wait for."""
        notify("STOPPING=1")
        if self.listener is not None:
            late = await self.listener.stop(self.loaded.config.limits.shutdown_s)
            self.journal.write("info", "stopped", broken_off=late, **dict(self.journal.counters))
        if self.batcher is not None:
            await self.batcher.stop()

    async def _reload_whenever(self, wanted: asyncio.Event) -> None:
        while True:
            await wanted.wait()
            wanted.clear()
            await self.reload()

    async def reload(self) -> bool:
        """Read file, head and cut-offs again and swap them in. What is wrong is logged and changes nothing."""
        assert self.batcher is not None
        reloading()
        old = self.loaded.config
        try:
            loaded = await asyncio.to_thread(load, self.loaded.file)
            new = loaded.config
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


def _resident_megabytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return pages * resource.getpagesize() // 2**20
