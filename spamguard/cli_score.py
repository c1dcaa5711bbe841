"""`spamguard score`: the verdict on files, and with --explain what is behind it."""

from __future__ import annotations

import json
import shutil
import sys
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import accumulate, islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .cli_base import ERROR, complain, load_config, load_scorer
from .cli_labels import ID_DIGITS, when
from .errors import SpamguardError

if TYPE_CHECKING:
    from .config import Config
    from .explain import Nearest, Phrase
    from .scorer import Prepared, Scorer
    from .verdict import Verdict

    Why = tuple[list[Phrase], Nearest | None]

EXIT_CODES = {"ham": 0, "unsure": 3, "spam": 1}
MESSAGES_A_BATCH = 32
_REASONS = 3  # in one line
_PHRASES = 5
_PATH = 1000  # characters
_NARROWEST = 40  # columns


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path, allow_dash=True))
@click.option("--json", "as_json", is_flag=True, help="One JSON object a message.")
@click.option("--explain", is_flag=True, help="Say why, of ham too: phrases, words, facts, nearest labelled mail.")
@click.option("--exit-code", is_flag=True, help="Exit with 0 ham, 1 spam, 3 unsure; the worst of several.")
@click.pass_context
def score(context: click.Context, paths: tuple[Path, ...], as_json: bool, explain: bool, exit_code: bool) -> None:
    """Judge messages: files, folders of files, or - for standard input.

    With --explain a message is judged again without each of its phrases, which takes a second or two on a CPU.

    \b
    spamguard score message.eml
    spamguard score --explain message.eml
    spamguard score --json ~/Maildir/new | jq .score
    """
    scorer = load_scorer(context)
    config = load_config(context).config
    worst, failed = "ham", False
    faults: dict[str, None] = {}  # of the labels: each is told once
    waiting = iter(_messages(paths))
    while batch := list(islice(waiting, MESSAGES_A_BATCH)):
        read = [(path, raw) for path, raw in batch if isinstance(raw, bytes)]
        for path, error in batch:
            if not isinstance(error, bytes):
                failed = True
                click.echo(f"spamguard: {path}: {error.strerror}", err=True)
        prepared = [scorer.prepare(raw) for _, raw in read]
        verdicts = scorer.score(prepared, explain=explain)
        more = _why(config, scorer, [raw for _, raw in read], prepared, verdicts, faults) if explain else repeat(None)
        for (path, _), verdict, why in zip(read, verdicts, more, strict=False):
            worst = max(worst, verdict.label.value, key=["ham", "unsure", "spam"].index)
            shown = json.dumps(_as_json(path, verdict, why)) if as_json else _as_text(path, verdict, why)
            # By itself click writes UTF-8 where ASCII is asked for, and some of its bytes are a terminal's commands.
            click.echo(shown, file=sys.stdout)
    complain(faults)
    context.exit(ERROR if failed else EXIT_CODES[worst] if exit_code else 0)


def _why(
    config: Config,
    scorer: Scorer,
    raws: Sequence[bytes],
    prepared: Sequence[Prepared],
    verdicts: Sequence[Verdict],
    faults: dict[str, None],
) -> Iterator[Why]:
    """Of each message the phrases and the nearest label, one at a time, as phrases take their time."""
    from .explain import nearest, phrases
    from .headers import content_hash

    near: list[Nearest | None] = [None] * len(raws)
    try:
        near = nearest(config, scorer, [content_hash(raw) for raw in raws], verdicts)
    except (SpamguardError, ValueError) as error:  # ValueError: of a damaged row
        faults[f"no nearest label: {error}"] = None
    for item, verdict, one in zip(prepared, verdicts, near, strict=True):
        yield phrases(scorer, item, verdict), one


def _messages(paths: tuple[Path, ...]) -> Iterator[tuple[str, bytes | OSError]]:
    """(name, bytes) of every message, or (name, error) of what cannot be read."""
    for path in paths:
        if str(path) == "-":
            yield "-", sys.stdin.buffer.read()
            continue
        for file in sorted(_files_below(path)) if path.is_dir() else [path]:
            try:
                yield str(file), file.read_bytes()
            except OSError as error:
                yield str(file), error


def _files_below(folder: Path) -> Iterator[Path]:
    """All files; of a Maildir only its mail, not what the server keeps beside it."""
    for file in folder.rglob("*"):
        in_maildir = (file.parent / "cur").is_dir() and (file.parent / "new").is_dir()
        if file.is_file() and not in_maildir:
            yield file


def _as_json(path: str, verdict: Verdict, why: Why | None) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "path": path,
        "score": round(verdict.probability, 6),
        "label": verdict.label.value,
        "cutoffs": {"unsure": verdict.cutoffs.unsure, "spam": verdict.cutoffs.spam},
        "parts": {name: round(share, 4) for name, share in verdict.parts.items()},
        "reasons": [{"part": r.part, "what": r.what, "logit": round(r.logit, 4)} for r in verdict.reasons],
        "encoder": verdict.encoder,
        "head": verdict.head,
        "ms": round(verdict.milliseconds, 2),
    }
    if why is not None:
        phrases, near = why
        shown["phrases"] = [
            {"text": phrase.text, "times": phrase.times, "logit": round(phrase.logit, 4)} for phrase in phrases
        ]
        shown["nearest"] = near and {
            "id": near.given.content,
            "label": near.given.label.value,
            "source": near.given.source,
            "when": when(near.given),
            "where": near.given.where,
            "alike": round(near.alike, 4),
            "same": near.same,
        }
    return shown


def _as_text(path: str, verdict: Verdict, why: Why | None) -> str:
    from .headers import printable

    cutoffs = verdict.cutoffs
    line = (
        f"{path}: {verdict.label} {verdict.probability:.4f} (unsure {cutoffs.unsure:g}, spam {cutoffs.spam:g}; "
        f"encoder {verdict.encoder}, head {verdict.head}, {verdict.milliseconds:.0f} ms)"
    )
    if why is None:
        return line + "".join(
            f" {printable(reason.what, _PATH)} {reason.logit:+.1f}" for reason in verdict.reasons[:_REASONS]
        )
    phrases, near = why
    lines = [line, "  logit = " + "  ".join(f"{name} {share:+.2f}" for name, share in verdict.parts.items())]
    if phrases:
        lines += ["  phrases (what the logit would lose without each):", *map(_phrase, phrases[:_PHRASES])]
    if verdict.reasons:
        lines += [
            "  words and facts:",
            *(f"   {reason.logit:+6.2f}  {printable(reason.what, _PATH)}" for reason in verdict.reasons),
        ]
    return "\n".join([*lines, *([_label(near)] if near else [])])


def _phrase(phrase: Phrase) -> str:
    times = f" {phrase.times} times" if phrase.times > 1 else ""
    before = f"   {phrase.logit:+6.2f}  "
    columns = max(_NARROWEST, shutil.get_terminal_size().columns) - len(before) - len(times) - 2
    return f'{before}"{_fitting(phrase.text, columns)}"{times}'


def _fitting(text: str, columns: int) -> str:
    """As much of the text as fits, without what a terminal obeys; Chinese and the like take two columns a letter."""
    from .headers import printable

    text = printable(text, len(text))
    ends = list(accumulate(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text))
    if not ends or ends[-1] <= columns:
        return text
    return text[: bisect_right(ends, columns - 3)].rstrip() + "..."


def _label(near: Nearest) -> str:
    from .headers import printable

    given = near.given
    what = "this message is labelled" if near.same else f"nearest labelled message, {near.alike:.0%} alike"
    said = f"{given.label} ({given.source}, {datetime.fromtimestamp(given.at).astimezone():%Y-%m-%d})"
    where = f", {printable(given.where, _PATH)}" if given.where else ""
    return f"  {what}: {said}, {given.content[:ID_DIGITS]}{where}"
