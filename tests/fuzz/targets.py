"""What must hold for any bytes whatever: one function a target, each compared with plain code of its own."""

from __future__ import annotations

import asyncio
import atexit
import functools
import random
import re
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from service import content, envelope
from service.hop import Hop, Reply
from spamguard import headers
from spamguard.config import NextHopTable
from spamguard.decoding import clean
from spamguard.disguise import fold
from spamguard.errors import DeliveryError
from spamguard.features import structure
from spamguard.message import parse
from spamguard.verdict import Cutoffs, Label, Reason, Verdict

# The envelope


def commands(line: bytes) -> None:
    """MAIL and RCPT: never an exception, nothing invented, nothing lost, no control byte let through."""
    assert envelope.has_controls(line) == any(byte < 32 or byte == 127 for byte in line)
    for keyword in (b"FROM:", b"TO:"):
        path = envelope.parse(keyword, line)
        if path is None:
            continue
        assert path.line == line
        argument = line[line.index(b" ") + 1 :]
        assert argument[: len(keyword)].upper() == keyword
        rest = argument[len(keyword) :].lstrip(b" ")
        assert path.raw and rest.startswith(path.raw)
        assert path.raw == path.address or path.raw == b"<" + path.address + b">"
        assert rest[len(path.raw) :].split() == list(path.parameters)
        assert not rest[len(path.raw) :] or rest[len(path.raw) :].startswith(b" ")
        assert 0 <= path.size < 10**20
        if path.raw[:1] != b"<":
            assert not set(path.raw) & set(b" <>")
    address = envelope.address_of(line)
    assert not address or re.fullmatch(r"[0-9a-fA-F.:]+(%\S+)?", address), address


# The header block

_CUTOFFS = Cutoffs(0.5, 0.9)


def _verdict(probability: float, why: str) -> Verdict:
    reasons = (Reason("wide", why, 1.5), Reason("deep", why[::-1], -0.5))
    label = Label.SPAM if probability > 0.9 else Label.HAM
    return Verdict(probability, label, _CUTOFFS, {"deep": 1.0, "wide": -0.5}, reasons, why, why, 1.0)


def _fields(raw: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(name, all of its lines) of each field at the top, read line by line. An mbox line has the name `From `."""
    name, held = b"", b""
    mbox, only_ours = False, True
    for line in re.split(rb"(?<=\n)", raw):
        found, colon, _ = line.partition(b":")
        found = found.rstrip(b" \t").lower()
        if only_ours and not mbox and re.match(rb">?From [^\n]*\n", line):
            found, mbox = b"From ", True
        elif name not in (b"", b"From ") and line[:1] in (b" ", b"\t"):
            held += line
            continue
        elif not colon or not found or not all(33 <= byte <= 126 for byte in found):
            break
        else:
            only_ours &= _ours(found)
        yield name, held
        name, held = found, line
    yield name, held


def _ours(name: bytes) -> bool:
    return name == b"x-spam" or name.startswith((b"x-spam-", b"x-spamguard"))


def header_block(raw: bytes) -> None:
    """strip() takes off all that is ours and nothing else, and undoes stamp(); neither touches the body."""
    clean = headers.strip(raw)
    fields = list(_fields(raw))
    assert headers.strip(clean) == clean
    assert not any(_ours(name) for name, _ in _fields(clean))
    assert clean.endswith(raw[headers.end(raw) :])
    assert headers.hops(raw) == sum(name == b"received" for name, _ in fields)
    if b"x-spamguard-s" not in raw.lower():  # a separator or a tag in the Subject: more is ours than the field
        block = sum(len(held) for _, held in fields)
        # A last line without its end may become a field yet, unless it is too long for the name of one.
        unfinished = b"\n" not in raw[block:] and len(raw) - block <= 998
        assert headers.end(raw) == (len(raw) if unfinished else block)
        assert clean == b"".join(held for name, held in fields if not _ours(name)) + raw[block:]
    why = raw[:300].decode("utf-8", "replace")
    for stamped in (headers.stamp(raw, _verdict(0.01, why)), headers.stamp_unscored(raw, why)):
        assert headers.strip(stamped) == clean
        assert headers.hops(stamped) in (headers.hops(clean), 0)
        added = stamped[: len(stamped) - len(clean)]
        assert stamped.endswith(clean) or clean.startswith((b"From ", b">From "))
        assert added.isascii() or clean.startswith((b"From ", b">From "))
        assert _ours(next(name for name, _ in _fields(stamped) if name not in (b"", b"From ")))
    assert headers.strip(headers.stamp(raw, _verdict(0.99, why), "[SPAM] ")) == clean
    assert headers.hops(headers.prepend(clean, b"Received: by us\r\n")) == headers.hops(clean) + 1


# The content


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    atexit.register(loop.close)
    return loop


def _chance(data: bytes) -> random.Random:
    """Cuts that depend on the input alone, so that what was found is found again."""
    return random.Random(zlib.crc32(data))


def _mended(data: bytes) -> bytes:
    """Byte by byte: a bare LF is CRLF, a stray CR a blank."""
    out = bytearray()
    for i, byte in enumerate(data):
        if byte == 10 and data[i - 1 : i] != b"\r":
            out += b"\r"
        out.append(32 if byte == 13 and data[i + 1 : i + 2] != b"\n" else byte)
    return bytes(out)


def _cut(data: bytes, chance: random.Random) -> list[bytes]:
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(6)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


async def _read(pieces: list[bytes], limit: int, memory: int) -> tuple[content.Content, bytes]:
    reader = asyncio.StreamReader(limit)
    reading = asyncio.ensure_future(content.read(reader, 2**20, memory, Path(tempfile.gettempdir())))
    for piece in pieces:
        reader.feed_data(piece)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    reader.feed_eof()
    return await reading, await reader.read()


def data_on_the_wire(data: bytes) -> None:
    """It ends at the first CRLF.CRLF; what goes on has that once, at its end, and no stray CR or LF."""
    chance = _chance(data)
    end = (b"\r\n" + data).find(content.END)
    # A small memory sends what is beyond it to the spool.
    memory = chance.choice((10, 2**20, 2**20, 2**20))
    try:
        read, rest = _loop().run_until_complete(_read(_cut(data, chance), 8, memory))
    except asyncio.IncompleteReadError:
        assert end < 0
        return
    assert end >= 0 and rest == data[end + 3 :]
    lines = data[:end].split(b"\r\n")[:-1]
    plain = b"".join(line[line.startswith(b".") :] + b"\r\n" for line in lines)
    whole = read.beginning + read.rest()
    assert whole == _mended(plain)
    assert read.size == len(whole) and read.whole == (len(whole) <= memory)
    assert read.mended == (whole != plain)
    sent = b"".join(content.wire(read.pieces()))
    assert (b"\r\n" + sent).count(content.END) == 1 and (b"\r\n" + sent).endswith(content.END)
    assert sent.count(b"\r") == sent.count(b"\n") == sent.count(b"\r\n")
    again, nothing = _loop().run_until_complete(_read(_cut(sent, chance), 8, 2**20))
    assert again.beginning == whole and not again.mended and nothing == b""


# The next hop's replies


async def _replies(pieces: list[bytes]) -> tuple[list[Reply], DeliveryError]:
    hop = Hop(NextHopTable(host="127.0.0.1"), set())
    await hop.send_content((), 1000)
    for piece in pieces:
        if hop.dead is None:  # The transport has been aborted, and reads nothing more.
            hop.data_received(piece)
    hop.connection_lost(None)
    replies = []
    while True:
        try:
            replies.append(await hop.reply("fuzzing", 1))
        except DeliveryError as error:
            return replies, error


def replies_of_the_next_hop(data: bytes) -> None:
    """Whatever a server says: replies that are safe to pass on, then an error that owes 4xx; however it was cut."""
    replies, error = _loop().run_until_complete(_replies(_cut(data, _chance(data))))
    assert error.reply.startswith(b"4")
    for reply in replies:
        lines = reply.raw.split(b"\r\n")
        assert all(re.fullmatch(rb"[2-5][0-9][0-9](?:[ -][^\x00-\x1f\x7f]*)?", line) for line in lines)
        assert {int(line[:3]) for line in lines} == {reply.code}
        assert [line[3:4] == b"-" for line in lines] == [True] * (len(lines) - 1) + [False]
        assert len(lines) <= 500 and all(len(line) <= 2000 for line in lines)
    assert sum(reply.raw.count(b"\n") + 1 for reply in replies) <= data.count(b"\n")
    whole, same = _loop().run_until_complete(_replies([data]))
    assert (whole, type(same), same.reply) == (replies, type(error), error.reply)


# What the judge reads


def mail_as_read(data: bytes) -> None:
    """Any bytes are a message, of texts on one line that can be written and in which nothing is left to mend."""
    message = parse(data)
    texts = (message.subject, message.sender_name, message.body, message.plain)
    assert all(text == " ".join(text.split()) and text.encode() is not None for text in texts)
    together = "\n".join(texts)
    assert fold(together)[0] == together
    assert all(clean(clean(text).text).text == clean(text).text for text in texts)
    values = structure(message)
    assert ((values >= 0) & (values <= 10)).all()


TARGETS: dict[str, Callable[[bytes], None]] = {
    "commands": commands,
    "header_block": header_block,
    "data_on_the_wire": data_on_the_wire,
    "replies_of_the_next_hop": replies_of_the_next_hop,
    "mail_as_read": mail_as_read,
}
