"""One line a message, and the counters; nothing from a mail can begin a line of its own or reach the terminal raw."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from typing import Any, TextIO

import structlog

from spamguard.actions import Disposition
from spamguard.config import LogTable
from spamguard.headers import printable

from .envelope import Envelope

_TEXT = 300
_NUMBERS = (int, float, type(None))
_RECIPIENTS = 10


class Journal:
    """What the daemon writes to standard error. It never raises: a message must not fail for its log line."""

    def __init__(self, table: LogTable, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._addresses = table.addresses
        self.counters: Counter[str] = Counter()
        text = table.format == "text" or (table.format == "auto" and self._stream.isatty())
        renderer: Any = structlog.processors.JSONRenderer()
        if text:
            renderer = structlog.dev.ConsoleRenderer(colors=self._stream.isatty(), pad_event_to=0)
        self._log = structlog.wrap_logger(
            structlog.WriteLogger(self._stream),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=False),
                _plain,
                renderer,
            ],
            wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, table.level.upper())),
        ).bind()  # once, not for each line

    @property
    def on_terminal(self) -> bool:
        return self._stream.isatty()

    def message(
        self,
        message_id: str,
        ingress: str,
        envelope: Envelope,
        size: int,
        disposition: Disposition | None,
        reply: bytes,
        **more: Any,
    ) -> None:
        """The line of one message whose last reply has been chosen."""
        verdict = disposition.verdict if disposition else None
        accepted = reply[:1] == b"2"
        fate = disposition.fate.value if disposition and (accepted or disposition.reply) else "refused"
        label = disposition.label if disposition else "unscored"
        self.count(f"{fate}.{label}")
        fields: dict[str, Any] = {"id": message_id, "ingress": ingress, "peer": envelope.peer}
        if self._addresses:
            fields["sender"] = envelope.sender.address if envelope.sender else b""
            fields["recipients"] = [path.address for path in envelope.recipients[:_RECIPIENTS]]
        fields |= {"recipient_count": len(envelope.recipients), "size": size, "label": label}
        if verdict:
            fields |= {"p": round(verdict.probability, 4), "head": verdict.head}
        if disposition and disposition.failure:
            fields["failure"] = disposition.failure
        if disposition and disposition.released:
            fields["released"] = disposition.released
        self.write("info", "message", **fields, fate=fate, reply=reply, **more)

    def say(self, text: str) -> None:
        """A line for a person at the terminal."""
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def count(self, name: str) -> None:
        self.counters[name] += 1

    def write(self, level: str, event: str, **fields: Any) -> None:
        try:
            getattr(self._log, level)(event, **fields)
        except Exception as error:
            # The stream is gone, or a value cannot be written. There is nowhere left to say so but the counters.
            self.counters[f"journal.{type(error).__name__}"] += 1

    def adopt_logging(self) -> logging.Handler:
        """Send warnings of the libraries down the same road. Returns the handler, to be removed at the end."""
        handler = _Adopted(self)
        logging.getLogger().addHandler(handler)
        return handler


class _Adopted(logging.Handler):
    def __init__(self, journal: Journal) -> None:
        super().__init__(logging.WARNING)
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        level = "error" if record.levelno >= logging.ERROR else "warning"
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text = f"{text}: {record.exc_info[1]!r}"
        self._journal.write(level, "library", logger=record.name, text=text)


def _plain(_logger: Any, _method: str, fields: Any) -> Any:
    first = {key: fields.pop(key) for key in ("timestamp", "level", "event")}
    return {key: _one_line(value) for key, value in (first | fields).items()}


def _one_line(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value, _TEXT)
    if isinstance(value, _NUMBERS):
        return value
    if isinstance(value, bytes):
        return printable(value.decode("utf-8", "backslashreplace"), _TEXT)
    if isinstance(value, list):
        return [_one_line(item) for item in value]
    return printable(str(value), _TEXT)
