"""What a session needs of the place that takes the mail; the relay and the Maildir are two of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from spamguard.actions import Disposition

from .envelope import Envelope


class Delivery(Protocol):
    """One client session's way out. Replies are raw SMTP replies without the last line end.

    Each method may raise DeliveryError, whose reply is then owed to the client. `keywords` is what this way can
    do of the EHLO keywords, with their parameters; it is known once `open` has returned.
    """

    keywords: Mapping[bytes, bytes]

    async def open(self) -> None:
        """Get ready, again if need be; cheap when ready."""

    async def xforward(self, line: bytes) -> bytes: ...

    async def mail(self, line: bytes) -> bytes: ...

    async def rcpt(self, line: bytes) -> bytes: ...

    async def reset(self) -> None:
        """Forget the transaction."""

    async def deliver(self, message_id: str, envelope: Envelope, disposition: Disposition) -> bytes:
        """Hand over the message. A 2xx reply means that it is safe with somebody who is not us, or on the disk."""

    async def abort(self) -> None:
        """Break off without a trace of the open transaction."""

    async def close(self) -> None: ...
