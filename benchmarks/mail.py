"""The mail that is judged on: read once, with all that any contestant wants to see of it.

Encoder output is kept in a folder between runs (`FeatureStore`); texts and word counts are made anew, in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer

from spamguard.config import EncoderTable
from spamguard.encoder import Encoder
from spamguard.encoder import load as load_encoder
from spamguard.features import registrable
from spamguard.featurestore import FeatureStore, content_hash
from spamguard.head import Features, stack
from spamguard.headers import strip
from spamguard.message import parse
from training.corpus import encode, find
from training.fit import take
from training.ship import SAMPLED, group, sample
from training.ship import join as join_features

from .splits import campaigns

Indices = npt.NDArray[np.int64]
STEP = 64  # messages encoded at a time
# The recipe of the tutorial that the project began with: the first 25 tokens, and [CLS] alone.
SEED_RECIPE = EncoderTable(pooling="cls", max_tokens=25)  # of the last layer


@dataclass(frozen=True)
class Mail:
    """n messages. `table` has the columns

    content (hash), label (1 is spam), corpus (the folder), source (the collection in it), where, sha256 (of the
    file's bytes), domain (registrable, of the From address), group (what ship.py's folds keep together) and campaign
    (near-duplicates carry the same number).

    `texts` are what a reader sees, `words` the counts of its words (n, vocabulary), `features` what the encoder makes
    of it and `short` what it makes of it by the tutorial's recipe.
    """

    table: pd.DataFrame
    raw: Sequence[bytes]
    texts: Sequence[str]
    words: sparse.csr_array
    features: Features
    short: Features

    def __len__(self) -> int:
        return len(self.table)

    @property
    def labels(self) -> Indices:
        return self.table["label"].to_numpy(dtype=np.int64, copy=True)

    def take(self, chosen: Indices) -> Mail:
        return Mail(
            self.table.iloc[chosen].reset_index(drop=True),
            [self.raw[i] for i in chosen],
            [self.texts[i] for i in chosen],
            self.words[chosen],
            take(self.features, chosen),
            take(self.short, chosen),
        )


def join(parts: Sequence[Mail]) -> Mail:
    """The mail of several, one after the other."""
    return Mail(
        pd.concat([part.table for part in parts], ignore_index=True),
        [raw for part in parts for raw in part.raw],
        [text for part in parts for text in part.texts],
        sparse.vstack([part.words for part in parts]).tocsr(),
        join_features([part.features for part in parts]),
        join_features([part.short for part in parts]),
    )


class Reader:
    """Makes Mail of files and of bytes. The vocabulary of `words` is that of the mail that `read` has found."""

    def __init__(self, state: Path, progress: Callable[[str, int, int], None], model: str = "embedded") -> None:
        self.state, self._progress = state, progress
        self.encoder = load_encoder(EncoderTable(model=model))
        recipe = {"model": model, "layers": (self.encoder.depth,)}
        self._seed: Encoder = load_encoder(SEED_RECIPE.model_copy(update=recipe))
        self._vocabulary = CountVectorizer()

    def read(self, corpora: Path, names: Iterable[str]) -> Mail:
        """All labelled mail of those folders, each content once; of a large one the sample that ship.py takes.

        Mail that stands there with both labels is left out. Raises SpamguardError.
        """
        rows: list[tuple[str, int, str, str, str, str]] = []
        raws: dict[str, bytes] = {}
        for name in names:
            items = list(find([corpora / name]))
            for item in sample(items) if name in SAMPLED else items:
                raw = item.read()
                content = content_hash(raw)
                raws[content] = raw
                rows.append((content, item.label, name, item.source, item.where, hashlib.sha256(raw).hexdigest()))
        rows.sort(key=lambda row: (row[2], row[5]))
        table = pd.DataFrame(rows, columns=["content", "label", "corpus", "source", "where", "sha256"])
        both = table.groupby("content")["label"].transform("nunique") > 1
        table = table[~both].drop_duplicates("content", ignore_index=True)
        table["group"] = [
            group(*row) for row in zip(*(table[c] for c in ("corpus", "source", "content", "where")), strict=True)
        ]
        raw = [raws[content] for content in table["content"]]
        return self.see(table, raw, fit=True)

    def see(self, table: pd.DataFrame, raw: Sequence[bytes], *, fit: bool = False) -> Mail:
        """The same mail with other bytes, or (fit) the mail that the vocabulary is made of."""
        contents = [content_hash(each) for each in raw]
        texts, domains = [], []
        for done, each in enumerate(raw):
            message = parse(strip(each))
            texts.append(message.text)
            domains.append(registrable(message.sender_address.rpartition("@")[2].lower()))
            if done % STEP == 0:
                self._progress("parsing", done, len(raw))
        words = self._vocabulary.fit_transform(texts) if fit else self._vocabulary.transform(texts)
        table = table.assign(content=contents, domain=domains)
        if fit:
            table["campaign"] = campaigns(texts)
        return Mail(
            table,
            list(raw),
            texts,
            sparse.csr_array(words),
            self._features(self.encoder, contents, raw, "encoding"),
            self._features(self._seed, contents, raw, "encoding 25 tokens"),
        )

    def _features(self, encoder: Encoder, contents: Sequence[str], raw: Sequence[bytes], stage: str) -> Features:
        bytes_of = dict(zip(contents, raw, strict=True))
        with FeatureStore(self.state, encoder.fingerprint) as store:
            missing = sorted(set(contents) - store.known(contents))
            for start in range(0, len(missing), STEP):
                self._progress(stage, start, len(missing))
                encode(missing[start : start + STEP], bytes_of.get, encoder, store)
            rows = store.get(contents)
        return stack([rows[content] for content in contents])
