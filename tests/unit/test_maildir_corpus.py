"""Maildirs as labelled mail: what folders count as, sent mail, other layouts, and what cannot be read."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from spamguard.config import Config
from spamguard.errors import CorpusError
from spamguard.featurestore import FeatureStore, content_hash
from spamguard.labels import FOUND, SENT, Labels
from spamguard.verdict import Label
from tests.tiny_corpus import HAM, SPAM, make_maildir, mbox, message, write_files, write_folders, write_maildir
from tests.unit.conftest import Tiny
from training.corpus import MOST_NAMED, Reading, arrival, find, tabulate
from training.folder_names import Kinds
from training.labelled import merge

OWN = [message("re: report", f"here is the report {i}", "Me <me@example.org>") for i in range(5)]


def found(root: Path, **learning: list[str]) -> dict[bytes, tuple[int, float]]:
    reading = Reading(Kinds.configured(Config.model_validate({"learning": learning})))
    return {item.read(): (item.label, item.weight) for item in find([root], reading)}


TRUTH = {**dict.fromkeys(HAM, (0, 1.0)), **dict.fromkeys(SPAM, (1, 1.0))}


@pytest.mark.parametrize("name", [".Sent", ".Sent.Work", ".INBOX.Gesendet", ".Envoy&AOk-s", ".&j84hDaEf-"])
def test_sent_mail_is_ham_of_little_weight(tmp_path: Path, name: str) -> None:
    box = write_maildir(tmp_path / "Maildir")
    write_files(make_maildir(box / name) / "cur", OWN, ":2,S")
    write_files(box / name / "new", [message("unsent", "x")], "")
    sent = (0, FOUND[SENT]) if name != ".&j84hDaEf-" else (0, 1.0)  # of no meaning that we know: seen mail
    assert found(box) == TRUTH | dict.fromkeys(OWN, sent)


def test_folders_of_the_configuration(tmp_path: Path) -> None:
    box = write_maildir(tmp_path / "Maildir")
    for name in (".Werbung", ".Archive", ".Bulk", ".Mine"):
        write_files(make_maildir(box / name) / "cur", [message(name, name)], ":2,S")
    more = {message(name, name): name for name in (".Werbung", ".Archive", ".Bulk", ".Mine")}
    said = found(
        box, spam_folders=["Werbung"], ignored_folders=["archive"], ham_folders=[".Bulk"], sent_folders=["Mine"]
    )
    assert {name: said.get(raw) for raw, name in more.items()} == {
        ".Werbung": (1, 1.0),
        ".Archive": None,
        ".Bulk": (0, 1.0),
        ".Mine": (0, 0.3),
    }
    usual = found(box)
    assert usual[message(".Bulk", ".Bulk")] == (1, 1.0) and usual[message(".Archive", ".Archive")] == (0, 1.0)


def test_the_layout_fs_of_dovecot(tmp_path: Path) -> None:
    box = make_maildir(tmp_path / "Maildir")
    write_files(box / "cur", HAM[:10], ":2,S")
    write_files(make_maildir(box / "Lists" / "Python") / "cur", HAM[10:], ":2,S")
    write_files(make_maildir(box / "Junk") / "cur", SPAM[:10], ":2,")
    write_files(make_maildir(box / "Junk" / "2024") / "cur", SPAM[10:], ":2,")
    write_files(make_maildir(box / "Trash" / "Junk") / "cur", [message("x", "y")], ":2,S")
    write_files(make_maildir(box / "Sent") / "cur", OWN, ":2,S")
    assert found(box) == TRUTH | dict.fromkeys(OWN, (0, 0.3))


def test_a_maildir_of_maildirs_and_one_that_is_named_itself(tmp_path: Path) -> None:
    box = write_maildir(tmp_path / "home" / "ann" / "Maildir")
    write_files(make_maildir(box / ".Sent") / "cur", OWN, ":2,S")
    write_files(make_maildir(box / ".Trash") / "cur", OWN, ":2,S")
    assert found(tmp_path / "home") == found(box)
    assert found(box / ".Sent") == dict.fromkeys(OWN, (0, 0.3))
    with pytest.raises(CorpusError, match=r"\.Trash: no labelled mail"):
        found(box / ".Trash")


# --- From the table to the labels and back --------------------------------------------------------------------------


def test_of_copies_the_one_that_was_received_counts(tiny: Tiny, tmp_path: Path) -> None:
    box = write_maildir(tmp_path / "Maildir")
    write_files(make_maildir(box / ".Gesendet") / "cur", [*OWN, HAM[0]], ":2,S")  # comes before the others
    (box / "cur" / "000:2,S").rename(box / "cur" / "zzz:2,S")
    with FeatureStore(tmp_path, tiny.encoder.fingerprint) as store:
        table, complaints = tabulate([box], tiny.encoder, store)
    weights = dict(zip(table["content"], table["weight"], strict=True))
    assert complaints == [] and weights[content_hash(HAM[0])] == 1
    assert {content for content, weight in weights.items() if weight < 1} == set(map(content_hash, OWN))


def test_what_was_sent_stays_known_when_no_path_is_given(tiny: Tiny, tmp_path: Path) -> None:
    box = write_maildir(tmp_path / "Maildir")
    write_files(make_maildir(box / ".Sent") / "cur", OWN, ":2,S")
    with FeatureStore(tmp_path, tiny.encoder.fingerprint) as store, Labels(tmp_path / "labels.sqlite3") as labels:
        table, _ = tabulate([box], tiny.encoder, store)
        sent = set(table["content"][table["weight"] == FOUND[SENT]])
        rows = {c: (Label.SPAM if y else Label.HAM, w) for c, y, w in table[["content", "label", "where"]].to_numpy()}
        first = merge(labels.rows(), table)
        assert labels.replace_folder(rows, sent) == 45
        labels.add(OWN[0], Label.HAM, "command")
        again = merge(labels.rows(), None)
    assert first["source"].value_counts().to_dict() == {"folder": 40, "sent": 5}
    assert again["source"].value_counts().to_dict() == {"folder": 40, "sent": 4, "command": 1}
    expected = dict(zip(first["content"], first["weight"], strict=True)) | {content_hash(OWN[0]): 1.0}
    assert dict(zip(again["content"], again["weight"], strict=True)) == expected
    assert sorted(expected.values()) == [0.3] * 4 + [1.0] * 41


# --- When it came ---------------------------------------------------------------------------------------------------

RECEIVED = (
    b"Received: from a\n\tby b; Mon, 2 Mar 2026 10:00:00 +0100\nReceived: by c; Mon, 2 Mar 2020 10:00:00 +0000\n"
)


@pytest.mark.parametrize(
    ("head", "seconds"),
    [
        (RECEIVED + b"Date: Sun, 1 Mar 2026 00:00:00 +0000\n", 1772442000),
        (b"Date: Sun, 1 Mar 2026 00:00:00 +0000\n" + RECEIVED, 1772442000),
        (b"Date: Sun, 1 Mar 2026 00:00:00 +0000\n", 1772323200),
        (b"Received: by c\nDate: Sun, 1 Mar 2026 00:00:00 +0000\n", 1772323200),
        (b"Received: by c; soon\ndate: Sun, 1 Mar 2026 00:00:00 -0000\n", 1772323200),
        (b"Date: Sun, 99 Mar 2026 00:00:00 +0000\n", None),
        (b"Date: Sun, 1 Mar 99999999999999999999 00:00:00 +0000\n", None),
        (b"Date: \xff\n", None),
        (b"Date: " + b"1" * 100_000 + b"\n", None),
        (b"Subject: x\n", None),
        (b"", None),
    ],
)
def test_the_time_of_arrival(head: bytes, seconds: int | None) -> None:
    when = arrival(head + b"\nDate: Sun, 1 Mar 2015 00:00:00 +0000\n")
    assert math.isnan(when) if seconds is None else when == seconds


# --- What cannot be read --------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_named_and_the_rest_is_learnt(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_folders(tmp_path / "mail")
    write_files(root / "shut" / "spam", SPAM)
    write_files(root / "ham" / "shut", HAM)
    box = make_maildir(root / "Maildir")
    make_maildir(box / ".Junk")
    (root / "spam.mbox").write_bytes(b"this is no mbox\n")
    (root / "ham.mbox").write_bytes(mbox([OWN[0]]))
    (root / "prices.csv").write_text("name,price\n")
    listing = os.scandir

    def shut(path: os.PathLike[str]) -> object:  # root may list everything, so that modes would not do
        if Path(path).name == "shut" or str(path).endswith(".Junk/cur"):
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr(os, "scandir", shut)
    with FeatureStore(tmp_path, tiny.encoder.fingerprint) as store:
        table, complaints = tabulate([root], tiny.encoder, store)
    assert len(table) == 41
    assert sorted(line.removeprefix(f"{root}/").split(":")[0] for line in complaints) == [
        "Maildir/.Junk/cur", "ham/shut", "prices.csv", "shut", "spam.mbox",
    ]  # fmt: skip
    with pytest.raises(CorpusError, match="shut: Permission denied"):
        list(find([root / "shut"], tell=lambda _: None))


def test_of_very_many_complaints_some_are_named_and_all_counted(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_folders(tmp_path / "mail")
    gone = write_files(root / "spam" / "gone", [message("gone", str(i)) for i in range(50)])
    items = list(find([root]))
    for file in gone.iterdir():
        file.unlink()
    from training.corpus import tabulate_items

    with FeatureStore(tmp_path, tiny.encoder.fingerprint) as store:
        table, complaints = tabulate_items(items, tiny.encoder, store)
    assert len(table) == 40 and len(complaints) == MOST_NAMED + 1
    assert complaints[-1] == f"50 messages could not be read; the first {MOST_NAMED} are named above"
