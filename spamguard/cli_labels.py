"""`spamguard labels`: what the user said of which message. Nothing here needs the encoder, so it answers at once."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .cli_base import ERROR, complain, learning_config

if TYPE_CHECKING:
    from .labels import Given

ID_DIGITS = 12  # digits of an ID
_WHERE = 200
_SOURCES = ("moved", "keyword", "command", "release", "folder", "sent")


@click.group(subcommand_metavar="COMMAND [ARGS]...")
def labels() -> None:
    """What was said to be ham or spam: see it, add to it, take it back.

    The daemon notes what the user moves into Junk or out of it, and `retrain PATH` what it finds in folders. The last
    word counts, and a user's more than a folder's. Of a message only its hash and the encoder's output are kept.
    """


@labels.command("list")
@click.option("--spam", is_flag=True, help="Only these.")
@click.option("--ham", is_flag=True, help="Only these.")
@click.option("--source", type=click.Choice(_SOURCES), help="Only what came this way.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a label.")
@click.pass_context
def list_(context: click.Context, spam: bool, ham: bool, source: str | None, as_json: bool) -> None:
    """List the labels, oldest first: ID, when, label, who said so, encoded or waiting, and where the message lay.

    \b
    spamguard labels list --source moved
    spamguard labels list --json | jq -r 'select(.waiting).id'
    """
    from .labels import Labels
    from .verdict import Label

    only = None if spam == ham else Label.SPAM if spam else Label.HAM
    with Labels(learning_config(context).labels_file) as kept:
        rows = kept.rows(only, source)
    for row in rows:
        click.echo(json.dumps(_as_json(row)) if as_json else _as_line(row))


@labels.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path, allow_dash=True))
@click.option("--spam", is_flag=True, help="They are spam.")
@click.option("--ham", is_flag=True, help="They are ham.")
@click.pass_context
def add(context: click.Context, files: tuple[Path, ...], spam: bool, ham: bool) -> None:
    """Say that messages are ham or spam: files, or - for standard input. The daemon or a retrain encodes them.

    \b
    spamguard labels add --spam scam.eml
    spamguard labels add --ham - < letter.eml
    """
    from .headers import printable
    from .labels import Labels
    from .verdict import Label

    if spam == ham:
        raise click.UsageError("say either --spam or --ham")
    config = learning_config(context)
    label, most = Label.SPAM if spam else Label.HAM, config.limits.message_bytes
    failed = False
    with Labels(config.labels_file) as kept:
        for file in files:
            name = "standard input" if str(file) == "-" else printable(str(file.absolute()), _WHERE)
            try:
                raw = _read(file, most + 1)
            except OSError as error:
                fault: str | None = error.strerror
            else:
                fault = "is empty" if not raw else f"more than {most} bytes" if len(raw) > most else None
            if fault:
                failed = True
                complain([f"{name}: {fault}"])
                continue
            content = kept.add(raw, label, "command", name)
            click.echo(f"{content[:ID_DIGITS]} {label} {name}")
    context.exit(ERROR if failed else 0)


@labels.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.pass_context
def forget(context: click.Context, ids: tuple[str, ...]) -> None:
    """Take labels back: the label, what the encoder made of the message, and the message if it still waits.

    ID is as in the list, eight digits or more. The next retrain unlearns it: the new head is the one that never saw
    the message. But a message that still lies in a folder that `retrain PATH` reads is found there again. Reports
    that list it are removed; heads that had learnt it stay until they are pruned.
    """
    from . import reports
    from .featurestore import remove_everywhere
    from .labels import Labels

    config = learning_config(context)
    with Labels(config.labels_file) as kept:
        contents = [kept.find(one) for one in ids]
        # The label last: where something fails, all can be asked for once more.
        reports.forget(config.reports_dir, contents)
        remove_everywhere(config.features_dir, contents)
        kept.forget(contents)
    for content in contents:
        click.echo(f"{content[:ID_DIGITS]} forgotten; the next retrain unlearns it")


def _read(file: Path, limit: int) -> bytes:
    if str(file) == "-":
        return sys.stdin.buffer.read(limit)
    with file.open("rb") as stream:
        return stream.read(limit)


def _as_json(row: Given) -> dict[str, object]:
    return {
        "id": row.content,
        "label": row.label.value,
        "source": row.source,
        "when": when(row),
        "where": row.where,
        "waiting": row.waits,
    }


def _as_line(row: Given) -> str:
    from .headers import printable

    state = "waiting" if row.waits else "encoded"
    where = printable(row.where, _WHERE)
    return f"{row.content[:ID_DIGITS]}  {when(row)}  {row.label:4}  {row.source:7}  {state}  {where}".rstrip()


def when(row: Given) -> str:
    return datetime.fromtimestamp(row.at).astimezone().isoformat(timespec="seconds")
