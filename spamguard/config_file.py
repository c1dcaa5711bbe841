"""Reading the one TOML file: defaults, then the file, checked once; every value knows where it came from."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .config import Config, EncoderTable, Table, WatchTable
from .errors import ConfigError

SYSTEM_FILE = Path("/etc/spamguard/spamguard.toml")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checked configuration, its file (None: defaults only), and the keys that the file sets."""

    config: Config
    file: Path | None
    set_by_file: frozenset[str]

    def values(self) -> Iterator[tuple[str, Any, str]]:
        """(key, value, origin) of every value, in the order of the documentation."""
        for name, table in self.config:
            for key, value in table if isinstance(table, Table) else ((None, table),):
                dotted = f"{name}.{key}" if key else name
                yield dotted, value, str(self.file) if dotted in self.set_by_file else "default"


def find_file(explicit: Path | None = None) -> Path | None:
    """The file to read: the one asked for, else $SPAMGUARD_CONFIG, else the user's, else the system's."""
    if explicit is not None:
        return explicit
    if named := os.environ.get("SPAMGUARD_CONFIG"):
        return Path(named)
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return next((f for f in (home / "spamguard/spamguard.toml", SYSTEM_FILE) if f.is_file()), None)


def default_state_dir() -> Path:
    """systemd's $STATE_DIRECTORY, else the user's state folder (XDG Base Directory specification)."""
    if state := os.environ.get("STATE_DIRECTORY"):
        return Path(state.split(":")[0])
    if os.geteuid() == 0:
        return Path("/var/lib/spamguard")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "spamguard"


def load(explicit: Path | None = None) -> Loaded:
    """Read and check the configuration.

    Raises ConfigError, naming file and key, if the file cannot be read, is no TOML, holds an unknown key or a
    value out of range.
    """
    file = find_file(explicit)
    data: dict[str, Any] = {}
    if file is not None:
        try:
            data = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{file}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: not valid TOML: {error}") from error
    set_by_file = frozenset(_dotted(data))
    base = file.absolute().parent if file else Path.cwd()
    data.setdefault("state_dir", str(default_state_dir()))
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{file or 'defaults'}: {_first(error)}") from error
    try:
        return Loaded(_anchored(config, base), file, set_by_file)
    except RuntimeError as error:  # ~nobody/mail
        raise ConfigError(f"{file}: a path begins with ~ and there is no such user") from error


def _dotted(data: dict[str, Any]) -> Iterator[str]:
    for name, value in data.items():
        if isinstance(value, dict):
            yield from (f"{name}.{key}" for key in value)
        else:
            yield name


def _anchored(config: Config, base: Path) -> Config:
    """Relative paths, made absolute from the folder of the file."""
    tables = {name: _anchor(table, base) for name, table in config if isinstance(table, Table)}
    ours = {"state_dir": _absolute(config.state_dir, base), "encoder": _anchor_model(config.encoder, base)}
    return config.model_copy(update=tables | ours)


def _anchor(table: Table, base: Path) -> Table:
    paths: dict[str, Any] = {name: _absolute(value, base) for name, value in table if isinstance(value, Path)}
    if isinstance(table, WatchTable):
        paths["maildirs"] = tuple(_absolute(maildir, base) for maildir in table.maildirs)
    return table.model_copy(update=paths) if paths else table


def _absolute(path: Path, base: Path) -> Path:
    return Path(os.path.normpath(base / path.expanduser()))


def _anchor_model(table: EncoderTable, base: Path) -> EncoderTable:
    folder = base / Path(table.model).expanduser()
    named = table.model != "embedded" and folder.is_dir()
    return table.model_copy(update={"model": str(folder)}) if named else table


# What pydantic says in Python's words.
_TOML_WORDS = {
    "model_type": "Input should be a table",
    "path_type": "Input should be a path in quotes",
    "tuple_type": "Input should be a list",
}


def _first(error: ValidationError) -> str:
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"]) or "(top level)"
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key!r}"
    message = _TOML_WORDS.get(problem["type"], problem["msg"].removeprefix("Value error, "))
    given = problem["input"]
    shown = f" (not {given!r})" if isinstance(given, str | int | float | bool) else ""
    more = len(error.errors()) - 1
    return f"{key}: {message}{shown}" + (f" (and {more} more)" if more else "")
