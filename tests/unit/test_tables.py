"""Tables of texts: columns found or named, every way to say ham or spam, and what is odd is left out and said."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spamguard.errors import CorpusError
from training.corpus import Labelled, Reading, find
from training.tables import HAM_VALUES, SPAM_VALUES


def read(file: Path, **columns: str) -> tuple[list[tuple[int, str]], list[str]]:
    """(label, text) of each row, and what was complained of."""
    heard: list[str] = []
    found = list(find([file], Reading(**columns), heard.append))  # type: ignore[arg-type]
    return [(item.label, text(item)) for item in found], heard


def text(item: Labelled) -> str:
    return item.read().partition(b"\n\n")[2].decode()


def written(folder: Path, data: str | bytes, name: str = "m.csv") -> Path:
    file = folder / name
    file.write_bytes(data if isinstance(data, bytes) else data.encode())
    return file


def test_labels_texts_and_other_columns(tmp_path: Path) -> None:
    file = written(tmp_path, 'id,text,label\n1,"buy, now\nfree",SPAM\n2,see you, ham \n3,é,0\n4,,1\n')
    assert read(file) == ([(1, "buy, now\nfree"), (0, "see you"), (0, "é"), (1, "")], [])
    found = list(find([file]))
    assert found[0].where == f"{file}:2" and {(item.source, item.weight) for item in found} == {("m", 1.0)}


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("\ufefflabel,text\r\nham,ça va\r\n", "m.csv"),  # of a spreadsheet
        ("label,text\nham,ça va\n".encode("latin-1"), "m.csv"),
        ("Text;Label\nça va;ham\n", "m.csv"),
        ("label\ttext\nham\tça va\n", "m.tsv"),
        ("label\ttext\nham\tça va\n", "M.CSV"),
        ("v1,v2,,\nham,ça va,,\n", "m.csv"),  # the SMS collection as Kaggle has it
        ("Category,Message\nham,ça va\n", "m.csv"),
        (" CLASS , Body \n0,ça va\n", "m.csv"),
        ("spam,email\nFalse,ça va\n", "m.csv"),
        ("target,content,v1,v2\nno,ça va,spam,x\n", "m.csv"),
        ("label,text\n\n\nham,ça va\n", "m.csv"),
    ],
)
def test_columns_are_found_by_their_names(tmp_path: Path, data: str | bytes, name: str) -> None:
    assert read(written(tmp_path, data, name)) == ([(0, "ça va")], [])


def test_columns_may_be_named(tmp_path: Path) -> None:
    file = written(tmp_path, "label,text,Verdict,what was said\nspam,a,no,b\n")
    assert read(file)[0] == [(1, "a")]
    assert read(file, label_column="verdict", text_column="What was said")[0] == [(0, "b")]
    with pytest.raises(CorpusError, match=r"m\.csv: no column 'colour' \(there are: 'label', 'text', 'Verdict'"):
        read(file, label_column="colour")
    with pytest.raises(CorpusError, match="cannot both be column 'text'"):
        read(file, label_column="text")


@pytest.mark.parametrize(
    ("values", "label"), [(("HAM", "0", "0.0", "False", "no", "Not Spam", "non-spam", "legitimate"), 0),
                          (("Spam", " 1", "1.0", "TRUE", "Yes", "junk", "phishing"), 1)],
)  # fmt: skip
def test_every_way_to_say_it(tmp_path: Path, values: tuple[str, ...], label: int) -> None:
    rows = "".join(f"{value},x{i}\n" for i, value in enumerate(values))
    assert read(written(tmp_path, f"label,text\n{rows}")) == ([(label, f"x{i}") for i in range(len(values))], [])
    assert not HAM_VALUES & SPAM_VALUES


def test_odd_labels_are_left_out_and_counted(tmp_path: Path) -> None:
    file = written(tmp_path, "label,text\nham,a\nmaybe\x1b,b\n,c\n2\n1,d\n")
    rows, heard = read(file)
    assert rows == [(0, "a"), (1, "d")]
    assert len(heard) == 1 and heard[0].startswith(
        f"{file}: 3 of its rows left out, their label in 'label' is none of ham"
    )
    assert "(row 3: 'maybe\\x1b')" in heard[0] and heard[0].isprintable()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("label,text\njunky,b\n", "1 of its rows left out"),
        ("colour,text\na,ham\n", "say which by --label-column (there are: 'colour', 'text')"),
        ("label,colour\nham,a\n", "say which by --text-column"),
        ("", "(there are: none)"),
        ("label,text\n", "no labelled mail"),
        (b"\x00\x01\xff" * 50, "say which by --label-column"),
    ],
)
def test_a_table_that_gives_nothing_is_named(tmp_path: Path, data: str | bytes, words: str) -> None:
    file = written(tmp_path, data)
    with pytest.raises(CorpusError) as caught:
        read(file)
    assert str(caught.value).startswith(f"{file}: ") and words in str(caught.value) and "\n" not in str(caught.value)


def test_a_cell_that_never_ends_costs_the_rest_of_its_file_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import csv

    before = csv.field_size_limit(1000)
    try:
        written(tmp_path, 'label,text\nham,a\nspam,"b' + "x" * 5000, "a.csv")
        written(tmp_path, "label,text\nspam,c\n", "b.csv")
        rows, heard = read(tmp_path)
    finally:
        csv.field_size_limit(before)
    assert rows == [(0, "a"), (1, "c")] and len(heard) == 1 and "a.csv: row 3: field larger" in heard[0]


def test_beside_mail_another_table_is_a_complaint(tmp_path: Path) -> None:
    file = written(tmp_path, "name,price\nx,3\n", "prices.csv")
    written(tmp_path, "label,text\nham,a\n", "mail.csv")
    rows, heard = read(tmp_path)
    assert rows == [(0, "a")] and len(heard) == 1 and heard[0].startswith(f"{file}: no column is named label,")


@given(texts=st.lists(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0")), min_size=1))
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    file = tmp_path_factory.getbasetemp() / "any.csv"
    frame = pd.DataFrame({"label": ["ham", "spam"][0], "text": texts})
    file.write_bytes(frame.to_csv(index=False, quoting=1, lineterminator="\n").encode())
    assert read(file) == ([(0, one) for one in texts], [])


# --- Parquet --------------------------------------------------------------------------------------------------------


def test_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    file = tmp_path / "m.parquet"
    pd.DataFrame({"Class": [1, 0, 1], "message": ["buy", "ça va", None]}).to_parquet(file)
    assert read(file) == ([(1, "buy"), (0, "ça va"), (1, "")], [])
    pd.DataFrame({"is_spam": [True, None, False], "text": ["a", "b", "c"]}).to_parquet(file)
    rows, heard = read(file)
    assert rows == [(1, "a"), (0, "c")] and "1 of its rows left out" in heard[0] and "(row 3: '')" in heard[0]
    pd.DataFrame({"label": [1.0, 0.0], "text": ["a", "b"]}).to_parquet(file)
    assert read(file)[0] == [(1, "a"), (0, "b")]


@pytest.mark.parametrize("data", [b"", b"label,text\nham,a\n", b"PAR1" * 40])
def test_what_is_no_parquet_is_one_line(tmp_path: Path, data: bytes) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(CorpusError, match=r"m\.parquet: no Parquet that can be read") as caught:
        read(written(tmp_path, data, "m.parquet"))
    assert "\n" not in str(caught.value)


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("pyarrow", "fastparquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(CorpusError, match=r"m\.parquet: to read Parquet, install the extra"):
        read(written(tmp_path, b"PAR1", "m.parquet"))
