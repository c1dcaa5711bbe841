"""What does judging cost beside the encoder alone?

    python -m benchmarks.scoring FOLDER... [--messages N] [--rounds R]

Of N messages of the folders (in sha256 order) everything is done from the bytes to the verdict; beside it the encoder
alone reads the same token ids in the same batches, in turn, R rounds. The ratio is what travels to other machines.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from spamguard.config import Config
from spamguard.scorer import Scorer
from training.corpus import find

BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--messages", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    raws = sorted((item.read() for item in find(options.folders)), key=lambda raw: hashlib.sha256(raw).hexdigest())
    raws = raws[: options.messages]
    scorer = Scorer.from_config(Config())
    batches = [raws[start : start + BATCH] for start in range(0, len(raws), BATCH)]
    ids = [[scorer.prepare(raw).token_ids for raw in batch] for batch in batches]
    prepared = [[scorer.prepare(raw) for raw in batch] for batch in batches]
    ways: dict[str, Callable[[], object]] = {
        "the encoder alone": lambda: [scorer.encoder.encode(batch) for batch in ids],
        "and the head, with reasons": lambda: [scorer.score(batch, explain=True) for batch in prepared],
        "from the bytes to the verdict": lambda: [
            scorer.score([scorer.prepare(raw) for raw in batch]) for batch in batches
        ],
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    table = Table(
        "", "messages a second", "of the encoder alone", title=f"{len(raws)} messages, {options.rounds} rounds"
    )
    base = seconds["the encoder alone"]
    for name, spent in seconds.items():
        ratios = sorted(alone / mine for alone, mine in zip(base, spent, strict=True))
        ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
        table.add_row(name, f"{len(raws) / statistics.median(spent):.1f}", ratio)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
