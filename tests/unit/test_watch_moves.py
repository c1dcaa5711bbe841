"""What a user moves, and the keywords a client sets, in the real daemon: which of it is a label."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from service import watch as watching
from tests.conftest import Running
from tests.maildirs import Box
from tests.watching import labels, messages, remembered, seen_at, settled, until

Start = Callable[..., Running]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_TICK_S", 0.1)


@pytest.mark.parametrize(
    ("way", "label"),
    [
        (["new/{}", ".Junk/cur/{}:2,S"], "spam"),
        (["new/{}", "cur/{}:2,S", ".Junk/new/{}"], "spam"),
        (["new/{}", ".Trash/cur/{}:2,S", ".Junk/cur/{}:2,S"], "spam"),
        (["new/{}", ".Junk.2024/cur/{}:2,S"], "spam"),
        (["new/{}", ".Archive/cur/{}:2,S"], None),
        (["new/{}", ".Trash/cur/{}:2,S"], None),
        (["new/{}", ".Trash/cur/{}:2,S", "cur/{}:2,S"], None),
        (["new/{}", ".Junk/cur/{}:2,S", "cur/{}:2,S"], None),
        (["new/{}", ".Junk/cur/{}:2,S", ".Trash/cur/{}:2,S"], None),
    ],
    ids=lambda value: " ".join(step.split("/{")[0] for step in value) if isinstance(value, list) else str(value),
)
def test_moves_of_ham(watch: Start, box: Box, way: list[str], label: str | None) -> None:
    check_way(watch, box, b"Subject: lunch\n\nnoon\n", way, label)


@pytest.mark.parametrize(
    ("way", "label"),
    [
        ([".Junk/new/{}", "cur/{}:2,S"], "ham"),
        ([".Junk/new/{}", ".Archive/cur/{}:2,S"], "ham"),
        ([".Junk/new/{}", ".Trash/cur/{}:2,S"], None),
        ([".Junk/new/{}", ".Trash.old/cur/{}:2,S"], None),
        ([".Junk/new/{}", ".Junk.2024/cur/{}:2,S"], None),
        ([".Junk/new/{}", ".Trash/cur/{}:2,S", "cur/{}:2,S"], "ham"),
        ([".Junk/new/{}", "cur/{}:2,S", ".Junk/cur/{}:2,S"], None),
        ([".Junk/new/{}", "cur/{}:2,ST"], None),
        ([".Junk/new/{}", ""], None),
    ],
    ids=lambda value: " ".join(step.split("/{")[0] for step in value) if isinstance(value, list) else str(value),
)
def test_moves_of_spam_that_we_have_moved(watch: Start, box: Box, way: list[str], label: str | None) -> None:
    check_way(watch, box, b"Subject: pills\n\nviagra\n", way, label)


def check_way(watch: Start, box: Box, raw: bytes, way: list[str], label: str | None) -> None:
    """The user moves a message along the way, quickly; then this is its label, and there it stays."""
    for folder in (".Archive", ".Trash", ".Trash.old", ".Junk", ".Junk.2024"):
        box.make(folder)
    running = watch(quiet_s=0.5)
    name = box.deliver(raw)
    settled(running)
    places = [step.format(name) for step in way]
    assert set(box.files()) == {places[0]}
    for here, there in pairwise(places):
        box.rename(here, there)
    seen_at(running, [place for place in places if place][-1])
    assert set(box.files()) == {place for place in places[-1:] if place}
    assert list(labels(running).values()) == ([(label, "moved")] if label else [])
    assert len(messages(running)) == 1


def test_a_client_that_copies_and_deletes_under_another_name_is_understood(watch: Start, box: Box) -> None:
    running = watch()
    spam = box.deliver(b"Subject: pills\n\nviagra\n")
    settled(running)
    os.link(box.path / ".Junk/new" / spam, box.path / "cur/1.other.host,S=24:2,S")
    (box.path / ".Junk/new" / spam).unlink()
    until(lambda: labels(running))
    assert list(labels(running).values()) == [("ham", "moved")]
    assert set(box.files()) == {"cur/1.other.host,S=24:2,S"}
    assert len(messages(running)) == 1


def test_a_move_while_we_were_away_is_a_label(watch: Start, box: Box, loop_thread: Any) -> None:
    first = watch()
    spam = box.deliver(b"Subject: pills\n\nviagra\n")
    settled(first)
    loop_thread.run(first.daemon.stop())
    box.rename(f".Junk/new/{spam}", f"cur/{spam}:2,S")
    second = watch()
    until(lambda: labels(second))
    assert list(labels(second).values()) == [("ham", "moved")]
    assert messages(second) == []


def test_a_label_is_of_the_message_without_our_marks(watch: Start, box: Box) -> None:
    running = watch(tag=True)
    box.deliver(b"Subject: lunch\n\nnoon\n")
    settled(running)
    (path,) = (box.path / "new").iterdir()
    box.rename(f"new/{path.name}", f".Junk/cur/{path.name}:2,S")
    until(lambda: labels(running))
    from spamguard.headers import content_hash

    assert set(labels(running)) == {content_hash(b"Subject: lunch\n\nnoon\n")}


@pytest.mark.parametrize(
    ("keywords", "label"),
    [("0 $Junk\n1 $NonJunk\n", "spam"), ("0 NonJunk\n", "ham"), ("0 $NotJunk\n", "ham"), ("0 $Label1\n", None)],
)
def test_keywords_of_dovecot_are_labels(watch: Start, box: Box, keywords: str, label: str | None) -> None:
    running = watch()
    name = box.deliver(b"Subject: lunch\n\nnoon\n")
    settled(running)
    (box.path / "dovecot-keywords").write_text(keywords)
    box.rename(f"new/{name}", f"cur/{name}:2,Sa")
    if label:
        until(lambda: remembered(running, "SELECT 1 FROM place WHERE keyword = ?", label))
    seen_at(running, f"cur/{name}")
    assert list(labels(running).values()) == ([(label, "keyword")] if label else [])


def test_a_keyword_whose_letter_dovecot_explains_after_it_has_used_it_is_a_label(watch: Start, box: Box) -> None:
    running = watch(rescan_s=1000)
    name = box.deliver(b"Subject: lunch\n\nnoon\n")
    settled(running)
    box.rename(f"new/{name}", f"cur/{name}:2,Sa")
    seen_at(running, f"cur/{name}")
    (box.path / "dovecot-keywords.lock").write_text("0 $Junk\n")
    (box.path / "dovecot-keywords.lock").rename(box.path / "dovecot-keywords")
    until(lambda: list(labels(running).values()) == [("spam", "keyword")])


def test_a_keyword_that_is_taken_back_is_no_label(watch: Start, box: Box) -> None:
    running = watch(quiet_s=3)
    name = box.deliver(b"Subject: lunch\n\nnoon\n")
    settled(running)
    (box.path / "dovecot-keywords").write_text("0 $Junk\n")
    box.rename(f"new/{name}", f"cur/{name}:2,Sa")
    until(lambda: remembered(running, "SELECT 1 FROM belief"))
    box.rename(f"cur/{name}:2,Sa", f"cur/{name}:2,S")
    seen_at(running, f"cur/{name}")
    assert labels(running) == {}
