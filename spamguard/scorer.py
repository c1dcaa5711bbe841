"""Messages -> verdicts: parse, tokenise and count (`prepare`), then encode and judge a batch (`score`)."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from . import bundle, features
from .bundle import Bundle
from .config import Config, HeadTable
from .encoder import CHARACTERS_A_TOKEN, Encoder, FloatArray, TokenIds
from .encoder import load as load_encoder
from .errors import BundleError, OutdatedHeadError, ScoringError
from .head import AdditiveHead, Features, Head, Row, probability, stack
from .header_words import column, columns, header_words
from .headers import content_hash, strip
from .message import is_gtube, parse
from .passages import PASSAGE, SUSPICIOUS, TELLING, most_telling, quote, rest_of
from .verdict import Cutoffs, Label, Reason, Verdict
from .wide import WIDE_TOKENS, Counts, count

_log = logging.getLogger(__name__)

# How many single reasons a verdict carries; --explain shows all of these, a header the first few.
REASONS = 12
# A share below this does not change what a person would think of the message.
SMALLEST_REASON = 0.05
GTUBE_LOGIT = 10.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is needed of a message but the encoder's output: small, as many of them wait while others are judged.

    Of `text` the words are counted; `rest` is what comes behind it, and `all_ids` are the tokens of both.
    """

    text: str
    rest: str
    gtube: bool
    token_ids: TokenIds
    all_ids: TokenIds
    header_words: tuple[str, ...]
    structure: FloatArray
    tokens: int
    content: str


class Scorer:
    """An encoder and a head that fits it. `prepare` may run in any thread, `score` in one at a time."""

    def __init__(self, encoder: Encoder, served: Bundle, cutoffs: Cutoffs | None = None) -> None:
        self.encoder = encoder
        self.bundle = served
        self.cutoffs = cutoffs or served.cutoffs
        self.head_id = served.id
        self.encoder_id = encoder.fingerprint

    @classmethod
    def from_config(cls, config: Config, encoder: Encoder | None = None) -> Scorer:
        """Load the configured head, and the encoder unless one is given. Raises EncoderError or BundleError.

        A retrained head that cannot be used does not stop mail: the shipped one judges, if it fits, and a warning
        says so. But where an encoder is given another head judges already, and is better than that.
        """
        starting = encoder is None
        encoder = encoder or load_encoder(config.encoder)
        served = _served(config, encoder, starting)
        return cls(encoder, served, effective(config.head, served.cutoffs))

    def prepare(self, raw: bytes) -> Prepared:
        """Parse and tokenise one message. Never raises for anything in the mail."""
        return prepare(self.encoder, raw)

    def score(self, batch: Sequence[Prepared], *, explain: bool = False) -> list[Verdict]:
        """Verdicts of the batch, in order. Reasons are given for all mail that is not ham, or if `explain`.

        Raises ScoringError if the encoder fails or a logit is not finite.
        """
        started = time.perf_counter()
        if not batch:
            return []
        seen = look(self.encoder, batch)
        parts = self.bundle.head.parts(seen)
        logits = np.sum(list(parts.values()), axis=0)
        if not np.isfinite(logits).all():
            raise ScoringError(f"head {self.head_id} gave a number that is not finite")
        hidden = look_again(self.encoder, self.bundle.head, self.cutoffs, batch, seen, logits)
        verdicts = []
        for i, (item, p) in enumerate(zip(batch, probability(logits), strict=True)):
            shares = {name: float(share[i]) for name, share in parts.items()}
            verdicts.append(self._verdict(item, seen, i, shares, float(p), explain, hidden.get(i)))
        spent = (time.perf_counter() - started) * 1000 / len(batch)
        return [replace(verdict, milliseconds=spent) for verdict in verdicts]

    def _verdict(
        self,
        item: Prepared,
        seen: Features,
        i: int,
        parts: dict[str, float],
        p: float,
        explain: bool,
        hidden: int | None,
    ) -> Verdict:
        """`hidden`: where a passage begins that alone is most likely spam, of a message that is ham."""
        reasons: tuple[Reason, ...] = ()
        if item.gtube:
            p, parts = 1.0, {"rule": GTUBE_LOGIT}
            reasons = (Reason("rule", "the GTUBE test string", GTUBE_LOGIT),)
        elif hidden is not None:
            p, lifted = self.cutoffs.unsure, logit_of(self.cutoffs.unsure) - sum(parts.values())
            parts["passage"] = lifted
            words = quote(self.encoder, item.text, item.rest, hidden)
            found = Reason("passage", f'a passage that alone is most likely spam: "{words}"', lifted)
            reasons = (found, *self._reasons(item, seen, i, parts))[:REASONS]
        label = self.cutoffs.label(p)
        if not reasons and (explain or label is not Label.HAM):
            reasons = self._reasons(item, seen, i, parts)
        row = Row(seen.deep[i], seen.wide[i], seen.structure[i])
        names = self.encoder_id, self.head_id
        return Verdict(p, label, self.cutoffs, parts, reasons, *names, content=item.content, seen=row)

    def _reasons(self, item: Prepared, seen: Features, i: int, parts: dict[str, float]) -> tuple[Reason, ...]:
        """The strongest single shares of the logit, strongest first."""
        found = [Reason("deep", "the meaning of the text as a whole", parts["deep"])]
        head = self.bundle.head
        if isinstance(head, AdditiveHead):
            shares = head.structure_shares(seen.structure[i : i + 1])[0]
            found += [
                Reason("structure", feature.words, float(share))
                for feature, share, value, usual in zip(
                    features.FEATURES, shares, item.structure, head.structure_center, strict=True
                )
                # The words describe a value above the usual one; below it the share is real, but they would lie.
                if value > max(usual, 0)
            ]
            found += [Reason("wide", f'"{word}"', share) for word, share in self._words(item, seen, i, head).items()]
            found += [
                Reason("headers", f"{word} in the header", share)
                for word, share in _header_shares(item, seen.wide[i], head).items()
            ]
        found = [reason for reason in found if abs(reason.logit) >= SMALLEST_REASON]
        return tuple(sorted(found, key=lambda reason: -abs(reason.logit))[:REASONS])

    def _words(self, item: Prepared, seen: Features, i: int, head: AdditiveHead) -> dict[str, float]:
        """Each word's share of the wide part: the shares of its pieces, at each occurrence."""
        row = seen.wide[i].text(len(head.wide_idf))
        each = dict(zip(row.columns.tolist(), head.word_shares(row) / row.counts, strict=True))
        text = item.text
        ids, spans = self.encoder.pieces(text, WIDE_TOKENS)
        words = [text[start:end].lower() for start, end in spans]
        shares: defaultdict[str, float] = defaultdict(float)
        for word, piece in zip(words, ids.tolist(), strict=True):
            shares[word] += float(each.get(piece, 0.0))
        return shares


def effective(table: HeadTable, own: Cutoffs) -> Cutoffs:
    """The cut-offs that count: those of the configuration, else the head's own."""
    spam = table.spam if table.spam is not None else own.spam
    unsure = table.unsure if table.unsure is not None else own.unsure
    return Cutoffs(min(unsure, spam), spam)


def _served(config: Config, encoder: Encoder, starting: bool) -> Bundle:
    folder = bundle.in_service(config.heads_dir, config.head.path)
    try:
        return bundle.load(folder, encoder)
    except BundleError as error:
        outdated = isinstance(error, OutdatedHeadError)
        if config.head.path is not None or folder == bundle.SHIPPED or not (starting or outdated):
            raise
        try:
            shipped = bundle.load(bundle.SHIPPED, encoder)
        except BundleError:
            raise error from None  # as when it fits no more, what is wrong with the user's own head helps him more
        _log.warning("the head that ships judges all mail, as the retrained one cannot be used: %s", error)
        return shipped


def _header_shares(item: Prepared, row: Counts, head: AdditiveHead) -> dict[str, float]:
    """Each header word's share; of words in one column, the first has it."""
    row = row.headers(len(head.wide_idf))
    shares = dict(zip(row.columns.tolist(), head.header_shares(row).tolist(), strict=True))
    return {word: shares.pop(column(word), 0.0) for word in item.header_words}


def prepare(encoder: Encoder, raw: bytes) -> Prepared:
    """Parse, tokenise and measure one message: all that comes before the encoder.

    Our headers, and forged ones, are not looked at: what is learnt must not depend on whether we were here before.
    """
    message = parse(strip(raw))
    text, rest = message.text[: WIDE_TOKENS * CHARACTERS_A_TOKEN], rest_of(message.text)
    first = encoder.tokenize([text], len(text))[0]
    all_ids = np.concatenate([first, encoder.tokenize([rest], len(rest))[0]]) if rest else first
    token_ids = first[:WIDE_TOKENS]
    tokens = min(len(token_ids) + 2, encoder.max_tokens)
    words = tuple(header_words(message.headers))
    structure, content = features.structure(message), content_hash(raw)
    return Prepared(text, rest, is_gtube(message), token_ids, all_ids, words, structure, tokens, content)


def look(encoder: Encoder, batch: Sequence[Prepared]) -> Features:
    """What a head sees of the batch. Raises ScoringError."""
    deep = encoder.encode([item.token_ids for item in batch])
    wide = [count(item.token_ids, columns(item.header_words), encoder.vocab_size) for item in batch]
    return stack([Row(*seen) for seen in zip(deep, wide, [item.structure for item in batch], strict=True)])


def look_again(
    encoder: Encoder, head: Head, cutoffs: Cutoffs, batch: Sequence[Prepared], seen: Features, logits: FloatArray
) -> dict[int, int]:
    """Of the ham in the batch what holds a passage that alone is most likely spam: index -> token where it begins.

    Looked through is what is longer than the encoder's window; structure and headers count as they are. Raises
    ScoringError.
    """
    if not isinstance(head, AdditiveHead) or cutoffs.label(cutoffs.unsure) is not Label.UNSURE:
        return {}
    cut = logit_of(cutoffs.unsure)
    parts = head.parts(seen)
    suspects: list[tuple[int, int]] = []
    rows: list[Row] = []
    for i in np.flatnonzero(logits < cut).tolist():
        tokens = batch[i].all_ids
        if len(tokens) + 2 <= encoder.max_tokens or batch[i].gtube:
            continue
        start, words, share = most_telling(head, tokens)
        if logits[i] - parts["deep"][i] - parts["wide"][i] + share >= SUSPICIOUS:
            suspects.append((i, start))
            rows.append(Row(seen.deep[i], words, seen.structure[i]))
    if not suspects:
        return {}
    read = encoder.encode([batch[i].all_ids[start : start + PASSAGE] for i, start in suspects])
    alone = head.parts(replace(stack(rows), deep=read))
    headers = parts.get("headers", np.zeros(len(batch), np.float32))
    again = alone["bias"] + alone["deep"] + alone["wide"] + alone["structure"]
    return {i: start for (i, start), logit in zip(suspects, again, strict=True) if logit + headers[i] >= TELLING}


def logit_of(probability: float) -> float:
    return float(np.log(probability) - np.log1p(-probability))
