"""A head on disk: a folder with manifest.json and weights.safetensors; saved atomically, checked when loaded.

Nothing in it is ever unpickled. A bundle is immutable once saved; `current` in the heads folder is a symbolic link
to the one in service, and swapping that link is the only way a retrained head goes live.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from . import features, message, wide
from .encoder import Encoder
from .errors import BundleError, OutdatedHeadError
from .head import HEADS, AdditiveHead, MlpHead
from .verdict import Cutoffs

MANIFEST, WEIGHTS, CARD = "manifest.json", "weights.safetensors", "CARD.md"
# Which mail the head was fitted on: the first bytes of each content hash, ascending.
FITTED_ON, PREFIX_BYTES = "fitted_on", 8
CURRENT = "current"
SHIPPED = Path(__file__).parent / "heads" / "default"
# Far above any real manifest or head; a guard against being fed something else.
MANIFEST_LIMIT, WEIGHTS_LIMIT = 1 << 20, 1 << 27


class Inputs(BaseModel):
    """Versions of everything between the bytes of a mail and the head. They must match exactly."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str = message.TEXT_VERSION
    wide: int = wide.WIDE_VERSION
    structure: str = features.FEATURES_VERSION


class CutoffRate(BaseModel):
    """What a cut-off hits of ham that it was chosen on, but the head not fitted on: share aimed at and found.

    `hit` of `ham` messages; `low` and `high` are the exact 95 % interval of their share.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: float
    ham: int
    hit: int
    low: float
    high: float


class Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    kind: str
    encoder_fingerprint: str
    encoder: dict[str, Any]
    inputs: Inputs
    cutoffs: dict[Literal["unsure", "spam"], float]
    cutoff_rates: dict[Literal["unsure", "spam"], CutoffRate] = {}
    weights_sha256: str
    provenance: dict[str, Any] = {}

    @property
    def id(self) -> str:
        """Names weights, cut-offs, encoder and inputs."""
        named = [
            self.weights_sha256,
            self.encoder_fingerprint,
            sorted(self.cutoffs.items()),
            self.inputs.model_dump(),
        ]
        return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A head with what it needs to be served. `id` names its content, not where it came from."""

    head: AdditiveHead | MlpHead
    cutoffs: Cutoffs
    manifest: Manifest

    @property
    def id(self) -> str:
        return self.manifest.id


def make(
    head: AdditiveHead | MlpHead,
    cutoffs: Cutoffs,
    encoder: Encoder,
    provenance: dict[str, Any],
    rates: Mapping[Literal["unsure", "spam"], CutoffRate] = MappingProxyType({}),
) -> Bundle:
    """A bundle of a freshly fitted head; `rates` say what its cut-offs hit."""
    manifest = Manifest(
        kind=head.kind,
        encoder_fingerprint=encoder.fingerprint,
        encoder=encoder.description,
        inputs=Inputs(),
        cutoffs={"unsure": cutoffs.unsure, "spam": cutoffs.spam},
        cutoff_rates=dict(rates),
        weights_sha256=hashlib.sha256(_weights(head)).hexdigest(),
        provenance=provenance,
    )
    return Bundle(head, cutoffs, manifest)


def save(bundle: Bundle, folder: Path, card: str = "", fitted_on: Iterable[str] | None = None) -> Path:
    """Write the bundle so that `folder` holds all of it or nothing. An equal bundle already there is kept.

    `fitted_on` are the content hashes of the mail it was fitted on, of which a prefix each is kept. Raises
    BundleError if the folder cannot be written, or holds something else.
    """
    files = {
        WEIGHTS: _weights(bundle.head),
        MANIFEST: (bundle.manifest.model_dump_json(indent=1) + "\n").encode(),
        **({CARD: card.encode()} if card else {}),
        **({} if fitted_on is None else {FITTED_ON: _prefixes(fitted_on)}),
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=folder.parent))
        try:
            for name, data in files.items():
                _write(draft / name, data)
            draft.chmod(0o755)
            sync(draft)
            if folder.exists():
                there = read_manifest(folder)
                if Bundle(_read_head(folder, there), bundle.cutoffs, there).id != bundle.id:
                    raise BundleError(f"{folder}: holds another head already")
                return folder
            draft.rename(folder)
            sync(folder.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise BundleError(f"{folder}: cannot be written: {error.strerror}") from error
    return folder


def load(folder: Path, encoder: Encoder) -> Bundle:
    """Read a bundle and check that it fits this encoder and this version of spamguard.

    Raises BundleError, naming folder and fault, for anything missing, damaged, not finite or not fitting;
    OutdatedHeadError if another version of spamguard fitted it.
    """
    manifest = read_manifest(folder)
    if manifest.encoder_fingerprint != encoder.fingerprint:
        raise BundleError(
            f"{folder}: fitted for another encoder ({_differences(manifest.encoder, encoder.description)}); "
            "run spamguard retrain, or change [encoder] back"
        )
    if manifest.inputs != Inputs():
        raise OutdatedHeadError(
            f"{folder}: fitted by another version of spamguard; run spamguard retrain FOLDER on labelled mail, "
            f"or remove {folder.parent / CURRENT} to go on with the head that ships"
        )
    head = _read_head(folder, manifest)
    fault = head.check(encoder.dim, encoder.vocab_size, len(features.NAMES))
    if fault:
        raise BundleError(f"{folder}/{WEIGHTS}: {fault}")
    try:
        cutoffs = Cutoffs(manifest.cutoffs["unsure"], manifest.cutoffs["spam"])
    except (KeyError, ValueError) as error:
        raise BundleError(f"{folder}/{MANIFEST}: cutoffs: {error}") from error
    return Bundle(head, cutoffs, manifest)


def fitted_on(folder: Path, contents: Iterable[str]) -> set[str]:
    """Those of the content hashes that this head was fitted on. Raises BundleError if it does not say."""
    data = _read(folder / FITTED_ON, WEIGHTS_LIMIT)
    known = {data[i : i + PREFIX_BYTES].hex() for i in range(0, len(data), PREFIX_BYTES)}
    return {content for content in contents if content[: 2 * PREFIX_BYTES] in known}


def in_service(heads_dir: Path, explicit: Path | None = None) -> Path:
    """The folder of the head to serve: the one asked for, else the last retrained one, else the shipped one."""
    if explicit is not None:
        return explicit
    current = heads_dir / CURRENT
    return heads_dir / current.readlink() if current.is_symlink() else SHIPPED


def put_in_service(folder: Path) -> None:
    """Point `current` beside `folder` at it: one rename, so that readers see the old head or the new one."""
    heads_dir = folder.parent
    try:
        link = heads_dir / f".{CURRENT}-{os.getpid()}"
        link.unlink(missing_ok=True)
        link.symlink_to(folder.name)
        link.replace(heads_dir / CURRENT)
        sync(heads_dir)
    except OSError as error:
        raise BundleError(f"{heads_dir}/{CURRENT}: cannot be switched: {error.strerror}") from error


def _prefixes(contents: Iterable[str]) -> bytes:
    return b"".join(sorted({bytes.fromhex(content[: 2 * PREFIX_BYTES]) for content in contents}))


def _weights(head: AdditiveHead | MlpHead) -> bytes:
    arrays = {f.name: np.ascontiguousarray(getattr(head, f.name), dtype=np.float32) for f in fields(head)}
    data: bytes = safetensors.save(arrays)
    return data


def _read(file: Path, limit: int) -> bytes:
    try:
        if not file.is_file():
            raise BundleError(f"{file}: no such file")
        if file.stat().st_size > limit:
            raise BundleError(f"{file}: larger than {limit} bytes")
        return file.read_bytes()
    except OSError as error:
        raise BundleError(f"{file}: {error.strerror}") from error


def read_manifest(folder: Path) -> Manifest:
    """What a head says of itself; the weights are not looked at. Raises BundleError."""
    data = _read(folder / MANIFEST, MANIFEST_LIMIT)
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "(top level)"
        raise BundleError(f"{folder}/{MANIFEST}: {where}: {problem['msg']}") from error


def _read_head(folder: Path, manifest: Manifest) -> AdditiveHead | MlpHead:
    kind = HEADS.get(manifest.kind)
    if kind is None:
        raise BundleError(f"{folder}/{MANIFEST}: kind: {manifest.kind!r} is none of {', '.join(HEADS)}")
    data = _read(folder / WEIGHTS, WEIGHTS_LIMIT)
    if hashlib.sha256(data).hexdigest() != manifest.weights_sha256:
        raise BundleError(f"{folder}/{WEIGHTS}: damaged (sha256 differs from the manifest's)")
    try:
        arrays = safetensors.load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise BundleError(f"{folder}/{WEIGHTS}: not a safetensors file: {error}") from error
    if set(arrays) != {f.name for f in fields(kind)}:
        raise BundleError(
            f"{folder}/{WEIGHTS}: holds {sorted(arrays)}, not the arrays of a head of kind {manifest.kind}"
        )
    for name, array in arrays.items():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise BundleError(f"{folder}/{WEIGHTS}: {name} must be finite float32")
    return kind(**arrays)


def _differences(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    keys = [key for key in theirs if ours.get(key) != theirs[key]]
    return (
        ", ".join(f"{key} differs" if key == "model" else f"{key} was {ours.get(key)}" for key in keys) or "unknown"
    )


def _write(file: Path, data: bytes) -> None:
    with file.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
