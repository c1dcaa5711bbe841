"""The report's page in a real Chromium: in light, in dark and on a phone, and no request leaves it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests import chromium
from tests.chromium import Page, browser
from tests.report_runs import HOSTILE, made
from training.page import write

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(300),
    pytest.mark.skipif(chromium.PROGRAM is None, reason="no chromium"),
]

WIDTHS = {"desk": 1100, "phone": 390}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of mail with hostile and very long names."""
    names = HOSTILE.replace("\n", "") + "/" + "x" * 200 + "{}"
    return write(made(600, where=names), tmp_path_factory.mktemp("report"), private=False)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("chromium") / "profile") as page:
        yield page


def pixels(png: bytes) -> np.ndarray[tuple[int, int, int], np.dtype[np.int64]]:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=np.int64)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("screen", WIDTHS)
def test_it_is_drawn_in_its_colours_and_nothing_sticks_out(screen: str, dark: bool, file: Path, tab: Page) -> None:
    tab.open(file, WIDTHS[screen], dark=dark)
    # No sideways scroll, of the page or (that would be hidden) of what is in it.
    assert tab.evaluate("document.documentElement.scrollWidth") == WIDTHS[screen]
    reach = "Math.max(...[...document.querySelectorAll('section, figure, svg, p, h2, dl, h3')]"
    assert tab.evaluate(f"{reach}.map(node => node.getBoundingClientRect().right))") <= WIDTHS[screen]
    # Each text of a picture is within it, and large enough to be read.
    outside = """[...document.querySelectorAll('svg')].flatMap(svg => {
        const frame = svg.getBoundingClientRect();
        return [...svg.querySelectorAll('text')].filter(text => {
            const box = text.getBoundingClientRect();
            return box.left < frame.left - 2 || box.right > frame.right + 2 || Math.max(box.width, box.height) < 8;
        }).map(text => text.textContent) })"""
    assert tab.evaluate(outside) == []
    image = pixels(tab.screenshot())
    assert image.shape[1] == WIDTHS[screen] and image.shape[0] > 3000
    brightness = image.mean()
    assert brightness < 90 if dark else brightness > 200
    # All of the page has marks on it, the two colours of the pictures among them.
    strips = np.array_split(image, 12)
    assert all(len(np.unique(strip.reshape(-1, 3), axis=0)) > 20 for strip in strips[:-1])
    for name in ("--ham", "--spam"):
        colour = tab.evaluate(f"getComputedStyle(document.documentElement).getPropertyValue('{name}')").strip()
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(image - wanted).max(axis=2) <= 2).sum() > 500, name


def test_text_stands_out_from_its_ground(file: Path, tab: Page) -> None:
    """Contrast of 4.5 : 1 and more (WCAG 2.2, 1.4.3), of text in either scheme."""

    def luminance(colour: str) -> float:
        channels = np.asarray([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for dark in (False, True):
        tab.open(file, 1100, dark=dark)
        names = ["ink", "soft", "accent", "paper", "page", "good", "bad", "warn", "ham", "spam"]
        script = (
            f"{json.dumps(names)}.map(n => getComputedStyle(document.documentElement).getPropertyValue('--' + n))"
        )
        found = dict(zip(names, [luminance(colour.strip()) for colour in tab.evaluate(script)], strict=True))
        pairs = [(text, ground) for text in ("ink", "soft", "accent") for ground in ("paper", "page")]
        pairs += [("ink", ground) for ground in ("good", "bad", "warn")] + [("ham", "paper"), ("spam", "paper")]
        for text, ground in pairs:
            low, high = sorted((found[text], found[ground]))
            least = 3 if text in ("ham", "spam") else 4.5  # lines and bars: 1.4.11
            assert (high + 0.05) / (low + 0.05) >= least, (text, ground, dark)


def test_no_request_leaves_the_page_and_its_policy_would_stop_one(file: Path, tab: Page, tmp_path: Path) -> None:
    tab.requests.clear()
    tab.blocked.clear()
    tab.open(file, 1100)
    assert tab.requests == [file.as_uri()] and tab.blocked == []
    # What a hole in the escaping could let in is stopped; that also shows that we would have seen it.
    attack = '<img src="http://tracker.example/a.png"><script>document.title = "run"</script>'
    planted = tmp_path / "planted.html"
    planted.write_text(file.read_text().replace("<main>", f"<main>{attack}"))
    tab.open(planted, 1100)
    assert len(tab.blocked) == 2 and all("Content Security Policy" in line for line in tab.blocked)
    assert tab.evaluate("document.title") != "run"
    planted.write_text(f"<!doctype html>{attack}")
    tab.open(planted, 1100)
    assert "http://tracker.example/a.png" in tab.requests and tab.evaluate("document.title") == "run"


def test_a_table_that_is_wide_scrolls_in_itself(file: Path, tab: Page) -> None:
    tab.open(file, 320)
    assert tab.evaluate("document.documentElement.scrollWidth") == 320
    wide = "[...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth).length"
    assert tab.evaluate(wide) > 0
