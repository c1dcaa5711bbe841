"""Bundles: what is saved comes back bit for bit, is there whole or not at all, and what does not fit is refused."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import numpy as safetensors

from spamguard import bundle, features
from spamguard.bundle import MANIFEST, WEIGHTS, Bundle
from spamguard.encoder import TokenIds
from spamguard.errors import BundleError
from spamguard.head import AdditiveHead, MlpHead
from spamguard.verdict import Cutoffs
from tests.random_head import random_head

DIM, VOCABULARY, HIDDEN = 6, 50, 4
COLUMNS, STRUCTURE = VOCABULARY, len(features.NAMES)


@dataclass(frozen=True)
class PaperEncoder:
    """What a bundle needs to know of an encoder; it reads nothing."""

    fingerprint: str = "a" * 16
    dim: int = DIM
    vocab_size: int = VOCABULARY
    max_tokens: int = 32
    description: dict[str, Any] = field(
        default_factory=lambda: {
            "model": {"weights": "abc"},
            "layers": [0, 2, 4],
            "pooling": "mean",
            "max_tokens": 32,
        }
    )

    def tokenize(self, texts: Any, limit: int) -> list[TokenIds]:
        raise AssertionError("a bundle reads no mail")

    def pieces(self, text: str, limit: int) -> Any:
        raise AssertionError("a bundle reads no mail")

    def encode(self, tokens: Any) -> Any:
        raise AssertionError("a bundle reads no mail")


ENCODER = PaperEncoder()
CUTOFFS = Cutoffs(0.5, 0.9)


def a_head(kind: str = "mlp", seed: int = 0) -> AdditiveHead | MlpHead:
    return random_head(kind, seed, dim=DIM, columns=COLUMNS, structure=STRUCTURE, hidden=HIDDEN)


def a_bundle(kind: str = "mlp", seed: int = 0, cutoffs: Cutoffs = CUTOFFS) -> Bundle:
    return bundle.make(a_head(kind, seed), cutoffs, ENCODER, {"ham": 3, "paths": ["mail/é"]})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return bundle.save(a_bundle(), tmp_path / "heads" / "one")


def listing(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


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


def refusal(folder: Path, encoder: PaperEncoder = ENCODER) -> str:
    """The one line with which loading is refused."""
    with pytest.raises(BundleError) as caught:
        bundle.load(folder, encoder)
    line = str(caught.value)
    assert "\n" not in line and str(folder) in line
    return line


# --- Save and load --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["additive", "mlp"])
def test_what_is_saved_comes_back_bit_for_bit(tmp_path: Path, kind: str) -> None:
    made = a_bundle(kind)
    back = bundle.load(bundle.save(made, tmp_path / "one"), ENCODER)
    assert type(back.head) is type(made.head)
    for f in fields(made.head):
        assert getattr(back.head, f.name).dtype == np.float32
        assert getattr(back.head, f.name).tobytes() == getattr(made.head, f.name).tobytes(), f.name
        assert getattr(back.head, f.name).shape == getattr(made.head, f.name).shape, f.name
    assert (back.cutoffs, back.manifest, back.id) == (made.cutoffs, made.manifest, made.id)


@given(
    seed=st.integers(0, 2**32 - 1),
    cutoffs=st.tuples(st.floats(1e-6, 1), st.floats(1e-6, 1)).map(lambda pair: Cutoffs(min(pair), max(pair))),
    provenance=st.dictionaries(
        st.text(), st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text() | st.lists(st.text())
    ),
)
def test_any_bundle_comes_back(seed: int, cutoffs: Cutoffs, provenance: dict[str, Any]) -> None:
    made = bundle.make(a_head("mlp", seed), cutoffs, ENCODER, provenance)
    with TemporaryDirectory() as folder:
        back = bundle.load(bundle.save(made, Path(folder, "one")), ENCODER)
    assert (back.cutoffs, back.manifest, back.id) == (made.cutoffs, made.manifest, made.id)
    for f in fields(made.head):
        assert getattr(back.head, f.name).tobytes() == getattr(made.head, f.name).tobytes()


def test_the_folder_holds_the_listed_files_and_others_may_read_them(tmp_path: Path) -> None:
    folder = bundle.save(a_bundle(), tmp_path / "one", card="# A head\n")
    assert sorted(listing(folder)) == ["CARD.md", MANIFEST, WEIGHTS]
    assert (folder / "CARD.md").read_text() == "# A head\n"
    assert folder.stat().st_mode & 0o777 == 0o755


def test_the_id_names_weights_cutoffs_encoder_and_inputs() -> None:
    one, other = a_bundle(), PaperEncoder(fingerprint="b" * 16)
    same = bundle.make(one.head, one.cutoffs, ENCODER, {"created": "another day"})
    assert same.id == one.id
    assert a_bundle(seed=1).id != one.id
    assert a_bundle(cutoffs=Cutoffs(0.5, 0.91)).id != one.id
    assert bundle.make(one.head, one.cutoffs, other, {}).id != one.id
    # Else a retrain after an upgrade could find the old bundle "equal" and keep what load() refuses.
    newer = one.manifest.model_copy(update={"inputs": bundle.Inputs(text="next")})
    assert replace(one, manifest=newer).id != one.id


def test_an_equal_bundle_is_kept(saved: Path) -> None:
    before, times = listing(saved), {f.name: f.stat().st_mtime_ns for f in saved.iterdir()}
    assert bundle.save(a_bundle(), saved) == saved
    assert listing(saved) == before and {f.name: f.stat().st_mtime_ns for f in saved.iterdir()} == times
    assert [f.name for f in saved.parent.iterdir()] == ["one"]


@pytest.mark.parametrize(
    "other",
    [a_bundle(seed=1), a_bundle(cutoffs=Cutoffs(0.6, 0.9)), a_bundle("additive")],
    ids=["seed", "cutoffs", "kind"],
)
def test_another_bundle_under_the_same_name_is_refused(saved: Path, other: Bundle) -> None:
    before = listing(saved)
    with pytest.raises(BundleError, match="holds another head"):
        bundle.save(other, saved)
    assert listing(saved) == before and [f.name for f in saved.parent.iterdir()] == ["one"]


def test_a_damaged_bundle_is_not_taken_for_an_equal_one(saved: Path) -> None:
    (saved / WEIGHTS).write_bytes((saved / WEIGHTS).read_bytes()[:-4])
    with pytest.raises(BundleError, match=WEIGHTS):
        bundle.save(a_bundle(), saved)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "letter.txt").write_text("mine")
    with pytest.raises(BundleError, match="no such file"):
        bundle.save(a_bundle(), tmp_path / "one")
    assert listing(tmp_path) == {"one/letter.txt": b"mine"}


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="cannot be written"):
        bundle.save(a_bundle(), tmp_path / "file" / "one")


class Killed(BaseException):
    """What nobody catches."""


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), Killed()], ids=["full disk", "killed"])
@pytest.mark.parametrize("step", range(1, 7))
def test_a_fault_at_any_step_leaves_all_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, fault: BaseException
) -> None:
    """The steps: mkdtemp, fsync of the first file, of the second, of the draft, rename, fsync of the parent."""
    steps = iter(range(1, 100))
    real = {"mkdtemp": bundle.tempfile.mkdtemp, "fsync": os.fsync, "rename": Path.rename}

    def failing(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(steps) == step:
                raise fault
            return real[name](*args, **kwargs)

        return call

    monkeypatch.setattr(bundle.tempfile, "mkdtemp", failing("mkdtemp"))
    monkeypatch.setattr(os, "fsync", failing("fsync"))
    monkeypatch.setattr(Path, "rename", failing("rename"))
    with pytest.raises(Killed if isinstance(fault, Killed) else BundleError):
        bundle.save(a_bundle(), tmp_path / "one")
    monkeypatch.undo()
    assert [f.name for f in tmp_path.iterdir()] == (["one"] if step == 6 else [])
    assert bundle.load(bundle.save(a_bundle(), tmp_path / "one"), ENCODER).id == a_bundle().id


def test_the_files_are_on_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def noted_fsync(handle: int) -> None:
        done.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    def noted_rename(self: Path, target: Path) -> Path:
        done.append(f"-> {target.name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    bundle.save(a_bundle(), tmp_path / "one")
    assert sorted(done[:2]) == [MANIFEST, WEIGHTS] and done[2].startswith(".draft-")
    assert done[3:] == ["-> one", tmp_path.name]


def test_sigkill_before_the_rename_leaves_no_half_bundle(tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from tests.unit.test_bundle import a_bundle, bundle
Path.rename = lambda self, target: os.kill(os.getpid(), signal.SIGKILL)
bundle.save(a_bundle(), Path({str(tmp_path)!r}, "one"))
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2]).returncode == -9
    assert not (tmp_path / "one").exists()
    assert bundle.load(bundle.save(a_bundle(), tmp_path / "one"), ENCODER).id == a_bundle().id


# --- What is refused ------------------------------------------------------------------------------------------------


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


# --- In service -----------------------------------------------------------------------------------------------------


def test_order_of_what_is_served(tmp_path: Path) -> None:
    heads = tmp_path / "heads"
    assert bundle.in_service(heads) == bundle.SHIPPED
    one = bundle.save(a_bundle(), heads / "one")
    assert bundle.in_service(heads) == bundle.SHIPPED  # saved is not in service
    bundle.put_in_service(one)
    assert bundle.in_service(heads) == one.resolve()
    assert bundle.in_service(heads, tmp_path / "mine") == tmp_path / "mine"


def test_switching_is_one_rename_and_the_old_head_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (bundle.save(a_bundle(seed=i), tmp_path / str(i)) for i in range(2))
    bundle.put_in_service(one)
    before = listing(one)
    seen: list[Path] = []
    replacing = Path.replace

    def noted(self: Path, target: Path) -> Path:
        seen.append(bundle.in_service(tmp_path))
        result = replacing(self, target)
        seen.append(bundle.in_service(tmp_path))
        return result

    monkeypatch.setattr(Path, "replace", noted)
    bundle.put_in_service(two)
    assert seen == [one.resolve(), two.resolve()]
    assert listing(one) == before and sorted(f.name for f in tmp_path.iterdir()) == ["0", "1", "current"]


def test_a_fault_while_switching_leaves_the_old_head_in_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (bundle.save(a_bundle(seed=i), tmp_path / str(i)) for i in range(2))
    bundle.put_in_service(one)
    for call in ("symlink_to", "replace"):
        with monkeypatch.context() as patch, pytest.raises(BundleError, match="cannot be switched: No space"):
            patch.setattr(Path, call, lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            bundle.put_in_service(two)
        assert bundle.in_service(tmp_path) == one.resolve()
    bundle.put_in_service(two)  # what a fault left behind is no obstacle
    assert bundle.in_service(tmp_path) == two.resolve()


def test_the_link_is_relative_so_that_the_state_folder_can_move(tmp_path: Path) -> None:
    bundle.put_in_service(bundle.save(a_bundle(), tmp_path / "heads" / "one"))
    (tmp_path / "heads").rename(tmp_path / "moved")
    assert bundle.load(bundle.in_service(tmp_path / "moved"), ENCODER).id == a_bundle().id


def test_a_dangling_link_is_an_error_that_names_it_and_not_the_shipped_head(tmp_path: Path) -> None:
    bundle.put_in_service(bundle.save(a_bundle(), tmp_path / "one"))
    (tmp_path / "one").rename(tmp_path / "two")
    assert bundle.in_service(tmp_path) == (tmp_path / "one").resolve()
    assert "no such file" in refusal(bundle.in_service(tmp_path))


def test_the_shipped_folder_is_never_touched(tmp_path: Path) -> None:
    heads = bundle.SHIPPED.parent
    before = {f: f.lstat().st_mtime_ns for f in heads.rglob("*")} if heads.exists() else {}
    bundle.put_in_service(bundle.save(a_bundle(), tmp_path / "one"))
    assert ({f: f.lstat().st_mtime_ns for f in heads.rglob("*")} if heads.exists() else {}) == before
