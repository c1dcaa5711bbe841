"""One at a time: a retrain, and whatever else may not happen during one."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .errors import BusyError, CorpusError


@contextmanager
def alone(state_dir: Path) -> Iterator[None]:
    """One retrain at a time, a person's or the daemon's; the lock goes with the process. Raises BusyError."""
    file = state_dir / "retrain.lock"
    with ExitStack() as held:
        try:
            state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = held.enter_context(file.open("ab"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(f"{file}: another retrain is running") from error
        except OSError as error:
            raise CorpusError(f"{error.filename or file}: {error.strerror}") from error
        yield
