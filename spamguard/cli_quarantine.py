"""The commands of the quarantine: list, show, release, delete, expire, digest."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING

import click

from .cli_base import ERROR, as_owner, complain, fail, load_config
from .errors import SpamguardError
from .headers import printable

if TYPE_CHECKING:
    from service.quarantine import Quarantine

    from .config import Config

_UNITS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@click.group(subcommand_metavar="COMMAND [ARGS]...")
@click.pass_context
def quarantine(context: click.Context) -> None:
    """See what is held, release it, delete it.

    IDs are those of `list`; the beginning of one will do if it is the only such. As root the commands act as the
    owner of the state folder, so that the daemon can use what they write.

    \b
    spamguard quarantine list --since 2d --to bob@example.net
    spamguard quarantine show ID
    spamguard quarantine release --learn ID
    """


def _since(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    try:
        if span := re.fullmatch(r"(\d{1,9})([mhdw])", value):
            return time.time() - int(span[1]) * _UNITS[span[2]]
        return datetime.fromisoformat(value).timestamp()
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(f"{printable(value, 70)}: is neither a date nor a span such as 2d") from error


@quarantine.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a message.")
@click.option(
    "--since", callback=_since, help="Received then or later: 2026-10-05, 2026-10-05T08:30, or 30m, 12h, 2d, 1w."
)
@click.option("--from", "sender", default="", help="Text in the envelope sender or From, such as an address.")
@click.option("--to", "recipient", default="", help="Text in an envelope recipient.")
@click.option("--score", type=click.FloatRange(0, 1), help="Least score.")
@click.option("--all", "everything", is_flag=True, help="What has been released as well.")
@click.pass_context
def list_(
    context: click.Context,
    as_json: bool,
    since: float | None,
    sender: str,
    recipient: str,
    score: float | None,
    everything: bool,
) -> None:
    """What is held, oldest first: id, time, score, from, to, subject.

    \b
    spamguard quarantine list --since 2026-10-05 --from example.org
    spamguard quarantine list --json --score 0.99 | jq -r .id
    """
    from service.item_text import line_of
    from service.quarantine_index import Index

    _, store = _opened(context)
    with _one_line_faults(), Index(store) as index:
        items = index.items(since, sender, recipient, score, everything)
    for item in items:
        _say(json.dumps(asdict(item)) if as_json else line_of(item, everything))


@quarantine.command()
@click.argument("message_id", metavar="ID")
@click.option("--raw", is_flag=True, help="The exact bytes, for a file or a pipe.")
@click.pass_context
def show(context: click.Context, message_id: str, raw: bool) -> None:
    """Envelope, verdict, header block and visible text of one message, with nothing that a terminal obeys.

    \b
    spamguard quarantine show 0187c
    spamguard quarantine show --raw 0187c > message.eml
    """
    from service.item_text import page_of

    _, store = _opened(context)
    with _one_line_faults():
        held = store.open(store.resolve(message_id))
    if raw:
        if sys.stdout.isatty():
            fail("--raw writes bytes that a terminal may obey: send them to a file")
        sys.stdout.buffer.write(held.content)
        sys.stdout.buffer.flush()
        return
    for line in page_of(held, store.path(held.id).parent.name):
        _say(line)


@quarantine.command()
@click.argument("message_ids", metavar="ID...", nargs=-1, required=True)
@click.option("--to", multiple=True, metavar="ADDRESS", help="To this address, in place of those it came for.")
@click.option("--learn", is_flag=True, help="It was no spam: keep that as a label for the next retrain.")
@click.pass_context
def release(context: click.Context, message_ids: tuple[str, ...], to: tuple[str, ...], learn: bool) -> None:
    """Let messages go on: to the next hop past the filter, or into the Maildir they were taken from.

    They are marked, and no filter with the same key judges them again for a week. What has been released already
    stays so. Where a recipient is refused the message is still held; the next attempt goes to those who miss it.
    """
    from service.release import WayOut
    from service.release import release as run

    config, store = _opened(context)
    way_out = WayOut(config)

    def _release(one: str) -> bool:
        done = asyncio.run(run(store, one, way_out, to))
        if learn and done.state != "held":
            _learn(config, done.content, one)
        if done.state == "already":
            _say(f"{one}: was released already")
        elif done.taken:
            _say(f"{one}: released to {', '.join(printable(who, 200) for who in done.taken)}")
        for who, reply in done.refused:
            complain([f"{one}: still held for {printable(who, 200)}: {_reply(reply)}"])
        return not done.refused

    _each(context, store, message_ids, _release)


@quarantine.command()
@click.argument("message_ids", metavar="ID...", nargs=-1, required=True)
@click.pass_context
def delete(context: click.Context, message_ids: tuple[str, ...]) -> None:
    """Delete messages for good, held or released, damaged or not."""
    _, store = _opened(context)

    def _delete(one: str) -> bool:
        store.delete(one)
        _say(f"{one}: deleted")
        return True

    _each(context, store, message_ids, _delete)


@quarantine.command()
@click.pass_context
def expire(context: click.Context) -> None:
    """Delete what is older or more than `[quarantine]` keeps: what was released first, then the oldest.

    The daemon does it every hour; the command is for those who run none. Run it daily at least.
    """
    from service.retention import expire as run

    config, store = _opened(context)
    with _one_line_faults():
        done = run(store, config.quarantine)
    _say(f"deleted {done.held} held and {done.released} released messages, {done.size} bytes; {done.left} are left")
    if done.failed:
        fail(f"{done.failed} messages could not be deleted")


@quarantine.command()
@click.option("--to", "recipient", required=True, metavar="ADDRESS", help="Whose mail it tells of, and who gets it.")
@click.option("--print", "to_stdout", is_flag=True, help="Write the mail to standard output in place of sending it.")
@click.pass_context
def digest(context: click.Context, recipient: str, to_stdout: bool) -> None:
    """Send one recipient a mail with what was held for him since the last one; no mail if there is nothing.

    \b
    spamguard quarantine digest --to bob@example.net
    """
    from service.digest import Digests, mail, new_id
    from service.reinject import path_of
    from service.release import WayOut, deliver

    config, store = _opened(context)
    way_out = WayOut(config)
    if path_of(recipient) is None:
        fail(f"--to {printable(recipient, 100)}: is no address")
    with _one_line_faults(), Digests(store) as digests:
        waiting = digests.waiting(recipient)
        if not waiting:
            if sys.stdout.isatty():
                _say(f"nothing new is held for {printable(recipient, 200)}")
            return
        raw, told = mail(store, waiting, recipient, way_out.hostname)
        if to_stdout:
            sys.stdout.buffer.write(way_out.signed(raw, new_id()))
            sys.stdout.buffer.flush()
        else:
            asyncio.run(deliver(way_out, new_id(), recipient, raw))
        digests.tell(recipient, told)


def _opened(context: click.Context) -> tuple[Config, Quarantine]:
    from service.quarantine import Quarantine

    config = as_owner(load_config(context).config)
    return config, Quarantine(config.quarantine_path)


def _learn(config: Config, content: bytes, message_id: str) -> None:
    from .labels import Labels
    from .verdict import Label

    with Labels(config.labels_file) as labels:
        labels.add(content, Label.HAM, "release", message_id)


def _each(context: click.Context, store: Quarantine, given: Iterable[str], act: Callable[[str], bool]) -> None:
    """Do it to each message; the fault of one is a line, exit code 2, and no matter to the others."""
    good = True
    for text in given:
        try:
            good &= act(store.resolve(text))
        except SpamguardError as error:
            complain([_one_line(str(error))])
            good = False
        except BrokenPipeError:
            raise
        except OSError as error:
            complain([_one_line(f"{text[:70]}: {error}")])
            good = False
    if not good:
        context.exit(ERROR)


@contextmanager
def _one_line_faults() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        fail(_one_line(f"quarantine: {error}"))


def _one_line(text: str) -> str:
    return printable(text, 500)


def _reply(reply: bytes) -> str:
    return printable(reply.decode("utf-8", "replace"), 300)


def _say(line: str) -> None:
    """A line for a terminal of whatever character set."""
    encoding = sys.stdout.encoding or "utf-8"
    click.echo(line.encode(encoding, "replace").decode(encoding))
