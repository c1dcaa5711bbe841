"""Which action follows which label, and what happens to mail that could not be scored."""

from __future__ import annotations

from . import headers
from .actions import ACTIONS, Disposition, Fate
from .config import PolicyTable
from .errors import DeliveryError, ScoringError
from .verdict import Label, Verdict


class Policy:
    def __init__(self, table: PolicyTable) -> None:
        self._names = {Label.HAM: table.ham, Label.UNSURE: table.unsure, Label.SPAM: table.spam}
        self._pass_unscored = table.on_failure == "pass"

    def decide(self, raw: bytes, verdict: Verdict) -> Disposition:
        return ACTIONS[self._names[verdict.label]](raw, verdict)

    def failed(self, raw: bytes, error: ScoringError) -> Disposition:
        """Deliver marked as unscored; with on_failure = "tempfail" raise DeliveryError: the sender keeps the mail."""
        if not self._pass_unscored:
            raise DeliveryError(f"not scored: {error}", b"451 4.7.1 Message could not be checked, try again later")
        why = str(error)
        return Disposition(Fate.DELIVER, headers.stamp_unscored(raw, why), failure=why)
