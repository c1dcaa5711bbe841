"""Honest HTML read as lexbor reads it.

It is attackable (spamguard.html_text says how), and right about what is well formed. Where it is wrong, or we differ
on purpose, the generator keeps away from it and a comment says why.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selectolax.lexbor import LexborHTMLParser

from spamguard.html_text import read_html

SETTINGS = settings(max_examples=80, deadline=None)


def squeezed(text: str) -> str:
    return "".join(text.split())


PLAIN = st.text(st.sampled_from("abc XYZ 019 .,:;!?()'\"-/=> äß中я€\n\t"), min_size=1, max_size=20)
_REFERENCES = """
    &amp; &lt; &gt; &nbsp; &quot; &copy; &eacute; &Eacute; &euro; &mdash; &#8364; &#x20AC; &#X20ac; &#146; &#39;
    &copy &notit; &amp;lt; &bogus; AT&T R&D &; &#; &#x;
"""
# None of a control character: lexbor keeps those, html.unescape drops them, and `clean` does in the end.
REFERENCES = st.sampled_from(_REFERENCES.split()) | st.sampled_from(
    [" & ", " < ", "1<2", " <3 ", "a<=b", "< p>", "a && b"]
)
COMMENTS = st.sampled_from(
    [
        "<!-- a <b>comment</b> -->",
        "<!---->",
        "<!-->",
        "<!--[if mso]><table><tr><td>x<![endif]-->",
        "<![if !mso]>",
        "<![endif]>",
        '<?xml:namespace prefix = o ns = "urn:x" />',
    ]
)
RAW = st.sampled_from(
    [
        "<style>p > a { color: red } /* <b> */</style>",
        "<STYLE type='text/css'><!-- td { } --></STYLE>",
        "<script>if (a < b && c > d) document.write('<p>no</p>')</script>",
        '<script src="x.js"></script >',
    ]
)
# Nothing here hides anything, and no style sheet makes it so.
ATTRIBUTES = st.sampled_from(
    [
        "",
        " ",
        ' class="a b"',
        " class='it\"s > that'",
        " width=100%",
        " WIDTH = 600",
        '\n  style="margin:0; font-size: 12px"',
        " nowrap",
        ' title="1 > 0 &amp; so"',
        " data-x=a=\"b'c",
        ' alt=""',
        " id=x class='' nowrap=",
        ' id="a"class="b"',
        " data-u=/a/b?c=d&e=f ",
    ]
)
HREFS = st.sampled_from(
    [
        "http://shop.example/",
        "https://shop.example/a?b=1&amp;c=2",
        "https://shop.example/?a=1&copy=2&lang=en&section=3&reg",
        "http://shop.example/?x=&notit;&amp=1&lt;",
        "mailto:ann@shop.example?subject=a%20b",
        "http://shop.example/?q=%22a%22&#61;&#x3d;",
        "//shop.example/ä",
        "#top",
    ]
)


def written(name: str) -> st.SearchStrategy[str]:
    return st.sampled_from([name, name, name.upper(), name.capitalize()])


def joined(strategy: st.SearchStrategy[str], most: int = 4) -> st.SearchStrategy[str]:
    return st.lists(strategy, max_size=most).map("".join)


@st.composite
def element(draw: st.DrawFn, names: str, inside: st.SearchStrategy[str], ends: str = "always") -> str:
    name = draw(written(draw(st.sampled_from(names.split()))))
    end = "" if ends == "seldom" and draw(st.booleans()) else f"</{name}{draw(st.sampled_from(['', '', ' ']))}>"
    return f"<{name}{draw(ATTRIBUTES)}>{draw(inside)}{end}"


@st.composite
def void(draw: st.DrawFn) -> str:
    name = draw(written(draw(st.sampled_from(["br", "img", "wbr", "hr"]))))
    return f"<{name}{draw(ATTRIBUTES)}{draw(st.sampled_from(['>', '/>', ' />']))}"


@st.composite
def link(draw: st.DrawFn, inside: st.SearchStrategy[str]) -> str:
    href, quote = draw(HREFS), draw(st.sampled_from(['"', "'", ""]))
    around = draw(st.sampled_from(["", " "])) if quote else ""
    name, equals = draw(st.sampled_from(["href", "HREF"])), draw(st.sampled_from(["=", " = ", "=\n"]))
    before, after = draw(ATTRIBUTES), draw(ATTRIBUTES)
    return f"<a{before} {name}{equals}{quote}{around}{href}{around}{quote} {after}>{draw(inside)}</a>"


words = PLAIN | PLAIN | REFERENCES
phrasing = joined(words | COMMENTS | void().filter(lambda tag: tag[1:3].lower() != "hr"))
inline = st.recursive(
    phrasing, lambda inside: element("b i em strong span font u small sup code", joined(inside, 3)), max_leaves=4
)
# A link in a link, or one that is never closed, is no ordinary HTML: the standard makes two of it.
flow = joined(inline | link(inline) | RAW | words, 4)
items = joined(element("li", flow, "seldom"), 3)
cells = joined(element("td th", flow, "seldom"), 3)
# Blanks and comments only between the cells: other text there is moved before the table by the standard
# ("foster parenting"), and is where it stands for us.
rows = joined(element("tr", cells, "seldom") | COMMENTS | st.sampled_from(["\n", " "]), 3)
blocks = st.recursive(
    element("p", flow, "seldom") | element("h1 h2 h3 pre", inline) | flow | void(),
    lambda inside: (
        element("div center blockquote section", joined(inside, 3))
        | element("ul ol", items | joined(element("li", joined(inside, 2)), 2))
        | element("table", rows | joined(element("tr", joined(element("td", joined(inside, 2)), 2)), 2))
        | element("table", element("tbody", rows, "seldom"))
    ),
    max_leaves=6,
)
bodies = joined(blocks, 5)
WRAPPERS: tuple[Callable[[str], str], ...] = (
    lambda body: body,
    lambda body: f"<html><body>{body}</body></html>",
    lambda body: f"<!DOCTYPE html>\n<HTML lang=en><HEAD><meta charset=utf-8></HEAD><BODY bgcolor=white>{body}</BODY>",
    lambda body: f"<body>{body}\n</body>\n</html>\n",
)


def lexbor(source: str) -> tuple[str, list[tuple[str, str]]]:
    page = LexborHTMLParser(source)
    for node in page.css("script, style"):
        node.decompose()
    links = [((node.attributes["href"] or "").strip(), squeezed(node.text())) for node in page.css("a[href]")]
    assert page.body is not None
    return page.body.text(), links


@SETTINGS
@given(bodies, st.sampled_from(WRAPPERS))
def test_html_agrees_with_lexbor(body: str, wrap: Callable[[str], str]) -> None:
    source = wrap(body)
    text, links = lexbor(source)
    page = read_html(source)
    assert squeezed(page.text) == squeezed(text)
    assert page.hidden == 0
    assert [(href, squeezed(shown)) for href, shown in page.links] == links


@pytest.mark.parametrize(
    "source",
    [
        '<a href=http://shop.example/?q="><b>shown</b> <a href="/x">too</a>',
        "<p title=it's>shown</p><p title='x'>too</p>",
        "<p a=\"1\"b='2'c=3/d>shown</p>",
        '<p ="x>shown</p><p x="">too</p>',
        "<p/class=a / id = b >shown",
        "<p class=>shown</p>",
        "<br/><br / >shown<hr/>",
    ],
)
def test_tags_end_where_lexbor_ends_them(source: str) -> None:
    text, links = lexbor(source)
    page = read_html(source)
    assert squeezed(page.text) == squeezed(text)
    assert "shown" in page.text
    assert [link.href for link in page.links] == [href for href, _ in links]
