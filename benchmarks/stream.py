"""(f) Online, as the TREC spam track did it: messages in the order in which they came, each judged, then told.

A contestant that can learn message by message (`steady`) does so from the first one on; the others are fitted anew
after twenty more labels, as spamguard does in service, or when they have grown by a twentieth, for the time it takes.
Near-duplicates stay: they are what mail is like.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from spamguard.message import parse

from . import measures
from .contest import Said, Told, is_ours, plain
from .mail import Indices, Mail
from .peers import Judge, Learner, enough

Array = npt.NDArray[np.float64]
DELAY = 100  # messages after which the label comes, in the second run
GROWTH, LEAST = 1.05, 20
POINTS = 80  # of the curve
PLAUSIBLE = (datetime(2001, 6, 1, tzinfo=UTC), datetime(2003, 6, 1, tzinfo=UTC))
_SUBSET = re.compile(r"/((?:easy-ham|hard-ham|spam)-\d)_(\d+)")


def in_time(mail: Mail) -> tuple[Indices, int]:
    """SpamAssassin's rows in the order of arrival, and how many have no time of their own.

    That is the date of the topmost Received field, or else of Date. Where neither is plausible, a message comes right
    after the one with the number before it in its subset: the numbers follow time.
    """
    rows = np.flatnonzero(mail.table["corpus"] == "spamassassin")
    found = []
    for row in rows:
        subset = _SUBSET.search(mail.table["where"].iloc[row])
        found.append((subset[1] if subset else "", int(subset[2]) if subset else 0, arrival(mail.raw[row]), row))
    found.sort(key=lambda item: item[:2])
    keys, without = [], 0
    last = ("", 0.0)
    for subset, _, time, row in found:
        if time is None:
            without += 1
            time = last[1] if last[0] == subset else PLAUSIBLE[0].timestamp()
        last = (subset, time)
        keys.append((time, mail.table["sha256"].iloc[row], row))
    return np.asarray([row for _, _, row in sorted(keys)]), without


def arrival(raw: bytes) -> float | None:
    """Seconds since 1970, or None if no field says a plausible time."""
    headers = parse(raw).headers
    received = next((value.rpartition(";")[2] for name, value in headers if name.lower() == "received"), "")
    date = next((value for name, value in headers if name.lower() == "date"), "")
    for said in (received, date):
        try:
            time = parsedate_to_datetime(said.strip())
        except (TypeError, ValueError, IndexError):
            continue
        time = time if time.tzinfo else time.replace(tzinfo=UTC)
        if PLAUSIBLE[0] <= time <= PLAUSIBLE[1]:
            return time.timestamp()
    return None


def online(mail: Mail, learner: Learner, delay: int) -> Said:
    """What is said of each message when the labels of all messages but the last `delay` before it are known.

    Without a label a contestant that has a start judges by that, another says nothing: 0.
    """
    judge: Judge | None = getattr(learner, "start", None)
    steady = getattr(learner, "steady", False)
    said = [np.full(len(mail), value) for value in (0.0, np.inf, np.inf)]
    learnt, due, i = 0, LEAST, 0
    while i < len(mail):
        known = max(0, i - delay)
        if steady and known > learnt:
            new = mail.take(np.arange(learnt, known))
            if judge is None:
                judge = learner.learn(new)
            else:
                judge.more(new)  # type: ignore[attr-defined]
            learnt = known
        elif not steady and known >= due:
            own = mail.take(np.arange(known))
            if enough(own):
                judge, due = learner.learn(own), max(known + LEAST, int(known * GROWTH))
            else:
                due = known + 1
        now = np.arange(i, min(i + (1 if steady else max(1, due - known)), len(mail)))
        if judge is not None:
            said[0][now], said[1][now], said[2][now] = judge.score(mail.take(now)), judge.unsure, judge.spam
        i += len(now)
    return Said(*said, learner.probable)


def held(mail: Mail, learners: Sequence[tuple[str, Learner]], told: Told) -> dict[str, Any]:
    """1-ROCA %, what was called spam, and the curve of 1-ROCA % so far, with labels at once and delayed."""
    order, without = in_time(mail)
    stream = mail.take(order)
    labels, counts = stream.labels, measures.resamples(stream.table["campaign"].to_numpy())
    found: dict[str, Any] = {
        "messages": len(order),
        "without a time": without,
        "delay": DELAY,
        "feedback": {},
        "ahead": {},
    }
    marks = np.unique(np.geomspace(200, len(order), POINTS).astype(int))
    alone = np.ones((1, len(order)))
    for feedback, delay in (("at once", 0), (f"{DELAY} messages later", DELAY)):
        rows: dict[str, Any] = {}
        areas: dict[str, Array] = {}
        for name, learner in learners:
            told(f"online, {feedback}: {name}")
            said = online(stream, learner, delay)
            curve = [
                (int(m), float(measures.one_minus_roca(said.scores[:m], labels[:m], alone[:, :m])[0])) for m in marks
            ]
            areas[name] = measures.one_minus_roca(said.scores, labels, counts)
            rows[name] = {
                "1-ROCA %": plain(measures.figure(areas[name])),
                "ham called spam": plain(
                    measures.measured(measures.share_from(said.spam, 0), said.scores, labels, counts)
                ),
                "spam called spam": plain(
                    measures.measured(measures.share_from(said.spam, 1), said.scores, labels, counts)
                ),
                "spam called spam or unsure": plain(
                    measures.measured(measures.share_from(said.unsure, 1), said.scores, labels, counts)
                ),
                "curve": [(m, None if np.isnan(value) else round(value, 4)) for m, value in curve],
            }
        found["feedback"][feedback] = rows
        ours = min((name for name in areas if is_ours(name)), key=lambda name: areas[name][0])
        peers = [name for name in areas if not is_ours(name)]
        if peers:
            best = min(peers, key=lambda name: areas[name][0])
            gap = plain(measures.figure(areas[ours] - areas[best]))
            found["ahead"][feedback] = {"ours": ours, "best peer": best, "difference": gap}
    return found
