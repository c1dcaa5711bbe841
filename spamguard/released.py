"""The mark of a message that was released from the quarantine: only who has the key can make it, for one message.

The mark is `X-Spamguard-Released: id=...; t=...; h=...; mac=...`. `mac` is an HMAC-SHA256 (RFC 2104) over id, time,
body, and the fields that tell who says what to whom: taken to another message it is worth nothing. (Whoever has a
released message may send that very message on, for a week.) What servers add on the way does not count; of the fields
that they add where they are missing, `h` names the ones that were there. A server that rewrites content (8bit to
quoted-printable, say) breaks the mark; then the mail is judged again.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from . import headers
from .errors import SpamguardError

VALID_S = 7 * 86_400
KEY_BYTES = 32

_MARK = re.compile(r"id=([0-9a-f]{8,64}); t=([0-9]{1,12}); h=([a-z:-]*); mac=([0-9a-f]{64})")
# Missing fields that a server may add, as Postfix does for mail from its own addresses.
_ADDED = (b"date", b"from", b"message-id", b"to")
_COVERED = (
    *(*_ADDED, b"cc", b"reply-to", b"sender", b"resent-from", b"subject", b"list-unsubscribe"),
    *(b"mime-version", b"content-disposition", b"content-transfer-encoding", b"content-type"),
)
_FOLD = re.compile(rb"\r?\n")


class KeyFileError(SpamguardError):
    """The file of the key cannot be read, or cannot be made."""


def sign(raw: bytes, message_id: str, key: bytes, now: float | None = None) -> bytes:
    """The message without verdicts of anybody's, with our mark on top; `now` in seconds since 1970."""
    clean = headers.strip(raw)
    there = {name for name, _ in headers.fields(clean)}
    names = ":".join(name.decode() for name in _ADDED if name in there)
    stamp = int(time.time() if now is None else now)
    mac = _mac(clean, b"", message_id, stamp, names, key)
    return headers.stamp_released(clean, message_id, f"id={message_id}; t={stamp}; h={names}; mac={mac}")


def is_ours(raw: bytes, key: bytes, rest: Callable[[], bytes] | None = None, now: float | None = None) -> str | None:
    """The id in the mark if it was made with this key, for this message, and in the last 7 days; else None.

    `raw` is the message, or its beginning with the whole header block where `rest` reads what follows.
    """
    found = _MARK.fullmatch(headers.released_mark(raw) or "")
    if found is None:
        return None
    message_id, stamp, names, mac = found[1], int(found[2]), found[3], found[4]
    # In both directions: a clock may have jumped back since, and who has the key needs no time of the future.
    if abs((time.time() if now is None else now) - stamp) > VALID_S:
        return None
    right = _mac(headers.strip(raw), rest() if rest else b"", message_id, stamp, names, key)
    return message_id if hmac.compare_digest(mac, right) else None


def stamped(raw: bytes, key_file: Path, rest: Callable[[], bytes] | None = None) -> tuple[str, bytes] | None:
    """Id, and message with our block on top and the mark kept, of what was released; None if it is to be judged.

    Arguments as those of is_ours(). Raises KeyFileError.
    """
    mark = headers.released_mark(raw)
    key = key_in(key_file) if mark is not None else None
    message_id = is_ours(raw, key, rest) if key else None
    return (message_id, headers.stamp_released(raw, message_id, mark or "")) if message_id else None


def _mac(clean: bytes, rest: bytes, message_id: str, stamp: int, names: str, key: bytes) -> str:
    body = (clean[headers.body_start(clean) :] + rest).replace(b"\r\n", b"\n").rstrip(b"\n")
    named = names.encode().split(b":")
    top = list(headers.fields(clean))
    # No value holds a line end, so that nothing can be read in two ways.
    said = [b"spamguard released 1", message_id.encode(), b"%d" % stamp, names.encode()]
    for name in _COVERED:
        if name in named or name not in _ADDED:
            said += [name + b":" + value for found, value in top if found == name]
    # Blanks count in a boundary: with other ones another text would be seen.
    said += [_FOLD.sub(b"", field).strip() for field in headers.raw_fields(clean, b"content-type")]
    said.append(hashlib.sha256(body).hexdigest().encode())
    return hmac.new(key, b"\n".join(said), hashlib.sha256).hexdigest()


def key_in(file: Path) -> bytes | None:
    """The key; None if there is none yet, as nothing has ever been released. Raises KeyFileError."""
    try:
        key = file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KeyFileError(f"{file}: {error.strerror}") from error
    if len(key) != KEY_BYTES:
        raise KeyFileError(f"{file}: is no key of {KEY_BYTES} bytes; remove it, and a new one is made")
    return key


def make_key(file: Path) -> bytes:
    """The key, made if there is none; of two who make one at once both get the same. Raises KeyFileError."""
    if (key := key_in(file)) is not None:
        return key
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as new:  # noqa: PTH123
                new.write(secrets.token_bytes(KEY_BYTES))
                new.flush()
                os.fsync(new.fileno())
            with suppress(FileExistsError):
                os.link(temporary, file)  # a rename would take the place of another's
        finally:
            temporary.unlink(missing_ok=True)
        folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise KeyFileError(f"{file}: {error.strerror}") from error
    return key_in(file) or make_key(file)
