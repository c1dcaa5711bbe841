"""The one road of a message for every ingress: strip forged verdicts, score, decide."""

from __future__ import annotations

from spamguard import headers
from spamguard.actions import Disposition
from spamguard.errors import ScoringError
from spamguard.policy import Policy

from .batcher import Batcher


class Pipeline:
    """`policy` may be replaced at any time."""

    def __init__(self, batcher: Batcher, policy: Policy) -> None:
        self.batcher = batcher
        self.policy = policy

    async def handle(self, raw: bytes) -> Disposition:
        """Raises DeliveryError where the policy wants the sender to keep what could not be scored."""
        # Marks are stripped before scoring as well: a verdict must not rest on somebody else's, or on our last one.
        clean = headers.strip(raw)
        try:
            verdict = await self.batcher.score(clean)
        except ScoringError as error:
            return self.policy.failed(clean, error)
        return self.policy.decide(clean, verdict)
