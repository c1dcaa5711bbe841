"""The head that ships, with the encoder that ships: it loads, it judges the obvious, and it is small."""

from __future__ import annotations

import pytest

from spamguard import bundle
from spamguard.config import EncoderTable
from spamguard.encoder import TorchEncoder, load
from spamguard.scorer import Scorer
from spamguard.verdict import Label
from tests.tiny_corpus import GTUBE, message

SCAM = message(
    "URGENT BUSINESS PROPOSAL - STRICTLY CONFIDENTIAL",
    """Dear Friend,

I am Barrister Paul Okoro, the personal attorney to a late foreign contractor who died with his family in a plane
crash and left the sum of US$18,500,000.00 (eighteen million five hundred thousand United States dollars) in a bank
here. I seek your consent to present you as the next of kin, so that the fund can be transferred into your account.
You will receive 40% of the total sum for your assistance, and there is no risk. Kindly send me your full name,
address, telephone number and bank account details as soon as possible. This transaction must remain strictly
confidential.

Yours faithfully,
Barrister Paul Okoro""",
    "Barrister Paul Okoro <paul.okoro@mail.example.com>",
)
LETTER = message(
    "Re: Thursday",
    """Hi Tom,

Thursday works for me, but could we make it half past ten? I have to take Lena to the dentist first. I looked at the
patch you sent: the loop in parse_header still reads one line too many when the file ends without a newline. I've
attached a test that shows it. The rest looks good to me.

Do you want me to bring the old laptop along?

Cheers,
Anna

> On Monday Tom wrote:
> Shall we meet on Thursday at ten to go through the release?""",
    "Anna Berg <anna@example.org>",
)


@pytest.fixture(scope="module")
def encoder() -> TorchEncoder:
    return load(EncoderTable(device="cpu"))


@pytest.fixture(scope="module")
def scorer(encoder: TorchEncoder) -> Scorer:
    return Scorer(encoder, bundle.load(bundle.SHIPPED, encoder))


def test_an_advance_fee_scam_is_not_ham(scorer: Scorer) -> None:
    verdict = scorer.score([scorer.prepare(SCAM)])[0]
    assert verdict.label is not Label.HAM and verdict.reasons, verdict


def test_a_personal_letter_is_ham(scorer: Scorer) -> None:
    verdict = scorer.score([scorer.prepare(LETTER)])[0]
    assert verdict.label is Label.HAM, verdict


def test_gtube_is_spam(scorer: Scorer) -> None:
    verdict = scorer.score([scorer.prepare(message("test", GTUBE))])[0]
    assert (verdict.label, verdict.probability) == (Label.SPAM, 1.0)


def test_it_has_a_card_and_is_small() -> None:
    assert {f.name for f in bundle.SHIPPED.iterdir()} == {bundle.CARD, bundle.MANIFEST, bundle.WEIGHTS}
    assert (bundle.SHIPPED / bundle.CARD).read_text(encoding="utf-8").startswith("# ")
    assert sum(f.stat().st_size for f in bundle.SHIPPED.iterdir()) < 1.5e6


def test_it_says_what_it_was_fitted_on(scorer: Scorer) -> None:
    provenance = scorer.bundle.manifest.provenance
    assert provenance["ham"] > 1000 and provenance["spam"] > 1000


def test_no_path_of_the_machine_that_fitted_it_is_in_it() -> None:
    for name in (bundle.MANIFEST, bundle.CARD):
        text = (bundle.SHIPPED / name).read_text(encoding="utf-8")
        assert not any(folder in text for folder in ("/home/", "/root/", "/tmp/", "../"))
