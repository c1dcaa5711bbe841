"""Long texts: the passage whose words are most like spam, so that ham before or behind a spam does not hide it.

The windows of encoder and words see the beginning of a text, and what is written there can outvote the rest ("good
word attack", Lowd & Meek 2005). So each passage of a long ham is weighed by its words, and the worst one, if it is
suspicious, is read by the encoder alone. The message is unsure if that passage by itself is most likely spam.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from .encoder import CHARACTERS_A_TOKEN, Encoder, TokenIds
from .head import AdditiveHead
from .wide import WIDE_TOKENS, Counts, count

# Tokens of a passage, and from one to the next. A short spam so lies within one for the most part.
PASSAGE, STEP = 128, 64
# A passage is read alone if its words leave the logit above the first, and makes the message unsure if that is then
# above the second (p = 0.73): one long ham in twenty is read again, one in a hundred lost (docs/lab-notes.md).
SUSPICIOUS, TELLING = -0.5, 1.0
# Of a longer text the beginning and the end are looked through.
_HALF = 24_576  # characters


def rest_of(text: str) -> str:
    """What of a text lies behind the part whose words are counted, at most 2 * _HALF characters less that part."""
    seen = WIDE_TOKENS * CHARACTERS_A_TOKEN
    return text[seen:] if len(text) <= 2 * _HALF else text[seen:_HALF] + "\n" + text[-_HALF:]


def most_telling(head: AdditiveHead, tokens: TokenIds) -> tuple[int, Counts, float]:
    """Where the passage begins whose words weigh most towards spam, their counts, and their share of the logit."""
    no_headers = np.empty(0, np.uint32)
    best: tuple[int, Counts, float] | None = None
    for start, ids in _passages(tokens):
        counts = count(ids, no_headers, len(head.wide_idf))
        share = float(head.word_shares(counts).sum())
        if best is None or share > best[2]:
            best = start, counts, share
    assert best is not None
    return best


def quote(encoder: Encoder, text: str, rest: str, start: int) -> str:
    """The words of the passage that begins at that token of both texts."""
    limit = 2 * _HALF
    spans = encoder.pieces(text, limit)[1]
    if start >= len(spans):
        start, text, spans = start - len(spans), rest, encoder.pieces(rest, limit)[1]
    if start >= len(spans):
        return ""
    return text[spans[start][0] : spans[min(start + PASSAGE, len(spans)) - 1][1]]


def _passages(tokens: TokenIds) -> Iterator[tuple[int, npt.NDArray[np.int32]]]:
    for start in range(0, max(1, len(tokens) - PASSAGE + STEP), STEP):
        yield start, tokens[start : start + PASSAGE]
