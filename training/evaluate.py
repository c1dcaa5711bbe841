"""`spamguard evaluate`: figures of the head in service on labelled mail."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spamguard.config import Config
from spamguard.head import logits, probability
from spamguard.scorer import Scorer

from .corpus import Reading
from .report import Figures, figures
from .retrain import Progress, gather, labels_of


def evaluate(
    paths: Sequence[Path],
    config: Config,
    scorer: Scorer,
    progress: Progress | None = None,
    reading: Reading | None = None,
) -> tuple[Figures, list[str]]:
    """Figures at the scorer's cut-offs, and complaints about mail left out. Raises CorpusError."""
    table, features, complaints = gather(paths, config, scorer.encoder, progress, reading)
    said = probability(logits(scorer.bundle.head, features))
    return figures(said, labels_of(table), scorer.cutoffs), complaints
