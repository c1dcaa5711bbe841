"""What a session needs of the place that takes the mail; the relay and the Maildir are two of them."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Protocol

from .content import Content
from .envelope import Envelope

OUR_FAULT = b"451 4.3.0 Internal error, try again later"
NO_SPACE = b"452 4.3.1 Insufficient storage, try again later"


def storage_fault(error: OSError) -> bytes:
    """The reply owed when a message cannot be written. The text of the error is for the log: it names files."""
    return NO_SPACE if error.errno in (errno.ENOSPC, errno.EDQUOT) else OUR_FAULT


class Delivery(Protocol):
    """One client session's way out. Replies are raw SMTP replies without the last line end.

    Each method may raise DeliveryError, whose reply is then owed to the client. `keywords` is what this way can
    do of the EHLO keywords, with their parameters; it is known once `open` has returned. `per_recipient` says that
    one recipient may get a message that another is refused.
    """

    keywords: Mapping[bytes, bytes]
    per_recipient: bool

    async def open(self) -> None:
        """Get ready, again if need be; cheap when ready."""

    async def xforward(self, line: bytes) -> bytes: ...

    async def mail(self, line: bytes) -> bytes: ...

    async def rcpt(self, line: bytes) -> bytes: ...

    async def reset(self) -> None:
        """Forget the transaction."""

    async def deliver(self, message_id: str, envelope: Envelope, message: Content, junk: bool) -> list[bytes]:
        """Hand over the message to the recipients of this envelope, which are all or some of those accepted.

        Return one reply for each. A 2xx reply means that it is safe with somebody who is not us, or on the disk.
        """

    async def abort(self) -> None:
        """Break off without a trace of the open transaction."""

    async def close(self) -> None: ...
