"""What is known of a message that is held, and its form on the disk: envelope.json beside the exact bytes."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from spamguard.config import INBOX
from spamguard.verdict import Verdict

from .envelope import Envelope
from .envelope import Path as Mailbox

VERSION = 1
_NAME = re.compile(r"[^./:\0][^/:\0]{0,254}")
_FOLDER = re.compile(r"\.[^/\0]{1,254}")
_FLAGS = re.compile(r"[A-Za-z]{0,52}")


@dataclass(frozen=True, slots=True)
class Source:
    """The place in a Maildir that a message was taken from, and is put back into.

    `maildir` is its path, `folder` `INBOX` or a name such as `.Lists`, `name` the base name (what stands before
    `:`), `flags` the letters behind `:2,`, `mode` the bits of the file's permissions (setuid and its like are not put
    back).
    """

    maildir: str
    folder: str
    name: str
    flags: str
    mtime_ns: int
    mode: int

    def __post_init__(self) -> None:
        """Raises ValueError: none of it may lead out of the Maildir."""
        inside = self.folder == INBOX or (_FOLDER.fullmatch(self.folder) and self.folder != "..")
        if not (inside and _NAME.fullmatch(self.name) and _FLAGS.fullmatch(self.flags)):
            raise ValueError("it is no place in a Maildir")
        if not self.maildir.startswith("/") or "\0" in self.maildir:
            raise ValueError("a Maildir is named by its whole path")
        if not (0 <= self.mode <= 0o7777 and -(2**63) <= self.mtime_ns < 2**63):
            raise ValueError("such a file cannot be")


@dataclass(frozen=True, slots=True)
class Held:
    """A message that is held: the bytes as they came, and what envelope.json says; `verdict` None: not scored.

    `source` None: it came by SMTP or LMTP, and `envelope` says from whom and for whom.
    """

    id: str
    received: float
    envelope: Envelope
    verdict: dict[str, Any] | None
    source: Source | None
    content: bytes


def said_of(envelope: Envelope, verdict: Verdict | None, source: Source | None) -> dict[str, Any]:
    """What envelope.json says of them."""
    return {
        "peer": envelope.peer,
        "helo": _text(envelope.helo),
        "extended": envelope.extended,
        "sender": _mailbox_said(envelope.sender) if envelope.sender else None,
        "recipients": [_mailbox_said(recipient) for recipient in envelope.recipients],
        "verdict": _verdict_said(verdict),
        "source": asdict(source) if source else "lmtp" if envelope.lmtp else "smtp",
    }


def check(said: dict[str, Any]) -> None:
    """Raises KeyError, TypeError, AttributeError or ValueError if it is not what said_of() made."""
    verdict = said["verdict"]
    good = isinstance(said["size"], int) and isinstance(said["peer"], str) and isinstance(said["extended"], bool)
    if verdict is not None:
        good = good and isinstance(verdict["label"], str) and verdict["label"].isascii()
        good = good and isinstance(verdict["probability"], float | int)
        for reason in verdict["reasons"]:
            good = good and isinstance(reason["what"], str) and isinstance(reason["logit"], float | int)
    if not good:
        raise TypeError("it is not what we wrote")


def envelope_in(said: dict[str, Any]) -> Envelope:
    """Raises KeyError, TypeError, AttributeError or ValueError if it is not what said_of() made."""
    return Envelope(
        helo=_bytes(said["helo"]),
        peer=said["peer"],
        extended=said["extended"],
        sender=_mailbox(said["sender"]) if said["sender"] else None,
        recipients=[_mailbox(recipient) for recipient in said["recipients"]],
        lmtp=said.get("source") == "lmtp",
    )


def source_in(said: dict[str, Any]) -> Source | None:
    """Raises as envelope_in(). Before there were watchers, files had no such key."""
    source = said.get("source", "smtp")
    if source in ("smtp", "lmtp"):
        return None
    return Source(**source)


def _mailbox_said(mailbox: Mailbox) -> dict[str, Any]:
    return {"path": _text(mailbox.raw), "parameters": [_text(parameter) for parameter in mailbox.parameters]}


def _verdict_said(verdict: Verdict | None) -> dict[str, Any] | None:
    if verdict is None:
        return None
    return {
        "label": verdict.label.value,
        "probability": verdict.probability,
        "head": verdict.head,
        "encoder": verdict.encoder,
        "reasons": [{"part": r.part, "what": r.what, "logit": r.logit} for r in verdict.reasons],
    }


def _mailbox(said: dict[str, Any]) -> Mailbox:
    return Mailbox(_bytes(said["path"]), tuple(_bytes(parameter) for parameter in said["parameters"]))


def _text(raw: bytes) -> str:
    """Any bytes as text that a person can read and that _bytes() turns back."""
    return raw.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
