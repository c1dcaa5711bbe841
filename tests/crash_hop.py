"""A next hop to be killed: it answers 250 to the final dot only when its record of the message is on the disk.

    python -m tests.crash_hop PORT RECORDS

A line of RECORDS is `number attempt whole|torn .`; of a message that breaks off before its dot there is none, nor
was it answered. SIGKILL may leave half a line at the end, which has no dot and counts for nothing.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

from .crash_mail import attempt_of, whole

_RECORD = re.compile(rb"(\d+) (\d+) (whole|torn) \.")
_EHLO = b"250-next.example\r\n250-PIPELINING\r\n250-SIZE 40000000\r\n250-8BITMIME\r\n250 ENHANCEDSTATUSCODES"
_REPLIES = {
    b"EHLO": _EHLO,
    b"MAIL": b"250 2.1.0 Ok",
    b"RCPT": b"250 2.1.5 Ok",
    b"RSET": b"250 2.0.0 Ok",
    b"NOOP": b"250 2.0.0 Ok",
}


def records(file: Path) -> list[tuple[int, int, bool]]:
    """(number, attempt, whole) of each message that was recorded."""
    found = (_RECORD.fullmatch(line) for line in file.read_bytes().split(b"\n"))
    return [(int(one[1]), int(one[2]), one[3] == b"whole") for one in found if one]


class Records:
    """Appends lines; those that arrive while one fsync runs share the next one."""

    def __init__(self, file: Path) -> None:
        self._fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(self._fd, b"\n")  # ends what a kill may have left
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._arrived = asyncio.Event()

    async def add(self, line: bytes) -> None:
        """Return when the line is on the disk."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((line, done))
        self._arrived.set()
        await done

    async def write(self) -> None:
        while await self._arrived.wait():
            self._arrived.clear()
            batch, self._waiting = self._waiting, []
            await asyncio.to_thread(self._commit, b"".join(line for line, _ in batch))
            for _, done in batch:
                if not done.done():
                    done.set_result(None)

    def _commit(self, data: bytes) -> None:
        assert os.write(self._fd, data) == len(data)
        os.fsync(self._fd)


async def _session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: Records) -> None:
    mail = b""
    writer.write(b"220 next.example ESMTP\r\n")
    while line := await reader.readline():
        verb = line[:4].upper()
        if verb == b"MAIL":
            mail = line
        if verb == b"QUIT":
            writer.write(b"221 2.0.0 Bye\r\n")
            return
        if verb == b"DATA":
            writer.write(b"354 go on\r\n")
            wire = await reader.readuntil(b"\r\n.\r\n")
            data = (b"\r\n" + wire[:-3]).replace(b"\r\n.", b"\r\n")[2:]
            number, attempt = attempt_of(mail)
            await kept.add(b"%d %d %s .\n" % (number, attempt, b"whole" if whole(data, number) else b"torn"))
            writer.write(b"250 2.0.0 Ok: on the disk\r\n")
            continue
        writer.write(_REPLIES.get(verb, b"500 5.5.2 what?") + b"\r\n")


async def serve(port: int, file: Path) -> None:
    kept = Records(file)
    writing = asyncio.create_task(kept.write())

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _session(reader, writer, kept)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connection, "127.0.0.1", port, limit=2**26, backlog=1024)
    await asyncio.gather(server.serve_forever(), writing)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Path(sys.argv[2])))
