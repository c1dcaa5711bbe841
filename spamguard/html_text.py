"""HTML of mail to the text that a reader sees, and what it hides.

A flat tokeniser after the HTML standard (section 13.2.5), without a tree. A tree builder is a bomb in the hands of
a stranger: lexbor takes 1 s for 100 KB of `<div>`, of attributes in one tag, or of nested `<a><b><i>`, and the square
of it for more; bounding its input needs a tokeniser all the same, and the tokeniser is all that we need.
Of 1,686 HTML parts of real mail that hide nothing (2001 to 2026), 1,679 give lexbor's text to the letter.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field
from html.entities import html5
from typing import NamedTuple

MAX_HTML = 1_000_000  # characters read
MAX_TAGS = 60_000
MAX_LINKS = 1_000
_MAX_DEPTH = 512  # open elements remembered, as browsers do
_MAX_ATTRIBUTES = 16_384  # characters of attributes read in one tag
_MAX_STYLE = 2_000

# Possessive throughout: no backtracking, and a tag without an end fails once, after which reading stops.
_TAG = re.compile(
    r"""<(/?)([a-zA-Z][^\s/>]*+)"""
    # A quote opens a value right after the sign only: in `href=?q="><b>` it is part of a bare value.
    r"""((?>[\s/]++|[^\s/>][^\s/>=]*+(?:\s*+=\s*+(?:"[^"]*+"|'[^']*+'|[^\s"'>][^\s>]*+)?+)?+)*+)>"""
)
_NO_TAG = re.compile(r"<++(?![a-zA-Z/!?])|<++(?=<)|<")
_ATTRIBUTE = re.compile(r"""([^\s/>=]++)(?:\s*+=\s*+(?:"([^"]*+)"|'([^']*+)'|([^\s"'][^\s]*+)))?""")
_ZEROS = re.compile(r"(&#[xX]?)0++(?=[0-9a-fA-F])")
_NAMED_REFERENCE = re.compile(r"&([a-zA-Z][a-zA-Z0-9]*+;?+)(=?)")
_HUGE_REFERENCE = re.compile(r"&#(?:[0-9]{8,}+|[xX][0-9a-fA-F]{7,}+);?")  # int() of 5,000 digits raises


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_VOID = _names("area base basefont br col embed frame hr img input link meta param source track wbr")
_RAW = _names("script style title iframe noembed noframes xmp template")
_BLOCK = _names(
    "address article aside blockquote body br button caption center dd details dir div dl dt fieldset figcaption "
    "figure footer form frame h1 h2 h3 h4 h5 h6 head header hr html img input isindex legend li main marquee menu "
    "nav ol option p pre section select summary table tbody td textarea tfoot th thead title tr ul"
)
# An opening tag that ends an open element of the same kind (13.1.2.4 Optional tags).
_ENDS = {
    "p": ("p",), "li": ("li",), "td": ("td", "th"), "th": ("td", "th"), "tr": ("td", "th", "tr"),
    "dt": ("dt", "dd"), "dd": ("dt", "dd"), "option": ("option",), "a": ("a",),
    "div": ("p",), "table": ("p",), "ul": ("p",), "ol": ("p",), "center": ("p",), "h1": ("p",), "h2": ("p",),
}  # fmt: skip
# Where the search for such an element stops.
_SCOPE = _names("table td th div body html ul ol dl select")

# Matched against a style without blanks and comments.
_GONE = re.compile(
    r"(?:^|;)(?:display:none|max-height:0(?:px|em)?(?=[;!]|$)|mso-hide:all|opacity:0?(?:\.0\d*)?(?=[;!]|$)"
    r"|text-indent:-\d{3,}|(?:left|top|margin-left):-\d{4,}|clip:rect\(0)"
)
_FONT_SIZE = re.compile(r"(?:^|;)font-size:(\d{0,4}\.?\d{1,4})(px|pt|em|rem|%)?")
_VISIBILITY = re.compile(r"(?:^|;)visibility:(hidden|collapse|visible)")
_COLOUR = re.compile(r"(?:^|;)color:([^;!]{1,40})")
_BACKGROUND = re.compile(r"(?:^|;)background(?:-color)?:([^;!]{1,60})")
_STYLE_NOISE = re.compile(r"/\*.*?\*/|\s+", re.DOTALL)
_RGB = re.compile(r"rgba?\((\d{1,3}),(\d{1,3}),(\d{1,3})")

Colour = tuple[int, int, int]
_NAMED: dict[str, Colour] = {
    "white": (255, 255, 255), "black": (0, 0, 0), "red": (255, 0, 0), "yellow": (255, 255, 0), "blue": (0, 0, 255),
    "green": (0, 128, 0), "silver": (192, 192, 192), "gray": (128, 128, 128), "snow": (255, 250, 250),
    "ivory": (255, 255, 240), "whitesmoke": (245, 245, 245), "ghostwhite": (248, 248, 255),
}  # fmt: skip
_WHITE = (255, 255, 255)


class Link(NamedTuple):
    """A link: where it goes, as written, and the words that it shows (empty for a picture or a bare URL)."""

    href: str
    text: str


class _Open(NamedTuple):
    """What an open element says of the text in it. Only `hidden` cannot be undone by an element inside."""

    name: str
    hidden: bool
    tiny: bool
    invisible: bool
    colour: Colour | None
    background: Colour | None
    unseen: bool  # for one of the reasons above, or as its colour is its background's


@dataclass(slots=True)
class Page:
    """What was read from HTML. Counts of characters leave blanks out."""

    text: str = ""
    hidden: int = 0  # characters of text that no reader sees
    links: list[Link] = field(default_factory=list)
    images: int = 0
    forms: int = 0  # forms and fields to type in
    scripts: int = 0
    tags: int = 0
    cut: bool = False  # longer than MAX_HTML or MAX_TAGS


def read_html(source: str, tags: int = MAX_TAGS) -> Page:
    """Visible text and facts of an HTML document or fragment, of at most so many tags; linear, nothing raised."""
    return _Reader(source, tags).read()


class _Reader:
    def __init__(self, source: str, tags: int) -> None:
        self.tags = tags
        self.page = Page(cut=len(source) > MAX_HTML)
        self.source = source[:MAX_HTML]
        # Without a style sheet, the page is white where nothing else is said; with one we cannot know.
        background = None if "<style" in self.source.lower() else _WHITE
        self.root = _Open("", False, False, False, None, background, False)
        self.stack: list[_Open] = []
        self.names: dict[str, int] = {}  # how many of each name are open, so that a stray end tag costs nothing
        self.out: list[str] = []
        self.anchor: tuple[str, int] | None = None  # its href, and where its text starts in `out`

    def read(self) -> Page:
        source, page, at = self.source, self.page, 0
        while True:
            start = source.find("<", at)
            if start < 0:
                self._text(source[at:])
                break
            if start > at:
                self._text(source[at:start])
            following = source[start + 1 : start + 2]
            if following in ("!", "?") and following:
                at = self._skip_comment(start)
                continue
            match = _TAG.match(source, start)
            if match is None:
                if following.isalpha() or (following == "/" and source[start + 2 : start + 3].isalpha()):
                    break  # the source ends inside a tag: browsers drop the rest
                if following == "/":
                    at = self._skip_comment(start)
                else:
                    at = _NO_TAG.match(source, start).end()  # type: ignore[union-attr]
                    self._text(source[start:at])
                continue
            page.tags += 1
            if page.tags > self.tags:
                page.cut = True
                break
            at = match.end()
            name = match[2].lower()
            if match[1]:
                self._close(name)
            else:
                self._open(name, match[3])
                if name in _RAW:
                    at = self._skip_raw(name, at)
        self._end_anchor()
        page.text = "".join(self.out)
        return page

    def _skip_comment(self, start: int) -> int:
        source = self.source
        if source.startswith("<!--", start):
            if source.startswith((">", "->"), start + 4):
                return source.index(">", start) + 1
            end = source.find("-->", start + 4)
            return end + 3 if end >= 0 else len(source)
        end = source.find(">", start)
        return end + 1 if end >= 0 else len(source)

    def _skip_raw(self, name: str, at: int) -> int:
        self._close(name)
        end = _raw_end(name).search(self.source, at)
        return end.end() if end else len(self.source)

    def _text(self, text: str) -> None:
        if "&" in text:
            text = unescape(text)
        top = self.stack[-1] if self.stack else self.root
        if top.unseen:
            self.page.hidden += sum(map(len, text.split()))
            return
        self.out.append(text)

    def _open(self, name: str, source: str) -> None:
        attributes = _attributes(source) if source and not source.isspace() else {}
        if name in _BLOCK:
            self.out.append("\n")
        for ended in _ENDS.get(name, ()):
            self._end_implied(ended)
        if name == "a" or name == "area":
            self._start_anchor(attributes.get("href", ""))
        elif name == "img":
            self.page.images += 1
        elif name in ("form", "textarea", "select") or (
            name == "input" and attributes.get("type", "text").lower() not in ("hidden", "submit", "button", "image")
        ):
            self.page.forms += 1
        elif name == "script":
            self.page.scripts += 1
        if name not in _VOID and len(self.stack) < _MAX_DEPTH:
            parent = self.stack[-1] if self.stack else self.root
            self.stack.append(_element(name, attributes, parent))
            self.names[name] = self.names.get(name, 0) + 1

    def _close(self, name: str) -> None:
        if name in _BLOCK:
            self.out.append("\n")
        if name == "a":
            self._end_anchor()
        if not self.names.get(name):
            return
        while self.stack:
            opened = self.stack.pop().name
            self.names[opened] -= 1
            if opened == name:
                return

    def _end_implied(self, name: str) -> None:
        if not self.names.get(name):
            return
        for element in reversed(self.stack):
            if element.name == name:
                self._close(name)
                return
            if element.name in _SCOPE:
                return

    def _start_anchor(self, href: str) -> None:
        self._end_anchor()
        if href:
            self.anchor = (href[:2048], len(self.out))

    def _end_anchor(self) -> None:
        if self.anchor is not None and len(self.page.links) < MAX_LINKS:
            href, start = self.anchor
            text = " ".join("".join(self.out[start : start + 200])[:500].split())
            self.page.links.append(Link(_unescape_value(href).strip(), text))
        self.anchor = None


def unescape(text: str) -> str:
    """Character references read; as `html.unescape`, which raises on numbers of thousands of digits."""
    if "&#" in text:
        text = _HUGE_REFERENCE.sub("\ufffd", _ZEROS.sub(r"\1", text))
    return html.unescape(text)


def _unescape_value(text: str) -> str:
    """The same in an attribute, where `?a=1&copy=2` holds no sign of copyright (13.2.5.73)."""
    return unescape(_NAMED_REFERENCE.sub(_keep_ampersand, text)) if "&" in text else text


def _keep_ampersand(match: re.Match[str]) -> str:
    name, equals = match.groups()
    if name in html5 and (name[-1] == ";" or not equals):
        return match[0]
    return "&amp;" + match[0][1:]


_RAW_ENDS = {name: re.compile(rf"</{name}[^>]*+>", re.IGNORECASE) for name in _RAW}


def _raw_end(name: str) -> re.Pattern[str]:
    return _RAW_ENDS[name]


def _attributes(source: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, double, single, bare in _ATTRIBUTE.findall(source[:_MAX_ATTRIBUTES]):
        found.setdefault(name.lower(), double or single or bare)  # the first of a name counts, 13.2.5.33
    return found


def _element(name: str, attributes: dict[str, str], parent: _Open) -> _Open:
    if not attributes:
        return _Open(name, *parent[1:])
    _, hidden, tiny, invisible, colour, background, _ = parent
    hidden = hidden or "hidden" in attributes
    if name == "font" and "color" in attributes:
        colour = _colour(attributes["color"])
    if "bgcolor" in attributes:
        background = _colour(attributes["bgcolor"])
    if "background" in attributes:  # a picture: anything may be under the text
        background = None
    if name == "body" and "text" in attributes:
        colour = _colour(attributes["text"])
    style = attributes.get("style")
    if style:
        style = _STYLE_NOISE.sub("", unescape(style[:_MAX_STYLE]).lower())
        hidden = hidden or _GONE.search(style) is not None
        if "font" in style and (size := _FONT_SIZE.search(style)):
            # The size is inherited, and newsletters set 0 on a cell only to undo it inside.
            tiny = float(size[1]) <= {"px": 1.0, "pt": 1.0, "%": 5.0}.get(size[2], 0.05)
        if "visibility" in style and (visibility := _VISIBILITY.search(style)):
            invisible = visibility[1] != "visible"
        if "color" in style and (found := _COLOUR.search(style)):
            colour = _colour(found[1])
        if "background" in style and (found := _BACKGROUND.search(style)):
            background = background if found[1] in ("transparent", "none", "inherit") else _colour(found[1])
        if "background-image" in style:
            background = None
    unseen = hidden or tiny or invisible or _alike(colour, background)
    return _Open(name, hidden, tiny, invisible, colour, background, unseen)


def _alike(one: Colour | None, other: Colour | None) -> bool:
    if one is None or other is None:
        return False
    return abs(one[0] - other[0]) <= 10 and abs(one[1] - other[1]) <= 10 and abs(one[2] - other[2]) <= 10


def _colour(value: str) -> Colour | None:
    value = value.strip().lower()
    digits = value.removeprefix("#")
    try:
        if len(digits) == 6:
            return int(digits[:2], 16), int(digits[2:4], 16), int(digits[4:], 16)
        if len(digits) == 3 and value.startswith("#"):
            return int(digits[0] * 2, 16), int(digits[1] * 2, 16), int(digits[2] * 2, 16)
    except ValueError:
        pass
    if match := _RGB.match(value):
        return int(match[1]), int(match[2]), int(match[3])
    return _NAMED.get(value)
