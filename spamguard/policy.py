"""Which action follows which label for which recipient, and what happens to mail that could not be scored."""

from __future__ import annotations

import re
from collections.abc import Sequence

from . import headers
from .actions import ACTIONS, Disposition, Fate
from .config import PolicyTable
from .errors import DeliveryError, ScoringError
from .verdict import Label, Verdict

_SOURCE_ROUTE = re.compile(r"@[^:]*:")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*+)"', re.DOTALL)
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)

Names = dict[Label, str]


class Policy:
    def __init__(self, table: PolicyTable) -> None:
        self._table = table
        self._default: Names = {Label.HAM: table.ham, Label.UNSURE: table.unsure, Label.SPAM: table.spam}
        self._own: dict[str, Names] = {}
        for address, row in table.recipients.items():
            given = {Label.HAM: row.ham, Label.UNSURE: row.unsure, Label.SPAM: row.spam}
            self._own[plain(address.encode())] = self._default | {
                label: name for label, name in given.items() if name is not None
            }

    def decide(
        self, raw: bytes, verdict: Verdict, recipients: Sequence[bytes] = (b"",), one_reply: bool = True
    ) -> list[Disposition]:
        """One disposition for each recipient, the same object where the action is the same.

        `raw` is the message as it came. With `one_reply` a refusal would speak for all: unless all are refused,
        those that would be are quarantined.
        """
        names = [self._names(recipient)[verdict.label] for recipient in recipients]
        if one_reply and len(set(names)) > 1:
            names = ["quarantine" if name == "reject" else name for name in names]
        made = {name: ACTIONS[name](raw, verdict, self._table) for name in set(names)}
        return [made[name] for name in names]

    def failed(self, raw: bytes, error: ScoringError, recipients: Sequence[bytes] = (b"",)) -> list[Disposition]:
        """Deliver marked as unscored; with on_failure = "tempfail" raise DeliveryError: the sender keeps the mail."""
        if self._table.on_failure == "tempfail":
            raise DeliveryError(f"not scored: {error}", b"451 4.7.1 Message could not be checked, try again later")
        why = str(error)
        return [Disposition(Fate.DELIVER, headers.stamp_unscored(raw, why), failure=why)] * len(recipients)

    def _names(self, recipient: bytes) -> Names:
        """What is done for an envelope address: its own row, else its domain's, else everybody's."""
        if not self._own:
            return self._default
        local, _, domain = plain(recipient).rpartition("@")
        return self._own.get(f"{local}@{domain}") or self._own.get(f"@{domain}") or self._default


def plain(recipient: bytes) -> str:
    """The mailbox in one spelling, so that no other spelling of it gets round its policy."""
    address = recipient.decode("utf-8", "surrogateescape").lower()
    if route := _SOURCE_ROUTE.match(address):
        address = address[route.end() :]
    local, at, domain = address.rpartition("@")
    if quoted := _QUOTED.fullmatch(local):
        local = _QUOTED_PAIR.sub(r"\1", quoted[1])
    return f"{local}{at}{domain}"
