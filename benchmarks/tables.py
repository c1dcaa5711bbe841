"""The results of a run as tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

TITLES = {
    "a": "(a) SpamAssassin, 70/30 by hash",
    "b": "(b) SpamAssassin, early to late",
    "c": "(c) Each corpus left out",
    "d": "(d) Few labels",
    "e": "(e) Modern mail, each source left out in turn",
    "f": "(f) Online, in the order of time",
    "g": "(g) Attacks on the judge",
}
# Figure, heading, and what it is multiplied by.
BOTH = (
    ("auc", "AUC %", 100),
    ("fnr at fpr 0.1%", "missed at FPR 0.1 %", 100),
    ("fnr at fpr 0.5%", "at 0.5 %", 100),
    ("fnr at fpr 1.0%", "at 1 %", 100),
    ("f1", "F1 %", 100),
    ("f1, unsure is spam", "F1 %, unsure is spam", 100),
    ("calibration error", "calibration error %", 100),
)
ALONE = (
    ("ham called spam", "ham called spam %", 100),
    ("ham called spam or unsure", "ham spam or unsure %", 100),
    ("spam called spam", "spam called spam %", 100),
    ("spam called spam or unsure", "spam caught or unsure %", 100),
)


def markdown(about: Mapping[str, Any], results: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """The whole report."""
    lines = [
        "# Judgement",
        "",
        "Brackets are 95 % intervals over 1,000 bootstrap resamples of campaigns. `missed` is the share of spam that",
        "is missed where that share of the ham is called spam; F1 and the shares called spam are at the contestant's",
        "own cut-offs. `Not beyond doubt`: the interval of the difference holds 0. The tutorial's recipe is [CLS] of",
        "25 tokens and a dense layer of 512; the last layer is its mean over the tokens.",
        "",
        f"{about['made']}, encoder {about['encoder']}; "
        + ", ".join(f"{name} {ham} ham {spam} spam" for name, (ham, spam) in about["mail"].items())
        + f"; {about['campaigns']} campaigns.",
        *(f"- {note}" for note in about["notes"]),
        "",
        *(f"![{name}]({name})" for name in pictures),
        "",
        "## Who is ahead",
        "",
        *_standings(results),
    ]
    for letter, found in results.items():
        lines += ["", f"## {TITLES[letter]}", "", f"{found['seconds']} s"]
        if letter == "d":
            for name, curve in found.items():
                if name != "seconds":
                    lines += ["", *_few(name, curve)]
        elif letter == "f":
            lines += ["", *_online(found)]
        elif letter == "g":
            lines += ["", *_attacks(found)]
        else:
            for name, target in found["targets"].items():
                lines += ["", *_target(name, target, wide=letter == "e")]
    return "\n".join(lines) + "\n"


def _target(name: str, target: Mapping[str, Any], wide: bool) -> Iterator[str]:
    yield f"**{name}**: {target['ham']} ham, {target['spam']} spam judged; learnt from {target['learnt from']}."
    yield ""
    there = next(iter(target["contestants"].values()))
    columns = [column for column in (*BOTH, *ALONE) if column[0] in there]
    if not wide and "auc" in there:
        columns = [column for column in columns if column not in ALONE]
    rows = {
        who: [_figure(figures.get(key), times) for key, _, times in columns]
        for who, figures in target["contestants"].items()
    }
    yield from table(["contestant", *(heading for _, heading, _ in columns)], rows)


def _standings(results: Mapping[str, Any]) -> Iterator[str]:
    """Each of ours beside the best peer of each target, by AUC and by missed spam."""
    yield "| split | judged | ours | best peer by AUC | AUC, ours less the peer's | missed at FPR 0.5 %, likewise |"
    yield "|" + "---|" * 6
    for letter, found in results.items():
        for name, curve in found.items() if letter == "d" else ():
            for n, against in curve.get("ahead", {}).items() if name != "seconds" else ():
                if against:
                    gap = _gap(against["difference"], 1)
                    yield f"| d | {name}, {n} labels | {against['ours']} | {against['best peer']} | {gap} | |"
        for feedback, each in found.get("ahead", {}).items():
            gap = _gap(each["difference"], -1, 1)
            yield f"| f | labels {feedback} | {each['ours']} | {each['best peer']} | 1-ROCA: {gap} | |"
        for name, target in found.get("targets", {}).items():
            for who, against in target.get("ahead", {}).items():
                area, missed = against["auc"], against["fnr at fpr 0.5%"]
                yield (
                    f"| {letter} | {name} | {who} | {area['best peer']} | {_gap(area['difference'], 1)} "
                    f"| {_gap(missed['difference'], -1)} |"
                )


def _gap(difference: Sequence[float], better: int, times: float = 100) -> str:
    value, low, high = difference
    said = "level" if value == 0 else "ahead" if value * better > 0 else "behind"
    sure = "" if low > 0 or high < 0 else ", not beyond doubt"
    return f"{_figure(difference, times)} {said}{sure}"


def _few(name: str, found: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"**{name}**: AUC % on {found['ham']} ham and {found['spam']} spam, mean of {found['seeds']} draws. "
        f"The other corpora: {found['others']}."
    )
    yield ""
    numbers = sorted({int(n) for curve in found["curves"].values() for n in curve})
    rows = {who: [_figure(curve.get(str(n)), 100) for n in numbers] for who, curve in found["curves"].items()}
    yield from table(["contestant", *(f"{n} labels" for n in numbers)], rows)


def _online(found: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"{found['messages']} messages of SpamAssassin by the topmost Received date, else Date; "
        f"{found['without a time']} have none and follow their neighbour by number. Near-duplicates stay. bogofilter "
        "and naive Bayes learn each message, the others are fitted anew after 20 more labels, later 5 % more."
    )
    for feedback, rows in found["feedback"].items():
        yield ""
        yield f"**Labels {feedback}**"
        yield ""
        keys = ("1-ROCA %", "ham called spam", "spam called spam", "spam called spam or unsure")
        cells = {
            who: [_figure(row[key], 1 if key == "1-ROCA %" else 100) for key in keys] for who, row in rows.items()
        }
        headings = ("1-ROCA %", "ham called spam %", "spam called spam %", "spam caught or unsure %")
        yield from table(["contestant", *headings], cells)


def _attacks(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"Learnt from {found['learnt from']}. Of the spam that a contestant calls spam: % that becomes ham /"
    yield "unsure, and the median fall of its score (log-odds)."
    for name, target in found["targets"].items():
        who = list(next(iter(target["attacks"].values())))
        caught = next(iter(target["attacks"].values()))
        yield ""
        yield f"**{name}**: {target['attacked']} messages."
        yield ""
        rows = {attack: [_fall(each[one]) for one in who] for attack, each in target["attacks"].items()}
        yield from table(["attack", *(f"{one} ({caught[one]['caught']} caught)" for one in who)], rows)


def _fall(of: Mapping[str, Any]) -> str:
    if not of["caught"]:
        return ""
    ham, unsure = (100 * of[key] / of["caught"] for key in ("ham", "unsure"))
    return f"{ham:.0f} / {unsure:.0f}, {of['median fall']:.1f}"


def table(headings: Sequence[str], rows: Mapping[str, Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(headings) + " |"
    yield "|" + "---|" * len(headings)
    for name, cells in rows.items():
        yield f"| {name} | " + " | ".join(cells) + " |"


def _figure(figure: Sequence[float | None] | None, times: float) -> str:
    if figure is None or figure[0] is None:
        return ""
    value, low, high = figure
    if low is None or high is None:
        return f"{value * times:.2f}"
    return f"{value * times:.2f} [{low * times:.2f}, {high * times:.2f}]"
