"""The daemon with the fake scorer, which notes each message that it is asked about: `CONFIG NOTES`.

A note is written before the answer is given, so SIGKILL cannot lose one.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from service.daemon import run
from spamguard.config import Config, load
from spamguard.verdict import Verdict

from .fakes import FakePrepared, FakeScorer, load_fake_scorer

_NUMBER = re.compile(rb"X-Crash: (\d+) ")


def main() -> None:
    notes = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def noting(config: Config, encoder: object) -> FakeScorer:
        scorer = load_fake_scorer(config, encoder)
        scorer.remember = False
        answer = scorer.score

        def score(batch: Sequence[FakePrepared]) -> list[Verdict]:
            found = [_NUMBER.search(one.raw) for one in batch]
            os.write(notes, b"".join(b"%s\n" % one[1] for one in found if one))  # not the daemon's own probe
            return answer(batch)

        scorer.score = score  # type: ignore[method-assign]
        return scorer

    run(load(Path(sys.argv[1])), noting)


if __name__ == "__main__":
    main()
