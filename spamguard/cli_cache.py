"""`spamguard cache`: how much encoder output is kept, and removing what nothing needs."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .cli_base import as_owner, load_config


@click.group(invoke_without_command=True, subcommand_metavar="[COMMAND] [ARGS]...")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: encoder -> bytes and rows.")
@click.pass_context
def cache(context: click.Context, as_json: bool) -> None:
    """Show how much of the encoder's output is kept, by encoder and version.

    It is kept so that a retrain need not encode the same mail twice, and since of labelled mail nothing else is left.
    Rows of another version were made by a release that read mail otherwise: nothing finds them any more.

    \b
    spamguard cache
    spamguard cache prune --stale --older-than 90
    """
    if context.invoked_subcommand is not None:
        return
    from dataclasses import asdict

    from .cache import held, on_disk

    config = as_owner(load_config(context).config)
    rows, sizes = held(config.features_dir, _labelled(config.labels_file)), on_disk(config.features_dir)
    if as_json:
        shown = {name: {"bytes": size, "held": []} for name, size in sizes.items()}
        for one in rows:
            shown[one.encoder]["held"].append(asdict(one))  # type: ignore[attr-defined]
        click.echo(json.dumps(shown))
        return
    if not sizes:
        click.echo(f"nothing is kept yet in {config.features_dir}")
    for name, size in sizes.items():
        click.echo(f"encoder {name}: {_megabytes(size)} on disk")
        for one in rows:
            if one.encoder == name:
                state = "stale" if one.stale else "in use"
                click.echo(
                    f"  version {one.version}, {state}: {one.rows} messages, {one.labelled} of them labelled, "
                    f"{_megabytes(one.size)}"
                )


@cache.command()
@click.option("--stale", is_flag=True, help="Rows of other versions, but the last of labelled mail.")
@click.option("--older-than", metavar="DAYS", type=click.FloatRange(min=0), help="Rows made so long ago.")
@click.pass_context
def prune(context: click.Context, stale: bool, older_than: float | None) -> None:
    """Remove encoder output that nothing needs; rows of labelled messages stay, as they cannot be made again.

    What goes is of mail that `spamguard evaluate` read, or a retrain that did not come to its end, or that a later
    one has not found any more: it is encoded anew when it is needed. A row of which the age is not known is old.
    """
    from .alone import alone
    from .cache import on_disk
    from .cache import prune as run

    if not stale and older_than is None:
        raise click.UsageError("say what is to go: --stale, --older-than DAYS, or both")
    config = as_owner(load_config(context).config)
    with alone(config.state_dir):
        before = on_disk(config.features_dir)
        gone = run(config.features_dir, lambda: _labelled(config.labels_file), stale=stale, older_than=older_than)
    after = on_disk(config.features_dir)
    for name, count in gone.items():
        click.echo(f"encoder {name}: {count} rows removed, {_megabytes(before[name])} -> {_megabytes(after[name])}")


def _labelled(file: Path) -> set[str]:
    from .labels import Labels

    if not file.exists():
        return set()
    with Labels(file, read_only=True) as labels:
        return {row.content for row in labels.rows()}


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
