"""Why a message got its score: what each phrase did to it, and the labelled message that is most like it.

Slow beside a verdict (up to some forty encodings a message), and so for `spamguard score --explain` alone.
"""

from __future__ import annotations

import math
import os
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import numpy.typing as npt

from .config import Config
from .encoder import FloatArray
from .errors import ScoringError
from .featurestore import FeatureStore
from .head import AdditiveHead, Features, Row, stack
from .header_words import columns
from .labels import Given, Labels
from .scorer import SMALLEST_REASON, Prepared, Scorer
from .verdict import Verdict
from .wide import WIDE_TOKENS, Counts, count, weigh

# A phrase is a sentence, cut after this many tokens (some 30 words): of a longer one nobody sees what did it.
LONGEST = 40
# Shorter ones are joined to the next, but for the Subject and the sender's name, which are phrases of their own.
SHORTEST = 3
# In a long text phrases are longer, so that what the encoder reads makes no more than this.
PHRASES = 32
# Below this the nearest message is not near: on the public corpora its label was wrong three times in ten, above .35
# hardly ever (docs/lab-notes.md).
LEAST_ALIKE = 0.3
LABELS_AT_ONCE = 2048

_SENTENCE = re.compile(
    r"""(?<![.!?؟।])[.!?؟।]++["'”’»)\]]*+\s++"""
    r"""|[。！？][」』”’)]*+\s*+|[!?](?=[\u2e80-\uffef])|\n"""
)  # fmt: skip
_PAUSES = tuple(",;:|•·)–—-")

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Phrase:
    """A phrase as the reader sees it, how often it stands in the text, and its share of the logit.

    The share is what the logit of the message falls by when every occurrence is left out of the text and what follows
    moves up; structure and headers stay. Above zero towards spam. As words act together, shares add up to nothing.
    """

    text: str
    times: int
    logit: float


@dataclass(frozen=True, slots=True)
class Nearest:
    """The label of the message most like the one judged: 1 is the same text; `same` if it is that very message."""

    given: Given
    alike: float
    same: bool = False


def phrases(scorer: Scorer, item: Prepared, verdict: Verdict) -> list[Phrase]:
    """The phrases whose share is worth a line, strongest first; none where a rule judged. Raises ScoringError.

    Of the text as far as words are counted (WIDE_TOKENS); what the encoder does not reach acts by its words alone.
    """
    if verdict.seen is None or "rule" in verdict.parts:
        return []
    groups = _groups(scorer, item.text)
    if not groups:
        return []
    left = scorer.encoder.tokenize([_without(item.text, spans) for spans in groups], WIDE_TOKENS)
    headers = columns(item.header_words)
    rows = [replace(verdict.seen, wide=count(ids, headers, scorer.encoder.vocab_size)) for ids in left]
    # Behind the encoder's window a phrase changes nothing that would have to be encoded again.
    window = scorer.encoder.max_tokens
    changed = [i for i, ids in enumerate(left) if not np.array_equal(ids[:window], item.token_ids[:window])]
    if changed:
        deep = scorer.encoder.encode([left[i] for i in changed])  # which sees to memory itself, as with mail
        for i, states in zip(changed, deep, strict=True):
            rows[i] = replace(rows[i], deep=states)
    without = np.sum(list(scorer.bundle.head.parts(stack(rows)).values()), axis=0)
    if not np.isfinite(without).all():
        raise ScoringError(f"head {scorer.head_id} gave a number that is not finite")
    whole = sum(share for part, share in verdict.parts.items() if part != "passage")
    found = [
        Phrase(" ".join(item.text[slice(*spans[0])].split()), len(spans), whole - float(logit))
        for spans, logit in zip(groups, without, strict=True)
    ]
    return sorted((one for one in found if abs(one.logit) >= SMALLEST_REASON), key=lambda one: -abs(one.logit))


def nearest(
    config: Config, scorer: Scorer, contents: Sequence[str], verdicts: Sequence[Verdict]
) -> list[Nearest | None]:
    """For each message (its content hash and verdict) the label of the one most like it; None if there is none.

    Alike: the mean of two cosines, of the centred hidden states and of the tf-idf words. Labels of all sources count,
    if the encoder in service has seen their mail. Nothing is made or written. Raises LabelsError, FeatureStoreError.
    """
    seen = [verdict.seen for verdict in verdicts if verdict.seen is not None]
    if not seen or len(seen) < len(verdicts) or not os.access(config.labels_file, os.F_OK):
        return [None] * len(verdicts)
    with Labels(config.labels_file, read_only=True) as labels:
        given = {one.content: one for one in labels.rows()}
    best: list[tuple[float, str]] = [(0.0, "")] * len(seen)
    store, head = config.features_dir / f"{scorer.encoder_id}.sqlite3", scorer.bundle.head
    # A head without a centre and word weights of its own (mlp) has no measure of likeness.
    if isinstance(head, AdditiveHead) and os.access(store, os.F_OK):
        asked = _Asked(head, stack(seen))
        with FeatureStore(config.features_dir, scorer.encoder_id, read_only=True) as kept:
            for start in range(0, len(given), LABELS_AT_ONCE):
                there = kept.get(list(islice(given, start, start + LABELS_AT_ONCE)))
                best = [max(pair) for pair in zip(best, asked.likest(there), strict=True)] if there else best
    return [
        Nearest(given[content], 1.0, same=True)
        if content in given
        else Nearest(given[near], alike)
        if alike >= LEAST_ALIKE
        else None
        for content, (alike, near) in zip(contents, best, strict=True)
    ]


class _Asked:
    """Messages whose like is looked for: unit vectors of their hidden states and of their words."""

    def __init__(self, head: AdditiveHead, seen: Features) -> None:
        self._head = head
        self._deep = _unit(seen.deep - head.deep_center)
        self._words = np.zeros((len(seen), len(head.wide_idf)), np.float32)
        for words, counts in zip(self._words, self._texts(seen), strict=True):
            words[counts.columns] = weigh(counts, head.wide_idf)

    def likest(self, there: dict[str, Row]) -> list[tuple[float, str]]:
        """For each asked message how alike the stored one most like it is, and its content."""
        contents = sorted(there)
        stored = stack([there[content] for content in contents])
        texts = self._texts(stored)
        ids = np.concatenate([counts.columns for counts in texts])
        weights = np.concatenate([weigh(counts, self._head.wide_idf) for counts in texts])
        of = np.repeat(np.arange(len(stored)), [len(counts.columns) for counts in texts])
        words = [np.bincount(of, asked[ids] * weights, minlength=len(stored)) for asked in self._words]
        alike = (self._deep @ _unit(stored.deep - self._head.deep_center).T + np.stack(words)) / 2
        return [(float(row[j]), contents[j]) for row, j in zip(alike, alike.argmax(1), strict=True)]

    def _texts(self, features: Features) -> list[Counts]:
        """The words of the texts alone, as headers would find the same sender and not the same thing said."""
        return [counts.text(len(self._head.wide_idf)) for counts in features.wide]


def _unit(vectors: FloatArray) -> FloatArray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    result: FloatArray = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return result


def _groups(scorer: Scorer, text: str) -> list[list[Span]]:
    """The phrases that begin where words are counted, each with all its occurrences; equal but for case are one."""
    ids, spans = scorer.encoder.pieces(text, max(len(text), 1))  # a token has a character at least: all of them
    starts = np.asarray([start for start, _ in spans], np.int64)
    window = min(len(ids), scorer.encoder.max_tokens)
    least = max(SHORTEST, math.ceil(window / PHRASES))
    found: defaultdict[str, list[Span]] = defaultdict(list)
    for start, end in _split(text, starts, least):
        found[" ".join(text[start:end].split()).casefold()].append((start, end))
    reach = int(starts[WIDE_TOKENS]) if len(ids) > WIDE_TOKENS else len(text)
    return [group for group in found.values() if group[0][0] < reach]


def _split(text: str, starts: npt.NDArray[np.int64], least: int) -> Iterator[Span]:
    """Consecutive spans that cover all tokens of the text: each a phrase, with the blanks behind it."""

    def tokens(start: int, end: int) -> int:
        return int(np.searchsorted(starts, end) - np.searchsorted(starts, start))

    begin = 0
    for line in text.splitlines(keepends=True):
        line_end = begin + len(line)
        ends = [match.end() for match in _SENTENCE.finditer(text, begin, line_end)]
        pieces: list[Span] = []
        for end in [*ends, line_end]:
            if pieces and tokens(*pieces[-1]) < least:
                begin = pieces.pop()[0]
            pieces += _cut(text, starts, begin, end)
            begin = end
        if len(pieces) > 1 and tokens(*pieces[-1]) < least:
            _, end = pieces.pop()
            pieces[-1] = pieces[-1][0], end
        yield from (piece for piece in pieces if tokens(*piece))


def _cut(text: str, starts: npt.NDArray[np.int64], begin: int, end: int) -> Iterator[Span]:
    """A piece in parts of LONGEST tokens at most: behind a comma or the like if there is one in the last half."""
    first, last = np.searchsorted(starts, (begin, end))
    while last - first > LONGEST:
        words = np.unique(starts[first + 1 : first + LONGEST + 1])
        words = words[words > begin]
        blank = [at for at in words.tolist() if text[at - 1].isspace()] or words.tolist()
        if not blank:  # one word of very many tokens
            break
        half = blank[bisect_left(blank, int(starts[first + LONGEST // 2])) :] or blank
        at = next((at for at in reversed(half) if text[begin:at].rstrip().endswith(_PAUSES)), half[-1])
        yield begin, at
        begin = at
        first = np.searchsorted(starts, begin)
    if begin < end:
        yield begin, end


def _without(text: str, spans: Sequence[Span]) -> str:
    kept, at = [], 0
    for start, end in spans:
        kept.append(text[at:start])
        at = end
    return "".join([*kept, text[at:]])
