"""The command line. Heavy imports stand inside the commands, so that `spamguard --help` answers at once."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from . import __version__
from .cli_base import OneLineErrors, complain, learning_config, load_config, load_scorer
from .cli_cache import cache
from .cli_doctor import doctor
from .cli_heads import heads
from .cli_labels import labels
from .cli_quarantine import quarantine
from .cli_report import report
from .cli_score import score
from .cli_tune import lengths, tuned
from .errors import REFUSED, ReportError, ScoringError

EX_TEMPFAIL = 75  # sysexits.h: the delivery agent keeps the mail and tries again


@click.group(
    cls=OneLineErrors,
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
)
@click.version_option(__version__, prog_name="spamguard")
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    help="Configuration file. Default: $SPAMGUARD_CONFIG, ~/.config/spamguard/spamguard.toml, "
    "/etc/spamguard/spamguard.toml, else built-in defaults.",
)
@click.pass_context
def main(context: click.Context, file: Path | None) -> None:
    """A mail filter: a frozen BERT encoder with a small trained head on top.

    \b
    spamguard score message.eml          judge one message
    spamguard retrain ~/Maildir          learn from what you filed
    spamguard serve                      filter mail as it comes in by SMTP

    Exit codes: 0 done, 2 error (one line on standard error), 4 a retrain whose head the gate refused.
    `score --exit-code` answers 0 ham, 1 spam, 3 unsure.
    """
    context.obj = file
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


main.add_command(doctor)
main.add_command(heads)
main.add_command(cache)
main.add_command(labels)
main.add_command(lengths)
main.add_command(quarantine)
main.add_command(report)
main.add_command(score)


@main.command("filter")
@click.pass_context
def filter_(context: click.Context) -> None:
    """Read one message on standard input, write it with our headers to standard output.

    For procmail, maildrop and sieve: what they do with the headers is theirs, so policy.ham, .unsure and .spam do
    not count here. A message that cannot be scored is written with `X-Spamguard: unscored`, or
    with policy.on_failure = "tempfail" not at all and the exit code is 75. A wrong configuration exits with 2 and
    writes the message unchanged, so that it is never lost.

    \b
    :0 fw
    | spamguard filter
    """
    from . import headers
    from .actions import tag
    from .released import KeyFileError, stamped

    raw = out = sys.stdin.buffer.read()
    try:
        config = load_config(context).config
        policy = config.policy
        try:
            if found := stamped(raw, config.release_key):
                out = found[1]
                return
        except KeyFileError as error:
            complain([f"released mail is judged again: {error}"])
        try:
            scorer = load_scorer(context)
            out = tag(raw, scorer.score([scorer.prepare(headers.strip(raw))])[0], policy).data
        except ScoringError as error:
            if policy.on_failure == "tempfail":
                click.echo(f"spamguard: {error}", err=True)
                context.exit(EX_TEMPFAIL)
            out = headers.stamp_unscored(raw, f"fault: {error}")
    finally:
        if not isinstance(sys.exc_info()[1], click.exceptions.Exit):
            sys.stdout.buffer.write(out)
            sys.stdout.buffer.flush()


def _columns(command: Callable[..., None]) -> Callable[..., None]:
    """The options of commands that read tables."""
    command = click.option("--text-column", metavar="NAME", help="Column of a table that holds the texts.")(command)
    return click.option("--label-column", metavar="NAME", help="Column of a table that holds the labels.")(command)


@main.command()
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--kind", type=click.Choice(["additive", "mlp"]), default="additive", show_default=True, help="Kind of head."
)
@click.option(
    "--tune",
    "how",
    default="head",
    show_default=True,
    metavar="head|last-N|all",
    help="What is trained: the head alone, or the encoder's last N layers or all of it as well.",
)
@click.option("--fresh", is_flag=True, help="Do not start from the shipped head: learn from this mail alone.")
@click.option("--seed", default=0, show_default=True, help="Seed of the folds (and of the mlp's weights).")
@click.option("--private", is_flag=True, help="Leave the names of files and folders out of the report.")
@_columns
@click.pass_context
def retrain(
    context: click.Context,
    paths: tuple[Path, ...],
    kind: Any,
    how: str,
    fresh: bool,
    seed: int,
    private: bool,
    label_column: str | None,
    text_column: str | None,
) -> None:
    """Fit a new head on all labels, and put it in service if it does no harm.

    PATH is a Maildir with a Junk or Spam folder (seen mail elsewhere is ham), a folder with folders `ham` and
    `spam` at any depth, ham.mbox and spam.mbox, or a CSV, TSV or Parquet file with columns of labels and texts. In a
    Maildir sent mail is ham of little weight; trash, drafts and what the daemon itself moved to Junk are left out
    ([learning] names further folders). What is found there takes
    the place of what the last retrain with a PATH found; without one, that stays. What the user said (`spamguard
    labels list`) counts as well, and more than a folder. Encoder output is kept, so that the next time only new
    mail is encoded. A running daemon takes the new head within a second or two.

    The gate compares it with the head in service, on mail that neither was fitted on. A head that calls more ham
    spam, or catches less spam, beyond noise, is kept as a candidate (exit code 4): labels and the head in service
    stay as they were, and `spamguard heads promote ID` puts it in service all the same.

    \b
    spamguard retrain ~/Maildir
    spamguard retrain corpus/           (corpus/ham/*, corpus/spam/*)
    spamguard retrain messages.csv
    spamguard retrain                   (these again, and what the user said since)

    --tune last-2 or all trains a copy of the encoder too, which takes hours without a GPU. Neither it nor the head
    for it is put in service: what is printed says whether it was worth it, and what the configuration must say
    then. Run again after a kill, it goes on.
    """
    from training.corpus import Reading
    from training.report import as_text
    from training.retrain import retrain as run
    from training.told import report as write
    from training.tune_command import tune

    from .encoder import load as load_encoder

    config = learning_config(context)
    encoder = load_encoder(config.encoder)
    reading = Reading.configured(config, label_column, text_column) if paths else None
    if how != "head":
        with _progress() as progress:
            found = tune(paths, config, encoder, how, kind=kind, seed=seed, progress=progress, reading=reading)
        tuned(found)
        return
    page = None
    with _progress() as progress:
        done = run(paths, config, encoder, kind=kind, fresh=fresh, seed=seed, progress=progress, reading=reading)
        try:
            page = write(done, config, encoder, progress, private=private)
        except ReportError as error:
            complain([str(error)])
    complain(done.complaints)
    spent = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in done.seconds.items())
    click.echo(f"fitted on {done.ham} ham and {done.spam} spam ({spent}); on messages held out in turn:")
    click.echo(as_text(done.figures))
    for line in done.alike:
        click.echo(f"  {line}")
    for name, rate in done.bundle.manifest.cutoff_rates.items():
        click.echo(
            f"  {name}: hits {rate.hit} of {rate.ham} ham held out (95 %: {rate.low:.2%} to {rate.high:.2%}), "
            f"aim {rate.target:.2%}"
        )
    if page:
        click.echo(f"report: {page}")
    against = f"against the head in service, {done.before}," if done.before else "without another head"
    mail = f"{done.locked} messages locked away" if done.locked else "messages held out in turn"
    click.echo(f"gate: {done.word.outcome} {against} on {mail} and the reference set")
    for row in done.word.rows:
        if row.n:
            click.echo(f"  {row.in_words}")
    if not done.word.passed:
        click.echo(f"head {done.bundle.id} is kept as a candidate: {done.folder}")
        click.echo(f"to use it all the same: spamguard heads promote {done.bundle.id}")
        complain([f"not put in service: {'; '.join(done.word.reasons)}"])
        context.exit(REFUSED)
    cutoffs = done.bundle.cutoffs
    click.echo(f"  {'; '.join(done.word.reasons)}")
    click.echo(
        f"head {done.bundle.id} in service: {done.folder} (unsure from {cutoffs.unsure}, spam from {cutoffs.spam})"
    )
    if done.before not in ("", done.bundle.id):
        click.echo("to undo it: spamguard heads rollback")
    if config.head.path is not None:
        complain([f"but the configuration says head.path = {config.head.path}, and that is what judges"])


@main.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="The figures as one JSON object.")
@_columns
@click.pass_context
def evaluate(
    context: click.Context,
    paths: tuple[Path, ...],
    as_json: bool,
    label_column: str | None,
    text_column: str | None,
) -> None:
    """Figures of the head in service on labelled mail (the same kinds of path as retrain).

    \b
    spamguard evaluate ~/Maildir
    spamguard evaluate --json corpus/ | jq .auc
    """
    from dataclasses import asdict

    from training.corpus import Reading
    from training.evaluate import evaluate as run
    from training.report import as_text

    config, scorer = load_config(context).config, load_scorer(context)
    reading = Reading.configured(config, label_column, text_column)
    with _progress() as progress:
        found, complaints = run(paths, config, scorer, progress, reading)
    complain(complaints)
    click.echo(json.dumps({**asdict(found), "head": scorer.head_id}) if as_json else as_text(found))


@main.command()
@click.pass_context
def serve(context: click.Context) -> None:
    """Run the daemon: mail in by SMTP, judged, and on to the next hop or into a Maildir.

    \b
    SIGTERM  finish open transactions, then leave
    SIGHUP   read head and cut-offs again, without dropping a connection
    """
    from service.daemon import run

    run(load_config(context))


@main.command("check-config")
@click.pass_context
def check_config(context: click.Context) -> None:
    """Check the configuration and its certificates, load encoder and head, and say what would be served."""
    from service.hop import tls_context
    from service.listener import server_tls

    loaded = load_config(context)
    server_tls(loaded.config.listen)
    tls_context(loaded.config.next_hop)
    scorer = load_scorer(context)
    click.echo(
        f"{loaded.file or 'built-in defaults'}: ok; encoder {scorer.encoder_id}, head {scorer.head_id}, "
        f"unsure from {scorer.cutoffs.unsure}, spam from {scorer.cutoffs.spam}"
    )


@main.command("show-config")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: key -> value and origin.")
@click.pass_context
def show_config(context: click.Context, as_json: bool) -> None:
    """Show every value of the configuration and where it came from."""
    values = list(load_config(context).values())
    if as_json:
        shown = {key: {"value": _plain(value), "origin": origin} for key, value, origin in values}
        click.echo(json.dumps(shown, indent=1))
        return
    for key, value, origin in values:
        click.echo(f"{key} = {json.dumps(_plain(value))}  # {origin}")


@contextmanager
def _progress() -> Iterator[Any]:
    """A progress bar on a terminal; nothing in a pipe."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def told(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done)

        yield told


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: item.model_dump(exclude_none=True) for key, item in value.items()}
    return value if isinstance(value, str | int | float | bool | None) else str(value)
