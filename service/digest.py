"""A digest: the mail that tells one recipient what was held for him since the last one, and nobody else's mail."""

from __future__ import annotations

import fcntl
import html
import json
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from contextlib import suppress
from email import policy
from email.message import EmailMessage
from email.utils import formatdate
from typing import Any

from spamguard.errors import QuarantineError
from spamguard.headers import printable
from spamguard.policy import plain

from .item_text import when
from .quarantine import Quarantine, read_head, replace_file
from .quarantine_index import Index, Item, in_folder

_MOST = 500  # messages in one digest; the others come in the next
_REASONS = 3
_CELL = 100  # characters
_TOLD = "digests.json"
_LINK = re.compile(r"://|(?<=\bwww)\.|(?<=\bmailto):", re.IGNORECASE)

_HTML = """<html><body style="font-family: sans-serif">
<p>{intro}</p>
<table border="1" cellpadding="4" cellspacing="0">
<tr><th>received</th><th>from</th><th>subject</th><th>score</th><th>why</th><th>to release it</th></tr>
{rows}
</table>
<p>{outro}</p>
</body></html>
"""


class Digests:
    """Who has been told of what: the ids in `digests.json`, so that no clock has a say. A context manager: others
    wait. Raises OSError.
    """

    def __init__(self, quarantine: Quarantine) -> None:
        self._quarantine = quarantine
        self._file = quarantine.folder / _TOLD
        self._lock = -1

    def __enter__(self) -> Digests:
        self._quarantine.create()
        self._lock = os.open(self._quarantine.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)

    def waiting(self, recipient: str) -> list[Item]:
        """What is held for this recipient, and no digest has told him of; oldest first."""
        told = set(self._told().get(_key(recipient), []))
        with Index(self._quarantine) as index:
            waiting = [item for item in index.items() if item.id not in told and item.is_for(recipient)]
        return [item for item in waiting if self._is_for(item, recipient)]

    def _is_for(self, item: Item, recipient: str) -> bool:
        """What the message itself says: nobody shall read another's mail for a fault in the index."""
        with suppress(QuarantineError):
            return in_folder(self._quarantine.path(item.id), item.state).is_for(recipient)
        return False

    def tell(self, recipient: str, items: Iterable[Item]) -> None:
        """From the return on he has been told of these. What is not held any more is forgotten."""
        told = self._told()
        told.setdefault(_key(recipient), []).extend(item.id for item in items)
        there = self._quarantine.states()
        kept = {one: [held for held in ids if held in there] for one, ids in told.items()}
        replace_file(self._file, json.dumps({one: ids for one, ids in kept.items() if ids}).encode())

    def _told(self) -> dict[str, list[str]]:
        """Damaged or not there: nobody has been told. It is better to hear of a mail twice than never."""
        with suppress(OSError, ValueError, RecursionError):
            said = json.loads(self._file.read_bytes())
            if isinstance(said, dict) and all(map(_are_ids, said.values())):
                return said
        return {}


def _are_ids(ids: object) -> bool:
    return isinstance(ids, list) and all(isinstance(one, str) for one in ids)


def new_id() -> str:
    return secrets.token_hex(12)


def mail(quarantine: Quarantine, waiting: Sequence[Item], recipient: str, hostname: str) -> tuple[bytes, list[Item]]:
    """The digest as text and HTML, and the messages in it, which are the oldest if there are too many.

    It shows no addresses but those in From and Subject of these messages. What looks like a link is broken up,
    nothing is fetched from elsewhere, and nothing of a mail is obeyed.
    """
    told = list(waiting[:_MOST])
    count = "one message was" if len(waiting) == 1 else f"{len(waiting)} messages were"
    intro = f"Since the last digest {count} held for {_shown(recipient)} at {hostname}, as they look like spam."
    outro = "What is no spam is released by the command beside it, by the postmaster. The rest is deleted in time."
    if len(told) < len(waiting):
        outro += f" These are the oldest {len(told)} of them; the next digest shows more."
    rows = [_cells(item, _reasons(quarantine, item)) for item in told]
    message = EmailMessage(policy=policy.SMTP)
    message.set_content(f"{intro}\n\n" + "\n".join(map(_as_text, rows)) + f"\n{outro}\n", cte="base64")
    page = _HTML.format(intro=html.escape(intro), outro=html.escape(outro), rows="\n".join(map(_as_html, rows)))
    message.add_alternative(page, subtype="html", cte="base64")
    head = [
        f"From: spamguard <postmaster@{hostname}>",
        f"To: <{recipient}>",
        f"Subject: Held as spam: {len(waiting)} message{'s' * (len(waiting) != 1)}",
        f"Date: {formatdate(localtime=True)}",
        f"Message-ID: <{new_id()}@{hostname}>",
        "Auto-Submitted: auto-generated",
    ]
    # Written here, as the library would rewrite an address that is not of its taste.
    top = "".join(f"{line}\r\n" for line in head).encode("utf-8", "surrogateescape")
    return top + message.as_bytes(), told


def _cells(item: Item, reasons: list[str]) -> dict[str, str]:
    score = "not scored" if item.score is None else f"{item.score:.4f}"
    command = f"spamguard quarantine release {item.id}"
    return {
        "received": when(item.received),
        "from": _shown(item.header_from or item.sender or "nobody"),
        "subject": _shown(item.subject or "(none)"),
        "score": score,
        "why": "; ".join(map(_shown, reasons)) or "-",
        "to release it": command,
    }


def _reasons(quarantine: Quarantine, item: Item) -> list[str]:
    """What pushed it towards spam most."""
    try:
        said, _ = read_head(quarantine.path(item.id), 0)
        reasons: list[dict[str, Any]] = (said["verdict"] or {}).get("reasons", [])
        return [str(reason["what"]) for reason in reasons if reason["logit"] > 0][:_REASONS]
    except (QuarantineError, KeyError, TypeError, AttributeError):
        return []


def _as_text(cells: dict[str, str]) -> str:
    return "".join(f"{name:>13}: {value}\n" for name, value in cells.items())


def _as_html(cells: dict[str, str]) -> str:
    return "<tr>" + "".join(f"<td>{html.escape(value)}</td>" for value in cells.values()) + "</tr>"


def _shown(text: str) -> str:
    """Foreign text on one line, without controls; what a mail reader would make a link of is broken up."""
    return _LINK.sub(lambda found: f"[{found[0][0]}]{found[0][1:]}", printable(text, _CELL))


def _key(recipient: str) -> str:
    return plain(recipient.encode("utf-8", "surrogateescape"))
