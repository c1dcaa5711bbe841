"""The one road of a message for every ingress: strip forged verdicts, score, decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from spamguard import headers
from spamguard.actions import Disposition
from spamguard.errors import ScoringError
from spamguard.policy import Policy

from .batcher import Batcher


class Pipeline:
    """`policy` may be replaced at any time. `count` is told of what is not scored: `unscored.deadline` and so on."""

    def __init__(self, batcher: Batcher, policy: Policy, count: Callable[[str], None] | None = None) -> None:
        self.batcher = batcher
        self.policy = policy
        self._count = count or (lambda name: None)

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
        # Marks are stripped before scoring as well: a verdict must not rest on somebody else's, or on our last one.
        clean = headers.strip(raw)
        try:
            verdict = await self.batcher.score(clean, rest)
        except ScoringError as error:
            self._count(f"unscored.{str(error).partition(':')[0]}")
            return self.policy.failed(raw, error, recipients)
        return self.policy.decide(raw, verdict, recipients, one_reply)
