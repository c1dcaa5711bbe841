"""Each seed of the fuzzer goes through its target in the ordinary tests, where atheris need not be installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
SEEDS = sorted(path for path in CORPUS.rglob("*") if path.is_file())


@pytest.mark.parametrize("seed", SEEDS, ids=lambda path: str(path.relative_to(CORPUS)))
def test_seed(seed: Path) -> None:
    TARGETS[seed.parent.name](seed.read_bytes())


def test_each_target_has_seeds_and_no_others() -> None:
    assert {path.parent.name for path in SEEDS} == set(TARGETS)
