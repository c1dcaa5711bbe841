"""Fuzz one target: `python -m tests.fuzz TARGET [options and corpus folders, as libFuzzer takes them]`."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["spamguard", "service"]):
    from tests.fuzz.targets import TARGETS

target = TARGETS[sys.argv.pop(1)]
atheris.Setup(sys.argv, target)
atheris.Fuzz()
