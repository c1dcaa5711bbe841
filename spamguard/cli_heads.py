"""`spamguard heads`: which heads there are, which one judges, and how to go to another one or back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from .cli_base import as_owner, complain, load_config

if TYPE_CHECKING:
    from .config import Config
    from .heads_dir import Kept
    from .replay import Change

_TEXT = 200  # characters
_SENTENCE = 2000
_KEEP = 5


@click.group(subcommand_metavar="COMMAND [ARGS]...")
@click.pass_context
def heads(context: click.Context) -> None:
    """See the heads, compare two of them, put one in service or go back.

    A head is named by its ID, or by its beginning if it is the only such; `current` and `shipped` are names as well.
    As root the commands act as the owner of the state folder, so that the daemon can use what they write.

    \b
    spamguard heads list
    spamguard heads diff current 3f2a
    spamguard heads rollback
    """


@heads.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a head.")
@click.pass_context
def list_(context: click.Context, as_json: bool) -> None:
    """List the heads, newest first: ID, when, state, on what it was fitted, and what the gate said.

    `current` judges mail, `earlier` did, `candidate` never did, `shipped` came with spamguard.
    """
    from .heads_dir import heads as all_heads

    for head in all_heads(load_config(context).config.heads_dir):
        click.echo(json.dumps(_as_json(head)) if as_json else _as_line(head))


@heads.command()
@click.argument("head", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: the manifest, the state and the history.")
@click.pass_context
def show(context: click.Context, head: str, as_json: bool) -> None:
    """Show a head: what it was made of, its figures, what the gate said, and when it was in service."""
    from dataclasses import asdict

    from .heads_dir import find, history

    folder = load_config(context).config.heads_dir
    found = find(folder, head)
    events = [event for event in history(folder) if found.name in (event.id, event.previous)]
    if as_json:
        manifest = found.manifest and found.manifest.model_dump(mode="json")
        click.echo(json.dumps({**_as_json(found), "manifest": manifest, "history": [asdict(e) for e in events]}))
        return
    for line in _lines(found):
        click.echo(line)
    for event in events:
        what = "in service" if event.id == found.name else f"gave way to {_safe(event.id)}"
        what = "refused by the gate" if event.why == "refused" else f"{what} ({event.why})"
        click.echo(f"  {_safe(event.time)}  {what}")


@heads.command()
@click.argument("one", metavar="A")
@click.argument("other", metavar="B")
@click.option(
    "--days",
    type=click.FloatRange(min=0, min_open=True),
    default=14.0,
    show_default=True,
    help="How far to look back.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a message.")
@click.pass_context
def diff(context: click.Context, one: str, other: str, days: float, as_json: bool) -> None:
    """List the messages that two heads would call differently: the mail of the last days, and all labelled mail.

    No text of mail is kept; each message is shown by its ID, its place in the log or in a Maildir, and its label if
    it has one. What the daemon judged is kept for learning.keep_days.
    """
    from .encoder import load as load_encoder
    from .heads_dir import find
    from .replay import replay

    config = load_config(context).config
    pair = find(config.heads_dir, one), find(config.heads_dir, other)
    found, count = replay(config, load_encoder(config.encoder), pair[0].folder, pair[1].folder, days)
    for change in found:
        click.echo(json.dumps(_change_as_json(change)) if as_json else _change_as_line(change))
    if not as_json:
        click.echo(f"{len(found)} of {count} messages would be called otherwise by {pair[1].id} than by {pair[0].id}")


@heads.command()
@click.argument("head", metavar="ID")
@click.pass_context
def promote(context: click.Context, head: str) -> None:
    """Put a head in service, whatever the gate said of it. A running daemon takes it within a second or two.

    \b
    spamguard heads promote 3f2a9c
    spamguard heads promote shipped
    """
    from .heads_dir import find
    from .heads_dir import promote as put

    config = as_owner(load_config(context).config)
    found = find(config.heads_dir, head)
    _check(config, found)
    previous = put(config.heads_dir, found.name)
    _say_what_judges(config, found, previous)
    if found.state == "candidate" and (said := _gate(found)):
        click.echo(f"the gate said of it: {said}")


@heads.command()
@click.pass_context
def rollback(context: click.Context) -> None:
    """Go back to the head that was in service before; once more goes back further. The shipped head may be one.

    The head left stays, and `heads promote` takes it again.
    """
    from .heads_dir import before, find
    from .heads_dir import promote as put

    config = as_owner(load_config(context).config)
    found = find(config.heads_dir, before(config.heads_dir))
    _check(config, found)
    _say_what_judges(config, found, put(config.heads_dir, found.name, "rollback"))


@heads.command()
@click.option(
    "--keep", default=_KEEP, show_default=True, type=click.IntRange(min=0), help="So many of the newest stay."
)
@click.pass_context
def prune(context: click.Context, keep: int) -> None:
    """Remove old heads with their reports.

    The one in service, the one before it, and candidates of the last seven days always stay.
    """
    from . import reports
    from .heads_dir import prune as remove

    config = as_owner(load_config(context).config)
    gone = remove(config.heads_dir, keep)
    reports.remove(config.reports_dir, gone)
    for name in gone:
        click.echo(f"{name} removed")
    click.echo(f"{len(gone)} removed")


def _check(config: Config, head: Kept) -> None:
    """Raises BundleError if it could not judge: who finds that out later has no head in service."""
    from . import bundle
    from .encoder import load as load_encoder

    bundle.load(head.folder, load_encoder(config.encoder))


def _say_what_judges(config: Config, head: Kept, previous: str) -> None:
    if previous == head.name:
        click.echo(f"head {head.id} is in service already")
        return
    click.echo(f"head {head.id}{' (shipped)' * (head.name == 'shipped')} in service, in place of {_safe(previous)}")
    click.echo(f"to undo it: spamguard heads promote {_safe(previous)}")
    if config.head.path is not None:
        complain([f"but the configuration says head.path = {config.head.path}, and that is what judges"])


def _as_json(head: Kept) -> dict[str, Any]:
    return {
        "id": head.id,
        "state": head.state,
        "shipped": head.name == "shipped",
        "created": head.created.isoformat(timespec="seconds"),
        "folder": str(head.folder),
        "ham": _made_of(head).get("ham"),
        "spam": _made_of(head).get("spam"),
        "gate": _gate(head) or None,
        "fault": head.fault or None,
    }


def _as_line(head: Kept) -> str:
    marks = "current, shipped" if head.current and head.name == "shipped" else head.state
    on = _made_of(head)
    what = head.fault or f"{on.get('ham', '?')} ham, {on.get('spam', '?')} spam"
    said = f"  {_gate(head)}" if not head.fault else ""
    return _safe(f"{head.id:12}  {head.created.astimezone():%Y-%m-%d %H:%M}  {marks:16}  {what}{said}", _SENTENCE)


def _lines(head: Kept) -> Iterator[str]:
    yield _as_line(head)
    if head.manifest is None:
        return
    manifest, on = head.manifest, _made_of(head)
    rows = {
        "folder": head.folder,
        "kind": manifest.kind,
        "encoder": manifest.encoder_fingerprint,
        "cut-offs": ", ".join(f"{name} from {value:g}" for name, value in manifest.cutoffs.items()),
        "made by": f"spamguard {on.get('spamguard', '?')}",
        "learnt from": " ".join(on.get("paths") or ["labels alone"]),
        "sources": json.dumps(on.get("sources", {})),
        "locked away": f"{on.get('locked', 0)} messages",
        "data sha256": on.get("data_sha256", "?"),
        "starts from": "the shipped head" if on.get("starts_from_shipped_head") else "nothing",
    }
    for cutoff, rate in manifest.cutoff_rates.items():
        shown = (
            f"{rate.hit} of {rate.ham} ham held out (95 %: {rate.low:.2%} to {rate.high:.2%}), aim {rate.target:.2%}"
        )
        rows[f"{cutoff} hits"] = shown
    if isinstance(figures := on.get("figures"), dict):
        rows["out of fold"] = ", ".join(f"{k} {v:.4f}" for k, v in figures.items() if isinstance(v, float))
    for what, value in rows.items():
        yield f"  {what:12} {_safe(str(value), _SENTENCE)}"


def _made_of(head: Kept) -> dict[str, Any]:
    return head.manifest.provenance if head.manifest else {}


def _gate(head: Kept) -> str:
    return _safe(str(_made_of(head).get("gate", "")), _SENTENCE)


def _change_as_json(change: Change) -> dict[str, Any]:
    return {
        "id": change.content,
        "about": change.about,
        "label": change.given,
        "before": {"label": change.before[0].value, "score": round(change.before[1], 6)},
        "after": {"label": change.after[0].value, "score": round(change.after[1], 6)},
    }


def _change_as_line(change: Change) -> str:
    (was, p), (now, q) = change.before, change.after
    given = f"labelled {change.given}" if change.given else ""
    about = _safe(change.about)
    return f"{change.content[:12]}  {was:6} {p:.4f} -> {now:6} {q:.4f}  {given:13}  {about}".rstrip()


def _safe(text: str, most: int = _TEXT) -> str:
    from .headers import printable

    return printable(text, most)
