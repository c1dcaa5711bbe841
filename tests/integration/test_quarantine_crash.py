"""SIGKILL at 50 random moments of holding, releasing, deleting and expiring: nothing torn, nothing lost."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from service.quarantine import Quarantine
from service.quarantine_index import Index
from service.release import WayOut, release
from spamguard import headers
from spamguard.config import Config
from tests.conftest import LoopThread
from tests.fakes import FakeNextHop
from tests.quarantine_worker import raw_of

pytestmark = pytest.mark.integration

KILLS = 50
SEED = 4


class Ledger:
    """What the workers have noted of each message, and where the messages are."""

    def __init__(self, folder: Path, hop: FakeNextHop) -> None:
        self.quarantine = Quarantine(folder / "quarantine")
        self._folder = folder
        self._hop = hop

    @property
    def noted(self) -> Counter[tuple[str, str]]:
        lines = (self._folder / "ledger").read_text().splitlines()
        return Counter((what, message_id) for what, message_id in map(str.split, lines))

    def arrived(self) -> dict[str, list[bytes]]:
        """What came to whom or into the Maildir, for each id: the content without our mark."""
        found: dict[str, list[bytes]] = {}
        for one in self._hop.messages:
            content = headers.strip(one.data).replace(b"\r\n", b"\n")
            found.setdefault(_id_in(content), []).extend([content] * len(one.rcpt))
        for content in self.put_back():
            found.setdefault(_id_in(content), []).extend([content, content])  # as for two recipients
        return found

    def put_back(self) -> list[bytes]:
        folders = (self._folder / "ann" / part for part in ("new", "cur"))
        return [headers.strip(file.read_bytes()) for folder in folders for file in folder.iterdir()]

    def check(self) -> None:
        noted, states, arrived = self.noted, self.quarantine.states(), self.arrived()
        for message_id in states:
            assert self.quarantine.open(message_id).content == raw_of(message_id)
        with Index(self.quarantine) as index:
            items = index.items(released=True)
        assert {item.id: item.state for item in items} == states
        assert [item.damaged for item in items] == [None] * len(items)
        assert all(item.size == len(raw_of(item.id)) for item in items)
        for what, message_id in noted:
            begun = {word for word in ("releasing", "deleting") if noted[word, message_id]}
            if what == "held" and not begun:
                assert states.get(message_id) == "held", message_id
            elif what == "deleted":
                assert message_id not in states
            elif what == "released":
                assert states.get(message_id, "released") == "released"
                assert len(arrived[message_id]) >= 2, message_id
            assert what != "refused"
        for message_id, state in states.items():
            assert state == "held" or len(arrived.get(message_id, [])) >= 2, message_id
        assert len(self.put_back()) == len(set(self.put_back())), "two copies in a Maildir"
        for message_id, contents in arrived.items():
            assert set(contents) == {raw_of(message_id)}
            # Between the next hop's 250 and our note of it lies the one moment at which a mail is doubled.
            assert len(contents) <= 2 * max(2, noted["releasing", message_id]), message_id


def _id_in(content: bytes) -> str:
    return content.partition(b"Subject: ")[2].partition(b"\n")[0].decode()


@pytest.mark.timeout(300)
def test_killed_at_any_moment_it_is_whole(tmp_path: Path, loop_thread: LoopThread) -> None:
    chance = random.Random(SEED)
    hop = FakeNextHop(lmtp=True)
    port = loop_thread.run(hop.start())
    for part in ("tmp", "new", "cur"):
        (tmp_path / "ann" / part).mkdir(parents=True)
    ledger = Ledger(tmp_path, hop)
    command = [sys.executable, "-m", "tests.quarantine_worker", str(tmp_path), str(port)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as worker:
        assert worker.stdin and worker.stdout
        for _ in range(KILLS):
            worker.stdin.write(f"{chance.uniform(20, 700)}\n")
            worker.stdin.flush()
            assert worker.stdout.readline() == f"{-signal.SIGKILL}\n"
            ledger.check()
        worker.stdin.close()
    counts = Counter(what for what, _ in ledger.noted.elements())
    assert min(counts[word] for word in ("held", "released", "deleted")) >= KILLS

    # What a kill has left half done is finished by the next attempt.
    config = Config.model_validate({
        "state_dir": tmp_path, "next_hop": {"host": "127.0.0.1", "port": port, "protocol": "lmtp"},
    })  # fmt: skip
    left = list(ledger.quarantine.held())
    for message_id in left:
        asyncio.run(release(ledger.quarantine, message_id, WayOut(config)))
    assert left and not list(ledger.quarantine.held())
    ledger.check()
    doubled = sum(len(contents) > 2 for contents in ledger.arrived().values())
    assert doubled <= KILLS, "more than one for each kill"
    loop_thread.run(hop.stop())
