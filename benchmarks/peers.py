"""The contestants that are not ours: each learns from mail and says how much like spam other mail is.

A peer that is missing on this machine says so when it is made (`Unavailable`).
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from spamguard.head import logits
from training.fit import LEAST_OF_A_CLASS, balanced, fit_mlp

from .mail import Mail, join
from .measures import log_odds

Array = npt.NDArray[np.float64]
STRENGTHS = (0.1, 1, 10, 100)  # inverse penalties that cross-validation chooses from


class Unavailable(Exception):
    """Why a contestant cannot run here."""


class Judge(Protocol):
    """What has learnt. `unsure` and `spam` are its own cut-offs, on the scale of its scores."""

    @property
    def unsure(self) -> float: ...

    @property
    def spam(self) -> float: ...

    def score(self, mail: Mail) -> Array:
        """The greater, the likelier spam: log-odds, if its learner is `probable`; shape (n,)."""
        ...


class Learner(Protocol):
    """Makes judges of mail. Those of a `steady` one can learn `more`; one with a `start` can judge before a label."""

    @property
    def name(self) -> str: ...

    @property
    def probable(self) -> bool: ...

    def learn(self, own: Mail) -> Judge: ...

    def after(self, others: Mail) -> Learner:
        """A learner that has seen the others' mail before."""
        ...


class Folder:
    """A folder that goes when nobody holds it any more."""

    def __init__(self, prefix: str) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=prefix))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


class Scores:
    """A judge made of a function and of cut-offs."""

    def __init__(self, score: Callable[[Mail], Array], unsure: float = 0.0, spam: float = 0.0) -> None:
        self.score, self.unsure, self.spam = score, unsure, spam


class Sklearn:
    """Logistic regression, its strength chosen by cross-validation on the mail that is learnt from."""

    probable = True

    def __init__(
        self,
        name: str,
        see: Callable[[Mail], Any],
        before: Callable[[], Any],
        others: Mail | None = None,
        strength: float | None = None,
    ):
        """`see` takes from mail what `before` prepares; a `strength` (C) that is given is not searched for."""
        self.name, self._see, self._before, self._others, self._strength = name, see, before, others, strength

    def after(self, others: Mail) -> Sklearn:
        """Learns from both together; the strength is that which was best for the others."""
        strength = self._strength or self._search(others).best_params_["logisticregression__C"]
        return Sklearn(self.name, self._see, self._before, others, strength)

    def learn(self, own: Mail) -> Judge:
        mail = own if self._others is None else join([self._others, own])
        if self._strength is None:
            model = self._search(mail).best_estimator_
        else:
            model = self._pipeline(self._strength).fit(self._see(mail), mail.labels)
        return Scores(lambda mail: np.asarray(model.decision_function(self._see(mail)), dtype=np.float64))

    def _pipeline(self, strength: float | None = None) -> Any:
        model = LogisticRegression(C=strength or 1.0, max_iter=1000, solver="lbfgs")
        return make_pipeline(self._before(), model)

    def _search(self, mail: Mail) -> Any:
        folds = StratifiedKFold(min(3, int(np.bincount(mail.labels).min())), shuffle=True, random_state=0)
        grid = {"logisticregression__C": STRENGTHS}
        return GridSearchCV(self._pipeline(), grid, scoring="roc_auc", cv=folds).fit(self._see(mail), mail.labels)


class Frequent(TfidfTransformer):  # type: ignore[misc]
    """tf-idf of the words that at least two messages have."""

    def fit(self, counts: sparse.csr_array, labels: object = None) -> Frequent:
        self._columns = np.flatnonzero(np.bincount(counts.indices, minlength=counts.shape[1]) > 1)
        super().fit(counts[:, self._columns])
        return self

    def transform(self, counts: sparse.csr_array, copy: bool = True) -> Any:
        return super().transform(counts[:, self._columns], copy)


def tfidf(strength: float | None = None) -> Learner:
    name = "tf-idf + logistic regression"
    return Sklearn(name, lambda mail: mail.words, lambda: Frequent(sublinear_tf=True), strength=strength)


def last_layer() -> Learner:
    return Sklearn(
        "last layer + logistic regression",
        lambda mail: mail.features.deep[:, -mail.short.deep.shape[1] :],
        lambda: StandardScaler(with_std=False),
    )


class NaiveBayes:
    """Multinomial, of counts, smoothed by one (Manning et al. 2008, 13.2)."""

    name, probable, steady = "naive Bayes, multinomial", True, True

    def __init__(self, others: Mail | None = None) -> None:
        self._others = others

    def after(self, others: Mail) -> NaiveBayes:
        return NaiveBayes(others)

    def learn(self, own: Mail) -> NaiveJudge:
        judge = NaiveJudge(own.words.shape[1])
        for mail in (own,) if self._others is None else (self._others, own):
            judge.more(mail)
        return judge


class NaiveJudge:
    unsure = spam = 0.0

    def __init__(self, columns: int) -> None:
        self._words, self._messages = np.zeros((2, columns)), np.zeros(2)
        self._sums, self._known = np.zeros(2), 0  # of the words; of the columns that have some

    def more(self, mail: Mail) -> None:
        """Learn these messages too."""
        columns = np.unique(mail.words.indices)
        self._known += int((self._words[:, columns].sum(0) == 0).sum())
        for label in (0, 1):
            rows = mail.words[mail.labels == label]
            np.add.at(self._words[label], rows.indices, rows.data)
            self._sums[label] += rows.data.sum()
            self._messages[label] += rows.shape[0]

    def score(self, mail: Mail) -> Array:
        columns = np.unique(mail.words.indices)
        counts = self._words[:, columns]
        each = np.log((counts + 1) / (self._sums + self._known)[:, None])
        prior = np.log((self._messages[1] + 1) / (self._messages[0] + 1))
        # A word that was never seen says nothing.
        weights = np.where(counts.sum(0) > 0, each[1] - each[0], 0.0)
        return np.asarray(mail.words[:, columns] @ weights + prior)


class SeedRecipe:
    """[CLS] of 25 tokens and a dense layer of 512, as in the tutorial; not calibrated."""

    name, probable = "the tutorial's recipe", True

    def __init__(self, others: Mail | None = None, *, weigh: bool = False, seed: int = 0) -> None:
        """With `weigh` both classes count the same, as the tutorial has it for its messages."""
        self._others, self._weigh, self._seed = others, weigh, seed

    def after(self, others: Mail) -> SeedRecipe:
        return SeedRecipe(others, weigh=self._weigh, seed=self._seed)

    def learn(self, own: Mail) -> Judge:
        mail = own if self._others is None else join([self._others, own])
        weights = balanced(mail.labels) if self._weigh else np.ones(len(mail))
        head = fit_mlp(mail.short, mail.labels, weights, seed=self._seed)
        return Scores(lambda other: logits(head, other.short).astype(np.float64))


class Bogofilter:
    """bogofilter as Debian has it, with its own cut-offs. It reads the headers too."""

    name, probable, steady = "bogofilter (reads headers)", True, True

    def __init__(self, others: BogofilterJudge | None = None) -> None:
        if not shutil.which("bogofilter"):
            raise Unavailable("bogofilter is not installed")
        self._others = others

    def after(self, others: Mail) -> Bogofilter:
        judge = BogofilterJudge()
        judge.more(others)
        return Bogofilter(judge)

    @property
    def start(self) -> BogofilterJudge | None:
        """What judges before there is a label."""
        if self._others is None:
            return None
        judge = BogofilterJudge()
        shutil.copytree(self._others.home.path, judge.home.path, dirs_exist_ok=True)
        return judge

    def learn(self, own: Mail) -> BogofilterJudge:
        judge = self.start or BogofilterJudge()
        judge.more(own)
        return judge


class BogofilterJudge:
    unsure, spam = (float(log_odds(p)) for p in (0.45, 0.99))

    def __init__(self) -> None:
        self.home = Folder("bogofilter-")

    def more(self, mail: Mail) -> None:
        """Learn these messages too."""
        for option, label in (("-n", 0), ("-s", 1)):
            self._run([option], [raw for raw, given in zip(mail.raw, mail.labels, strict=True) if given == label])

    def score(self, mail: Mail) -> Array:
        said = [line.rpartition(" ")[2] for line in self._run(["-TT"], mail.raw).splitlines()]
        if len(said) != len(mail):
            raise RuntimeError(f"bogofilter judged {len(said)} of {len(mail)} messages")
        return log_odds([float(each) for each in said])

    def _run(self, options: Sequence[str], raw: Sequence[bytes]) -> str:
        if not raw:
            return ""
        # -C: no configuration of this machine's user or administrator.
        command = ["bogofilter", "-C", "-d", str(self.home.path), *options]
        if len(raw) == 1:
            return _output(command, raw[0])
        with tempfile.TemporaryDirectory(prefix="bogofilter-mail-") as folder:
            files = [Path(folder) / f"{number}.eml" for number in range(len(raw))]
            for file, each in zip(files, raw, strict=True):
                file.write_bytes(each)
            return _output([*command, "-b"], "\n".join(map(str, files)).encode())


def _output(command: Sequence[str], given: bytes) -> str:
    done = subprocess.run(command, input=given, capture_output=True)
    if done.returncode > 2:  # 0 to 2 are verdicts
        raise RuntimeError(f"{command[0]}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode()


FAST: dict[str, Callable[[], Learner]] = {
    "bogofilter": Bogofilter,
    "tfidf": tfidf,
    "bayes": NaiveBayes,
    "seed": SeedRecipe,
    "last-layer": last_layer,
}


def enough(mail: Mail) -> bool:
    """Whether every contestant can learn from it."""
    return bool(np.bincount(mail.labels, minlength=2).min() >= cast(int, LEAST_OF_A_CLASS))
