"""The crash rig for a minute; `make crash` is the long run."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable

import pytest
from rich.console import Console

from tests.crash import FILES, Outcome, Unmountable, descriptors_exhausted, disk_full, killed, report
from tests.crash_scene import Scene

pytestmark = pytest.mark.integration


def passed(act: Awaitable[Outcome]) -> Outcome:
    async def play() -> Outcome:
        return await act

    outcome, text = asyncio.run(play()), io.StringIO()
    assert report([outcome], Console(file=text, width=110)), text.getvalue()
    assert outcome.scene.senders.accepted == len(outcome.scene.load)
    return outcome


def test_row_18_what_was_answered_250_is_there_however_often_daemon_and_next_hop_are_killed(tmp_path):
    outcome = passed(killed(Scene(tmp_path, 1500, seed=18), 6))
    assert len(outcome.scene.faults) == 6 + 3 + 1
    assert outcome.scene.senders.unanswered, "a kill under load leaves senders without an answer"


def test_row_31_a_full_disk_puts_mail_off_and_loses_none(tmp_path):
    try:
        passed(disk_full(Scene(tmp_path, 200, seed=31, large=0.5)))
    except Unmountable as error:
        pytest.skip(f"no small disk can be mounted: {error}")


def test_row_31_without_file_descriptors_the_daemon_neither_spins_nor_loses_mail(tmp_path):
    passed(descriptors_exhausted(Scene(tmp_path, 600, seed=31, pause_s=0.1, files=FILES)))
