"""The quarantine beside a watcher: what it took goes back and stays, and released mail that arrives is left alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from service.quarantine import Quarantine
from service.release import WayOut, release
from spamguard import headers, released
from tests.conftest import Running
from tests.maildirs import Box
from tests.unit.test_watch import labels, messages, seen_at, settled

Start = Callable[..., Running]
SPAM = b"Subject: pills\n\nviagra\n"
HOLD = {"policy": {"spam": "quarantine"}}


def test_what_the_watcher_took_goes_back_and_stays(watch: Start, box: Box) -> None:
    running = watch(HOLD)
    name = box.deliver(SPAM, part="cur", info=":2,F", mtime=1_000_000_000, mode=0o640)
    settled(running)
    config = running.daemon.loaded.config
    (message_id,) = Quarantine(config.quarantine_path).states()
    done = asyncio.run(release(Quarantine(config.quarantine_path), message_id, WayOut(config)))
    assert (done.state, done.taken) == ("released", (str(box.path),))
    ((place, raw),) = box.files().items()
    assert place == f"cur/{name.partition(',')[0]},S={len(raw)}:2,F" and headers.strip(raw) == SPAM
    seen_at(running, place)
    box.deliver(b"Subject: later\n\nnoon\n")
    settled(running, 2)
    assert box.files()[place] == raw and (box.path / place).stat().st_mtime == 1_000_000_000
    assert [line["label"] for line in messages(running)] == ["spam", "ham"] and labels(running) == {}


def test_released_mail_that_comes_into_a_watched_maildir_is_not_judged(watch: Start, box: Box) -> None:
    running = watch(HOLD)
    key = released.make_key(running.daemon.loaded.config.release_key)
    mine = b"Delivered-To: ann@x\n" + released.sign(SPAM, "0123456789ab", key)
    name = box.deliver(mine)
    settled(running)
    (line,) = messages(running)
    assert (line["label"], line["fate"], line["released"]) == ("released", "left", "0123456789ab")
    assert running.daemon.journal.counters["left.released"] == 1
    box.deliver(mine.replace(b"viagra", b"viagra!"))
    settled(running, 2)
    assert box.files() == {f"new/{name}": mine}
    assert len(Quarantine(running.daemon.loaded.config.quarantine_path).states()) == 1
