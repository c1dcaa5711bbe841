"""The heads folder: one rename promotes, rollback goes to what was before, prune takes nothing that is needed."""

from __future__ import annotations

import json
import os
import threading
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from spamguard import bundle, heads_dir
from spamguard.errors import BundleError
from spamguard.heads_dir import Event, before, find, heads, history, promote, prune, refuse, serving, sweep
from tests.paper_bundle import CUTOFFS, ENCODER, a_head
from tests.unit.test_bundle import listing

DAY = timedelta(days=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "heads"


def save(folder: Path, seed: int, age: timedelta = timedelta(0)) -> str:
    """A head that was fitted so long ago; its ID."""
    created = (datetime.now(UTC) - age).isoformat()
    made = bundle.make(a_head("mlp", seed), CUTOFFS, ENCODER, {"created": created})
    bundle.save(made, folder / made.id)
    return made.id


def three(folder: Path) -> list[str]:
    """Three heads, put in service one after the other."""
    ids = [save(folder, seed) for seed in range(3)]
    for one in ids:
        promote(folder, one, "retrain")
    return ids


def test_without_a_folder_the_shipped_head_judges(folder: Path) -> None:
    assert serving(folder) == "shipped"
    (only,) = heads(folder)
    assert only.current and only.name == "shipped" and only.folder == bundle.SHIPPED
    assert promote(folder, "shipped") == "shipped"
    assert prune(folder, 0) == []
    sweep(folder)
    with pytest.raises(BundleError, match="nothing is known"):
        before(folder)
    assert not folder.exists()


def test_promotion_is_written_down(folder: Path) -> None:
    one, other = save(folder, 0), save(folder, 1)
    assert promote(folder, one, "retrain", "won: x") == "shipped"
    assert bundle.in_service(folder) == folder / one and serving(folder) == one
    assert promote(folder, other) == one
    assert promote(folder, other) == other  # it is in service already: nothing happens
    assert [(e.id, e.previous, e.why, e.gate) for e in history(folder)] == [
        (one, "shipped", "retrain", "won: x"),
        (other, one, "promote", ""),
    ]
    assert all(datetime.fromisoformat(e.time) <= datetime.now(UTC) for e in history(folder))


def test_each_head_has_its_state(folder: Path) -> None:
    one, two, three_, broken = (save(folder, seed, seed * DAY) for seed in range(4))
    promote(folder, one, "retrain")
    promote(folder, two, "retrain")
    refuse(folder, three_, "lost: y")
    (folder / broken / "manifest.json").write_text("{")
    (folder / "letters").mkdir()
    states = {head.name: head.state for head in heads(folder)}
    assert states == {one: "earlier", two: "current", three_: "candidate", broken: "damaged", "shipped": "shipped"}
    assert [head.name for head in heads(folder)[:3]] == [broken, one, two]  # by date; of a damaged one the folder's
    assert find(folder, "current").name == find(folder, two[:5]).name == two
    assert find(folder, "shipped").folder == find(folder, find(folder, "shipped").id).folder == bundle.SHIPPED
    assert "manifest.json" in find(folder, broken).fault


@pytest.mark.parametrize("name", ["", "0" * 12, "../heads", "letters", "ABC", "\x1b[31m"])
def test_what_is_no_head_is_said_in_one_line(folder: Path, name: str) -> None:
    three(folder)
    with pytest.raises(BundleError) as caught:
        find(folder, name)
    assert "\x1b" not in str(caught.value) and "\n" not in str(caught.value)
    if name:
        with pytest.raises(BundleError, match="no such head"):
            promote(folder, name)
    assert len(history(folder)) == 3


def test_a_beginning_that_fits_two_heads_is_refused(folder: Path) -> None:
    seed, ids = 0, set[str]()
    while len({one[0] for one in ids}) == len(ids):  # until two begin alike
        ids.add(save(folder, seed))
        seed += 1
    twice = next(one for one in ids if sum(other[0] == one[0] for other in ids) == 2)
    with pytest.raises(BundleError, match="more than one head begins so"):
        find(folder, twice[0])


# --- Back -----------------------------------------------------------------------------------------------------------


def test_rollback_goes_back_step_by_step_to_the_shipped_head(folder: Path) -> None:
    one, two, last = three(folder)
    for expected in (two, one, "shipped"):
        target = before(folder)
        assert target == expected
        promote(folder, target, "rollback")
        assert serving(folder) == target
    assert bundle.in_service(folder) == bundle.SHIPPED and not (folder / "current").is_symlink()
    with pytest.raises(BundleError, match="nothing is known"):
        before(folder)
    promote(folder, last)  # the way forward
    assert before(folder) == "shipped"


def test_rollback_ends_at_the_first_head_whatever_was_promoted_twice(folder: Path) -> None:
    one, other = save(folder, 0), save(folder, 1)
    for step in (one, other, one):
        promote(folder, step)
    seen = []
    for _ in range(3):
        promote(folder, before(folder), "rollback")
        seen.append(serving(folder))
    assert seen == [other, one, "shipped"]


def test_what_was_killed_between_history_and_rename_is_passed_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = save(folder, 0), save(folder, 1)
    promote(folder, one, "retrain")

    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle, "put_in_service", killed)
    with pytest.raises(KeyboardInterrupt):
        promote(folder, other, "retrain")
    monkeypatch.undo()
    assert serving(folder) == one and before(folder) == "shipped"
    promote(folder, other, "retrain")
    assert before(folder) == one


def test_a_torn_line_costs_that_line_alone(folder: Path) -> None:
    one, other = save(folder, 0), save(folder, 1)
    promote(folder, one, "retrain")
    with (folder / "history.jsonl").open("ab") as file:
        file.write(b'{"time": "2026-')
    promote(folder, other, "retrain")
    assert [e.id for e in history(folder)] == [one, other] and before(folder) == one


@pytest.mark.parametrize("line", ["[]", "7", '{"id": 3}', '{"time": 1, "id": "a", "previous": "b", "why": "c"}'])
def test_a_strange_line_is_no_event(folder: Path, line: str) -> None:
    folder.mkdir()
    event = Event("2026-01-01T00:00:00+00:00", "a" * 12, "shipped", "retrain")
    good = json.dumps({"time": event.time, "id": event.id, "previous": event.previous, "why": event.why})
    (folder / "history.jsonl").write_text(f"{line}\n{good}\n")
    assert history(folder) == [event]


def test_who_promotes_at_once_leaves_a_head_in_service_and_a_whole_history(folder: Path) -> None:
    ids = [save(folder, seed) for seed in range(4)]

    def often(one: str) -> None:
        for _ in range(25):
            promote(folder, one)

    threads = [threading.Thread(target=often, args=(one,)) for one in ids]
    for thread in threads:
        thread.start()
    seen = set()
    while any(thread.is_alive() for thread in threads):
        seen.add(serving(folder))
    assert seen <= {"shipped", *ids}
    events = history(folder)
    assert events[0].previous == "shipped" and serving(folder) == events[-1].id
    assert all(late.previous == early.id for early, late in pairwise(events))


# --- Away -----------------------------------------------------------------------------------------------------------


def test_prune_keeps_what_is_needed(folder: Path) -> None:
    old = [save(folder, seed, (30 + seed) * DAY) for seed in range(6)]
    promote(folder, old[5], "retrain")
    promote(folder, old[4], "retrain")
    young, stale = save(folder, 10, 6 * DAY), save(folder, 11, 8 * DAY)
    for one in (young, stale):
        refuse(folder, one, "lost: z")
    assert sorted(prune(folder, 0)) == sorted([*old[:4], stale])
    assert {head.name for head in heads(folder)} == {old[4], old[5], young, "shipped"}
    assert before(folder) == old[5] and serving(folder) == old[4]
    assert prune(folder, 0) == []


def test_prune_keeps_the_newest(folder: Path) -> None:
    ids = [save(folder, seed, (20 + seed) * DAY) for seed in range(5)]
    assert prune(folder, 3) == [ids[3], ids[4]]


def test_what_a_killed_process_left_is_swept(folder: Path) -> None:
    one = save(folder, 0)
    promote(folder, one)
    (folder / ".draft-abc").mkdir()
    (folder / ".draft-abc" / "weights.safetensors").write_bytes(b"half")
    (folder / ".current-123").symlink_to("nowhere")
    kept = listing(folder / one)
    sweep(folder)
    assert sorted(f.name for f in folder.iterdir()) == sorted([".lock", one, "current", "history.jsonl"])
    assert listing(folder / one) == kept and serving(folder) == one


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_one_line(folder: Path) -> None:
    one = save(folder, 0)
    folder.chmod(0o500)
    with pytest.raises(BundleError, match="Permission denied"):
        promote(folder, one)


def test_a_full_disk_leaves_the_head_in_service(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = save(folder, 0), save(folder, 1)
    promote(folder, one)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(heads_dir.os, "fsync", full)
    with pytest.raises(BundleError, match="No space left"):
        promote(folder, other)
    assert serving(folder) == one
