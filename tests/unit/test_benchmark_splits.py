"""No near-duplicate on both sides, nothing of the target in what is learnt from, the same split each time."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pandas as pd
import pytest

from benchmarks import splits
from training.ship import FITTED_ON, NOT_LICENSED

WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau".split()


def prose(seed: int, words: int = 120) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) + rng.choice("aeiou") for _ in range(words))


def table(seed: int = 0) -> pd.DataFrame:
    """Every corpus, both classes where it has them; each third message belongs to a campaign across the corpora."""
    rng = random.Random(seed)
    rows = []
    names = {
        "spamassassin": ["easy-ham-1", "easy-ham-2", "hard-ham-1", "spam-1", "spam-2"],
        "foff_dev": ["foff_dev"],
        "csdmc2010": ["csdmc2010"],
        "phishing_pot_dev": ["phishing_pot_dev"],
        "rlists_dev": ["rlists_dev"],
        "glitchyzorua_dev": ["glitchyzorua_dev"],
        "html_templates_dev": ["html_templates_dev"],
        "modern_dev": ["lunchmoney_receipts", "uk_receipts", "philly_bike", "sefinek_spam", "tempo"],
    }
    for corpus, sources in names.items():
        for source in sources:
            for i in range(60):
                spam = "spam" in source or corpus in {"phishing_pot_dev", "glitchyzorua_dev"}
                spam = spam or (corpus in {"foff_dev", "csdmc2010"} and i % 2 == 0)
                where = f"/mail/{corpus}/{source}_{i:05}.eml" if corpus == "spamassassin" else f"/mail/{source}/{i}"
                sha256 = hashlib.sha256(where.encode()).hexdigest()
                rows.append(
                    {
                        "content": sha256,
                        "label": int(spam),
                        "corpus": corpus,
                        "source": source if corpus == "modern_dev" else corpus,
                        "where": where,
                        "sha256": sha256,
                        "domain": f"shop{i % 7}.example" if i % 5 else "",
                        "campaign": rng.randrange(40) if i % 3 == 0 else 1000 + len(rows),
                    }
                )
    return pd.DataFrame(rows)


TABLE = table()
ALL = {
    "by hash": splits.by_hash(TABLE),
    "early to late": splits.early_to_late(TABLE),
    **{target: splits.leave_out(TABLE, target) for target in splits.targets(TABLE)},
    "few": splits.few_labels(TABLE, "spamassassin"),
    "few modern": splits.few_labels(TABLE, "modern"),
    **{f"modern {n}": fold for n, fold in enumerate(splits.modern_folds(TABLE))},
}


@pytest.mark.parametrize("name", ALL)
def test_no_message_and_no_campaign_stands_on_both_sides(name: str) -> None:
    split = ALL[name]
    test = np.concatenate(list(split.tests.values()))
    for learnt in (split.train, split.others):
        assert not set(learnt) & set(test)
        assert not set(TABLE["campaign"].iloc[learnt]) & set(TABLE["campaign"].iloc[test])
    assert len(split.train) and len(test)


@pytest.mark.parametrize("target", splits.targets(TABLE))
def test_nothing_of_the_target_is_learnt_and_nothing_that_may_not_be(target: str) -> None:
    split = splits.leave_out(TABLE, target)
    learnt = TABLE.iloc[split.train]
    assert not set(learnt["corpus"]) & set(splits.TARGETS[target])
    assert set(learnt["corpus"]) <= set(FITTED_ON)
    assert not set(learnt["source"]) & NOT_LICENSED
    judged = TABLE.iloc[split.tests[target]]
    assert len(judged) == TABLE["corpus"].isin(splits.TARGETS[target]).sum()
    assert judged["label"].nunique() == 2


def test_a_target_that_was_not_read_is_none() -> None:
    assert "enron_dev" not in splits.targets(TABLE)
    assert "foff_dev" in splits.targets(TABLE)
    assert "phishing_pot_dev + rlists_dev" not in splits.targets(TABLE[TABLE["corpus"] != "rlists_dev"])


@pytest.mark.parametrize("name", ["by hash", "early to late", "few", "few modern"])
def test_the_other_corpora_are_never_the_tested_one(name: str) -> None:
    split = ALL[name]
    tested = set(TABLE["corpus"].iloc[np.concatenate(list(split.tests.values()))])
    assert len(split.others)
    assert not set(TABLE["corpus"].iloc[split.others]) & tested


def test_by_hash_judges_the_last_three_tenths_by_hash() -> None:
    own = TABLE[TABLE["corpus"] == "spamassassin"].sort_values("sha256")
    test = next(iter(ALL["by hash"].tests.values()))
    assert TABLE["sha256"].iloc[test].tolist() == own["sha256"].iloc[int(len(own) * 0.7) :].tolist()
    assert len(ALL["by hash"].train) < int(len(own) * 0.7)  # those of a campaign of the test part are gone
    plain = splits.by_hash_plain(TABLE)
    assert len(plain.train) == int(len(own) * 0.7)


def test_early_to_late_tells_the_subsets_apart() -> None:
    split = ALL["early to late"]
    later, hard = split.tests.values()

    def subsets(rows: np.ndarray) -> set[str]:
        return set(TABLE["where"].iloc[rows].str.extract(r"/([a-z-]+\d)_")[0])

    assert subsets(split.train) == {"easy-ham-1", "spam-1"}
    assert subsets(later) == {"easy-ham-2", "spam-2"}
    assert subsets(hard) == {"hard-ham-1"}


def test_the_order_of_the_table_does_not_matter() -> None:
    shuffled = TABLE.sample(frac=1, random_state=3).reset_index(drop=True)
    for make in (splits.by_hash, splits.early_to_late, lambda t: splits.leave_out(t, "foff_dev")):
        one, other = make(TABLE), make(shuffled)
        assert set(TABLE["content"].iloc[one.train]) == set(shuffled["content"].iloc[other.train])


def test_modern_folds_leave_out_each_source_and_each_senders_domain_once() -> None:
    judged: list[int] = []
    for fold in splits.modern_folds(TABLE):
        rows = np.concatenate(list(fold.tests.values()))
        judged += rows.tolist()
        learnt = TABLE.iloc[fold.train]
        assert not set(learnt["source"]) & set(fold.tests) - {"foff_dev"}
        senders = TABLE.iloc[fold.tests["foff_dev"]]["domain"]
        kept = learnt[learnt["corpus"] == "foff_dev"]
        assert not (set(senders) - {""}) & set(kept["domain"])
    assert len(judged) == len(set(judged))
    wanted = {"lunchmoney_receipts", "uk_receipts", "philly_bike", "sefinek_spam"}
    expected = TABLE["source"].isin(wanted) | TABLE["corpus"].isin({"foff_dev", "html_templates_dev"})
    assert set(judged) == set(np.flatnonzero(expected))


def test_draws_are_balanced_nested_and_repeatable() -> None:
    labels = np.asarray([1] * 30 + [0] * 100)
    pool = np.arange(130)
    few, more = splits.draw(labels, pool, 20, seed=4), splits.draw(labels, pool, 50, seed=4)
    assert labels[few].sum() == 10 and len(set(few)) == 20
    assert set(few) <= set(more)
    assert (few == splits.draw(labels, pool, 20, seed=4)).all()
    assert set(few) != set(splits.draw(labels, pool, 20, seed=5))
    scarce = splits.draw(labels, pool, 100, seed=4)  # more than there is spam: all of it, and ham for the rest
    assert labels[scarce].sum() == 30 and len(scarce) == 100


def test_campaigns_are_near_duplicates_and_nothing_else() -> None:
    letter = prose(1)
    varied = letter.replace("alpha", "omega", 2).upper() + " 4711"
    half = " ".join(letter.split()[:60]) + " " + prose(2, 60)
    texts = [letter, prose(3), varied, prose(4), "", "", half, "one word", "One Word"]
    found = splits.campaigns(texts)
    assert found[0] == found[2]
    assert found[7] == found[8]
    # all others are alone, mail without a word and mail that shares a half too
    assert len(set(found)) == len(texts) - 2


def test_numbers_do_not_hide_a_campaign() -> None:
    words = prose(7).split()
    first, second = (" ".join(f"{word} {n + i}" for i, word in enumerate(words)) for n in (100, 900))
    assert len(set(splits.campaigns([first, second]))) == 1


def test_campaigns_chain() -> None:
    words = prose(5, 300).split()
    steps = [" ".join(words[start : start + 150]) for start in range(0, 151, 15)]
    found = splits.campaigns(steps)
    assert len(set(found)) == 1
