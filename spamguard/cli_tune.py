"""`spamguard lengths`, and what `spamguard retrain --tune` says at its end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .cli_base import complain, load_config

if TYPE_CHECKING:
    from training.report import Figures
    from training.tune_command import Retuned


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--percentile",
    type=click.FloatRange(1, 100),
    default=95.0,
    show_default=True,
    help="Share of the mail that should be read whole.",
)
@click.option("--png", type=click.Path(path_type=Path), help="Draw it into this file as well.")
@click.pass_context
def lengths(context: click.Context, paths: tuple[Path, ...], percentile: float, png: Path | None) -> None:
    """How long mail is in tokens, and the encoder.max_tokens that fits it (the same kinds of path as retrain).

    The encoder takes longer the more it reads, about in proportion, and the beginning of a mail says most; words
    beyond max_tokens are still counted, up to 1,024 tokens.

    \b
    spamguard lengths ~/Maildir
    spamguard lengths --percentile 90 --png lengths.png messages.csv
    """
    from training import lengths as tokens
    from training.corpus import Reading
    from training.tune_command import measure

    from .encoder import load as load_encoder

    config = load_config(context).config
    encoder = load_encoder(config.encoder)
    found, complaints = measure(paths, Reading.configured(config), encoder)
    complain(complaints)
    choice = tokens.choose(found, encoder.positions, percentile)
    for line in tokens.draw(found, choice):
        click.echo(line)
    click.echo(tokens.summary(found, choice))
    now = config.encoder.max_tokens
    click.echo(f"encoder.max_tokens is {now} now, which holds {float((found <= now).mean()):.1%} whole")
    if png is not None:
        tokens.picture(found, choice, png)


def tuned(done: Retuned) -> None:
    """Whether the tuned encoder was worth it, where it lies, and what would put it in service."""
    from training.lengths import draw, summary

    complain(done.complaints)
    for line in draw(done.lengths, done.choice):
        click.echo(line)
    click.echo(summary(done.lengths, done.choice))
    sizes = ", ".join(
        f"{name} {ham} ham and {spam} spam"
        for name, (ham, spam) in zip(("learnt from", "chosen by", "judged on"), done.sizes, strict=True)
    )
    progress = done.tuned.progress
    losses = ", ".join(f"{loss:.4f}" for loss in progress.validation)
    taken_up = f", taken up at step {done.tuned.resumed}" if done.tuned.resumed else ""
    click.echo(f"{sizes}; {done.tuned.seconds:.0f} s of training{taken_up}")
    click.echo(f"loss on validation after each epoch: {losses}; the best, {progress.best + 1}, was kept")
    click.echo(f"{'on the test part':30}{'precision':>10}{'recall':>8}{'F1':>8}{'AUC':>9}{'missed at 0.5 %':>17}")
    for name, found in (
        ("the tuned network alone", done.network),
        ("a head on the tuned encoder", done.head),
        ("a head on the frozen encoder", done.frozen),
    ):
        click.echo(f"{name:30}{_row(found)}")
    click.echo(f"encoder {done.fingerprint} written: {done.folder}")
    click.echo(f"head {done.head_folder.name} written: {done.head_folder}")
    click.echo("neither is in service; to use them, say in the configuration, and restart the daemon:\n")
    click.echo(done.configuration)


def _row(found: Figures) -> str:
    missed = f"{found.fnr_at_fpr[0.005]:.2%}" if found.fnr_at_fpr else ""
    return f"{found.precision:>10.4f}{found.recall:>8.4f}{found.f1:>8.4f}{found.auc or 0:>9.5f}{missed:>17}"
