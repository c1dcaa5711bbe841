"""The configuration: defaults, where values come from, and one line for each mistake that a newcomer makes."""

from __future__ import annotations

import re
import tomllib
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import daemon
from spamguard import config_file
from spamguard.config import Config, Table
from spamguard.config_file import load
from spamguard.errors import ConfigError
from tests import render_docs

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(autouse=True)
def bare_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without any configuration; the system's is out of sight."""
    for name in ("SPAMGUARD_CONFIG", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "STATE_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(config_file, "SYSTEM_FILE", tmp_path / "etc" / "spamguard.toml")
    return home


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def complaint(file: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(file)
    line = str(caught.value)
    assert "\n" not in line
    return line


# --- Where the file is ----------------------------------------------------------------------------------------------


def test_without_a_file_everything_is_default() -> None:
    loaded = load()
    assert loaded.file is None and loaded.set_by_file == frozenset()
    assert loaded.config == Config(state_dir=loaded.config.state_dir)
    assert {origin for _, _, origin in loaded.values()} == {"default"}
    assert loaded.config.listen.host == "127.0.0.1" and loaded.config.next_hop.host == ""


def test_order_of_the_files(tmp_path: Path, bare_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = write(config_file.SYSTEM_FILE, "")
    assert load().file == system
    home = write(bare_home / ".config/spamguard/spamguard.toml", "")
    assert load().file == home
    xdg = write(tmp_path / "xdg/spamguard/spamguard.toml", "")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert load().file == xdg
    named = write(tmp_path / "named.toml", "")
    monkeypatch.setenv("SPAMGUARD_CONFIG", str(named))
    assert load().file == named
    asked = write(tmp_path / "asked.toml", "")
    assert load(asked).file == asked


def test_a_named_file_that_is_missing_is_an_error_and_no_other_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(config_file.SYSTEM_FILE, "")
    monkeypatch.setenv("SPAMGUARD_CONFIG", str(tmp_path / "none.toml"))
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        load()


def test_state_dir_of_systemd_root_and_user(tmp_path: Path, bare_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert load().config.state_dir == bare_home / ".local/state/spamguard"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert load().config.state_dir == tmp_path / "state/spamguard"
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert load().config.state_dir == Path("/var/lib/spamguard")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/one:/var/lib/two")
    assert load().config.state_dir == Path("/var/lib/one")
    assert load(write(tmp_path / "c.toml", 'state_dir = "/srv/mail"')).config.state_dir == Path("/srv/mail")


# --- Values ---------------------------------------------------------------------------------------------------------


def test_relative_paths_are_taken_from_the_folder_of_the_file(
    tmp_path: Path, bare_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc" / "bert").mkdir(parents=True)
    text = 'state_dir = "state"\n[head]\npath = "../head"\n[maildir]\npath = "~/Maildir"\n[encoder]\nmodel = "bert"\n'
    write(tmp_path / "etc" / "c.toml", text)
    monkeypatch.chdir(tmp_path)
    found = load(Path("etc/c.toml")).config
    assert found.state_dir == tmp_path / "etc" / "state"
    assert found.heads_dir == tmp_path / "etc" / "state" / "heads"
    assert found.head.path == tmp_path / "head"
    assert found.maildir.path == found.maildir_path == bare_home / "Maildir"
    assert found.encoder.model == str(tmp_path / "etc" / "bert")


def test_a_model_that_is_no_folder_is_left_as_a_name(tmp_path: Path) -> None:
    (tmp_path / "embedded").mkdir()
    assert load(write(tmp_path / "c.toml", "")).config.encoder.model == "embedded"
    hub = write(tmp_path / "c.toml", '[encoder]\nmodel = "google/bert_uncased"')
    assert load(hub).config.encoder.model == "google/bert_uncased"


def test_quarantine_is_below_the_state_folder_or_where_it_is_said(tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml", 'state_dir = "s"')
    assert load(file).config.quarantine_path == tmp_path / "s" / "quarantine"
    assert load(write(file, '[quarantine]\npath = "q"')).config.quarantine_path == tmp_path / "q"


def test_mail_without_next_hop_goes_below_the_state_folder(tmp_path: Path) -> None:
    assert load(write(tmp_path / "c.toml", 'state_dir = "s"')).config.maildir_path == tmp_path / "s" / "Maildir"


def test_every_value_knows_where_it_came_from(tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml", 'state_dir = "s"\n[listen]\nport = 25\n[head]\nspam = 0.9\n')
    values = {key: (value, origin) for key, value, origin in load(file).values()}
    assert {key for key, (_, origin) in values.items() if origin == str(file)} == {
        "state_dir", "listen.port", "head.spam"
    }  # fmt: skip
    assert values["listen.port"] == (25, str(file)) and values["head.spam"] == (0.9, str(file))
    assert values["listen.host"] == ("127.0.0.1", "default") and values["state_dir"][0] == tmp_path / "s"
    wanted = [
        f"{name}.{key}" if isinstance(value, Table) else name
        for name, value in Config()
        for key in (type(value).model_fields if isinstance(value, Table) else [None])
    ]
    assert list(values) == wanted


def test_a_value_equal_to_the_default_still_comes_from_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml", "[listen]\nport = 10025\n")
    assert ("listen.port", 10025, str(file)) in list(load(file).values())


def test_the_configuration_is_frozen(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().config.listen.port = 25  # type: ignore[misc]


def test_networks_may_be_written_with_host_bits_and_as_addresses(tmp_path: Path) -> None:
    text = '[listen]\nhost = "0.0.0.0"\nallow_from = ["192.0.2.7/24", "2001:db8::1"]'
    found = load(write(tmp_path / "c.toml", text)).config.listen.allow_from
    assert found == (ip_network("192.0.2.0/24"), ip_network("2001:db8::1/128"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "localhost"])
def test_loopback_needs_no_allow_from(tmp_path: Path, host: str) -> None:
    assert load(write(tmp_path / "c.toml", f'[listen]\nhost = "{host}"')).config.listen.allow_from == ()


@pytest.mark.parametrize("text", ['[next_hop]\nhost = "127.0.0.1"', '[next_hop]\nhost = "192.0.2.1"\nport = 10025'])
def test_a_next_hop_beside_us_or_elsewhere_is_fine(tmp_path: Path, text: str) -> None:
    assert load(write(tmp_path / "c.toml", text)).config.next_hop.host


# --- Mistakes -------------------------------------------------------------------------------------------------------

WILD = '[listen]\nhost = "0.0.0.0"\nallow_from = ["192.0.2.0/24"]\n'
MISTAKES = {
    'colour = "red"': "unknown key 'colour'",
    '[encoder]\nmodle = "embedded"': "unknown key 'encoder.modle'",
    '[encodr]\nmodel = "embedded"': "unknown key 'encodr'",
    'encoder = "embedded"': "encoder: Input should be a table (not 'embedded')",
    '[[encoder]]\nmodel = "embedded"': "encoder: Input should be a table",
    "[encoder]\nmodel = 3": "encoder.model: Input should be a valid string (not 3)",
    "[encoder]\nlayers = 6": "encoder.layers: Input should be a list (not 6)",
    "[encoder]\nlayers = [0, -1]": "encoder.layers.1: Input should be greater than or equal to 0 (not -1)",
    '[encoder]\npooling = "max"': "encoder.pooling: Input should be 'mean' or 'cls' (not 'max')",
    "[encoder]\nmax_tokens = 100000": "encoder.max_tokens: Input should be less than or equal to 8192 (not 100000)",
    '[encoder]\nallow_download = "maybe"': "encoder.allow_download: Input should be a valid boolean, unable to "
    "interpret input (not 'maybe')",
    "[head]\nspam = 95": "head.spam: Input should be less than or equal to 1 (not 95)",
    "[head]\nspam = 0": "head.spam: Input should be greater than 0 (not 0)",
    "[head]\nspam = nan": "head.spam: Input should be a finite number (not nan)",
    "[head]\nspam = 0.5\nunsure = 0.9": "head: unsure = 0.9 must not be above spam = 0.5",
    "[head]\npath = 7": "head.path: Input should be a path in quotes (not 7)",
    "[head]\nspam = 2\nunsure = 3": "head.spam: Input should be less than or equal to 1 (not 2) (and 1 more)",
    '[policy]\nspam = "delete"': "policy.spam: Input should be 'tag', 'pass', 'quarantine' or 'reject' "
    "(not 'delete')",
    '[policy]\nunsure = "reject"': "policy.unsure: Input should be 'tag', 'pass' or 'quarantine' (not 'reject')",
    '[policy]\nsubject_tag = " x"': "policy.subject_tag: should be at most 64 printable ASCII characters, the first "
    "no blank (not ' x')",
    '[policy.recipients.bob]\nspam = "tag"': "policy.recipients: 'bob' is neither an address nor a domain such as "
    "'@example.net'",
    '[policy.recipients."bob@"]': "policy.recipients: 'bob@' is neither an address nor a domain such as "
    "'@example.net'",
    '[policy.recipients."<bob@x>"]': "policy.recipients: '<bob@x>' is neither an address nor a domain such as "
    "'@example.net'",
    '[policy.recipients."bob@x"]\n[policy.recipients."Bob@X"]': "policy.recipients: 'Bob@X' stands here twice",
    '[policy.recipients."bob@x"]\nham = "reject"': "policy.recipients.bob@x.ham: Input should be 'tag' or 'pass' "
    "(not 'reject')",
    '[policy.recipients."bob@x"]\non_failure = "pass"': "unknown key 'policy.recipients.bob@x.on_failure'",
    '[policy.recipients]\n"bob@x" = "tag"': "policy.recipients.bob@x: Input should be a table (not 'tag')",
    '[policy]\nham = "reject"': "policy.ham: Input should be 'tag' or 'pass' (not 'reject')",
    '[policy]\non_failure = "drop"': "policy.on_failure: Input should be 'pass' or 'tempfail' (not 'drop')",
    "[listen]\nport = 70000": "listen.port: Input should be less than or equal to 65535 (not 70000)",
    '[listen]\nport = "smtp"': "listen.port: Input should be a valid integer, unable to parse string as an integer "
    "(not 'smtp')",
    '[listen]\nhost = "mail.example.org"': "listen.host: 'mail.example.org' does not appear to be an IPv4 or IPv6 "
    "address (not 'mail.example.org')",
    '[listen]\nhost = "0.0.0.0"': "listen: host = '0.0.0.0' is not loopback: allow_from must list who may connect",
    '[listen]\nhost = "::"': "listen: host = '::' is not loopback: allow_from must list who may connect",
    '[listen]\nallow_from = "192.0.2.0/24"': "listen.allow_from: Input should be a list (not '192.0.2.0/24')",
    '[listen]\nallow_from = ["192.0.2.0/24", "office"]': "listen.allow_from: 'office' does not appear to be "
    "an IPv4 or IPv6 network",
    "[listen]\nallow_from = [10]": 'listen.allow_from: every item should be a network such as "192.0.2.0/24"',
    '[next_hop]\nhost = "127.0.0.1"\nport = 10025': "(top level): next_hop is our own listener 127.0.0.1:10025",
    '[next_hop]\nhost = "localhost"\nport = 10025': "(top level): next_hop is our own listener 127.0.0.1:10025",
    '[listen]\nhost = "localhost"\n[next_hop]\nhost = "127.0.0.1"\nport = 10025': "(top level): next_hop is our own "
    "listener 127.0.0.1:10025",
    WILD
    + '[next_hop]\nhost = "localhost"\nport = 10025': "(top level): next_hop is our own listener 127.0.0.1:10025",
    "[next_hop]\nport = 0": "next_hop.port: Input should be greater than or equal to 1 (not 0)",
    "[next_hop]\ndata_timeout_s = inf": "next_hop.data_timeout_s: Input should be a finite number (not inf)",
    '[maildir]\njunk = "Junk"': "maildir.junk: 'Junk' is no Maildir++ folder: it must begin with a dot and hold no "
    "slash (not 'Junk')",
    '[maildir]\njunk = ".."': "maildir.junk: '..' is no Maildir++ folder: it must begin with a dot and hold no slash "
    "(not '..')",
    "[batch]\npatience_ms = -1": "batch.patience_ms: Input should be greater than or equal to 0 (not -1)",
    '[limits]\nmessage_bytes = "10MB"': "limits.message_bytes: Input should be a valid integer, unable to parse "
    "string as an integer (not '10MB')",
    '[log]\nlevel = "INFO"': "log.level: Input should be 'debug', 'info', 'warning' or 'error' (not 'INFO')",
    "state_dir = 3": "state_dir: Input should be a path in quotes (not 3)",
    'state_dir = "~no-such-user/mail"': "a path begins with ~ and there is no such user",
    "[encoder]\nmodel = embedded": "not valid TOML: Invalid value (at line 2, column 9)",
    "[encoder\nmodel = 1": "not valid TOML: Expected ']' at the end of a table declaration (at line 1, column 9)",
    "[log]\n[log]": "not valid TOML: Cannot declare ('log',) twice (at line 2, column 5)",
}


@pytest.mark.parametrize(("text", "line"), MISTAKES.items())
def test_a_mistake_is_one_line_that_names_file_and_key(tmp_path: Path, text: str, line: str) -> None:
    file = write(tmp_path / "c.toml", text)
    assert complaint(file) == f"{file}: {line}"


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert complaint(tmp_path) == f"{tmp_path}: Is a directory"
    assert complaint(tmp_path / "none.toml") == f"{tmp_path / 'none.toml'}: No such file or directory"
    (tmp_path / "c.toml").write_bytes(b"\xff\xfe")
    assert "not valid TOML: 'utf-8' codec" in complaint(tmp_path / "c.toml")


KEYS = [
    (name, key)
    for name, value in Config()
    for key in (type(value).model_fields if isinstance(value, Table) else [None])
]
VALUES = (
    st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers() | st.text(), max_size=3)
    | st.dictionaries(st.text(), st.integers(), max_size=2)
)  # fmt: skip


@given(where=st.sampled_from(KEYS), value=VALUES)
def test_no_value_escapes_as_anything_but_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, where: tuple[str, str | None], value: Any
) -> None:
    name, key = where
    data = {name: value if key is None else {key: value}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tomllib, "loads", lambda _: data)
        try:
            load(Path(__file__))
        except ConfigError as error:
            assert str(error).startswith(f"{Path(__file__)}: {name}")


# --- The page -------------------------------------------------------------------------------------------------------


def test_the_page_lists_exactly_the_keys_types_defaults_and_meanings() -> None:
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert render_docs.generated(page) == render_docs.configuration().strip(), render_docs.REFRESH
    described = {
        (table, key) for table, rows in re.findall(r"## `\[(\w+)\]`\n(.*?)(?=\n## |\Z)", page, re.S)
        for key in re.findall(r"^\| `(\w+)` \|", rows, re.M)
    }  # fmt: skip
    assert described | {("state_dir", None)} == set(KEYS)  # the renderer forgets nothing either


def test_the_page_names_what_a_reload_does_not_change() -> None:
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    sentence = re.search(r"Only a restart\s+changes (.*?);", page, re.S)
    assert sentence
    assert re.findall(r"`\[?(\w+)\]?`", sentence[1]) == list(daemon._FIXED)


def test_every_key_says_what_it_means() -> None:
    for _, table in Config():
        if isinstance(table, Table):
            assert type(table).__doc__ and all(f.description for f in type(table).model_fields.values())
    assert Config.model_fields["state_dir"].description


@pytest.mark.parametrize("file", sorted(DOCS.glob("*.toml")), ids=lambda file: file.name)
def test_the_example_files_are_valid(file: Path) -> None:
    assert load(file).set_by_file


def test_the_example_of_the_page_is_the_example_file() -> None:
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```toml\n(.*?)```", page, re.S)
    assert [tomllib.loads(block) for block in blocks] == [tomllib.loads((DOCS / "example.toml").read_text())]
