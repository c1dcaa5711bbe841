"""The encoder: any BERT folder works, batches equal singles, and what is damaged or brings code is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from spamguard.config import EncoderTable
from spamguard.encoder import TorchEncoder, load, locate
from spamguard.errors import EncoderError, ScoringError
from tests.tiny_bert import save_tiny_bert

TEXTS = ["the meeting is at noon", "buy cheap pills now!", "", "free money " * 40, "please see the report attached"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def encoder(folder: Path) -> TorchEncoder:
    return TorchEncoder(folder, device="cpu", max_tokens=32)


def test_shape_is_n_by_layers_times_hidden(encoder: TorchEncoder) -> None:
    out = encoder.encode(encoder.tokenize(TEXTS, 100))
    assert out.shape == (5, 48) and encoder.dim == 48 and out.dtype == np.float32  # layers 0, 2, 4 of width 16
    assert encoder.encode([]).shape == (0, 48)


def test_batch_equals_singles(encoder: TorchEncoder) -> None:
    tokens = encoder.tokenize(TEXTS, 100)
    singles = np.concatenate([encoder.encode([ids]) for ids in tokens])
    np.testing.assert_allclose(encoder.encode(tokens), singles, atol=2e-6)


def test_padding_is_left_out_of_the_mean(encoder: TorchEncoder) -> None:
    import torch

    ids = encoder.tokenize(TEXTS[:1], 100)[0]
    with torch.inference_mode():
        states = encoder._model(torch.tensor([[2, *ids.tolist(), 3]]), output_hidden_states=True).hidden_states
    expected = torch.cat([states[layer][0].mean(0) for layer in (0, 2, 4)]).numpy()
    together = encoder.encode([ids, encoder.tokenize([TEXTS[3]], 100)[0]])[0]
    np.testing.assert_allclose(together, expected, atol=2e-6)


def test_cls_pooling_takes_the_first_state(folder: Path) -> None:
    import torch

    encoder = TorchEncoder(folder, device="cpu", layers=(4,), pooling="cls", max_tokens=25)
    ids = encoder.tokenize(TEXTS[:1], 100)[0]
    with torch.inference_mode():
        expected = encoder._model(torch.tensor([[2, *ids.tolist(), 3]])).last_hidden_state[0, 0].numpy()
    np.testing.assert_allclose(encoder.encode([ids])[0], expected, atol=2e-6)


def test_it_is_frozen(encoder: TorchEncoder) -> None:
    assert not encoder._model.training
    assert not any(parameter.requires_grad for parameter in encoder._model.parameters())


def test_tokens_are_not_cut_by_what_the_file_says(encoder: TorchEncoder) -> None:
    assert len(encoder.tokenize(["free money " * 30], 50)[0]) == 50


def test_pieces_agree_with_tokenize_and_name_whole_words(encoder: TorchEncoder) -> None:
    text = "Buy viagra now"
    ids, spans = encoder.pieces(text, 100)
    np.testing.assert_array_equal(ids, encoder.tokenize([text], 100)[0])
    assert [text[a:b] for a, b in spans] == ["Buy", *["viagra"] * 6, "now"]


def test_fingerprint_changes_with_whatever_changes_the_numbers(folder: Path, tmp_path: Path) -> None:
    prints = {
        TorchEncoder(folder, device="cpu", max_tokens=32).fingerprint,
        TorchEncoder(folder, device="cpu", max_tokens=16).fingerprint,
        TorchEncoder(folder, device="cpu", max_tokens=32, layers=(4,)).fingerprint,
        TorchEncoder(folder, device="cpu", max_tokens=32, pooling="cls").fingerprint,
        TorchEncoder(save_tiny_bert(tmp_path / "other", seed=1), device="cpu", max_tokens=32).fingerprint,
    }
    assert len(prints) == 5
    assert TorchEncoder(folder, device="cpu", max_tokens=32).fingerprint in prints


def test_row_17_out_of_memory_halves_the_batch(encoder: TorchEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    tokens = encoder.tokenize(TEXTS, 100)
    expected, model, sizes = encoder.encode(tokens), encoder._model, []

    def small(input_ids: torch.Tensor, **rest: object) -> object:
        sizes.append(len(input_ids))
        if len(input_ids) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return model(input_ids=input_ids, **rest)

    monkeypatch.setattr(encoder, "_model", small)
    np.testing.assert_allclose(encoder.encode(tokens), expected, atol=2e-6)
    assert sizes[0] == 5 and sizes.count(1) == 5


def test_row_17_what_the_device_has_no_room_for_is_computed_on_the_cpu(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    encoder = TorchEncoder(folder, device="cpu", max_tokens=32)
    tokens = encoder.tokenize(TEXTS, 100)
    expected, sizes, forward = encoder.encode(tokens), [], encoder._model.forward

    def full(input_ids: torch.Tensor, **rest: object) -> object:
        sizes.append(tuple(input_ids.shape))
        if input_ids.shape[1] > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(input_ids=input_ids, **rest)

    monkeypatch.setattr(encoder._model, "forward", full)
    for _ in range(2):
        np.testing.assert_allclose(encoder.encode(tokens), expected, atol=2e-6)
    assert (1, 32) in sizes
    assert [record.getMessage() for record in caplog.records] == [
        "cpu is out of memory for a single message: such are computed on the CPU"
    ]
    assert not encoder._spare.training
    assert not any(parameter.requires_grad for parameter in encoder._spare.parameters())


@pytest.mark.parametrize(
    ("words", "spared"),
    [
        ("CUDA error: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("MPS backend out of memory (MPS allocated: 18.13 GB)", True),
        ("CUDA error: device-side assert triggered\nCUDA kernel errors might be ...", False),
        ("", False),
    ],
)
def test_row_17_only_want_of_memory_goes_to_the_cpu(
    folder: Path, monkeypatch: pytest.MonkeyPatch, words: str, spared: bool
) -> None:
    encoder = TorchEncoder(folder, device="cpu", max_tokens=32)
    tokens = encoder.tokenize(TEXTS, 100)
    expected = encoder.encode(tokens)

    def failing(**given: object) -> object:
        raise RuntimeError(words)

    monkeypatch.setattr(encoder._model, "forward", failing)
    if spared:
        np.testing.assert_allclose(encoder.encode(tokens), expected, atol=2e-6)
    else:
        with pytest.raises(ScoringError, match=r"^the encoder failed: ") as caught:
            encoder.encode(tokens)
        assert "\n" not in str(caught.value)


def test_row_17_no_room_anywhere_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = TorchEncoder(folder, device="cpu", max_tokens=32)

    def full(self: object, **given: object) -> object:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(type(encoder._model), "forward", full)
    with pytest.raises(ScoringError, match="out of memory"):
        encoder.encode(encoder.tokenize(TEXTS, 100))


def test_row_17_not_finite_is_an_error(encoder: TorchEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "_forward", lambda rows: np.full((len(rows), encoder.dim), np.nan, np.float32))
    with pytest.raises(ScoringError, match="not finite"):
        encoder.encode(encoder.tokenize(TEXTS, 100))


def edit_config(folder: Path, **keys: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))


def test_code_of_its_own_is_refused(tmp_path: Path) -> None:
    edit_config(save_tiny_bert(tmp_path), auto_map={"AutoModel": "evil.Model"})
    with pytest.raises(EncoderError, match="auto_map"):
        TorchEncoder(tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (save_tiny_bert(tmp_path) / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(EncoderError, match=r"no \.safetensors"):
        TorchEncoder(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_damage_is_one_clear_line(tmp_path: Path, name: str) -> None:
    file = save_tiny_bert(tmp_path) / name
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(EncoderError, match="cannot be read") as caught:
        TorchEncoder(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": (9,)}, "layer 9"),
        ({"max_tokens": 4096}, "64 positions"),
        ({"device": "cuda:77"}, "not available"),
        ({"device": "toaster"}, "not available"),
    ],
)
def test_impossible_options_are_named(folder: Path, options: dict[str, object], words: str) -> None:
    with pytest.raises(EncoderError, match=words):
        TorchEncoder(folder, **options)  # type: ignore[arg-type]


def test_unknown_model_is_named_and_nothing_is_fetched() -> None:
    with pytest.raises(EncoderError, match=r"neither a folder nor in the local cache \(encoder.allow_download"):
        locate("nobody/no-such-model")
    with pytest.raises(EncoderError, match="is no folder"):
        locate("/no/such/folder")


def test_the_embedded_encoder_is_checked_and_works() -> None:
    encoder = load(EncoderTable(device="cpu"))
    assert (encoder.dim, encoder.vocab_size) == (3 * 384, 30522)
    tokens = encoder.tokenize(["cheap pills online", "buy cheap medicine", "see you at noon"], 100)
    last = encoder.encode(tokens)[:, 768:]
    assert last[0] @ last[1] > last[0] @ last[2]


def test_altered_embedded_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spamguard.encoder.EMBEDDED_WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(EncoderError, match="not the weights we know"):
        locate("embedded")
