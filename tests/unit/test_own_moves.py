"""Mail that the watcher moved into Junk by itself is no label, unless a user has said the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from service import watch as watching
from service.mailbox import Spot
from service.sightings import Belief, Sightings
from spamguard.config import Config
from spamguard.errors import SpamguardError
from spamguard.featurestore import FeatureStore, content_hash
from spamguard.labels import USERS, Labels
from spamguard.own_moves import OwnMovesError, moved_to_junk
from spamguard.verdict import Label
from tests.conftest import Running
from tests.maildirs import Box
from tests.tiny_corpus import HAM, SPAM
from tests.unit.conftest import Tiny
from tests.watching import labels, messages, seen_at, settled, until
from training.corpus import Reading, tabulate

HERE = Spot("INBOX", "new", "1.a")


@pytest.mark.parametrize(
    ("state", "side", "own"),
    [
        ("moved", "junk", True),
        ("tagged", "junk", True),
        ("moving", "ham", True),
        ("moved", "ham", False),
        ("tagged", "ham", False),
        ("left", "ham", False),
        ("left", "junk", False),
        ("seen", "junk", False),
        ("held", "ham", False),
    ],
)
def test_what_the_watcher_noted(tmp_path: Path, state: str, side: str, own: bool) -> None:
    file = tmp_path / "watch.sqlite3"
    sightings = Sightings(file)
    sightings.judged(
        "/m", "c", HERE, state="moving" if state in ("moved", "moving") else state, side="ham", stamp="s"
    )
    if state != "moving":
        sightings.finished("/m", "c", state, side)
    assert moved_to_junk(file) == ({"c"} if own else set())  # while the daemon has it open
    sightings.close()
    assert moved_to_junk(file) == ({"c"} if own else set())


def test_what_the_user_has_moved_out_for_good_is_his(tmp_path: Path) -> None:
    sightings = Sightings(tmp_path / "watch.sqlite3")
    sightings.judged("/m", "c", HERE, state="moving", side="ham", stamp="s")
    sightings.finished("/m", "c", "moved", "junk")
    belief = Belief("/m", "c", Label.HAM, "moved", 1.0)
    sightings.arrived("/m", "c", HERE, "s", None, expect=belief)
    assert moved_to_junk(tmp_path / "watch.sqlite3") == {"c"}
    sightings.settle(belief, "ham")
    assert moved_to_junk(tmp_path / "watch.sqlite3") == set()
    sightings.close()


def test_nothing_was_watched(tmp_path: Path) -> None:
    assert moved_to_junk(tmp_path / "watch.sqlite3") == set()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [b"no database" * 500, b""])
def test_a_memory_that_cannot_be_read_is_one_line(tmp_path: Path, damage: bytes) -> None:
    """Its mail would be learnt otherwise."""
    file = tmp_path / "watch.sqlite3"
    file.write_bytes(damage)
    with pytest.raises(OwnMovesError, match=r"watch\.sqlite3: ") as caught:
        moved_to_junk(file)
    assert isinstance(caught.value, SpamguardError) and "\n" not in str(caught.value)


def table(tiny: Tiny, config: Config, root: Path, settled: set[str]) -> tuple[dict[str, int], list[str]]:
    with FeatureStore(config.features_dir, tiny.encoder.fingerprint) as store:
        found, complaints = tabulate([root], tiny.encoder, store, None, settled, Reading.configured(config))
        assert store.known(found["content"].tolist()) == set(found["content"])
    return dict(zip(found["content"], found["label"], strict=True)), complaints


def test_a_watched_maildir_teaches_what_its_user_did(
    watch: Callable[..., Running], box: Box, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real daemon moves two into Junk, the user one more, and takes one of ours out."""
    monkeypatch.setattr(watching, "_TICK_S", 0.1)
    box.make(".Junk")
    before = b"Subject: old\n\nspam of another filter\n"
    old = box.deliver(before, folder=".Junk", part="cur", info=":2,S")
    running = watch()
    raws = [b"Subject: pills\n\nviagra 1\n", b"Subject: pills\n\nviagra 2\n", b"Subject: lunch\n\nnoon\n"]
    names = [box.deliver(raw) for raw in raws]
    settled(running, 3)
    for name in names[:2]:  # a client has seen them
        box.rename(f".Junk/new/{name}", f".Junk/cur/{name}:2,S")
    box.rename(f".Junk/cur/{names[1]}:2,S", f"cur/{names[1]}:2,S")
    box.rename(f"new/{names[2]}", f".Junk/cur/{names[2]}:2,S")
    until(lambda: len(labels(running)) == 2)
    seen_at(running, f".Junk/cur/{names[0]}:2,S")
    config = running.daemon.loaded.config
    with Labels(config.labels_file) as given:
        users = {row.content for row in given.rows() if row.source in USERS}
    found, complaints = table(tiny, config, box.path, users)
    assert found == {content_hash(before): 1} and (box.path / ".Junk/cur" / f"{old}:2,S").exists()
    assert len(complaints) == 1 and complaints[0].startswith(
        "1 messages in Junk left out: spamguard moved them there"
    )
    assert len(messages(running)) == 3


def test_the_word_of_a_user_and_mail_elsewhere_count(tiny: Tiny, tmp_path: Path) -> None:
    box = Box(tmp_path / "mail")
    for raw in SPAM:
        box.deliver(raw, folder=".Junk", part="cur", info=":2,S")
    for raw in HAM:
        box.deliver(raw, part="cur", info=":2,S")
    config = tiny.config(tmp_path / "state")
    config.state_dir.mkdir()
    sightings = Sightings(config.watch_file)
    for raw in (*SPAM[:6], *HAM[:2]):  # of the ham we were wrong, and the user's word is not believed yet
        content = content_hash(raw)
        sightings.judged("/m", content, HERE, state="moving", side="ham", stamp="s")
        sightings.finished("/m", content, "moved", "junk")
    sightings.close()
    found, complaints = table(tiny, config, box.path, {content_hash(SPAM[0])})
    assert {content for content, label in found.items() if label} == set(map(content_hash, SPAM[6:]))
    assert {content for content, label in found.items() if not label} == set(map(content_hash, HAM))
    assert complaints[0].startswith("5 messages in Junk left out")
    # A folder of that name outside of any Maildir was made by hand.
    found, complaints = table(tiny, config, tiny.corpus, set())
    assert sum(found.values()) == len(SPAM) and complaints == []
