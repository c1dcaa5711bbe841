"""Bundles that do not fit, are damaged or were tampered with are refused in one line."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import numpy as safetensors

from spamguard import bundle
from spamguard.bundle import MANIFEST, WEIGHTS
from spamguard.errors import BundleError
from spamguard.head import AdditiveHead, MlpHead
from tests.paper_bundle import COLUMNS, DIM, ENCODER, HIDDEN, STRUCTURE, a_bundle, a_head, refusal


def edit_manifest(folder: Path, **keys: Any) -> None:
    """Change keys of the manifest; None takes one out."""
    file = folder / MANIFEST
    data = {**json.loads(file.read_text()), **keys}
    file.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def put_weights(folder: Path, data: bytes) -> None:
    """Other weights, under a manifest that vouches for them."""
    (folder / WEIGHTS).write_bytes(data)
    edit_manifest(folder, weights_sha256=hashlib.sha256(data).hexdigest())


def put_arrays(folder: Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> None:
    put_weights(folder, safetensors.save(change(safetensors.load((folder / WEIGHTS).read_bytes()))))


def test_another_encoder_is_refused_with_what_differs_and_what_to_do(saved: Path) -> None:
    other = replace(ENCODER, fingerprint="b" * 16, description={**ENCODER.description, "max_tokens": 512})
    line = refusal(saved, other)
    assert "max_tokens was 32" in line and "spamguard retrain" in line and "layers" not in line
    other = replace(ENCODER, fingerprint="c" * 16, description={**ENCODER.description, "model": {"weights": "d"}})
    assert "model differs" in refusal(saved, other)


@pytest.mark.parametrize(
    "change",
    [{"text": "0"}, {"wide": 0}, {"structure": "0" * 16}],
    ids=["text", "wide", "structure"],
)
def test_another_version_of_the_inputs_is_refused(saved: Path, change: dict[str, Any]) -> None:
    inputs = json.loads((saved / MANIFEST).read_text())["inputs"]
    edit_manifest(saved, inputs={**inputs, **change})
    assert "another version of spamguard; run spamguard retrain" in refusal(saved)


def test_weights_of_another_width_are_refused(saved: Path) -> None:
    assert "hidden_weight has shape (6, 4), (7, 4) is needed" in refusal(saved, replace(ENCODER, dim=7))
    additive = bundle.save(a_bundle("additive"), saved.parent / "two")
    assert "wide_idf has shape" in refusal(additive, replace(ENCODER, vocab_size=51))


@pytest.mark.parametrize("shape", [(), (1,), (2, 2), (0,), (HIDDEN, 1)])
@pytest.mark.parametrize("name", [f.name for f in fields(MlpHead)])
def test_wrong_shapes_are_refused(saved: Path, name: str, shape: tuple[int, ...]) -> None:
    put_arrays(saved, lambda arrays: {**arrays, name: np.zeros(shape, np.float32)})
    assert "is needed" in refusal(saved)


@pytest.mark.parametrize("shape", [(), (3,), (1, 1)])
@pytest.mark.parametrize("name", [f.name for f in fields(AdditiveHead)])
def test_wrong_shapes_of_an_additive_head_are_refused(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    folder = bundle.save(a_bundle("additive"), tmp_path / "one")
    put_arrays(folder, lambda arrays: {**arrays, name: np.zeros(shape, np.float32)})
    assert f"{name} has shape {shape}" in refusal(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(saved: Path, value: float) -> None:
    def spoil(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        arrays["hidden_bias"] = arrays["hidden_bias"].copy()
        arrays["hidden_bias"][2] = value
        return arrays

    put_arrays(saved, spoil)
    assert "hidden_bias must be finite float32" in refusal(saved)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, np.bool_])
def test_other_kinds_of_number_are_refused(saved: Path, dtype: type[np.generic]) -> None:
    put_arrays(saved, lambda arrays: {**arrays, "output_bias": np.zeros(2, dtype)})
    assert "output_bias must be finite float32" in refusal(saved)


def test_missing_and_extra_arrays_are_refused(saved: Path) -> None:
    put_arrays(saved, lambda arrays: {k: v for k, v in arrays.items() if k != "calibration"})
    assert "not the arrays of a head of kind mlp" in refusal(saved)
    put_arrays(
        saved, lambda arrays: {**arrays, "calibration": np.ones(2, np.float32), "more": np.ones(1, np.float32)}
    )
    assert "'more'" in refusal(saved)


def test_truncated_weights_are_refused(saved: Path) -> None:
    whole = (saved / WEIGHTS).read_bytes()
    for size in (0, 4, 8, 100, len(whole) - 1):
        (saved / WEIGHTS).write_bytes(whole[:size])
        assert "damaged" in refusal(saved)


def test_truncated_weights_that_the_manifest_vouches_for_are_refused(saved: Path) -> None:
    whole = (saved / WEIGHTS).read_bytes()
    for size in (0, 4, 8, 100, len(whole) - 1):
        put_weights(saved, whole[:size])
        assert "not a safetensors file" in refusal(saved)


class Trap:
    """What creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.file,)


def test_pickled_bytes_are_refused_and_never_run(saved: Path, tmp_path: Path) -> None:
    trap, sprung = pickle.dumps(Trap(tmp_path / "sprung")), tmp_path / "sprung"
    pickle.loads(trap)
    assert sprung.exists()  # the trap works
    sprung.unlink()
    (saved / WEIGHTS).write_bytes(trap)
    assert "damaged" in refusal(saved)
    put_weights(saved, trap)
    assert "not a safetensors file" in refusal(saved)
    (saved / MANIFEST).write_bytes(trap)
    assert MANIFEST in refusal(saved)
    assert not sprung.exists()


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS])
def test_oversized_files_are_refused_before_they_are_read(
    saved: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = {MANIFEST: bundle.MANIFEST_LIMIT, WEIGHTS: bundle.WEIGHTS_LIMIT}[name]
    os.truncate(saved / name, limit + 1)  # a sparse file
    read = Path.read_bytes

    def guarded(self: Path) -> bytes:
        assert self.name != name
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", guarded)
    assert f"larger than {limit} bytes" in refusal(saved)


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS])
def test_missing_files_are_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    assert f"{name}: no such file" in refusal(saved)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"format": 1}'])
def test_broken_json_is_refused(saved: Path, data: bytes) -> None:
    (saved / MANIFEST).write_bytes(data)
    assert f"{MANIFEST}: " in refusal(saved)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colour": "red"}, "colour"),
        ({"format": 2}, "format"),
        ({"kind": "forest"}, "kind: 'forest' is none of additive, mlp"),
        ({"kind": "additive"}, "not the arrays of a head of kind additive"),
        ({"encoder_fingerprint": None}, "encoder_fingerprint"),
        ({"inputs": {"text": "1", "colour": 1}}, "inputs.colour"),
        ({"weights_sha256": "0" * 64}, "damaged"),
        ({"cutoffs": {"unsure": 0.9, "spam": 0.5}}, "cutoffs"),
        ({"cutoffs": {"unsure": 0.0, "spam": 0.5}}, "cutoffs"),
        ({"cutoffs": {"unsure": 0.5, "spam": 1.5}}, "cutoffs"),
        ({"cutoffs": {"unsure": 0.5, "spam": float("nan")}}, "cutoffs"),
        ({"cutoffs": {"unsure": 0.5}}, "cutoffs"),
        ({"cutoffs": {"unsure": 0.5, "spam": 0.9, "ham": 0.1}}, "cutoffs"),
        ({"cutoffs": {"unsure": "x", "spam": 0.9}}, "cutoffs"),
    ],
)
def test_a_wrong_manifest_is_refused(saved: Path, change: dict[str, Any], words: str) -> None:
    edit_manifest(saved, **change)
    assert words in refusal(saved)


WHOLE = safetensors.save({f.name: getattr(a_head(), f.name) for f in fields(MlpHead)})
HEADER_END = 8 + int.from_bytes(WHOLE[:8], "little")


@given(
    place=st.one_of(st.integers(0, HEADER_END), st.integers(0, len(WHOLE) - 1)),
    patch=st.binary(min_size=1, max_size=12) | st.sampled_from([b"F64", b"BF16", b"[0]", b"[]", b"9999", b'"']),
)
def test_damage_that_the_manifest_vouches_for_never_gets_past(place: int, patch: bytes) -> None:
    """Either it is refused with a BundleError, or what comes back is a finite head of the right shapes."""
    with TemporaryDirectory() as folder:
        saved = bundle.save(a_bundle(), Path(folder, "one"))
        put_weights(saved, WHOLE[:place] + patch + WHOLE[place + len(patch) :])
        try:
            head = bundle.load(saved, ENCODER).head
        except BundleError:
            return
    assert head.check(DIM, COLUMNS, STRUCTURE) is None
    assert all(np.isfinite(getattr(head, f.name)).all() for f in fields(head))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(key=st.sampled_from(sorted(a_bundle().manifest.model_dump())) | st.text(), value=JSON)
def test_any_manifest_is_refused_or_whole(key: str, value: Any) -> None:
    made = a_bundle()
    with TemporaryDirectory() as folder:
        saved = bundle.save(made, Path(folder, "one"))
        (saved / MANIFEST).write_text(json.dumps({**json.loads(made.manifest.model_dump_json()), key: value}))
        try:
            back = bundle.load(saved, ENCODER)
        except BundleError:
            return
    assert back.manifest.weights_sha256 == made.manifest.weights_sha256
    assert 0 < back.cutoffs.unsure <= back.cutoffs.spam <= 1
