"""`spamguard doctor`: is all in order, and is a retrain due? A table of checks, each of which changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from .cli_base import ERROR, as_owner, load_config
from .errors import SpamguardError
from .headers import printable

if TYPE_CHECKING:
    from training.drift import Finding

    from .bundle import Bundle
    from .config import Config
    from .config_file import Loaded
    from .encoder import Encoder
    from .labels import Given

ATTENTION = 1  # with 0 and 2 the exit codes of Nagios plugins: ok, warning, critical
_PATIENCE_S = 3.0  # for the next hop
_FULL, _NEARLY_FULL = 100 << 20, 1 << 30  # bytes free
_TEXT = 500

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """One line: what was looked at, how it is, and what to do about it. `due`: it is a reason to retrain."""

    name: str
    state: State
    says: str
    do: str = ""
    due: bool | None = False
    figures: Mapping[str, float] = field(default_factory=dict)


class Scene:
    """What the checks look at. What several of them need is loaded once, and raises SpamguardError for each."""

    def __init__(self, loaded: Loaded, days: float | None = None) -> None:
        self.loaded = loaded
        self.days = days if days is not None else loaded.config.learning.keep_days

    @property
    def config(self) -> Config:
        return self.loaded.config

    @cached_property
    def encoder(self) -> Encoder:
        from .encoder import load

        return load(self.config.encoder.model_copy(update={"allow_download": False}))

    @cached_property
    def served(self) -> Bundle:
        from . import bundle

        return bundle.load(bundle.in_service(self.config.heads_dir, self.config.head.path), self.encoder)

    @cached_property
    def given(self) -> list[Given]:
        from .labels import Labels

        if not self.config.labels_file.exists():
            return []
        with Labels(self.config.labels_file, read_only=True) as labels:
            return labels.rows()


def config_file(scene: Scene) -> Iterator[Check]:
    file = scene.loaded.file
    if file is None:
        yield Check("configuration", "ok", "no file, built-in defaults")
    elif os.access(file, os.R_OK):
        yield Check("configuration", "ok", f"{file}")
    else:
        user = f"user id {os.geteuid()}, which owns {scene.config.state_dir}"
        yield Check("configuration", "fail", f"{file} cannot be read by {user}", "chmod or chown it")


def state_folder(scene: Scene) -> Iterator[Check]:
    folder = scene.config.state_dir
    if not folder.exists():
        yield Check(
            "state folder", "warn", f"{folder} does not exist yet", "start the daemon, or run spamguard retrain"
        )
        return
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"written")
    except OSError as error:
        fault = f"{folder} cannot be written by user id {os.geteuid()}: {error.strerror}"
        yield Check("state folder", "fail", fault, "give the folder and what is in it to the user of the daemon")
    else:
        yield Check("state folder", "ok", f"{folder} can be written")


def disk(scene: Scene) -> Iterator[Check]:
    folder = next(f for f in (scene.config.state_dir, *scene.config.state_dir.parents) if f.exists())
    free = shutil.disk_usage(folder).free
    state: State = "fail" if free < _FULL else "warn" if free < _NEARLY_FULL else "ok"
    do = "" if state == "ok" else "make room; see quarantine.keep_* and learning.keep_*"
    yield Check("disk", state, f"{_size(free)} free at {folder}", do, figures={"free": free})


def encoder(scene: Scene) -> Iterator[Check]:
    import numpy as np

    made = scene.encoder
    if np.isfinite(made.encode(made.tokenize(["One message, to see that it works."], 64))).all():
        yield Check("encoder", "ok", f"{scene.config.encoder.model}, {made.fingerprint}, loads without a network")
    else:
        yield Check("encoder", "fail", f"{scene.config.encoder.model} gives no numbers", "get its files again")


def head(scene: Scene) -> Iterator[Check]:
    origin = scene.served.manifest.provenance
    made = printable(str(origin.get("created", "an unknown day"))[:10], _TEXT)
    counts = f"fitted on {origin.get('ham', '?')} ham and {origin.get('spam', '?')} spam"
    yield Check("head", "ok", f"{scene.served.id} of {made} fits the encoder, {printable(counts, _TEXT)}")


def labels(scene: Scene) -> Iterator[Check]:
    from .labels import Labels

    table = scene.config.learning
    if not scene.given:
        do = "file mail into Junk, or run spamguard retrain ~/Maildir"
        yield Check("labels", "ok", "none yet: mail is judged by what others called spam", do)
        return
    with Labels(scene.config.labels_file, read_only=True) as kept:
        news, waiting = kept.changes()[1], len(kept.waiting())
    says = f"{len(scene.given)}, of which {news} new since the last retrain and {waiting} not encoded yet"
    due = table.refit == "suggest" and news >= table.after
    figures = {"labels": len(scene.given), "new": news, "waiting": waiting}
    yield Check("labels", "warn" if due else "ok", says, "spamguard retrain" if due else "", due, figures)


def features(scene: Scene) -> Iterator[Check]:
    from .featurestore import FeatureStore

    files = sorted(scene.config.features_dir.glob("*.sqlite3"))
    for file in files:
        try:
            with FeatureStore(file.parent, file.stem, read_only=True) as store:
                store.known([""])
        except SpamguardError as error:
            yield Check("kept features", "fail", str(error), f"move {file} away; labelled mail must be found again")
            return
    size = sum(file.stat().st_size for file in files)
    yield Check("kept features", "ok", f"{_size(size)} for {len(files)} encoders", figures={"bytes": size})


def next_hop(scene: Scene) -> Iterator[Check]:
    hop = scene.config.next_hop
    if scene.config.listen.protocol == "off" or not hop.exists:
        return
    name = str(hop.socket) if hop.socket else f"{hop.host}:{hop.port}"
    do = "start it, or correct [next_hop]; until then senders hear 451 and try again"
    try:
        with _connected(hop.socket or (hop.host, hop.port)) as connection:
            greeting = connection.recv(512)
            connection.sendall(b"QUIT\r\n")
    except OSError as error:
        yield Check("next hop", "fail", f"{name} is not reached: {error.strerror or error}", do)
        return
    said = printable(greeting.decode("utf-8", "backslashreplace").strip(), 100)
    if greeting.startswith(b"220"):
        yield Check("next hop", "ok", f"{name}: {said}")
    else:
        yield Check("next hop", "fail", f"{name} does not greet with 220: {said or 'nothing'}", do)


def maildirs(scene: Scene) -> Iterator[Check]:
    """Only what is wrong is named, as there may be thousands."""
    import glob

    from service.mailbox import Mailbox
    from service.watched import fault

    table, found = scene.config.watch, 0
    if not table.maildirs:
        return
    asked = table.model_copy(update={"junk": ""}) if table.create_junk else table  # fault() would create it
    for pattern in map(str, table.maildirs):
        paths = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]  # noqa: PTH207 (as the watcher)
        for path in paths:
            if glob.has_magic(pattern) and not (Path(path) / "new").exists():
                continue
            found += 1
            try:
                wrong = fault(Mailbox(Path(os.path.realpath(path))), asked)
            except OSError as error:
                wrong = str(error)
            if wrong:
                yield Check(
                    "Maildirs", "fail", f"{path}: {wrong}", "give it to the user of the daemon, or correct [watch]"
                )
    if not found:
        yield Check("Maildirs", "warn", "none matches watch.maildirs", "correct [watch]")
    else:
        yield Check("Maildirs", "ok", f"{found} watched")


def quarantine(scene: Scene) -> Iterator[Check]:
    from service.quarantine import Quarantine

    folder = scene.config.quarantine_path
    if not folder.exists():
        return
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        fault = f"{folder} is no folder that user id {os.geteuid()} can read and write"
        yield Check("quarantine", "fail", fault, "give it to the user of the daemon")
        return
    held = sum(1 for _ in Quarantine(folder).held())
    days = scene.config.quarantine.keep_days
    says = f"{held} messages are held; each is deleted after {days:g} days" if held else "empty"
    yield Check("quarantine", "ok", says, "spamguard quarantine list" if held else "", figures={"held": held})


def drift(scene: Scene) -> Iterator[Check]:
    """Whether mail has changed since the head was fitted."""
    from training.drift import drift as look

    if not scene.config.learning.keep_days:
        yield Check("drift", "ok", "not known: nothing is kept of judged mail (learning.keep_days = 0)", due=None)
        return
    for finding in look(scene.config, scene.encoder, scene.served, scene.given, scene.days):
        yield _as_check(finding)


CHECKS: tuple[Callable[[Scene], Iterator[Check]], ...] = (
    config_file, state_folder, disk, encoder, head, labels, features, next_hop, maildirs, quarantine, drift,
)  # fmt: skip


def examine(scene: Scene) -> Iterator[Check]:
    """All checks, in order. What a check raises is its answer, and is not said again of those that need the same."""
    said = set()
    for check in CHECKS:
        try:
            yield from check(scene)
        except (SpamguardError, OSError) as error:
            if str(error) not in said:
                said.add(str(error))
                yield Check(check.__name__.replace("_", " "), "fail", str(error))


@click.command()
@click.option(
    "--days", type=click.FloatRange(0, min_open=True), help="Look at mail of so many days. Default: all kept."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object: the checks, retrain_due, and why.")
@click.pass_context
def doctor(context: click.Context, days: float | None, as_json: bool) -> None:
    """Say what is wrong with this installation, and whether a retrain is due.

    Compares what the daemon judged of late with what the head was fitted on: is more of it unsure, do users overrule
    the head more often than it expects itself, and is it another kind of mail? With too little mail it says so. As
    root it looks as the owner of the state folder does.

    Exit codes: 0 all is well, 1 something needs attention or a retrain is due, 2 something is broken.

    \b
    spamguard doctor
    spamguard doctor --json | jq .retrain_due
    """
    loaded = load_config(context)
    as_owner(loaded.config)
    checks = []
    for check in examine(Scene(loaded, days)):
        checks.append(check)
        if not as_json:
            click.echo(_as_line(check))
    due, reasons = retrain_due(checks)
    if as_json:
        said = {"checks": [asdict(check) for check in checks], "retrain_due": due, "reasons": reasons}
        click.echo(json.dumps(said, indent=1))
    else:
        click.echo(in_words(due, reasons))
    states = {check.state for check in checks}
    context.exit(ERROR if "fail" in states else ATTENTION if "warn" in states else 0)


def retrain_due(checks: list[Check]) -> tuple[bool | None, list[str]]:
    """Whether a retrain is due, and the reasons; None if no question about the mail could be answered."""
    reasons = [f"{check.name}: {check.says}" for check in checks if check.due]
    told = [check.due is not None for check in checks if check.name in _ABOUT_MAIL]
    return bool(reasons) or (False if any(told) else None), reasons


def in_words(due: bool | None, reasons: list[str]) -> str:
    if due:
        return f"A retrain is due ({'; '.join(reasons)}): spamguard retrain"
    return "There is too little mail to tell whether a retrain is due." if due is None else "No retrain is due."


_NAMES = {"unsure": "unsure mail", "overruled": "overruled", "unlike": "kind of mail"}
_ABOUT_MAIL = {"drift", *_NAMES.values()}


def _as_check(finding: Finding) -> Check:
    do = "spamguard retrain ~/Maildir, or label some of it first" if finding.due else ""
    state: State = "warn" if finding.due else "ok"
    return Check(_NAMES[finding.name], state, finding.says, do, finding.due, finding.figures)


def _as_line(check: Check) -> str:
    colour = {"ok": "green", "warn": "yellow", "fail": "red"}[check.state]
    do = f" → {check.do}" if check.do else ""
    return f"{click.style(f'{check.state:4}', fg=colour)}  {check.name:14} {printable(check.says + do, _TEXT)}"


def _connected(to: Path | tuple[str, int]) -> socket.socket:
    if isinstance(to, tuple):
        return socket.create_connection(to, timeout=_PATIENCE_S)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(_PATIENCE_S)
    try:
        connection.connect(str(to))
    except BaseException:
        connection.close()
        raise
    return connection


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GB"
