"""`spamguard report`: where the page lies that a retrain wrote of its head."""

from __future__ import annotations

import click

from .cli_base import load_config
from .reports import find


@click.command()
@click.argument("head", metavar="[ID]", default="")
@click.pass_context
def report(context: click.Context, head: str) -> None:
    """Print the path of the report of a head: one HTML page that needs nothing else. Default: the newest.

    \b
    xdg-open "$(spamguard report)"
    spamguard report 3f9c               (the first digits of an ID will do)
    """
    click.echo(find(load_config(context).config.reports_dir, head))
