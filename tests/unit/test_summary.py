"""The numbers of a report against those that sklearn gives, computed here on their own."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    average_precision_score,
    classification_report,
    confusion_matrix,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from spamguard.verdict import Cutoffs
from tests.report_runs import CUTOFFS, HOSTILE, labels_of, made
from training.page import Before, Run
from training.summary import CURVE_POINTS, WORST, summary

N = 400
RUN = made(N)
P, Y = RUN.probabilities, RUN.table["label"].to_numpy()


def numbers(run: Run, *, private: bool = False) -> dict[str, Any]:
    """As a program reads them: JSON that holds no NaN."""
    found: dict[str, Any] = json.loads(json.dumps(summary(run, private=private), allow_nan=False))
    return found


def verdicts(p: np.ndarray[Any, Any], cutoffs: Cutoffs) -> list[str]:
    return np.select([p >= cutoffs.spam, p >= cutoffs.unsure], ["spam", "unsure"], "ham").tolist()


def test_the_classification_report_is_that_of_sklearn() -> None:
    wanted = classification_report(Y, CUTOFFS.spam <= P, output_dict=True, zero_division=0.0)
    for name, key in (("ham", "0"), ("spam", "1")):
        row = numbers(RUN)["classes"][name]
        assert row["support"] == wanted[key]["support"]
        for column, theirs in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
            assert row[column] == pytest.approx(wanted[key][theirs]), (name, column)


def test_the_confusion_matrix_is_that_of_sklearn() -> None:
    said, true = verdicts(P, CUTOFFS), np.where(Y == 1, "spam", "ham")
    wanted = confusion_matrix(true, said, labels=["ham", "unsure", "spam"])
    found = numbers(RUN)["figures"]["confusion"]
    assert [list(found["ham"].values()), list(found["spam"].values())] == wanted[[0, 2]].tolist()
    assert wanted[[0, 2]].sum() == N


def test_the_curves_are_those_of_sklearn() -> None:
    found = numbers(RUN)
    fpr, recall, _ = roc_curve(Y, P)
    assert found["roc"]["fpr"] == pytest.approx(fpr.tolist())
    assert found["roc"]["recall"] == pytest.approx(recall.tolist())
    precision, recall, _ = precision_recall_curve(Y, P, drop_intermediate=True)
    assert found["precision_recall"]["recall"] == pytest.approx(recall.tolist())
    assert found["precision_recall"]["precision"] == pytest.approx(precision.tolist())
    assert found["precision_recall"]["average_precision"] == pytest.approx(average_precision_score(Y, P))
    assert found["figures"]["auc"] == pytest.approx(roc_auc_score(Y, P))
    at = found["roc"]["at_cutoffs"]["spam"]
    assert (at["fpr"], at["recall"]) == pytest.approx(((P[Y == 0] >= 0.9).mean(), (P[Y == 1] >= 0.9).mean()))


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    rng = np.random.default_rng(1)
    run = made(4000, probabilities=rng.random(4000))
    found = numbers(run)["roc"]
    assert len(found["fpr"]) == len(found["recall"]) == CURVE_POINTS
    assert (found["fpr"][0], found["recall"][0], found["fpr"][-1], found["recall"][-1]) == (0, 0, 1, 1)
    assert found["fpr"] == sorted(found["fpr"])


def test_the_histogram_counts_every_message_once() -> None:
    scores = numbers(RUN)["scores"]
    assert (sum(scores["ham"]), sum(scores["spam"])) == ((Y == 0).sum(), (Y == 1).sum())
    place = scores["edges"].index(0.95)
    assert scores["spam"][place] == ((P >= 0.95) & (Y == 1)).sum()


def test_the_reliability_is_that_of_sklearn() -> None:
    found = numbers(RUN)["reliability"]
    share, said = calibration_curve(Y, P, n_bins=10)
    assert [one["spam"] for one in found] == pytest.approx(share.tolist())
    assert [one["said"] for one in found] == pytest.approx(said.tolist())
    assert sum(one["n"] for one in found) == N
    assert all(one["low"] <= one["spam"] <= one["high"] and one["from"] <= one["said"] <= one["to"] for one in found)


def test_the_lengths() -> None:
    run = made(4, lengths=np.asarray([0, 63, 64, 5000]), max_tokens=64)
    found = numbers(run)["lengths"]
    assert (found["messages"][0], found["messages"][1], found["messages"][-1]) == (2, 1, 1)
    assert sum(found["messages"]) == 4 and found["longer"] == 0.25
    assert numbers(replace(run, lengths=None))["lengths"] is None


def test_the_sources() -> None:
    table = RUN.table
    assert numbers(RUN)["sources"] == [
        {
            "source": source,
            "ham": int(((table["source"] == source) & (Y == 0)).sum()),
            "spam": int(((table["source"] == source) & (Y == 1)).sum()),
        }
        for source in ("folder", "moved")
    ]


def test_the_worst_mistakes_come_first_and_right_ones_never() -> None:
    found = numbers(RUN)["mistakes"]
    ham = sorted((-P[i], i) for i in range(N) if Y[i] == 0 and P[i] >= CUTOFFS.unsure)[:WORST]
    spam = sorted((P[i], i) for i in range(N) if Y[i] == 1 and P[i] < CUTOFFS.spam)[:WORST]
    assert [one["where"] for one in found] == [f"/mail/{i}.eml" for _, i in [*ham, *spam]]
    assert [one["probability"] for one in found] == pytest.approx([P[i] for _, i in [*ham, *spam]])
    assert [one["said"] for one in found] == verdicts(np.asarray([P[i] for _, i in [*ham, *spam]]), CUTOFFS)
    assert numbers(made(10, probabilities=made(10).table["label"].to_numpy().astype(float)))["mistakes"] == []


def test_what_changes_against_the_head_in_service() -> None:
    assert RUN.before is not None
    old, new = verdicts(RUN.before.probabilities, RUN.before.cutoffs), verdicts(P, CUTOFFS)
    found = numbers(RUN)["changes"]
    assert found["changed"] == sum(a != b for a, b in zip(old, new, strict=True)) > 0
    for move in found["moves"]:
        for label, name in enumerate(("ham", "spam")):
            wanted = sum((a, b, y) == (move["from"], move["to"], label) for a, b, y in zip(old, new, Y, strict=True))
            assert move[name] == wanted
    assert sum(move["ham"] + move["spam"] for move in found["moves"]) == found["changed"]
    sizes = [abs(one["now"] - one["before"]) for one in found["largest"]]
    changed = [i for i in range(N) if old[i] != new[i]]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == pytest.approx(np.abs(P - RUN.before.probabilities)[changed].max())
    assert found["figures"]["auc"] == pytest.approx(roc_auc_score(Y, RUN.before.probabilities))
    assert numbers(replace(RUN, before=None))["changes"] is None


def test_a_private_summary_names_no_file_and_no_folder() -> None:
    run = made(40, where=HOSTILE + "{}", provenance={"paths": ["Mail"], "encoder": {"model": "/bert"}, "ham": 3})
    assert "script" in json.dumps(numbers(run)) and "both.eml" in json.dumps(numbers(run))
    private = numbers(run, private=True)
    text = json.dumps(private)
    assert not any(name in text for name in ("script", "/mail", "both.eml", "Mail", "bert"))
    assert private["provenance"] == {"ham": 3} and private["complaint_count"] == 1
    # But a message can still be told by its hash.
    assert private["mistakes"][0]["content"] in set(run.table["content"])
    assert {key: numbers(run)[key] for key in ("figures", "roc", "scores")} == {
        key: private[key] for key in ("figures", "roc", "scores")
    }


def test_what_is_no_number_counts_nowhere_and_is_counted() -> None:
    broken = P.copy()
    broken[[3, 5, 8]] = np.nan, np.inf, -np.inf
    rest = np.setdiff1d(np.arange(N), [3, 5, 8])
    assert RUN.before is not None
    old = RUN.before.probabilities.copy()
    old[10] = np.nan
    found = numbers(replace(RUN, probabilities=broken, before=Before("old", old, CUTOFFS)))
    assert found["left_out"] == 3 and found["figures"]["n"] == N - 3
    assert found["figures"]["auc"] == pytest.approx(roc_auc_score(Y[rest], P[rest]))
    assert found["changes"]["figures"]["n"] == N - 4
    assert f"{3:064x}" not in json.dumps(found["mistakes"])


@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize("spam", [0.0, 0.4, 1.0])
def test_few_messages_and_one_class_alone(n: int, spam: float) -> None:
    found = numbers(made(n, spam=spam))
    both = 0 < labels_of(n, spam).sum() < n
    assert (found["roc"] is not None) == (found["precision_recall"] is not None) == both
    assert found["figures"]["n"] == n == sum(one["n"] for one in found["reliability"])
    if n:
        assert found["classes"]["spam"]["support"] == labels_of(n, spam).sum()
