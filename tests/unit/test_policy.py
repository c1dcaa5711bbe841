"""Labels become actions, and failures become what the configuration says."""

from __future__ import annotations

import pytest

from spamguard import headers
from spamguard.actions import ACTIONS, Fate
from spamguard.config import PolicyTable
from spamguard.errors import DeliveryError, ScoringError
from spamguard.policy import Policy
from tests.fakes import verdict

RAW = b"Subject: x\r\n\r\nbody\r\n"
HAM, UNSURE, SPAM = verdict(0.01), verdict(0.6), verdict(0.99)


def test_by_default_all_mail_is_delivered_with_our_headers():
    policy = Policy(PolicyTable())
    for judged, junk in ((HAM, False), (UNSURE, False), (SPAM, True)):
        disposition = policy.decide(RAW, judged)
        assert (disposition.fate, disposition.junk, disposition.verdict) == (Fate.DELIVER, junk, judged)
        assert disposition.data == headers.stamp(RAW, judged)
        assert disposition.reply is None


def test_pass_changes_no_byte():
    policy = Policy(PolicyTable(ham="pass", spam="pass"))
    assert policy.decide(RAW, HAM).data == RAW
    assert policy.decide(RAW, SPAM).data == RAW
    assert policy.decide(RAW, SPAM).junk
    assert policy.decide(RAW, UNSURE).data != RAW


def test_reject_is_a_permanent_refusal_of_spam_only():
    policy = Policy(PolicyTable(spam="reject"))
    refused = policy.decide(RAW, SPAM)
    assert refused.fate is Fate.REJECT
    assert refused.reply is not None and refused.reply.startswith(b"550 5.7.1 ")
    assert policy.decide(RAW, UNSURE).fate is Fate.DELIVER


def test_unscored_mail_passes_and_says_so():
    disposition = Policy(PolicyTable()).failed(RAW, ScoringError("deadline: no verdict within 20 s"))
    assert disposition.fate is Fate.DELIVER
    assert disposition.data == b"X-Spamguard: unscored; reason=deadline\r\n" + RAW
    assert (disposition.verdict, disposition.junk) == (None, False)
    assert disposition.failure == "deadline: no verdict within 20 s"


def test_unscored_mail_can_stay_with_the_sender():
    with pytest.raises(DeliveryError) as caught:
        Policy(PolicyTable(on_failure="tempfail")).failed(RAW, ScoringError("fault: secret path"))
    assert caught.value.temporary
    assert caught.value.reply.startswith(b"451 ")
    assert b"secret" not in caught.value.reply


def test_every_action_that_can_be_configured_exists():
    assert set(ACTIONS) == {"tag", "pass", "reject"}
