"""Where a fine-tuning stands, on disk: one safetensors file, with its progress as JSON in the header."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from spamguard.errors import EncoderError

_RUN, _PROGRESS = "run", "progress"


class Checkpoint:
    """The file of one run. `run` names all that the result hangs on: a file of another run is not gone on with."""

    def __init__(self, file: Path, run: str) -> None:
        self.file, self._run = file, run

    def save(self, tensors: Mapping[str, torch.Tensor], progress: Mapping[str, Any]) -> None:
        """Replace what is there, by one rename: a kill leaves the old file or the new one. Raises EncoderError."""
        header = {_RUN: self._run, _PROGRESS: json.dumps(progress)}
        draft = self.file.with_name(f".{self.file.name}-draft")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, draft, header)
            with draft.open("rb") as written:
                os.fsync(written.fileno())
            draft.replace(self.file)
        except (OSError, SafetensorError) as error:  # the library has its own error for a full disk
            with suppress(OSError):
                draft.unlink()
            raise EncoderError(f"{self.file}: the checkpoint cannot be written: {error}") from error

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Tensors and progress; None if there is none, or one of another run, or a damaged one."""
        try:
            with safe_open(self.file, framework="pt") as stored:
                header = stored.metadata() or {}
                if header.get(_RUN) != self._run:
                    return None
                return {name: stored.get_tensor(name) for name in stored.keys()}, json.loads(header[_PROGRESS])  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError):
            return None

    def remove(self) -> None:
        """What has been finished is not gone on with."""
        self.file.unlink(missing_ok=True)
