"""Words disguised from filters but not from readers, undone: borrowed letters, stacked marks, letters set apart.

What was undone is counted, as it is evidence of its own. Everything is linear in its input and idempotent, and leaves
alone what is written in one alphabet as people write it.
"""

from __future__ import annotations

import re

# Letters of other alphabets that most fonts draw like the Latin ones below them: of the pairs in Unicode's
# confusables (UTS #39 section 4) those that a reader takes for that letter. What NFKC folds (full width,
# mathematical, circled letters) does not come here.
_ALIKE = str.maketrans(
    "АВЕЅІЈКМНОРСТУХҮԌԚԜаеѕіјорсухүһԁԛԝӏӀѵѴёЁїЇ"  # Cyrillic
    "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧϜϳαγινορσυ"  # Greek
    "ՏՍՕհոսօքցզ"  # Armenian
    "ᎪᎬᎢᎫᎷᎻᏀᏃᏒᏔᏙᏚᏞᏟᏢᏦᏴᎥ"  # Cherokee
    "ꓐꓑꓓꓔꓖꓗꓙꓚꓜꓝꓟꓠꓡꓢꓣꓦꓧꓪꓫꓬꓮꓰꓲꓳꓴ",  # Lisu
    "ABESIJKMHOPCTYXYGQWaesijopcyxyhdqwlIvVëËïÏ"
    "ABEZHIKMNOPTYXFjayivopou"
    "SUOhnuofgq"
    "AETJMHGZRWVSLCPKBi"
    "BPDTGKJCZFMNLSRVHWXYAEIOU",
)
# Drawn nearly so. Believed only beside Latin letters, as many Russian and Greek words have no other ("Москва").
_NEARLY = _ALIKE | str.maketrans("вкмнтгпғςκτηχεω", "bkmhtrnfckthxew")
# Small capitals are Latin letters whatever stands beside them.
_SMALL_CAPITALS = str.maketrans("ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢɑɡ", "abcdefghijklmnoprstuvwyzag")
_SMALL = re.compile(f"[{''.join(map(chr, _SMALL_CAPITALS))}]")

_LATIN = "A-Za-z\u00c0-\u024f\u1e00-\u1eff"
_OTHER = "\u0370-\u03ff\u0400-\u052f\u0531-\u0587\u13a0-\u13f5\ua4d0-\ua4f7"
_FOREIGN = re.compile(f"[{_OTHER}]++")
# Words of which the letters change between the two; digits may stand among them.
_MIXED = re.compile(rf"\b(?:[{_LATIN}0-9_]++[{_OTHER}]|[{_OTHER}0-9_]++[{_LATIN}])\w*+")
_HAS_LATIN = re.compile(f"[{_LATIN}]")
_WHOLE = re.compile(rf"(?<!\w)[{_OTHER}0-9_]{{3,}}+(?!\w)")
_NOT_LATIN = re.compile("[^A-Za-z]+")
_LATIN_TO_FOREIGN = 3  # letters of a text that is Latin

_MARKS = "\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
_STACKED = re.compile(f"[{_MARKS}](?<=[{_LATIN}].)[{_MARKS}]*+", re.DOTALL)

# One letter, one separator, again and again, and always the same separator; two blanks or a line end part words.
_LETTER = "[A-Za-z\u00c0-\u02af\u0370-\u052f]"
_APART = re.compile(rf"([ .*_-])(?<={_LETTER}.)(?<![^\W_]{_LETTER}.){_LETTER}(?:\1{_LETTER}(?![^\W_])){{3,}}+")
# Text in UTF-8 as letters "a", separators " " and the rest "#".
_CLASSES = bytes(
    ord(" ") if byte in b" .*_-" else ord("a") if bytes((byte,)).isalpha() or byte >= 0xC0 else ord("#")
    for byte in range(256)
)
_CONTINUED = bytes(range(0x80, 0xC0))


def fold(text: str) -> tuple[str, int]:
    """Words that mix Latin with letters that only look so in Latin letters, and how many words mix alphabets.

    A word with a letter that looks like no Latin one stays ("SMSки"). So do words wholly of another alphabet, unless
    they have three letters or more and the text is Latin but for letters that all look Latin.
    """
    if _SMALL.search(text):
        text = text.translate(_SMALL_CAPITALS)
    if not _FOREIGN.search(text):
        return text, 0
    mixed = 0

    def folded(match: re.Match[str]) -> str:
        nonlocal mixed
        word = match[0]
        if not _HAS_LATIN.search(word):  # digits before foreign letters
            return word
        mixed += 1
        latin = word.translate(_NEARLY)
        return word if _FOREIGN.search(latin) else latin

    def whole(match: re.Match[str]) -> str:
        nonlocal mixed
        latin = match[0].translate(_ALIKE)
        mixed += latin != match[0]
        return latin

    text = _MIXED.sub(folded, text)
    foreign = "".join(_FOREIGN.findall(text))
    looks_latin = not _FOREIGN.search(foreign.translate(_ALIKE))
    if foreign and looks_latin and len(_NOT_LATIN.sub("", text)) >= _LATIN_TO_FOREIGN * len(foreign):
        text = _WHOLE.sub(whole, text)
    return text, mixed


def without_marks(text: str) -> str:
    """Latin letters without the marks that NFKC could not compose with them: no language stacks these."""
    return _STACKED.sub("", text)


def may_be_apart(text: str) -> bool:
    """Whether `join` may find anything: a quick look for what most mail has not."""
    return b" a a a " in text.encode("utf-8", "replace").translate(_CLASSES, _CONTINUED)


def join(text: str) -> tuple[str, int]:
    """Words of five letters or more that are set apart letter by letter made whole, and how many there were.

    Alphabets ("A B C D E") and rows of one or two signs ("x o x o x") stay. Read before blanks are collapsed.
    """
    count = 0

    def joined(match: re.Match[str]) -> str:
        nonlocal count
        letters = match.string[match.start() - 1 : match.end() : 2].lower()
        start = ord(letters[0])
        if len(set(letters)) < 3 or [ord(letter) - start for letter in letters[:5]] == [0, 1, 2, 3, 4]:
            return match[0]
        count += 1
        return match[0][1::2]

    return _APART.sub(joined, text), count
