"""The content of DATA on the wire: where it ends, its dots, and its line ends (RFC 5321, 2.3.8 and 4.5.2)."""

from __future__ import annotations

import asyncio
import re

END = b"\r\n.\r\n"
_STRAY_CR = re.compile(rb"\r(?!\n)")
_BARE_LF = re.compile(rb"(?<!\r)\n")


async def read(reader: asyncio.StreamReader, limit: int) -> bytes | None:
    """Read up to and including the final dot. None, after draining all of it, if it is over `limit` bytes.

    Only CRLF.CRLF ends a message. Every other spelling (LF.LF, CR.CR, CRLF.LF, ...) is content, so that nobody
    can hide a second message in the first (CVE-2023-51764 and its kin). Lines may be of any length.
    """
    # The CRLF before a dot that comes first of all is the one of the DATA command, and has been read.
    reader._buffer[:0] = b"\r\n"  # type: ignore[attr-defined]
    chunks: list[bytes] | None = []
    size = 0
    ended = False
    while not ended:
        try:
            chunk = await reader.readuntil(END)
            ended = True
        except asyncio.LimitOverrunError as error:
            chunk = await reader.readexactly(error.consumed)
        size += len(chunk)
        # The dots are still in it, at most one for three bytes ("." CRLF); SIZE counts without them (RFC 1870, 5).
        if size > limit + limit // 3 + len(b"\r\n." + END):
            chunks = None
        if chunks is not None:
            chunks.append(chunk)
    if chunks is None:
        return None
    data = b"".join(chunks).replace(b"\r\n.", b"\r\n")[2:-2]
    return data if len(data) <= limit else None


def normalised(data: bytes) -> tuple[bytes, bool]:
    """Every line end as CRLF, and whether anything had to be mended: a bare LF becomes CRLF, a stray CR a space.

    This is what Postfix 3.9 does (smtpd_forbid_bare_newline, cleanup_replace_stray_cr_lf). What goes to the next
    server can then be read in one way only.
    """
    pairs = data.count(b"\r\n")
    if data.count(b"\r") == pairs and data.count(b"\n") == pairs:
        return data, False
    return _BARE_LF.sub(b"\r\n", _STRAY_CR.sub(b" ", data)), True


def wire(data: bytes) -> bytes:
    """The content as DATA wants it: CRLF lines, dots stuffed, the final dot at the end and nowhere else."""
    data, _ = normalised(data)
    stuffed = (b"\r\n" + data).replace(b"\r\n.", b"\r\n..")[2:]
    return stuffed + (b".\r\n" if not data or stuffed.endswith(b"\r\n") else END)
