"""How good is spamguard's judgement, beside its peers', on splits that tell the truth?

    python -m benchmarks.judgement CORPORA [--splits a,b,c,d,e,f,g] [--peers bogofilter,tfidf] [--state DIR]

CORPORA holds the folders of docs/head-and-accuracy.md; a split whose corpora are missing is left out. Each split runs
all contestants on the same mail, in one run. The splits (`benchmarks/splits.py`):

    a  SpamAssassin, 70/30 by hash          d  few labels, from nothing and from the other corpora
    b  SpamAssassin, early to late          e  modern mail, each source left out in turn
    c  each corpus left out                 f  online, in the order of time
                                            g  attacks on the judge

Near-duplicates never stand on both sides, and intervals (95 %) are bootstrapped over campaigns. Nothing is chosen in
the run on the mail that is judged: our penalties are constants of `training/`, those of the peers come of
cross-validation on the mail that is learnt from. But the constants, two features and the use of Enron-Spam were once
chosen with csdmc2010, foff_dev and phishing_pot in view, the search for few labels on half of the test part of (a).

Tables go to benchmarks/results/judgement.md and .json, pictures beside them. `--draw` makes the tables and pictures
of an earlier run anew.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from spamguard.errors import SpamguardError
from training.ship import FITTED_ON, ONLY_MEASURED

from . import contest, curves, ours, rspamd, splits, stream, tables, under_attack
from .mail import Mail, Reader
from .peers import FAST, Learner, SeedRecipe, Unavailable, last_layer, tfidf
from .spamassassin import Bayes, Rules, SpamAssassin

RESULTS = Path(__file__).parent / "results"
SPLITS = "abcdefg"
SLOW = ("spamassassin", "rspamd")
SLOW_ON = "abe"
PEERS = (*FAST, *SLOW)
SEEDS = 5


class Run:
    """The mail, the contestants, and what has been found so far."""

    def __init__(self, options: argparse.Namespace, progress: Progress, stack: ExitStack) -> None:
        self._task = progress.add_task("reading", total=None)
        self._progress = progress
        self.options = options
        self.notes: list[str] = []
        self.reader = Reader(options.state, lambda what, done, total: self.tell(f"{what}: {done} of {total}"))
        wanted = [*FITTED_ON, *ONLY_MEASURED]
        names = [name for name in wanted if (options.corpora / name).is_dir()]
        self.notes += [f"{name} is not there" for name in wanted if name not in names]
        self.mail: Mail = self.reader.read(options.corpora, names)
        self.peers: dict[str, Learner] = {}
        self.slow: dict[str, Learner] = {}
        for name in filter(None, options.peers.split(",")):
            try:
                if name in FAST:
                    self.peers[name] = FAST[name]()
                else:
                    self.slow |= _with_rules_and_without(name, options.state, stack)
            except Unavailable as error:
                self.notes.append(f"{name} is left out: {error}")
        if self.slow:
            self.notes.append(f"{'; '.join(self.slow)}: on {', '.join(SLOW_ON)} alone, for the time that they take")
        passages = ours.Passages(self.reader.encoder)
        self.general, self.personal = ours.General(passages), ours.Personal(passages)
        self.parts = ours.parts(passages)
        self.results: dict[str, Any] = {}

    def tell(self, what: str) -> None:
        self._progress.update(self._task, description=what)

    def one(self, letter: str) -> None:
        began = time.monotonic()
        table, slow = self.mail.table, self.slow.values()
        if letter == "a":
            self.results["a"] = self._split(splits.by_hash(table), [self.general, self.personal], self.parts, slow)
            plain = self._split(splits.by_hash_plain(table), [self.general, self.personal], slow=slow)
            self.results["a"]["targets"] |= plain["targets"]
        elif letter == "b":
            self.results["b"] = self._split(splits.early_to_late(table), [self.general, self.personal], slow=slow)
        elif letter == "c":
            found = [self._split(splits.leave_out(table, t), [self.general]) for t in splits.targets(table)]
            self.results["c"] = {"targets": {k: v for each in found for k, v in each["targets"].items()}}
        elif letter == "d":
            learners, seeds = [self.personal, *self.peers.values()], self.options.seeds
            self.results["d"] = {
                name: contest.learning_curves(self.mail, name, learners, _FROM_NOTHING_ONLY, seeds, self.tell)
                for name in ("spamassassin", "modern")
            }
        elif letter == "e":
            self.results["e"] = self._modern()
        elif letter == "f":
            self.results["f"] = stream.held(self.mail, list(self._streaming()), self.tell)
        elif letter == "g":
            self.results["g"] = under_attack.attacked(
                self.mail, self.reader, self.general, list(self.peers.values()), self.tell
            )
        self.results[letter]["seconds"] = round(time.monotonic() - began)

    def _split(
        self,
        split: splits.Split,
        mine: Sequence[Learner],
        beside: Sequence[Learner] = (),
        slow: Iterable[Learner] = (),
    ) -> dict[str, Any]:
        """Figures of our contestants, compared with the peers; `beside` stand in the table only."""
        peers = [*self.peers.values(), *slow]
        targets = contest.hold(split, self.mail, [*mine, *beside, *peers], self.tell)
        if len(split.others):
            started = self.personal.after(self.mail.take(split.others))
            mine = [*mine, started]
            more = contest.hold(split, self.mail, [started], self.tell)
            for target, other in zip(targets, more, strict=True):
                target.said.update(other.said)
        names, theirs = [learner.name for learner in mine], [peer.name for peer in peers]
        return {"targets": {target.name: contest.figures(target, self.mail, names, theirs) for target in targets}}

    def _streaming(self) -> Iterator[tuple[str, Learner]]:
        others = self.mail.take(splits.fitted_on(self.mail.table, ["spamassassin"]))
        yield self.personal.name, self.personal
        after = self.personal.after(others)
        yield after.name, after
        for name in ("bogofilter", "bayes"):
            if name in self.peers:
                peer = self.peers[name]
                yield f"{peer.name}, from nothing", peer
                yield f"{peer.name}, after the other corpora", peer.after(others)
        if "tfidf" in self.peers:
            once = tfidf(strength=10.0)  # fitted too often to be searched for
            yield f"{once.name}, from nothing", once

    def _modern(self) -> dict[str, Any]:
        peers = [*self.peers.values(), *self.slow.values()]
        found = [
            target
            for fold in splits.modern_folds(self.mail.table)
            for target in contest.hold(fold, self.mail, [self.general, *peers], self.tell)
            if len(target.rows)
        ]
        judged = dict.fromkeys(target.name for target in found)
        targets = [contest.pool(name, [t for t in found if t.name == name]) for name in judged]
        targets.insert(0, contest.pool("all of it", found))
        names = [peer.name for peer in peers]
        return {"targets": {t.name: contest.figures(t, self.mail, [self.general.name], names) for t in targets}}


def _with_rules_and_without(name: str, state: Path, stack: ExitStack) -> dict[str, Learner]:
    """Both contestants of SpamAssassin or of rspamd. Raises Unavailable."""
    if name == "spamassassin":
        bayes, rules = Bayes(), Rules(state)
        return {name: SpamAssassin(bayes, rules), f"{name}, Bayes": SpamAssassin(bayes, None)}
    server = stack.enter_context(rspamd.running())
    return {name: rspamd.Rspamd(server, rules=True), f"{name}, Bayes": rspamd.Rspamd(server, rules=False)}


# They would take long to learn thousands of messages anew for each draw of a few labels.
_FROM_NOTHING_ONLY = (SeedRecipe.name, last_layer().name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", type=Path, help="folder that holds the corpora")
    parser.add_argument("--splits", default=",".join(SPLITS), help=f"of {SPLITS}, with commas")
    parser.add_argument("--peers", default=",".join(PEERS), help=f"of {', '.join(PEERS)}, with commas")
    parser.add_argument("--state", type=Path, default=Path("benchmarks/cache"), help="where encoder output is kept")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="draws of few labels")
    parser.add_argument("--draw", action="store_true", help="only draw what judgement.json holds")
    options = parser.parse_args()
    letters = options.splits.split(",")
    if unknown := [*(set(letters) - set(SPLITS)), *(set(filter(None, options.peers.split(","))) - set(PEERS))]:
        parser.error(f"unknown: {', '.join(unknown)}")
    file = options.results / "judgement.json"
    if options.draw:
        found = json.loads(file.read_text(encoding="utf-8"))
    else:
        try:
            found = judge(options, letters)
        except SpamguardError as error:
            sys.exit(f"judgement: {error}")
        options.results.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    about = found.pop("about")
    try:
        pictures = [picture.name for picture in curves.draw(found, options.results)]
    except ImportError:
        pictures = []
        about["notes"].append("no pictures: matplotlib is not installed")
    text = tables.markdown(about, found, pictures)
    (options.results / "judgement.md").write_text(text, encoding="utf-8")
    print(text)


def judge(options: argparse.Namespace, letters: Sequence[str]) -> dict[str, Any]:
    """The results of the splits, and what they are about, as plain data."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn())
    terminal = console.is_terminal
    with (
        ExitStack() as stack,
        Progress(*columns, console=console, transient=True, disable=not terminal) as progress,
    ):
        run = Run(options, progress, stack)
        for letter in letters:
            run.one(letter)
    counts = run.mail.table.groupby(["corpus", "label"]).size().unstack(fill_value=0)
    about = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.platform(),
        "encoder": run.reader.encoder.fingerprint,
        "mail": {str(name): [int(row[0]), int(row[1])] for name, row in counts.iterrows()},
        "campaigns": len(np.unique(run.mail.table["campaign"])),
        "notes": run.notes,
    }
    return {"about": about, **run.results}


if __name__ == "__main__":
    main()
