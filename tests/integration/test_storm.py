"""The storm for a minute; `make storm` is the long run."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tests.storm import Outcome, killed, report, undisturbed
from tests.storm_scene import Scene

pytestmark = pytest.mark.integration


def passed(outcome: Outcome) -> Outcome:
    text = io.StringIO()
    assert report([outcome], Console(file=text, width=110)), text.getvalue()
    return outcome


def test_row_32_every_message_is_judged_once_and_none_harmed_however_often_the_watcher_is_killed(tmp_path):
    outcome = passed(killed(Scene(tmp_path / "storm", 1500, seed=32, old=30, fsync=True, rescan_s=3), 2, linger_s=10))
    assert len(outcome.scene.lives) == 3
    assert outcome.judgement.counts["acts of the user"] > 50 and outcome.judgement.counts["labels"]


def test_row_32_many_at_once_are_judged_without_waiting_for_the_next_look_at_everything(tmp_path):
    outcome = passed(undisturbed("at once", Scene(tmp_path / "storm", 1500, seed=33)))
    assert len(outcome.judgement.delays) == 1500
