"""The heads folder: which heads there are, which one judges, which did before; promote, roll back, prune.

A head is a folder named by its ID that is never changed. `current` is a symbolic link to the one in service; without
it the shipped head judges. `history.jsonl` says what was put in service, when and why, and what the gate refused.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from . import bundle
from .bundle import CURRENT, SHIPPED, Manifest
from .errors import BundleError
from .headers import printable

HISTORY, LOCK = "history.jsonl", ".lock"
# The shipped head goes by this name: an upgrade may bring another one, and that is then the one to go back to.
SHIPPED_NAME = "shipped"
# Long enough to look at what the gate refused, and to promote it all the same.
CANDIDATE_DAYS = 7
_ID = re.compile(r"[0-9a-f]{1,12}")

Why = Literal["retrain", "promote", "rollback", "refused"]
State = Literal["current", "shipped", "earlier", "candidate", "damaged"]


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the history. `id` came into service in place of `previous`; if `why` is "refused", it did not.

    `gate` is what the gate said, in one sentence.
    """

    time: str
    id: str
    previous: str
    why: Why
    gate: str = ""


@dataclass(frozen=True, slots=True)
class Kept:
    """One head in the folder, or the shipped one. `name` is its ID or "shipped"; `fault` says what is damaged."""

    name: str
    folder: Path
    manifest: Manifest | None
    current: bool
    state: State
    fault: str = ""

    @property
    def id(self) -> str:
        return self.manifest.id if self.manifest else self.name

    @property
    def created(self) -> datetime:
        """When it was fitted; of a head that does not say, when its folder was written."""
        try:
            assert self.manifest is not None
            return datetime.fromisoformat(self.manifest.provenance["created"]).astimezone(UTC)
        except (AssertionError, KeyError, TypeError, ValueError):
            return datetime.fromtimestamp(self.folder.stat().st_mtime, UTC)


def pointer(heads_dir: Path) -> str:
    """What `current` points at, or "" if there is no such link: cheap enough to be asked every second."""
    try:
        return str((heads_dir / CURRENT).readlink())
    except OSError:
        return ""


def serving(heads_dir: Path) -> str:
    """The name of the head in service."""
    return Path(pointer(heads_dir)).name or SHIPPED_NAME


def heads(heads_dir: Path) -> list[Kept]:
    """All heads, the newest first, the shipped one last. Raises BundleError if the folder cannot be read."""
    now = serving(heads_dir)
    served = {event.id for event in history(heads_dir) if event.why != "refused"}
    try:
        names = [f.name for f in heads_dir.iterdir() if _ID.fullmatch(f.name)] if heads_dir.is_dir() else []
    except OSError as error:
        raise BundleError(f"{heads_dir}: {error.strerror}") from error
    found = [_kept(heads_dir / name, name, now, "earlier" if name in served else "candidate") for name in names]
    found.sort(key=lambda head: head.created, reverse=True)
    return [*found, _kept(SHIPPED, SHIPPED_NAME, now, "shipped")]


def _kept(folder: Path, name: str, now: str, state: State) -> Kept:
    try:
        manifest, fault = bundle.read_manifest(folder), ""
    except BundleError as error:
        manifest, fault = None, str(error)
    return Kept(
        name, folder, manifest, name == now, "damaged" if fault else "current" if name == now else state, fault
    )


def find(heads_dir: Path, name: str) -> Kept:
    """The head of that ID, or of an ID that begins so; "current" and "shipped" are names as well.

    Raises BundleError if there is none, or more than one.
    """
    name = serving(heads_dir) if name == CURRENT else name
    all_heads = heads(heads_dir)
    found = [head for head in all_heads if name in (head.name, head.id)]
    found = found or [head for head in all_heads if _ID.fullmatch(name) and head.id.startswith(name)]
    if len(found) == 1:
        return found[0]
    fault = "more than one head begins so" if found else "no such head, see `spamguard heads list`"
    raise BundleError(f"{printable(name, 80)}: {fault}")


def history(heads_dir: Path) -> list[Event]:
    """What happened, oldest first. A torn line (power cut) is left out. Raises BundleError."""
    try:
        lines = (heads_dir / HISTORY).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise BundleError(f"{heads_dir / HISTORY}: {error.strerror}") from error
    return [event for line in lines if (event := _event(line)) is not None]


def _event(line: bytes) -> Event | None:
    try:
        event = Event(**json.loads(line))
    except (ValueError, TypeError):
        return None
    return event if all(isinstance(value, str) for value in asdict(event).values()) else None


def promote(heads_dir: Path, name: str, why: Why = "promote", gate: str = "") -> str:
    """Put the head of that name in service by one rename; returns the name of the one that was.

    The history is written first: who is killed between has a line about a head that does not judge, which `before`
    passes over. Raises BundleError.
    """
    if serving(heads_dir) == name:
        return name
    with _locked(heads_dir):
        previous = serving(heads_dir)
        if previous != name:
            if name != SHIPPED_NAME and not (heads_dir / name / bundle.MANIFEST).is_file():
                raise BundleError(f"{heads_dir / name}: no such head")
            _append(heads_dir, Event(_now(), name, previous, why, gate))
            if name == SHIPPED_NAME:
                _take_link_away(heads_dir)
            else:
                bundle.put_in_service(heads_dir / name)
        return previous


def refuse(heads_dir: Path, name: str, gate: str) -> None:
    """Note what the gate said of a candidate that stays one. Raises BundleError."""
    with _locked(heads_dir):
        _append(heads_dir, Event(_now(), name, serving(heads_dir), "refused", gate))


def before(heads_dir: Path) -> str:
    """The name of the head that was in service before the one that is: rollback's target.

    A rollback is no step forward: another one goes back further. Raises BundleError if nothing is known of before.
    """
    now = serving(heads_dir)
    # Each step forward lays the head before it on a pile; a rollback takes one off.
    pile: list[str] = []
    for event in history(heads_dir):
        if event.why in ("retrain", "promote"):
            pile.append(event.previous)
        elif event.why == "rollback" and pile:
            pile.pop()
    while pile and pile[-1] == now:
        pile.pop()
    if not pile:
        raise BundleError(f"{heads_dir}: nothing is known of a head before {now}; see `spamguard heads list`")
    return pile[-1]


def prune(heads_dir: Path, keep: int) -> list[str]:
    """Remove all but the newest `keep` heads; returns the names of those removed.

    The head in service, the one that rollback goes to, and candidates of the last CANDIDATE_DAYS stay. Raises
    BundleError.
    """
    if not heads_dir.is_dir():
        return []
    with _locked(heads_dir):
        stay = {serving(heads_dir), SHIPPED_NAME}
        with suppress(BundleError):  # nothing to go back to
            stay.add(before(heads_dir))
        young = datetime.now(UTC) - timedelta(days=CANDIDATE_DAYS)
        all_heads = [head for head in heads(heads_dir) if head.name != SHIPPED_NAME]
        stay |= {head.name for head in all_heads[:keep]}
        stay |= {head.name for head in all_heads if head.state == "candidate" and head.created > young}
        gone = [head.name for head in all_heads if head.name not in stay]
        for name in gone:
            _remove(heads_dir, name)
    return gone


def sweep(heads_dir: Path) -> None:
    """Remove what a killed process left half-made. Only for who knows that nobody saves a head just now."""
    if not heads_dir.is_dir():
        return
    with _locked(heads_dir):
        for left in [*heads_dir.glob(".draft-*"), *heads_dir.glob(f".{CURRENT}-*")]:
            if left.is_symlink():
                left.unlink(missing_ok=True)
            else:
                shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _locked(heads_dir: Path) -> Iterator[None]:
    """One change of the folder at a time; the lock goes with the process."""
    try:
        with (heads_dir / LOCK).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise BundleError(f"{error.filename or heads_dir}: {error.strerror}") from error


def _append(heads_dir: Path, event: Event) -> None:
    file = heads_dir / HISTORY
    with file.open("a+b") as stream:
        if stream.tell() and (stream.seek(-1, os.SEEK_END), stream.read(1))[1] != b"\n":
            stream.write(b"\n")  # what a power cut tore must not take this line with it
        stream.write(json.dumps(asdict(event)).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def _take_link_away(heads_dir: Path) -> None:
    (heads_dir / CURRENT).unlink(missing_ok=True)
    bundle.sync(heads_dir)


def _remove(heads_dir: Path, name: str) -> None:
    """By another name first, so that no half head bears an ID."""
    gone = heads_dir / f".draft-{name}"
    (heads_dir / name).rename(gone)
    bundle.sync(heads_dir)
    shutil.rmtree(gone, ignore_errors=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
