"""The daemon with the fake scorer, which notes each message that it is to judge: `CONFIG NOTES`.

A note is written before the verdict is there, so SIGKILL cannot lose one. What is only encoded, to learn from it,
passes by the pipeline and is not noted.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from service.daemon import run
from service.pipeline import Pipeline
from spamguard.config import Config
from spamguard.config_file import load

from .fakes import FakeScorer, load_fake_scorer

_NUMBER = re.compile(rb"X-Crash: (\d+) ")


def main() -> None:
    notes = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    handle = Pipeline.handle

    async def noted(pipeline: Pipeline, raw: bytes, *arguments: Any, **options: Any) -> Any:
        found = _NUMBER.search(raw)
        os.write(notes, b"%s\n" % (found[1] if found else b"-1"))
        return await handle(pipeline, raw, *arguments, **options)

    Pipeline.handle = noted  # type: ignore[method-assign, assignment]

    def forgetful(config: Config, encoder: object) -> FakeScorer:
        scorer = load_fake_scorer(config, encoder)
        scorer.remember = False
        return scorer

    run(load(Path(sys.argv[1])), forgetful)


if __name__ == "__main__":
    main()
