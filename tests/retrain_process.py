"""A retrain as a process that can be killed: says "ready" once the encoder is loaded, then what it did."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from spamguard.config_file import load
from spamguard.encoder import TorchEncoder
from spamguard.encoder import load as load_encoder
from training.retrain import retrain


def main() -> None:
    config = load(Path(sys.argv[1])).config
    encoder, encode, sizes = load_encoder(config.encoder), TorchEncoder.encode, list[int]()

    def counting(self: TorchEncoder, tokens: Any) -> Any:
        sizes.append(len(tokens))
        return encode(self, tokens)

    TorchEncoder.encode = counting  # type: ignore[method-assign]
    print("ready", flush=True)
    done = retrain([Path(sys.argv[2])], config, encoder)
    print(json.dumps({"head": done.bundle.id, "passed": done.word.passed, "encoded": sum(sizes)}), flush=True)


if __name__ == "__main__":
    main()
