"""Bundles of random heads for an encoder that stands on paper only: quick to make, save and load."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from spamguard import bundle, features
from spamguard.bundle import Bundle
from spamguard.encoder import TokenIds
from spamguard.errors import BundleError
from spamguard.head import AdditiveHead, MlpHead
from spamguard.verdict import Cutoffs
from tests.random_head import random_head

DIM, VOCABULARY, HIDDEN = 6, 50, 4
COLUMNS, STRUCTURE = VOCABULARY, len(features.NAMES)


@dataclass(frozen=True)
class PaperEncoder:
    """What a bundle needs to know of an encoder; it reads nothing."""

    fingerprint: str = "a" * 16
    dim: int = DIM
    vocab_size: int = VOCABULARY
    max_tokens: int = 32
    description: dict[str, Any] = field(
        default_factory=lambda: {
            "model": {"weights": "abc"},
            "layers": [0, 2, 4],
            "pooling": "mean",
            "max_tokens": 32,
        }
    )

    def tokenize(self, texts: Any, limit: int) -> list[TokenIds]:
        raise AssertionError("a bundle reads no mail")

    def pieces(self, text: str, limit: int) -> Any:
        raise AssertionError("a bundle reads no mail")

    def encode(self, tokens: Any) -> Any:
        raise AssertionError("a bundle reads no mail")


ENCODER = PaperEncoder()
CUTOFFS = Cutoffs(0.5, 0.9)


def a_head(kind: str = "mlp", seed: int = 0) -> AdditiveHead | MlpHead:
    return random_head(kind, seed, dim=DIM, columns=COLUMNS, structure=STRUCTURE, hidden=HIDDEN)


def a_bundle(kind: str = "mlp", seed: int = 0, cutoffs: Cutoffs = CUTOFFS) -> Bundle:
    return bundle.make(a_head(kind, seed), cutoffs, ENCODER, {"ham": 3, "paths": ["mail/é"]})


def refusal(folder: Path, encoder: PaperEncoder = ENCODER) -> str:
    """The one line with which loading is refused."""
    with pytest.raises(BundleError) as caught:
        bundle.load(folder, encoder)
    line = str(caught.value)
    assert "\n" not in line and str(folder) in line
    return line
