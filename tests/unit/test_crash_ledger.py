"""The crash rig's own judgement: it must see a loss, a torn message and a duplicate that nobody can explain."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash_hop import records
from tests.crash_ledger import (
    DAEMON_KILLED,
    HOP_HUNG,
    HOP_KILLED,
    HOP_PATIENCE_S,
    SLOW,
    UNEXPLAINED,
    Attempt,
    Copy,
    Fault,
    Mail,
    judge,
)
from tests.crash_mail import attempt_of, compose, sender, whole

OK = b"250 2.0.0 Ok"
LOST = b"451 4.4.2 Connection to next server lost"


def mail(*replies: bytes, number: int = 0) -> Mail:
    """Each attempt lasts a second, the first from 0 to 1, the second from 10 to 11."""
    return Mail(number, 1000, False, [Attempt(10.0 * n, 10.0 * n + 1, reply) for n, reply in enumerate(replies)])


def there(*attempts: int, where: str = "next hop", is_whole: bool = True) -> list[Copy]:
    return [Copy(0, attempt, is_whole, where) for attempt in attempts]


def test_row_18_what_is_there_once_is_well() -> None:
    for where in ("next hop", "quarantine"):
        judged = judge([mail(OK)], there(0, where=where), [])
        assert judged.complaints == [] and judged.found == {where: 1} and not judged.duplicates


def test_row_18_a_loss_is_seen() -> None:
    assert judge([mail(OK)], [], []).lost == [0]


def test_row_18_a_copy_of_another_attempt_does_not_hide_a_loss() -> None:
    judged = judge([mail(b"", OK)], there(0), [Fault(DAEMON_KILLED, 0.5, 0.6)])
    assert judged.lost == [0] and judged.complaints


@pytest.mark.parametrize("copy", [Copy(0, 0, False, "x"), Copy(1, 0, True, "x"), Copy(0, 1, True, "x")])
def test_row_18_a_torn_message_and_one_that_nobody_sent_are_seen(copy: Copy) -> None:
    judged = judge([mail(OK)], [*there(0), copy], [])
    assert judged.torn == [copy] and judged.complaints


def test_row_18_a_mail_refused_for_good_or_never_answered_is_seen() -> None:
    refused = mail(b"550 5.7.1 no")
    refused.refused = b"550 5.7.1 no"
    assert judge([refused], [], []).refused == [b"550 5.7.1 no"]
    assert judge([mail(LOST)], [], []).unsettled == 1


@pytest.mark.parametrize(
    ("reply", "kind", "moment", "explained"),
    [
        (b"", DAEMON_KILLED, 0.5, True),
        (LOST, HOP_KILLED, 0.5, True),
        (LOST, HOP_HUNG, 0.5, True),
        (b"", DAEMON_KILLED, 5.0, False),
        (LOST, HOP_KILLED, 5.0, False),
        (b"", HOP_KILLED, 0.5, False),
        (LOST, DAEMON_KILLED, 0.5, False),
    ],
)
def test_row_18_a_duplicate_needs_a_fault_at_its_time(
    reply: bytes, kind: str, moment: float, explained: bool
) -> None:
    judged = judge([mail(reply, OK)], there(0, 1), [Fault(kind, moment, moment)])
    assert judged.duplicates.total() == 1
    assert bool(judged.duplicates[UNEXPLAINED]) is not explained
    assert bool(judged.complaints) is not explained


def test_row_18_a_time_out_explains_a_duplicate_without_a_fault_of_ours() -> None:
    slow = mail(LOST, OK)
    slow.attempts[0].ended = HOP_PATIENCE_S
    assert judge([slow], there(0, 1), []).duplicates == {SLOW: 1}


def test_row_18_one_attempt_that_is_there_twice_has_no_excuse() -> None:
    for replies, attempts in (((OK,), (0, 0)), ((b"", OK), (0, 0, 1))):
        judged = judge([mail(*replies)], there(*attempts), [Fault(DAEMON_KILLED, 0, 20)])
        assert judged.duplicates[UNEXPLAINED] == 1 and judged.complaints


def test_row_18_a_mail_knows_whether_it_is_whole() -> None:
    data = compose(7, 3000, True)
    assert b"viagra" in data and b"viagra" not in compose(7, 3000, False)
    assert whole(data, 7) and whole(b"X-Spamguard: ham\r\n" + data, 7)
    assert not whole(data, 8)
    assert attempt_of(b"MAIL FROM:<" + sender(7, 2) + b"> SIZE=1") == (7, 2)
    torn = (data[:-1], data + b"x", data.replace(b"end of", b"end  of"), data.replace(b"\r\n..", b"\r\n.", 1), b"")
    assert not any(whole(one, 7) for one in torn)


def test_row_18_half_a_record_counts_for_nothing(tmp_path: Path) -> None:
    file = tmp_path / "records"
    file.write_bytes(b"\n1 0 whole .\n12 0 who\n3 1 torn .\n4 0 whole")
    assert records(file) == [(1, 0, True), (3, 1, False)]
