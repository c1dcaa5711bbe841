"""The listening socket and the connections on it: who may come in, and how all of them end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address

from spamguard.config import Config, ListenTable
from spamguard.errors import ConfigError

from .delivery import Delivery
from .journal import Journal
from .pipeline import Pipeline
from .session import Session
from .smtp import STOPPING, Connection

_BACKLOG = 1024


def bind(listen: ListenTable) -> socket.socket:
    """Take the port, so that one in use is found before the model is loaded; nobody is let in yet."""
    bound = socket.socket(socket.AF_INET6 if ":" in listen.host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((listen.host, listen.port))
    except OSError as error:
        bound.close()
        raise ConfigError(f"listen: cannot bind {listen.host}:{listen.port}: {error.strerror}") from error
    return bound


class Listener:
    def __init__(
        self, config: Config, hostname: str, pipeline: Pipeline, journal: Journal, way_out: Callable[[], Delivery]
    ) -> None:
        self.hostname = hostname
        self.limits = config.limits
        self.pipeline = pipeline
        self.journal = journal
        self.connections: set[Connection] = set()
        self.address = ("", 0)
        self._listen = config.listen
        self._way_out = way_out
        self._server: asyncio.Server | None = None
        self._stopping = False

    async def start(self, bound: socket.socket) -> None:
        """Let clients in. Raises ConfigError if another process listens there."""
        loop = asyncio.get_running_loop()
        self.address = bound.getsockname()[:2]
        try:
            self._server = await loop.create_server(self._connection, sock=bound, backlog=_BACKLOG)
        except OSError as error:
            raise ConfigError(f"listen: cannot listen on {self._listen.host}: {error.strerror}") from error

    def _connection(self) -> Connection:
        return Session(self, self._way_out())

    def refusal(self, connection: Connection) -> bytes | None:
        """The reply for a client that may not come in."""
        if self._stopping:
            return STOPPING
        if len(self.connections) > self.limits.connections:
            self.journal.count("refused.connections")
            return b"421 4.3.2 Too many connections, try again later"
        if self._listen.allow_from and not self._allowed(connection.peer):
            self.journal.write("warning", "refused", peer=connection.peer, cause="not in listen.allow_from")
            self.journal.count("refused.allow_from")
            return b"554 5.7.1 Access denied"
        return None

    def _allowed(self, peer: str) -> bool:
        try:
            address = ip_address(peer.partition("%")[0])
        except ValueError:  # The client was gone before its address could be asked for.
            return False
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return any(address in network for network in self._listen.allow_from)

    async def stop(self, seconds: float) -> int:
        """Stop accepting, dismiss who is idle, let messages under way end; return how many had to be broken off."""
        self._stopping = True
        if self._server is not None:
            self._server.close()
        for connection in tuple(self.connections):
            connection.dismiss()
        late: set[asyncio.Task[None]] = set()
        if self.connections:
            tasks = {connection.task(): connection for connection in self.connections}
            _, late = await asyncio.wait(tasks, timeout=seconds)
            for task in late:
                tasks[task].force()
            if late:
                await asyncio.wait(late)
        if self._server is not None:
            await self._server.wait_closed()
        return len(late)
