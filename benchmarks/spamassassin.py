"""SpamAssassin as a contestant: its Bayes, and its local rules with Bayes; nothing is asked of the network.

Both come of one Perl process at a time (spamassassin.pl). What the rules say of a message depends on the message
alone and is kept between runs.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .mail import Mail, join
from .measures import log_odds
from .peers import Folder, Scores, Unavailable

Array = npt.NDArray[np.float64]
SCRIPT = Path(__file__).with_suffix(".pl")
REQUIRED = 5.0  # points from which SpamAssassin says spam
KEEP_EVERY = 200  # messages


class Rules:
    """Points of the rules by content hash, kept in a file."""

    def __init__(self, state: Path) -> None:
        state.mkdir(parents=True, exist_ok=True)
        self._file = state / "spamassassin-rules.json"
        self._points: dict[str, float] = {}
        if self._file.exists():
            self._points = json.loads(self._file.read_text(encoding="utf-8"))

    def of(self, mail: Mail) -> Array:
        contents = mail.table["content"].tolist()
        missing = [i for i, content in enumerate(contents) if content not in self._points]
        with tempfile.TemporaryDirectory(prefix="spamassassin-") as home:
            for start in range(0, len(missing), KEEP_EVERY):
                some = missing[start : start + KEEP_EVERY]
                said = _ask(Path(home), [("rules", mail.raw[i]) for i in some])
                self._points |= {contents[i]: float(line.split()[1]) for i, line in zip(some, said, strict=True)}
                self._file.write_text(json.dumps(self._points), encoding="utf-8")
        return np.asarray([self._points[content] for content in contents])


class Bayes:
    """Bayes' database. It is a sum, so what was learnt last is mended where that is less work than learning anew."""

    def __init__(self) -> None:
        self._learnt: dict[str, tuple[int, bytes]] = {}
        self._home: Folder | None = None

    def learn(self, mail: Mail) -> Folder:
        """A folder with the database of exactly this mail."""
        wanted = {
            content: (int(label), raw)
            for content, label, raw in zip(mail.table["content"], mail.labels, mail.raw, strict=True)
        }
        gone = [self._learnt[content] for content in self._learnt.keys() - wanted.keys()]
        new = [wanted[content] for content in sorted(wanted.keys() - self._learnt.keys())]
        home = Folder("spamassassin-")
        if self._home is not None and len(gone) + len(new) < len(wanted):
            shutil.copytree(self._home.path, home.path, dirs_exist_ok=True)
        else:
            gone, new = [], [wanted[content] for content in sorted(wanted)]
        orders = [("forget", raw) for _, raw in gone]
        orders += [("spam" if label else "ham", raw) for label, raw in new]
        if orders:
            _ask(home.path, orders)
        self._learnt, self._home = wanted, home
        return home


class SpamAssassin:
    """Either of the two contestants; they share the database and the rules' points."""

    def __init__(self, bayes: Bayes, rules: Rules | None, others: Mail | None = None) -> None:
        if not shutil.which("spamassassin"):
            raise Unavailable("SpamAssassin is not installed")
        self._bayes, self._rules, self._others = bayes, rules, others
        self.probable = rules is None
        what = "Bayes" if rules is None else "rules and Bayes"
        self.name = f"SpamAssassin, {what} (reads headers)"

    def after(self, others: Mail) -> SpamAssassin:
        return SpamAssassin(self._bayes, self._rules, others)

    def learn(self, own: Mail) -> Scores:
        home = self._bayes.learn(own if self._others is None else join([self._others, own]))

        def score(mail: Mail) -> Array:
            said = [line.split() for line in _ask(home.path, [("bayes", raw) for raw in mail.raw])]
            if self._rules is None:
                return log_odds([float(probability) for probability, _ in said])
            return self._rules.of(mail) + np.asarray([float(points) for _, points in said])

        return Scores(score) if self._rules is None else Scores(score, REQUIRED, REQUIRED)


def _ask(home: Path, orders: Sequence[tuple[str, bytes]]) -> list[str]:
    """Its answer to each order, in turn."""
    with tempfile.TemporaryDirectory(prefix="spamassassin-mail-") as folder:
        lines = []
        for number, (order, raw) in enumerate(orders):
            file = Path(folder) / f"{number}.eml"
            file.write_bytes(raw)
            lines.append(f"{order}\t{file}\n")
        command = ["perl", str(SCRIPT), str(home)]
        done = subprocess.run(command, input="".join(lines), capture_output=True, text=True, errors="replace")
    said = done.stdout.splitlines()
    if done.returncode or len(said) != len(orders):
        raise RuntimeError(f"SpamAssassin answered {len(said)} of {len(orders)}: {done.stderr[-500:].strip()}")
    return said
