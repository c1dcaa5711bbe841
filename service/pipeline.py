"""The one road of a message for every ingress: strip forged verdicts, score, decide."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from spamguard import headers, released
from spamguard.actions import Disposition, Fate
from spamguard.errors import ScoringError
from spamguard.policy import Policy
from spamguard.verdict import Verdict

from .batcher import Batcher


class Pipeline:
    """`policy` may be replaced at any time. `count` is told of what is not scored: `unscored.deadline` and so on.

    `release_key` is the file of the key by which released mail is known; without it all mail is judged. The ingresses
    tell `remember` of each verdict, and in a word which message it was, when they have done what it asks for.
    """

    def __init__(
        self,
        batcher: Batcher,
        policy: Policy,
        count: Callable[[str], None] | None = None,
        release_key: Path | None = None,
        remember: Callable[[Verdict, str], None] | None = None,
    ) -> None:
        self.batcher = batcher
        self.policy = policy
        self.remember = remember or (lambda verdict, about: None)
        self._count = count or (lambda name: None)
        self._release_key = release_key
        self._complained = False

    async def handle(
        self,
        raw: bytes,
        recipients: Sequence[bytes] = (b"",),
        one_reply: bool = True,
        rest: Callable[[], bytes] | None = None,
    ) -> list[Disposition]:
        """One disposition for each recipient, as Policy.decide() gives them.

        `raw` is the message, or its beginning with the whole header block where `rest` reads what follows; then the
        dispositions hold the new beginning. Raises DeliveryError where the policy wants the sender to keep what
        could not be scored.
        """
        if headers.released_mark(raw) is not None and (found := await asyncio.to_thread(self._released, raw, rest)):
            message_id, data = found
            return [Disposition(Fate.DELIVER, data, released=message_id)] * len(recipients)
        # Marks are stripped before scoring as well: a verdict must not rest on somebody else's, or on our last one.
        clean = headers.strip(raw)
        try:
            verdict = await self.batcher.score(clean, rest)
        except ScoringError as error:
            self._count(f"unscored.{str(error).partition(':')[0]}")
            return self.policy.failed(raw, error, recipients)
        return self.policy.decide(raw, verdict, recipients, one_reply)

    def _released(self, raw: bytes, rest: Callable[[], bytes] | None) -> tuple[str, bytes] | None:
        """Id and bytes of a message that was released from the quarantine, if its mark is true."""
        try:
            return released.stamped(raw, self._release_key, rest) if self._release_key else None
        except released.KeyFileError as error:
            if not self._complained:
                self._complained = True
                logging.getLogger(__name__).warning("released mail is judged again: %s", error)
            return None
