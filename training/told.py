"""The report of one retrain: what it came to, handed to the page."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spamguard.config import Config
from spamguard.encoder import Encoder
from spamguard.errors import CorpusError
from spamguard.head import AdditiveHead

from .fit import take
from .learning_curve import Point, learning_curve
from .page import Before, Gate, Run, write
from .retrain import Progress, Retrained, penalties, shipped_bundle

_COLUMNS = ("messages", "of them", "head in service", "new head", "new head alone", "head in service alone")


def report(
    done: Retrained, config: Config, encoder: Encoder, progress: Progress | None = None, *, private: bool = False
) -> Path:
    """Write the page of a retrain, without names of files if `private`, and return its path. Raises ReportError."""
    mail, fitted = done.trial.mail, done.trial.fitted
    learnt = mail.fitted
    features, table = take(mail.features, learnt), mail.table.iloc[learnt].reset_index(drop=True)
    old = done.trial.said_before(features, list(table["content"]))
    run = Run(
        head=done.bundle.id,
        table=table,
        probabilities=fitted.out_of_fold,
        cutoffs=fitted.cutoffs,
        provenance=done.bundle.manifest.provenance,
        seconds=done.seconds,
        complaints=done.complaints,
        before=None if old is None else Before(done.before, old.probabilities, old.cutoffs),
        gate=Gate(
            done.word.outcome,
            "; ".join(done.word.reasons),
            _COLUMNS,
            [
                (row.what, row.n, "" if row.before is None else row.before, row.after, row.gained, row.lost)
                for row in done.word.rows
            ],
        ),
        lengths=np.asarray([int(row.text(encoder.vocab_size).counts.sum()) for row in features.wide]),
        max_tokens=encoder.max_tokens,
        curve=_curve(done, config, encoder, progress),
    )
    return write(run, config.reports_dir / done.bundle.id, private=private or config.learning.report_private)


def _curve(done: Retrained, config: Config, encoder: Encoder, progress: Progress | None) -> list[Point] | None:
    """None for a head of another kind, or where no head fits so few."""
    if not isinstance(done.bundle.head, AdditiveHead):
        return None
    mail, fitted = done.trial.mail, done.trial.fitted
    shipped = shipped_bundle(encoder) if done.bundle.manifest.provenance["starts_from_shipped_head"] else None
    prior = shipped.head if shipped is not None and isinstance(shipped.head, AdditiveHead) else None
    try:
        return learning_curve(
            take(mail.features, mail.fitted),
            mail.labels[mail.fitted],
            fitted.out_of_fold,
            columns=encoder.vocab_size,
            groups=mail.groups,
            penalties=penalties(config).times(fitted.strength),
            prior=prior,
            progress=None if progress is None else lambda step, steps: progress("learning curve", step, steps),
        )
    except CorpusError:
        return None
