"""The mark of released mail: it survives the way through servers, and on anything else it is worth nothing."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from service.batcher import Batcher
from service.pipeline import Pipeline
from spamguard import headers, released
from spamguard.actions import Disposition, Fate
from spamguard.cli import main
from spamguard.config import BatchTable, PolicyTable
from spamguard.policy import Policy
from spamguard.released import KeyFileError, is_ours, key_in, make_key, sign
from tests.fakes import FakeScorer

KEY, OTHER = b"k" * 32, b"o" * 32
ID, NOW = "0123456789ab", 1_800_000_000.0
MAIL = (
    b"Received: from a\r\nFrom: Ann <ann@example.org>\r\nTo: bob@example.net\r\nSubject: =?x?q?caf=E9?= \xff\r\n"
    b" folded\r\nContent-Type: text/plain\r\n\r\nviagra\r\n.\r\nlast line\r\n"
)


def ours(raw: bytes, key: bytes = KEY, now: float = NOW) -> str | None:
    return is_ours(raw, key, now=now)


SIGNED = sign(MAIL, ID, KEY, NOW)


def test_a_signed_message_is_ours_and_below_the_mark_as_it_was():
    assert ours(SIGNED) == ID
    assert SIGNED.startswith(b"X-Spamguard: released; id=0123456789ab\r\nX-Spamguard-Released: id=")
    assert SIGNED.endswith(MAIL) and headers.strip(SIGNED) == MAIL
    assert all(len(line) <= 78 for line in SIGNED[: -len(MAIL)].splitlines())


@given(st.binary(max_size=300), st.binary(max_size=100))
def test_any_message_can_be_signed(head, body):
    for raw in (head, b"A: b\n" + head + b"\n\n" + body, b"Subject: x\r\n\r\n" + body):
        assert ours(sign(raw, ID, KEY, NOW)) == ID


def test_signing_again_leaves_one_mark():
    again = sign(SIGNED, "fedcba98", OTHER, NOW)
    assert ours(again, OTHER) == "fedcba98" and ours(again) is None
    assert again.count(b"X-Spamguard-Released") == 1


@pytest.mark.parametrize(
    "passed_on",
    [
        lambda raw: b"Received: from x\r\n\tby y; today\r\nDelivered-To: bob@example.net\r\n" + raw,
        lambda raw: b"From someone Mon Jan  1\n" + raw,
        lambda raw: raw.replace(b"\r\n", b"\n"),
        lambda raw: raw.replace(b"\r\n folded", b" folded"),
        lambda raw: raw.replace(b"Subject: ", b"SUBJECT:\t "),
        lambda raw: b"Date: Mon, 1 Jan 2029 00:00:00 +0000\r\nMessage-ID: <a@b>\r\n" + raw,
        lambda raw: raw + b"\r\n\r\n",
        lambda raw: raw.replace(b"X-Spamguard: released", b"X-Spam-Flag: YES"),
        lambda raw: raw.replace(b"; t=", b";\r\n\tt="),
    ],
)  # fmt: skip
def test_what_servers_do_on_the_way_leaves_it_ours(passed_on):
    changed = passed_on(SIGNED)
    assert changed != SIGNED and ours(changed) == ID


@pytest.mark.parametrize(
    "altered",
    [
        lambda raw: raw.replace(b"viagra", b"Viagra"),
        lambda raw: raw + b"more\r\n",
        lambda raw: raw.replace(b"Subject: ", b"Subject: buy "),
        lambda raw: raw.replace(b"Ann <", b"Eve <"),
        lambda raw: raw.replace(b"To: bob", b"To: eve"),
        lambda raw: raw.replace(b"\r\nTo: bob@example.net", b""),
        lambda raw: raw.replace(b"Content-Type: text/plain", b"Content-Type: text/html"),
        lambda raw: b"Reply-To: eve@example.com\r\n" + raw,
        lambda raw: b"Subject: another\r\n" + raw,
        lambda raw: b"From: eve@example.com\r\n" + raw,
        lambda raw: b"Content-Transfer-Encoding: base64\r\n" + raw,
        lambda raw: raw.replace(b"id=0123456789ab; t", b"id=fedcba98; t"),
        lambda raw: raw.replace(b"t=1800000000", b"t=1800000001"),
        lambda raw: raw.replace(b"h=from:to", b"h=from"),
        lambda raw: raw.replace(b"h=from:to", b"h=:"),
        lambda raw: raw.replace(b"mac=", b"mac=0"),
        lambda raw: raw.replace(b"mac=", b"mac= "),
        lambda raw: raw.replace(b"X-Spamguard-Released:", b"X-Spamguard-Released: id=a; t=1\r\n" * 2),
        lambda raw: b"X-Spamguard-Released: forged\r\n" + raw,
        lambda raw: b"\r\n" + raw,
        lambda raw: raw.replace(b"X-Spamguard", b"Y-Spamguard"),
    ],
)  # fmt: skip
def test_altered_or_forged_it_is_not(altered):
    changed = altered(SIGNED)
    assert changed != SIGNED and ours(changed) is None


def test_another_key_another_time_and_no_mark_are_not_ours():
    week = released.VALID_S
    assert ours(SIGNED, OTHER) is None and ours(MAIL) is None and ours(b"") is None
    assert ours(SIGNED, now=NOW + week) == ours(SIGNED, now=NOW - week) == ID
    assert ours(SIGNED, now=NOW + week + 1) is None and ours(SIGNED, now=NOW - week - 1) is None


@given(st.text(max_size=200))
def test_no_value_of_a_mark_raises(value):
    raw = b"X-Spamguard-Released: " + value.encode("utf-8", "replace") + b"\r\n\r\nbody"
    assert ours(raw) is None


def test_a_message_in_two_parts_is_the_same_message():
    cut = SIGNED.index(b"viagra") + 3
    assert is_ours(SIGNED[:cut], KEY, lambda: SIGNED[cut:], NOW) == ID
    assert is_ours(SIGNED[:cut], KEY, lambda: SIGNED[cut:] + b"x", NOW) is None


def test_the_rest_is_not_read_without_a_mark_that_could_be_ours():
    def rest() -> bytes:
        raise AssertionError("read")

    assert is_ours(MAIL, KEY, rest) is None
    assert is_ours(SIGNED, KEY, rest, NOW + 10**8) is None


# --- The key --------------------------------------------------------------------------------------------------------


def test_a_key_is_made_once_and_nobody_else_can_read_it(tmp_path):
    file = tmp_path / "state/release.key"
    assert key_in(file) is None
    key = make_key(file)
    assert len(key) == 32 and key == make_key(file) == key_in(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["release.key"]
    assert key != make_key(tmp_path / "other/release.key")


def test_of_two_who_make_a_key_at_once_both_get_the_same(tmp_path, monkeypatch):
    file = tmp_path / "release.key"
    link = os.link
    monkeypatch.setattr(os, "link", lambda *paths: (file.write_bytes(OTHER), link(*paths)))
    assert make_key(file) == OTHER
    assert [path.name for path in tmp_path.iterdir()] == ["release.key"]


@pytest.mark.parametrize("damage", [lambda f: f.write_bytes(b"short"), Path.mkdir, lambda f: f.write_bytes(b"")])
def test_a_key_that_cannot_be_used_is_one_line(tmp_path, damage):
    file = tmp_path / "release.key"
    damage(file)
    for use in (key_in, make_key):
        with pytest.raises(KeyFileError, match=f"^{file}: ") as caught:
            use(file)
        assert "\n" not in str(caught.value)


# --- In the pipeline ------------------------------------------------------------------------------------------------

FRESH = sign(MAIL, ID, KEY, time.time())


def handled(raw: bytes, key: Path | None, rest: bytes | None = None) -> tuple[list[Disposition], FakeScorer]:
    scorer = FakeScorer()

    async def main() -> list[Disposition]:
        batcher = Batcher(scorer, BatchTable(patience_ms=0))
        await batcher.start()
        try:
            pipeline = Pipeline(batcher, Policy(PolicyTable(spam="quarantine")), release_key=key)
            await pipeline.handle(raw, [b"a@x"], True, None if rest is None else lambda: rest)
            return await pipeline.handle(raw, [b"a@x", b"b@x"], True, None if rest is None else lambda: rest)
        finally:
            await batcher.stop()

    return asyncio.run(main()), scorer


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "release.key"
    file.write_bytes(KEY)
    return file


def test_what_is_released_is_not_judged_and_keeps_its_mark(key_file):
    (first, second), scorer = handled(FRESH.replace(b"X-Spamguard: released", b"X-Spam-Flag: YES"), key_file)
    assert first is second and scorer.batches == []
    assert (first.fate, first.data, first.junk, first.verdict, first.released) == (
        Fate.DELIVER, FRESH, False, None, ID,
    )  # fmt: skip


def test_a_large_message_is_known_by_all_of_it(key_file):
    cut = FRESH.index(b"viagra")
    (whole, _), _ = handled(FRESH[:cut], key_file, FRESH[cut:])
    assert (whole.released, whole.data) == (ID, FRESH[:cut])
    (altered, _), _ = handled(FRESH[:cut], key_file, FRESH[cut:] + b"x")
    assert altered.released is None


def test_the_digest_is_made_in_a_thread(key_file, monkeypatch):
    threads: list[int] = []

    def spy(*args: object) -> None:
        threads.append(threading.get_ident())

    monkeypatch.setattr(released, "is_ours", spy)
    handled(FRESH, key_file)
    handled(MAIL, key_file)
    assert len(threads) == 2 and threading.get_ident() not in threads


@pytest.mark.parametrize("raw", [FRESH.replace(b"viagra", b"viagra now"), sign(MAIL, ID, OTHER), SIGNED])
def test_a_mark_that_is_not_true_is_stripped_and_the_mail_judged(key_file, raw):
    (held, _), scorer = handled(raw, key_file)
    assert held.fate is Fate.QUARANTINE and held.released is None and held.verdict is not None
    assert scorer.batches[0] == [headers.strip(raw)] and b"Released" not in scorer.batches[0][0]


def test_without_a_key_nothing_is_released_and_nothing_said(tmp_path, caplog):
    for key in (None, tmp_path / "none"):
        (held, _), _ = handled(FRESH, key)
        assert held.fate is Fate.QUARANTINE
    assert caplog.records == []


def test_a_key_that_cannot_be_read_is_said_once_and_the_mail_judged(tmp_path, caplog):
    (tmp_path / "release.key").write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING):
        (held, _), _ = handled(FRESH, tmp_path / "release.key")
    assert held.fate is Fate.QUARANTINE
    (record,) = caplog.records
    assert "no key of 32 bytes" in record.getMessage()


def test_the_comparison_takes_the_same_time_for_all(monkeypatch):
    compared = []
    monkeypatch.setattr(released.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    assert ours(SIGNED) == ID and ours(SIGNED + b"x") is None
    assert len(compared) == 2 and all(len(a) == len(b) == 64 for a, b in compared)


def test_filter_passes_what_was_released(tmp_path):
    file = tmp_path / "spamguard.toml"
    file.write_text('state_dir = "state"\n[encoder]\nmodel = "none-such"\n')  # It cannot judge anything.
    key = make_key(tmp_path / "state/release.key")
    mine = sign(MAIL, ID, key)
    done = CliRunner().invoke(main, ["--config", str(file), "filter"], input=mine)
    assert (done.exit_code, done.stdout_bytes) == (0, mine)
    other = CliRunner().invoke(main, ["--config", str(file), "filter"], input=sign(MAIL, ID, OTHER))
    assert other.exit_code == 2 and "none-such" in other.stderr


def test_a_blank_less_in_a_boundary_is_another_message():
    """The same body, and another part of it would be shown."""
    body = b"--b 1\r\n\r\nBUY\r\n--b 1--\r\n--b  1\r\n\r\nminutes\r\n--b  1--\r\n"
    head = b'From: a@x\r\nContent-Type: multipart/mixed;\r\n boundary="b  1"\r\n\r\n'
    signed = sign(head + body, ID, KEY, NOW)
    assert ours(signed) == ID
    assert ours(signed.replace(b'"b  1"', b'"b 1"')) is None
    assert ours(b"List-Unsubscribe: <http://evil.example>\r\n" + signed) is None
