"""The storm's own judgement: it must see what is lost, altered, doubled, misplaced, judged twice or mislabelled."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from spamguard.featurestore import content_hash
from spamguard.verdict import Label
from tests import storm_ledger
from tests.storm_delivery import Delivery, deliver, read, write
from tests.storm_ledger import Evidence, Found, Judgement, Life, Row, judge
from tests.storm_mail import Mail, compose, mails, name_of, number_of
from tests.storm_user import ARCHIVE, GONE, INBOX, JUNK, TRASH, Act

QUIET_S, END = 2.0, 1000.0
SPAM, HAM = Label.SPAM.value, Label.HAM.value

LOAD = mails(60, seed=1, old=3)
A_SPAM, A_HAM = (
    next(mail for mail in LOAD if mail.label is label and mail.place == "new" and not mail.old)
    for label in (Label.SPAM, Label.HAM)
)
IN_CUR = next(mail for mail in LOAD if mail.flags and not mail.old)


def base(mail: Mail) -> str:
    return f"1.M1P1Q{mail.number}.storm.example"


def content(mail: Mail) -> str:
    return content_hash(compose(mail))


@dataclass
class World:
    """All went well; a test changes one thing. Mail is delivered at 10 and judged at 11."""

    found: dict[int, Found] = field(default_factory=dict)
    rows: dict[int, Row] = field(default_factory=dict)
    more: list[Found] = field(default_factory=list)
    more_rows: list[Row] = field(default_factory=list)
    acts: list[Act] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    lives: list[Life] = field(default_factory=list)
    lag_s: float = 0

    def __post_init__(self) -> None:
        for mail in LOAD:
            raw = compose(mail)
            folder = JUNK if mail.label is Label.SPAM and not mail.old else INBOX
            name = name_of(base(mail), mail.place, mail.flags)
            sha256 = hashlib.sha256(raw).hexdigest()
            self.found[mail.number] = Found(
                mail.maildir, folder, mail.place, name, sha256, mail.number, mail.mode, mail.mtime
            )
            if not mail.old:
                self.rows[mail.number] = Row(mail.maildir, content(mail), mail.label.value, 11.0)
        self.lives = [Life(5.0, END, Counter(list(self.rows)))]

    def change(self, mail: Mail, **changes: Any) -> None:
        self.found[mail.number] = replace(self.found[mail.number], **changes)

    def move(self, mail: Mail, at: float, source: str, folder: str) -> None:
        """The user's move, and its outcome on the disk."""
        name = name_of(base(mail), "cur", "S")
        self.acts.append(Act(mail.number, at, at + 0.001, source, folder, "cur", name))
        self.change(mail, folder=folder, place="cur", name=name)

    def judged(self) -> Judgement:
        deliveries = [Delivery(mail.number, 10.0, mail.number, base(mail)) for mail in LOAD]
        found, rows = [*self.found.values(), *self.more], [*self.rows.values(), *self.more_rows]
        return judge(Evidence(LOAD, deliveries, self.acts, found, rows, self.labels, self.lives, QUIET_S, self.lag_s))

    def faults(self) -> dict[str, list[object]]:
        return {kind: which for kind, which in self.judged().faults.items() if which}


@pytest.fixture
def world() -> World:
    return World()


def test_row_32_what_went_well_has_no_complaint(world: World) -> None:
    judgement = world.judged()
    assert judgement.complaints == []
    assert judgement.delays == judgement.delays_up == [1.0] * 60 and judgement.seconds == 1.0
    assert judgement.counts[storm_ledger.MOVED] == sum(m.label is Label.SPAM and not m.old for m in LOAD)


def test_row_32_a_loss_is_seen(world: World) -> None:
    del world.found[A_HAM.number]
    assert world.faults() == {storm_ledger.LOST: [A_HAM.number]}


def test_row_32_a_copy_is_seen(world: World) -> None:
    world.more.append(replace(world.found[A_SPAM.number], folder=INBOX))
    assert storm_ledger.DOUBLED in world.faults()


def test_row_32_a_file_that_nobody_delivered_is_seen(world: World) -> None:
    world.more.append(replace(world.found[A_SPAM.number], place="tmp", name="of-our-own"))
    assert list(world.faults()) == [storm_ledger.STRANGE]


@pytest.mark.parametrize("changes", [{"sha256": "0"}, {"inode": -1}, {"mode": 0o644}, {"mtime": 5}])
def test_row_32_an_altered_file_is_seen(world: World, changes: dict[str, Any]) -> None:
    world.change(A_SPAM, **changes)
    assert world.faults() == {storm_ledger.ALTERED: [A_SPAM.number]}


def test_row_32_lost_flags_are_seen(world: World) -> None:
    world.change(IN_CUR, name=name_of(base(IN_CUR), "cur", ""))
    assert list(world.faults()) == [storm_ledger.RENAMED]


def test_row_32_the_wrong_folder_is_seen(world: World) -> None:
    world.change(A_SPAM, folder=INBOX)
    world.change(A_HAM, folder=JUNK)
    assert world.faults() == {storm_ledger.MISPLACED: sorted([A_SPAM.number, A_HAM.number])}


def test_row_32_what_the_user_moved_after_us_stays_there(world: World) -> None:
    world.move(A_SPAM, 20, JUNK, INBOX)
    world.labels[content(A_SPAM)] = HAM
    assert world.faults() == {}
    world.change(A_SPAM, folder=JUNK)
    assert world.faults() == {storm_ledger.MISPLACED: [A_SPAM.number]}


def test_row_32_what_was_expunged_is_not_lost_and_does_not_come_back(world: World) -> None:
    world.acts.append(Act(A_SPAM.number, 20, 20.1, JUNK, GONE))
    assert world.faults() == {storm_ledger.RETURNED: [A_SPAM.number]}
    del world.found[A_SPAM.number]
    assert world.faults() == {}


def test_row_32_a_message_without_verdict_is_seen(world: World) -> None:
    del world.rows[A_HAM.number]
    assert world.faults() == {storm_ledger.UNJUDGED: [A_HAM.number]}
    world.acts.append(Act(A_HAM.number, 20, 20.1, INBOX, INBOX, "cur", name_of(base(A_HAM), "cur", "S")))
    world.change(A_HAM, place="cur", name=name_of(base(A_HAM), "cur", "S"))
    assert world.faults() == {storm_ledger.UNJUDGED: [A_HAM.number]}
    world.move(A_HAM, 21, INBOX, ARCHIVE)
    assert world.faults() == {} and world.judged().counts[storm_ledger.TAKEN] == 1


def test_row_32_a_wrong_verdict_and_one_on_what_nobody_sent_are_seen(world: World) -> None:
    world.rows[A_HAM.number] = replace(world.rows[A_HAM.number], label="unsure")
    world.more_rows.append(Row("a", "0" * 64, HAM, 12.0))
    assert set(world.faults()) == {storm_ledger.WRONG, storm_ledger.UNSENT}


def test_row_32_old_mail_is_left_alone(world: World) -> None:
    world.rows[0] = Row(LOAD[0].maildir, content(LOAD[0]), LOAD[0].label.value, 11.0)
    assert world.faults() == {storm_ledger.OLD: [0]}


def test_row_32_judged_twice_is_seen_and_after_a_kill_only_counted(world: World) -> None:
    world.lives.insert(0, Life(0, 4, Counter([A_HAM.number])))
    judgement = world.judged()
    assert not judgement.complaints and judgement.counts[storm_ledger.AGAIN] == 1
    world.lives[1].scored[A_HAM.number] += 1
    assert world.faults() == {storm_ledger.TWICE: [A_HAM.number]}
    world.lives[1].scored[A_HAM.number] -= 1
    world.more_rows.append(world.rows[A_HAM.number])
    assert world.faults() == {storm_ledger.TWICE: [A_HAM.number]}


def test_row_32_a_label_that_nobody_gave_is_seen(world: World) -> None:
    world.labels[content(A_SPAM)] = SPAM
    assert list(world.faults()) == [storm_ledger.WRONG_LABEL]


@pytest.mark.parametrize(
    ("mail", "moves", "label"),
    [
        (A_SPAM, [(20, JUNK, INBOX)], HAM),
        (A_HAM, [(20, INBOX, JUNK)], SPAM),
        (A_SPAM, [(20, JUNK, TRASH)], None),
        (A_HAM, [(20, INBOX, ARCHIVE)], None),
        (A_HAM, [(20, INBOX, JUNK), (40, JUNK, INBOX)], HAM),
        (A_HAM, [(20, INBOX, JUNK), (40, JUNK, TRASH)], SPAM),
        (A_HAM, [(20, INBOX, JUNK), (21, JUNK, TRASH)], None),
        (A_HAM, [(20, INBOX, JUNK), (21, JUNK, INBOX)], None),
    ],
)
def test_row_32_each_move_that_stood_still_has_its_label_and_no_other(
    world: World, mail: Mail, moves: list[tuple[float, str, str]], label: str | None
) -> None:
    for move in moves:
        world.move(mail, *move)
    for given in (SPAM, HAM, None):
        world.labels = {content(mail): given} if given else {}
        expected = [] if given == label else [storm_ledger.WRONG_LABEL if given else storm_ledger.MISSING_LABEL]
        assert list(world.faults()) == expected


def test_row_32_a_move_that_a_dead_watcher_cannot_have_seen_may_have_a_label_or_not(world: World) -> None:
    world.move(A_HAM, 20, INBOX, JUNK)
    world.move(A_HAM, 40, JUNK, INBOX)
    world.lives[:] = [replace(world.lives[0], ended=21), Life(41, END, Counter())]
    for labels in ({}, {content(A_HAM): HAM}):
        world.labels = labels
        assert world.faults() == {}
    world.labels = {content(A_HAM): SPAM}
    assert list(world.faults()) == [storm_ledger.WRONG_LABEL]


def test_row_32_a_move_while_the_watcher_is_behind_may_have_a_label_or_not(world: World) -> None:
    world.move(A_HAM, 20, INBOX, JUNK)
    world.move(A_HAM, 40, JUNK, ARCHIVE)
    assert list(world.faults()) == [storm_ledger.MISSING_LABEL]
    world.lag_s = 15
    assert world.faults() == {}
    world.lag_s = 0
    world.rows[A_SPAM.number] = replace(world.rows[A_SPAM.number], at=39)
    assert world.faults() == {}


def test_row_32_a_move_before_the_verdict_has_its_own_label_or_none(world: World) -> None:
    world.move(A_HAM, 10.5, INBOX, JUNK)
    for given in (SPAM, HAM, None):
        world.labels = {content(A_HAM): given} if given else {}
        assert bool(world.faults()) is (given == HAM)


def test_row_32_mail_is_the_same_in_every_process_and_unique() -> None:
    assert mails(500, 3, 5) == mails(500, 3, 5) != mails(500, 4, 5)
    raws = [compose(mail) for mail in mails(500, 3)]
    assert len({content_hash(raw) for raw in raws}) == 500
    for mail, raw in zip(mails(500, 3), raws, strict=True):
        assert (b"viagra" in raw, b"maybe" in raw) == (mail.label is Label.SPAM, mail.label is Label.UNSURE)


def test_row_32_a_delivery_is_what_was_composed_and_can_be_read_back(tmp_path: Path) -> None:
    for mail in (A_SPAM, IN_CUR):
        (tmp_path / mail.maildir / "tmp").mkdir(parents=True, exist_ok=True)
        (tmp_path / mail.maildir / mail.place).mkdir(exist_ok=True)
        one = deliver(tmp_path, mail, fsync=True)
        file = tmp_path / mail.maildir / mail.place / name_of(one.base, mail.place, mail.flags)
        status = file.stat()
        assert file.read_bytes() == compose(mail) and number_of(one.base) == mail.number
        assert (status.st_mtime_ns, status.st_mode & 0o777, status.st_ino) == (mail.mtime, mail.mode, one.inode)
        write(tmp_path / "delivered", iter([one]))
        (back,) = read(tmp_path / "delivered")
        assert replace(back, at=one.at) == one and abs(back.at - one.at) < 1e-5
