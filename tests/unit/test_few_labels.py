"""Twenty labels move the head that ships: a club's mail towards ham, pitches for websites towards spam."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from spamguard.cli import main
from tests.tiny_corpus import message

CLUB = (
    (
        "Saturday's ride moved to 9:30",
        "the forecast says rain before nine, so we start half an hour later at the mill. Helmets and lights "
        "as always. If you come with the cargo bike tell Piet.",
    ),
    (
        "New route for Sunday",
        "we ride 62 km along the canal, coffee stop in the old station. Two gravel stretches, road bikes are "
        "fine. Click here for the GPX track: http://club.example/gpx/17",
    ),
    (
        "Membership fees 2026",
        "please transfer 35 EUR until the end of March, the account number is on the website as always. "
        "Whoever has paid already: thank you!!!",
    ),
    (
        "Free workshop: mend a puncture",
        "free for members, bring your own wheel. Thursday 7 pm in Ilse's garage. There will be soup.",
    ),
    (
        "Offer: group order of tyres",
        "the shop gives us 20% discount if we order ten pairs. Order now until Friday, best price this year. "
        "Reply with size and colour.",
    ),
    (
        "Jerseys are here!",
        "the new jerseys came today, collect yours on Saturday at the mill. Those who ordered size M: there "
        "is one too many, first come first served.",
    ),
    (
        "Photos of the autumn tour",
        "Jan put 140 pictures into the album. Click here to see them and write if you want one removed: "
        "http://club.example/photos",
    ),
    (
        "Vote for the summer tour",
        "three proposals: Ardennes, Moselle, or the coast. Vote now, the poll closes on Sunday evening: "
        "http://club.example/vote",
    ),
    (
        "Lost glove after Sunday",
        "somebody left a black glove, left hand, on the bench of the coffee stop. I have it with me on Saturday.",
    ),
    (
        "Newsletter of the cycling club, April",
        "dates, dates, dates: spring cleaning of the hut on the 4th, bike check on the 11th, season opening "
        "on the 18th with cake. Unsubscribe by telling Piet.",
    ),
)
PITCHES = (
    (
        "Quick question about your website",
        "Hi, I was looking at your website and noticed that it does not rank on the first page for your main "
        "keywords. Our team can send a short audit of errors. Shall I send you prices and packages?",
    ),
    (
        "Following up on my last email",
        "Hi, did you have a chance to see my earlier note? We build backlinks for companies such as yours and"
        " place guest articles on sites with high domain authority. May I send the list?",
    ),
    (
        "Guest post on your blog",
        "Hello, I am an outreach editor and would like to contribute an article with one dofollow link to "
        "your blog. What is your rate for a sponsored post?",
    ),
    (
        "App development partner",
        "Hi there, we are an offshore development team of 120 engineers. Would you be open to a 15 minute "
        "call next week to discuss your roadmap? I can share our portfolio and hourly rates.",
    ),
    (
        "Re: ranking report",
        "Hi, as discussed here is the offer: on page optimisation, 30 backlinks a month, monthly ranking "
        "report. Reply with your phone number and our consultant will call you.",
    ),
    (
        "Attendees list",
        "Hi, would you be interested in the verified attendees list of the trade fair? It includes contact "
        "name, title, email and phone. Let me know so that I can send counts and cost.",
    ),
    (
        "Virtual assistant for you",
        "Hello, our virtual assistants take care of your inbox, calendar and data entry for a low monthly "
        "fee. Can I send you some profiles and a proposal?",
    ),
    (
        "Redesign of your homepage",
        "Hi, I came across your homepage and think it looks outdated on phones. We redesign websites in "
        "WordPress for small companies. Shall I send a mockup and a quote?",
    ),
    (
        "Lead generation for your company",
        "Hi, we book qualified meetings with decision makers for firms in your sector. You pay per meeting "
        "only. Worth a quick chat on Tuesday?",
    ),
    (
        "Link exchange",
        "Hello, I manage several sites on travel and finance and would like to propose a link exchange with "
        "yours. Traffic and metrics attached, tell me what you think.",
    ),
)
# Of the same senders, but seen by nobody yet.
NEXT_RIDE = message(
    "Ride on Easter Monday",
    "we meet at ten at the mill, 48 km, coffee stop at the lock. Order cake now for the season opening, the offer "
    "closes on Friday: http://club.example/cake",
    "Piet <piet@club.example>",
)
NEXT_PITCH = message(
    "Your website on phones",
    "Hi, I had a look at your website and see errors that keep it off the first page. We do optimisation and "
    "backlinks for small companies. May I send a quote and a proposal for a quick call?",
    "Neha <neha@example.com>",
)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "spamguard.toml").write_text('state_dir = "state"\n[encoder]\ndevice = "cpu"\n')
    return tmp_path


def run(state: Path, *arguments: object, stdin: bytes | None = None) -> Result:
    command = ["--config", str(state / "spamguard.toml"), *map(str, arguments)]
    result = CliRunner().invoke(main, command, input=stdin)
    assert result.exit_code == 0, result.output
    return result


def scores(state: Path) -> list[float]:
    return [json.loads(line)["score"] for line in run(state, "score", "--json", state / "next").stdout.splitlines()]


def test_ten_of_each_move_the_head_that_ships_the_right_way(state: Path) -> None:
    (state / "next").mkdir()
    (state / "next" / "1.eml").write_bytes(NEXT_RIDE)
    (state / "next" / "2.eml").write_bytes(NEXT_PITCH)
    before = scores(state)
    for subject, body in CLUB:
        run(state, "labels", "add", "--ham", "-", stdin=message(subject, body, "Cycling club <news@club.example>"))
    for subject, body in PITCHES:
        run(state, "labels", "add", "--spam", "-", stdin=message(subject, body, "Sales <sales@example.com>"))
    assert "fitted on 10 ham and 10 spam" in run(state, "retrain").stdout
    after = scores(state)
    assert after[0] < before[0] - 0.05 and after[1] > before[1] + 0.02, (before, after)
