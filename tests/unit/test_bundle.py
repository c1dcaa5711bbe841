"""Bundles: what is saved comes back bit for bit, is there whole or not at all, and is served when it is told to."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spamguard import bundle
from spamguard.bundle import MANIFEST, WEIGHTS, Bundle
from spamguard.errors import BundleError
from spamguard.verdict import Cutoffs
from tests.paper_bundle import ENCODER, PaperEncoder, a_bundle, a_head, refusal


def listing(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


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
from spamguard import bundle
from tests.paper_bundle import a_bundle
Path.rename = lambda self, target: os.kill(os.getpid(), signal.SIGKILL)
bundle.save(a_bundle(), Path({str(tmp_path)!r}, "one"))
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2]).returncode == -9
    assert not (tmp_path / "one").exists()
    assert bundle.load(bundle.save(a_bundle(), tmp_path / "one"), ENCODER).id == a_bundle().id


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
