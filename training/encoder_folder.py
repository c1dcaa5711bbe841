"""A fine-tuned encoder as a folder like any other checkpoint's: what `encoder.model` may name."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_model
from torch import nn

from spamguard.errors import EncoderError

WEIGHTS, ABOUT = "model.safetensors", "tuning.json"
TOKENIZER = ("tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model")


def write(model: nn.Module, base: Path, parent: Path, name: str, about: Mapping[str, Any]) -> Path:
    """Write `parent/NAME-HASH`, all of it or nothing: the weights, and config and tokenizer of the base's folder.

    HASH is of the weights, so that equal ones are there once. `about` says how they were made. Raises EncoderError.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=parent))
        try:
            save_model(model, str(draft / WEIGHTS), metadata={"format": "pt"})
            shutil.copyfile(base / "config.json", draft / "config.json")
            for file in {file for pattern in TOKENIZER for file in base.glob(pattern) if file.is_file()}:
                shutil.copyfile(file, draft / file.name)
            (draft / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
            with (draft / WEIGHTS).open("rb") as weights:
                digest = hashlib.file_digest(weights, "sha256").hexdigest()
            for file in draft.iterdir():
                file.chmod(0o644)
                _sync(file)
            draft.chmod(0o755)
            _sync(draft)
            folder = parent / f"{name}-{digest[:12]}"
            if not folder.exists():
                draft.rename(folder)
                _sync(parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise EncoderError(f"{parent}: the encoder cannot be written: {error}") from error
    return folder


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
