"""Labels become actions, for each recipient his own, and failures become what the configuration says."""

from __future__ import annotations

import typing

import pytest

from spamguard import headers
from spamguard.actions import ACTIONS, Disposition, Fate
from spamguard.config import PolicyTable, SpamAction
from spamguard.errors import DeliveryError, ScoringError
from spamguard.policy import Policy
from spamguard.verdict import Verdict
from tests.fakes import verdict

RAW = b"Subject: x\r\n\r\nbody\r\n"
FORGED = b"X-Spam-Flag: NO\r\n" + RAW
HAM, UNSURE, SPAM = verdict(0.01), verdict(0.6), verdict(0.99)
BOB, EVE, JOE = b"bob@example.net", b"eve@example.net", b"joe@example.org"


def one(table: PolicyTable, judged: Verdict, raw: bytes = RAW) -> Disposition:
    (disposition,) = Policy(table).decide(raw, judged)
    return disposition


def fates(table: PolicyTable, judged: Verdict, *recipients: bytes, one_reply: bool = True) -> list[str]:
    return [d.fate.value for d in Policy(table).decide(RAW, judged, recipients, one_reply)]


def table(**keys: object) -> PolicyTable:
    return PolicyTable.model_validate(keys)


def test_by_default_all_mail_is_delivered_with_our_headers():
    for judged, junk in ((HAM, False), (UNSURE, False), (SPAM, True)):
        disposition = one(PolicyTable(), judged, FORGED)
        assert (disposition.fate, disposition.junk, disposition.verdict) == (Fate.DELIVER, junk, judged)
        assert disposition.data == headers.stamp(RAW, judged)
        assert disposition.reply is None


def test_pass_takes_off_what_is_forged_and_changes_no_byte():
    passing = PolicyTable(ham="pass", spam="pass")
    assert one(passing, HAM).data is RAW
    assert one(passing, SPAM, FORGED).data == RAW
    assert one(passing, SPAM).junk
    assert one(passing, UNSURE).data != RAW


def test_reject_is_a_permanent_refusal_of_spam_only():
    refused = one(PolicyTable(spam="reject"), SPAM)
    assert refused.fate is Fate.REJECT
    assert refused.reply is not None and refused.reply.startswith(b"550 5.7.1 ")
    assert one(PolicyTable(spam="reject"), UNSURE).fate is Fate.DELIVER


def test_quarantine_holds_the_message_exactly_as_it_came():
    held = one(PolicyTable(unsure="quarantine"), UNSURE, FORGED)
    assert (held.fate, held.verdict, held.reply) == (Fate.QUARANTINE, UNSURE, None)
    assert held.data is FORGED


def test_the_subject_is_tagged_on_spam_that_is_tagged():
    tagging = PolicyTable(subject_tag="[SPAM] ", unsure="tag")
    assert one(tagging, SPAM).data == headers.stamp(RAW, SPAM, "[SPAM] ") != headers.stamp(RAW, SPAM)
    assert one(tagging, UNSURE).data == headers.stamp(RAW, UNSURE)
    assert one(PolicyTable(subject_tag="[SPAM] ", spam="pass"), SPAM).data is RAW


@pytest.mark.parametrize(
    ("recipient", "fate"),
    [
        (b"bob@example.net", "quarantine"),
        (b"BOB@Example.NET", "quarantine"),
        (b'"bob"@example.net', "quarantine"),
        (b'"b\\ob"@example.net', "quarantine"),
        (b"@relay.example,@other:bob@example.net", "quarantine"),
        (b"eve@example.net", "reject"),
        (b"eve@EXAMPLE.net", "reject"),
        (b"@example.net", "reject"),
        (b"eve@sub.example.net", "deliver"),
        (b"eve@example.org", "deliver"),
        ("grüße@bücher.example".encode(), "quarantine"),
        ("GRÜSSE@BÜCHER.example".replace("SS", "ß").encode(), "quarantine"),
        (b"\xff\xfe@example.net", "reject"),
        (b"bob", "deliver"),
        (b"postmaster", "deliver"),
        (b"", "deliver"),
        (b"@", "deliver"),
        (b'"@example.net', "reject"),
    ],
)
def test_an_address_goes_before_its_domain_in_any_spelling(recipient, fate):
    rows = {
        "@Example.net": {"spam": "reject"},
        "Bob@example.net": {"spam": "quarantine"},
        "Grüße@Bücher.example": {"spam": "quarantine"},
    }
    assert fates(table(recipients=rows), SPAM, recipient) == [fate]


def test_what_a_recipient_does_not_say_is_as_for_all():
    own = table(spam="reject", unsure="quarantine", recipients={BOB.decode(): {"ham": "pass"}})
    assert fates(own, SPAM, BOB) == ["reject"] and fates(own, UNSURE, BOB) == ["quarantine"]
    assert Policy(own).decide(RAW, HAM, [BOB])[0].data is RAW
    domain = table(spam="pass", recipients={BOB.decode(): {}, "@example.net": {"spam": "reject"}})
    assert fates(domain, SPAM, BOB) == ["deliver"]


MIXED = table(spam="reject", recipients={BOB.decode(): {"spam": "tag"}, EVE.decode(): {"spam": "tag"}})


def test_each_recipient_has_its_disposition_and_the_same_action_is_done_once(monkeypatch):
    calls = []
    tag = ACTIONS["tag"]
    monkeypatch.setitem(ACTIONS, "tag", lambda *given: calls.append(given) or tag(*given))
    bob, joe, eve, again = Policy(MIXED).decide(RAW, SPAM, [BOB, JOE, EVE, BOB], one_reply=False)
    assert bob is eve is again and bob.fate is Fate.DELIVER
    assert joe.fate is Fate.REJECT
    assert len(calls) == 1
    assert Policy(MIXED).decide(RAW, SPAM, []) == []


def test_one_reply_never_refuses_for_those_who_would_take_the_mail():
    assert fates(MIXED, SPAM, BOB, JOE) == ["deliver", "quarantine"]
    assert fates(MIXED, SPAM, JOE, JOE) == ["reject", "reject"]
    assert fates(MIXED, SPAM, BOB, JOE, one_reply=False) == ["deliver", "reject"]
    held = table(spam="reject", recipients={BOB.decode(): {"spam": "quarantine"}})
    same = Policy(held).decide(RAW, SPAM, [BOB, JOE])
    assert same[0] is same[1] and same[0].fate is Fate.QUARANTINE and same[0].reply is None


def test_unscored_mail_passes_and_says_so():
    failure = ScoringError("deadline: no verdict within 20 s")
    disposition, same = Policy(PolicyTable()).failed(FORGED, failure, [BOB, JOE])
    assert disposition is same
    assert disposition.fate is Fate.DELIVER
    assert disposition.data == b"X-Spamguard: unscored; reason=deadline\r\n" + RAW
    assert (disposition.verdict, disposition.junk) == (None, False)
    assert disposition.failure == "deadline: no verdict within 20 s"
    assert len(Policy(PolicyTable()).failed(RAW, failure)) == 1


def test_unscored_mail_can_stay_with_the_sender():
    with pytest.raises(DeliveryError) as caught:
        Policy(PolicyTable(on_failure="tempfail")).failed(RAW, ScoringError("fault: secret path"))
    assert caught.value.temporary
    assert caught.value.reply.startswith(b"451 ")
    assert b"secret" not in caught.value.reply


def test_every_action_that_can_be_configured_exists():
    assert set(ACTIONS) == set(typing.get_args(SpamAction))
