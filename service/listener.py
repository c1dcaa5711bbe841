"""The listening socket and the connections on it: who may come in, and how all of them end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
import stat
from collections import Counter
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from spamguard.config import Config, ListenTable, Network, NextHopTable
from spamguard.errors import ConfigError

from .delivery import Delivery
from .journal import Journal
from .pipeline import Pipeline
from .quarantine import Quarantine
from .session import Session
from .smtp import STOPPING, Connection, plain

_BACKLOG = 1024
_LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))

TOO_MANY = b"421 4.3.2 Too many connections, try again later"
TOO_MANY_OF_YOU = b"421 4.7.0 Too many connections from you, try again later"
DENIED = b"554 5.7.1 Access denied"


class _Door(socket.socket):
    """asyncio accepts `backlog` clients at once. Out of descriptors it fails as often, and for each failure tries as
    often again a second later. So it is told a backlog of 1, and the queue of the system is as long as it should be.
    """

    def listen(self, _backlog: int = 1, /) -> None:
        super().listen(_BACKLOG)


def bind(listen: ListenTable) -> socket.socket:
    """Take the port, so that one in use is found before the model is loaded; nobody is let in yet."""
    if listen.socket is not None:
        return _bind_unix(listen.socket, int(listen.socket_mode, 8))
    bound = _Door(socket.AF_INET6 if ":" in listen.host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if listen.host == "::":
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        bound.bind((listen.host, listen.port))
    except OSError as error:
        bound.close()
        raise ConfigError(f"listen: cannot bind {listen.host}:{listen.port}: {error.strerror}") from error
    return bound


def _bind_unix(path: Path, mode: int) -> socket.socket:
    bound = _Door(socket.AF_UNIX)
    try:
        if stat.S_ISSOCK(path.lstat().st_mode) and not _answers(path):
            path.unlink()  # left behind by a process that was killed
    except OSError:
        pass  # Nothing there, or nothing that we may touch: bind says which.
    try:
        bound.bind(str(path))
        path.chmod(mode)
    except OSError as error:
        bound.close()
        raise ConfigError(f"listen.socket: cannot bind {path}: {error.strerror or error}") from error
    return bound


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # A server whose queue is full would have us wait; it is alive all the same.
        return probe.connect_ex(str(path)) != errno.ECONNREFUSED


def is_ourselves(bound: socket.socket, hop: NextHopTable) -> bool:
    """Whether mail for the next hop would come in here again. A name that cannot be resolved is not ourselves yet."""
    near = bound.getsockname()
    if isinstance(near, str):
        try:
            return hop.socket is not None and hop.socket.samefile(near)
        except OSError:
            return False
    if hop.socket is not None or hop.port != near[1]:
        return False
    try:
        found = socket.getaddrinfo(hop.host, hop.port, type=socket.SOCK_STREAM)
    except OSError:
        return False
    # Who connects to the unspecified address reaches the loopback.
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (compared, not listened on)
    far = {loopback.get(address, address) for address in (plain(str(end[0])) for *_, end in found)}
    if not ip_address(near[0]).is_unspecified:
        return plain(near[0]) in far
    return any(_is_local(address) for address in far)


def _is_local(address: str) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def server_tls(listen: ListenTable) -> ssl.SSLContext | None:
    """Raises ConfigError."""
    if listen.tls == "off":
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(str(listen.tls_certificate), str(listen.tls_key) if listen.tls_key else None)
    except OSError as error:
        raise ConfigError(f"listen.tls_certificate: {listen.tls_certificate}: {error.strerror or error}") from error
    return context


class Listener:
    def __init__(
        self,
        config: Config,
        hostname: str,
        pipeline: Pipeline,
        quarantine: Quarantine,
        journal: Journal,
        way_out: Callable[[], Delivery],
        ends_of_ours: set[object],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.hostname = hostname
        self.limits = config.limits
        self.spool = config.state_dir
        self.lmtp = config.listen.protocol == "lmtp"
        self.reject_stray = config.listen.stray_line_ends == "reject"
        self.tls = tls
        self.tls_required = config.listen.tls == "require"
        self.pipeline = pipeline
        self.quarantine = quarantine
        self.journal = journal
        self.connections: set[Connection] = set()
        self.address: tuple[str, int] | str = ""
        self._peers: Counter[str] = Counter()
        self._counted: dict[Connection, str] = {}
        self._ends_of_ours = ends_of_ours
        self._listen = config.listen
        self._way_out = way_out
        self._server: asyncio.Server | None = None
        self._stopping = False

    async def start(self, bound: socket.socket) -> None:
        """Let clients in. Raises ConfigError if another process listens there."""
        loop = asyncio.get_running_loop()
        near = bound.getsockname()
        self.address = near if isinstance(near, str) else near[:2]
        try:
            if isinstance(near, str):
                self._server = await loop.create_unix_server(self._connection, sock=bound, backlog=1)
            else:
                self._server = await loop.create_server(self._connection, sock=bound, backlog=1)
        except OSError as error:
            raise ConfigError(f"listen: cannot listen on {near}: {error.strerror}") from error

    def _connection(self) -> Connection:
        return Session(self, self._way_out())

    def full(self) -> bytes | None:
        """The reply for a client who comes when there is no room for anybody."""
        if self._stopping:
            return STOPPING
        if len(self.connections) > self.limits.connections:
            self.journal.count("refused.connections")
            return TOO_MANY
        return None

    def refusal(self, connection: Connection) -> bytes | None:
        """The reply for a client that may not come in. Whoever may is counted."""
        peer = connection.peer
        if self._listen.allow_from and self._listen.socket is None and not _within(peer, self._listen.allow_from):
            self.journal.write("warning", "refused", peer=peer, cause="not in listen.allow_from")
            self.journal.count("refused.allow_from")
            return DENIED
        if self.limits.connections_per_peer and peer:
            self._uncount(connection)
            if self._peers[peer] >= self.limits.connections_per_peer:
                self.journal.count("refused.connections_per_peer")
                return TOO_MANY_OF_YOU
            self._peers[peer] += 1
            self._counted[connection] = peer
        return None

    def left(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self._uncount(connection)

    def _uncount(self, connection: Connection) -> None:
        if (peer := self._counted.pop(connection, None)) is not None:
            self._peers[peer] -= 1
            if not self._peers[peer]:
                del self._peers[peer]

    def is_own(self, far: Any, near: Any) -> bool:
        """Whether a connection with these ends is one of ours to the next hop, seen from the other side."""
        return (_end(far), _end(near)) in self._ends_of_ours

    def is_balancer(self, peer: str) -> bool:
        return _within(peer, self._listen.proxy_from)

    def may_forward(self, peer: str) -> bool:
        """Who is let in from elsewhere, or through a balancer, could tell the next hop anything."""
        return not peer or _within(peer, (*_LOOPBACK, *self._listen.xforward_from))

    def may_rename(self, peer: str) -> bool:
        return _within(peer, self._listen.xclient_from)

    async def stop(self, seconds: float) -> int:
        """Stop accepting, dismiss who is idle, let messages under way end; return how many had to be broken off."""
        self._stopping = True
        if self._server is not None:
            self._server.close()
            if self._listen.socket is not None:
                with contextlib.suppress(OSError):  # A file left behind is taken over at the next start.
                    self._listen.socket.unlink()
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


def _end(address: Any) -> Any:
    """An address of a socket as the other side sees it: what listens on `::` takes IPv4 for a kind of IPv6."""
    if isinstance(address, tuple) and len(address) == 4 and "." in plain(address[0]):
        return plain(address[0]), address[1]
    return address


def _within(peer: str, networks: tuple[Network, ...]) -> bool:
    if not networks:
        return False
    try:
        address = ip_address(plain(peer))
    except ValueError:  # a Unix socket, or a client gone before its address could be asked for
        return False
    return any(address in network for network in networks)
