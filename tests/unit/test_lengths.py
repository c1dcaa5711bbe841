"""The token-length histogram, and the max_tokens that follows from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spamguard.cli import main
from spamguard.errors import CorpusError
from tests.tiny_bert import save_tiny_bert
from training.lengths import Choice, bins, choose, draw, picture, summary

LENGTHS = np.asarray([10] * 90 + [40] * 6 + [200] * 4)


@pytest.mark.parametrize(
    ("percentile", "most", "tokens", "limited", "whole"),
    [
        (90, 512, 16, False, 0.90),
        (95, 512, 40, False, 0.96),
        (99, 512, 200, False, 1.0),
        (99, 128, 128, True, 0.96),
        (50, 512, 16, False, 0.90),
    ],
)
def test_the_percentile_is_rounded_up_to_eight_and_bounded(
    percentile: float, most: int, tokens: int, limited: bool, whole: float
) -> None:
    assert choose(LENGTHS, most, percentile) == Choice(tokens, percentile, limited, pytest.approx(whole))


def test_the_shortest_mail_needs_what_the_configuration_allows() -> None:
    assert choose(np.asarray([2, 2]), 512).tokens == 8


def test_no_mail_is_one_line() -> None:
    with pytest.raises(CorpusError, match="no mail"):
        choose(np.asarray([], dtype=np.int64), 512)


@pytest.mark.parametrize("longest", [2, 8, 9, 160, 161, 1026])
def test_bins_hold_each_message_once(longest: int) -> None:
    lengths = np.random.default_rng(0).integers(2, longest + 1, 500)
    lengths[0] = longest
    ends, counts = bins(lengths)
    assert counts.sum() == 500 and len(ends) == len(counts) <= 20 and ends[-1] >= longest
    width = ends[0]
    for end, count in zip(ends, counts, strict=True):
        assert count == ((lengths > end - width) & (lengths <= end)).sum()


def test_it_is_drawn_with_a_mark_at_the_choice() -> None:
    lines = list(draw(LENGTHS, choose(LENGTHS, 512)))
    assert lines[0].split() == ["1-16", "90", "#" * 50]
    marked = [line for line in lines if "max_tokens" in line]
    assert len(marked) == 1 and marked[0].split() == ["33-48", "6", "####", "<-", "max_tokens", "=", "40"]


def test_it_is_said_in_words() -> None:
    assert "95 % have at most 40" in summary(LENGTHS, choose(LENGTHS, 512))
    assert "max_tokens = 40 holds 96.0% whole" in summary(LENGTHS, choose(LENGTHS, 512))
    assert "99 % would need more" in summary(LENGTHS, choose(LENGTHS, 128, 99))
    assert "longest 1026 or more" in summary(np.asarray([10, 1026]), choose(LENGTHS, 512))


def test_a_picture_is_drawn_if_asked(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture(LENGTHS, choose(LENGTHS, 512), tmp_path / "lengths.png")
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(CorpusError, match=r"none/lengths\.png"):
        picture(LENGTHS, choose(LENGTHS, 512), tmp_path / "none" / "lengths.png")


def test_the_command_measures_what_the_encoder_would_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bert = save_tiny_bert(tmp_path / "bert")
    (tmp_path / "spamguard.toml").write_text(
        f'state_dir = "{tmp_path}/state"\n[encoder]\nmodel = "{bert}"\ndevice = "cpu"\nmax_tokens = 8\n'
    )
    texts = ["the meeting is at noon"] * 18 + ["free money " * 200] * 2
    mail = tmp_path / "mail.csv"
    mail.write_text("label,text\n" + "".join(f"ham,{text}\n" for text in texts))
    with pytest.raises(SystemExit) as left:
        main(["--config", str(tmp_path / "spamguard.toml"), "lengths", str(mail)])
    said = capsys.readouterr().out
    assert left.value.code == 0
    assert "20 messages; tokens: median 7, 95 % have at most 402, longest 402. max_tokens = 64 holds 90.0%" in said
    assert "the most there may be" in said  # it has 64 positions
    assert "encoder.max_tokens is 8 now, which holds 90.0% whole" in said
