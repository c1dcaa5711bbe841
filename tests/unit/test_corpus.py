"""Labelled mail: every kind of path, what is left out and said so, and labels that nobody gave are never made up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from spamguard import headers
from spamguard.errors import CorpusError
from spamguard.featurestore import FeatureStore, content_hash
from spamguard.verdict import Cutoffs, Label, Verdict
from tests import tiny_corpus
from tests.tiny_corpus import HAM, SPAM, make_maildir, mbox, write_files
from tests.unit.conftest import Tiny
from training import corpus
from training.corpus import find, tabulate

Tabulate = Callable[..., tuple[pd.DataFrame, list[str]]]


@pytest.fixture
def table_of(tiny: Tiny, tmp_path: Path) -> Tabulate:
    def run(*paths: Path) -> tuple[pd.DataFrame, list[str]]:
        with FeatureStore(tmp_path / "features", tiny.encoder.fingerprint) as store:
            table, complaints = tabulate(paths, tiny.encoder, store)
            assert store.known(table["content"].tolist()) == set(table["content"])
        return table, complaints

    return run


def labels(*paths: Path) -> dict[bytes, int]:
    """What each message found is labelled."""
    return {item.read(): item.label for item in find(paths)}


COLUMNS = ["content", "label", "source", "where", "weight", "time"]
TRUTH = {**dict.fromkeys(HAM, 0), **dict.fromkeys(SPAM, 1)}

# --- Kinds of path --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [tiny_corpus.write_folders, tiny_corpus.write_maildir, tiny_corpus.write_mboxes])
def test_every_layout_gives_the_same_mail_and_labels(
    tmp_path: Path, table_of: Tabulate, write: Callable[[Path], Path]
) -> None:
    root = write(tmp_path / "mail")
    assert labels(root) == TRUTH
    table, complaints = table_of(root)
    assert complaints == [] and list(table.columns) == COLUMNS
    assert dict(zip(table["content"], table["label"], strict=True)) == {
        content_hash(raw): label for raw, label in TRUTH.items()
    }
    assert (table["weight"] == 1).all() and table["time"].isna().all()
    assert (table["source"] == "mail").all() and table["where"].str.startswith(str(root)).all()


def test_folders_may_lie_at_any_depth_and_under_any_of_the_names(tmp_path: Path) -> None:
    for name, messages in (("a/2024/ham", HAM[:5]), ("b/nonspam", HAM[5:]), ("a/Spam", SPAM[:5]), ("JUNK", SPAM[5:])):
        write_files(tmp_path / name, messages)
    assert labels(tmp_path) == TRUTH
    assert {item.source for item in find([tmp_path])} == {"2024", "b", "a", tmp_path.name}


def test_folders_below_a_labelled_one_have_its_label(tmp_path: Path) -> None:
    write_files(tmp_path / "spam" / "ham" / "deep", SPAM)
    assert labels(tmp_path) == dict.fromkeys(SPAM, 1)


def test_a_labelled_folder_or_file_may_be_named_itself(tmp_path: Path) -> None:
    tiny_corpus.write_folders(tmp_path / "a")
    tiny_corpus.write_mboxes(tmp_path / "b")
    for root, suffix in ((tmp_path / "a", ""), (tmp_path / "b", ".mbox")):
        assert labels(root / f"ham{suffix}") == dict.fromkeys(HAM, 0)
        assert labels(root / f"ham{suffix}", root / f"spam{suffix}") == TRUTH


def test_what_has_no_label_is_passed_over(tmp_path: Path) -> None:
    tiny_corpus.write_folders(tmp_path)
    write_files(tmp_path / "unsorted", [tiny_corpus.message("a", "b")])
    (tmp_path / "README").write_text("mine")
    (tmp_path / "spam" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "spam" / "link.eml").symlink_to(tmp_path / "ham" / "000.eml")
    (tmp_path / "spam-link").symlink_to(tmp_path / "ham")
    assert labels(tmp_path) == TRUTH


# --- Maildir --------------------------------------------------------------------------------------------------------


def test_mail_that_nobody_has_seen_or_that_is_deleted_says_nothing(tmp_path: Path) -> None:
    box = make_maildir(tmp_path / "Maildir")
    write_files(box / "cur", HAM[:3], ":2,S")
    write_files(box / "cur", HAM[3:6], ":2,")
    write_files(box / "cur", HAM[6:9], ":2,RF")
    write_files(box / "cur", HAM[9:12], ":2,ST")
    write_files(box / "new", HAM[12:15], "")
    write_files(box / "tmp", HAM[15:], ":2,S")
    assert labels(box) == dict.fromkeys(HAM[:3], 0)


def test_seen_mail_in_other_folders_is_ham(tmp_path: Path) -> None:
    box = make_maildir(tmp_path / "Maildir")
    write_files(make_maildir(box / ".Work.Project") / "cur", HAM[:5], ":2,RS")
    write_files(box / ".Work.Project" / "cur", HAM[5:], ":2,")
    assert labels(box) == dict.fromkeys(HAM[:5], 0)


@pytest.mark.parametrize("name", [".Trash", ".Drafts", ".INBOX.Trash", ".Trash.2024", ".Trash.Spam"])
def test_trash_and_drafts_say_nothing(tmp_path: Path, name: str) -> None:
    box = tiny_corpus.write_maildir(tmp_path / "Maildir")
    write_files(make_maildir(box / name) / "cur", [tiny_corpus.message("a", str(i)) for i in range(3)], ":2,S")
    assert labels(box) == TRUTH


@pytest.mark.parametrize("name", [".Junk", ".spam", ".INBOX.Spam", ".INBOX.Junk", ".Junk E-mail", ".Junk.2024"])
def test_junk_is_spam_once_a_client_has_seen_the_folder(tmp_path: Path, name: str) -> None:
    junk = make_maildir(make_maildir(tmp_path / "Maildir") / name)
    write_files(junk / "cur", SPAM[:10], ":2,S")
    write_files(junk / "new", SPAM[10:], "")
    assert labels(tmp_path / "Maildir") == dict.fromkeys(SPAM[:10], 1)
    assert labels(junk) == dict.fromkeys(SPAM, 1)  # ... all of it when it is named itself


def test_a_maildir_named_spam_is_spam(tmp_path: Path) -> None:
    """Dovecot's layout=fs, and corpora kept as Maildirs."""
    write_files(make_maildir(tmp_path / "mail" / "Spam") / "cur", SPAM, ":2,S")
    write_files(make_maildir(tmp_path / "mail" / "ham") / "new", HAM, "")
    assert labels(tmp_path / "mail") == TRUTH


def test_a_maildir_in_a_folder_whose_name_only_contains_spam_is_none(tmp_path: Path) -> None:
    write_files(make_maildir(tmp_path / "spam.example.org") / "cur", HAM, ":2,S")
    assert labels(tmp_path / "spam.example.org") == dict.fromkeys(HAM, 0)


# --- mbox -----------------------------------------------------------------------------------------------------------


def test_mbox_with_crlf(tmp_path: Path, table_of: Tabulate) -> None:
    tiny_corpus.write_mboxes(tmp_path)
    expected = set(table_of(tmp_path)[0]["content"])
    for file in tmp_path.glob("*.mbox"):
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert set(table_of(tmp_path)[0]["content"]) == expected == {content_hash(raw) for raw in TRUTH}


def test_from_in_a_body_begins_no_message(tmp_path: Path) -> None:
    raw = tiny_corpus.message("dates", "the report is\nFrom Monday on\n\n>From the start")
    (tmp_path / "ham.mbox").write_bytes(mbox([raw, HAM[0]]))
    assert labels(tmp_path) == {raw: 0, HAM[0]: 0}


def test_mbox_is_never_written_nor_left_open(tmp_path: Path) -> None:
    tiny_corpus.write_mboxes(tmp_path)
    for file in tmp_path.glob("*.mbox"):
        file.chmod(0o444)
    before = {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in tmp_path.iterdir()}
    assert labels(tmp_path) == TRUTH
    assert {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in tmp_path.iterdir()} == before


@pytest.mark.parametrize("data", [b"", b"Subject: x\n\nbody\n", b"\nFrom a b\n\nx\n"])
def test_what_is_no_mbox_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "spam.mbox").write_bytes(data)
    with pytest.raises(CorpusError, match=r"spam\.mbox: not an mbox file"):
        list(find([tmp_path]))


# --- Paths that hold nothing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nowhere", "empty", "letter.eml", "unsorted"])
def test_a_path_without_labels_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "letter.eml").write_bytes(HAM[0])
    write_files(tmp_path / "unsorted", HAM)
    tiny_corpus.write_folders(tmp_path / "good")
    with pytest.raises(CorpusError, match=f"{tmp_path / name}: no ") as caught:
        list(find([tmp_path / "good", tmp_path / name]))
    assert "\n" not in str(caught.value)


def test_what_may_not_be_opened_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_corpus.write_mboxes(tmp_path)
    opening = Path.open

    def refused(self: Path, *arguments: str, **options: str) -> object:
        if self.name == "spam.mbox":
            raise PermissionError(13, "Permission denied", str(self))
        return opening(self, *arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(CorpusError, match=r"spam\.mbox: Permission denied"):
        list(find([tmp_path]))


# --- The table ------------------------------------------------------------------------------------------------------


def test_each_content_stands_once(tmp_path: Path, table_of: Tabulate) -> None:
    root = tiny_corpus.write_folders(tmp_path / "mail")
    verdict = Verdict(0.01, Label.HAM, Cutoffs(0.5, 0.9), {}, (), "encoder", "head")
    (root / "ham" / "copy.eml").write_bytes(HAM[0])
    (root / "ham" / "crlf.eml").write_bytes(HAM[1].replace(b"\n", b"\r\n"))
    (root / "ham" / "stamped.eml").write_bytes(headers.stamp(HAM[2], verdict))
    table, complaints = table_of(root, root)
    assert len(table) == 40 and table["content"].is_unique and complaints == []
    assert table.index.tolist() == list(range(40))


def test_contradictions_are_left_out_and_listed(tmp_path: Path, table_of: Tabulate) -> None:
    root = tiny_corpus.write_folders(tmp_path / "mail")
    (root / "spam" / "again.eml").write_bytes(HAM[3])
    table, complaints = table_of(root)
    assert len(table) == 39 and content_hash(HAM[3]) not in set(table["content"])
    assert sorted(complaints) == sorted(
        f"{root / name}: labelled both ham and spam, left out" for name in ("ham/003.eml", "spam/again.eml")
    )


def test_what_the_user_has_settled_is_read_but_not_listed(tiny: Tiny, tmp_path: Path) -> None:
    root = tiny_corpus.write_folders(tmp_path / "mail")
    (root / "spam" / "again.eml").write_bytes(HAM[3])
    settled = {content_hash(HAM[3]), content_hash(SPAM[4])}
    with FeatureStore(tmp_path, tiny.encoder.fingerprint) as store:
        table, complaints = tabulate([root], tiny.encoder, store, settled=settled)
        assert store.known(sorted(settled)) == settled
    assert complaints == [] and len(table) == 38 and not settled & set(table["content"])


def test_a_file_that_cannot_be_read_is_named_and_the_rest_is_used(
    tmp_path: Path, table_of: Tabulate, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tiny_corpus.write_folders(tmp_path / "mail")
    reading = corpus._Reader.__call__

    def gone(self: corpus._Reader) -> bytes:
        if self.file.name == "007.eml" and self.file.parent.name == "spam":
            self.file.unlink(missing_ok=True)  # a mail that its owner deletes meanwhile
        return reading(self)

    monkeypatch.setattr(corpus._Reader, "__call__", gone)
    table, complaints = table_of(root)
    assert complaints == [f"{root / 'spam/007.eml'}: No such file or directory"]
    assert len(table) == 39 and (table["label"] == 1).sum() == 19


@pytest.mark.parametrize("pyarrow", [True, False])
def test_names_of_files_need_not_be_utf_8(tmp_path: Path, table_of: Tabulate, pyarrow: bool) -> None:
    """pandas keeps text otherwise where pyarrow is installed, and then takes no surrogates."""
    if pyarrow:
        pytest.importorskip("pyarrow")
    root = tiny_corpus.write_folders(tmp_path / "caf\udce9")
    write_files(root / "spam" / "\udcff", [HAM[0], tiny_corpus.message("a", "b")])
    with pd.option_context("mode.string_storage", "pyarrow" if pyarrow else "python"):
        table, complaints = table_of(root)
    assert len(table) == 40 and table["source"].unique().tolist() == ["caf\\udce9"]
    assert len(complaints) == 2 and f"{tmp_path}/caf\\udce9/ham/000.eml: labelled both" in complaints[0]
    assert next(iter(find([root]))).read() in HAM


def test_a_huge_file_is_read_only_up_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path / "spam", [b"x" * 1000])
    monkeypatch.setattr(corpus, "MAIL_LIMIT", 100)
    assert [len(item.read()) for item in find([tmp_path])] == [100]


def test_known_mail_is_not_encoded_again(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tiny_corpus.write_folders(tmp_path / "mail")
    with FeatureStore(tmp_path, tiny.encoder.fingerprint) as store:
        first, _ = tabulate([root], tiny.encoder, store)
        monkeypatch.setattr(type(tiny.encoder), "encode", None)
        second, _ = tabulate([root], tiny.encoder, store)
    pd.testing.assert_frame_equal(first, second)


def test_what_is_stored_is_what_the_scorer_sees(tiny: Tiny, tmp_path: Path, table_of: Tabulate) -> None:
    from spamguard.scorer import look, prepare

    root = tiny_corpus.write_folders(tmp_path / "mail")
    verdict = Verdict(0.99, Label.SPAM, Cutoffs(0.5, 0.9), {}, (), "encoder", "head")
    (root / "spam" / "004.eml").write_bytes(headers.stamp(SPAM[4], verdict, "[SPAM] "))  # as a user has it
    table_of(root)
    seen = look(tiny.encoder, [prepare(tiny.encoder, SPAM[4])])
    with FeatureStore(tmp_path / "features", tiny.encoder.fingerprint) as store:
        row = store.get([content_hash(SPAM[4])])[content_hash(SPAM[4])]
    np.testing.assert_allclose(row.deep, seen.deep[0], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(row.wide.columns, seen.wide[0].columns)
    np.testing.assert_array_equal(row.wide.counts, seen.wide[0].counts)
    np.testing.assert_array_equal(row.structure, seen.structure[0])


def test_progress_reaches_the_end(tiny: Tiny, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    root = write_files(tmp_path / "ham", [tiny_corpus.ham(i) for i in range(corpus.MESSAGES_A_STEP + 1)])
    with FeatureStore(tmp_path, tiny.encoder.fingerprint) as store:
        tabulate([root], tiny.encoder, store, lambda done, total: told.append((done, total)))
    assert told == [(64, 65), (65, 65)]


def test_a_link_that_leads_to_itself_is_passed_over(tmp_path: Path) -> None:
    for name, raw in (("ham", b"Subject: noon\n\nlunch\n"), ("spam", b"Subject: pills\n\nviagra\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1").write_bytes(raw)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "cur").symlink_to("cur")
    assert sorted(item.label for item in find([tmp_path])) == [0, 1]
