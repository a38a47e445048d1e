"""Normalizes texts before they are compared: options, free-form answers and OCR."""

import functools
import re
import unicodedata

_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201a": "'", "\u201b": "'", "\u2032": "'", "\u00b4": "'"})
_QUOTES |= str.maketrans({"\u201c": '"', "\u201d": '"', "\u201e": '"', "\u2033": '"', "\u00ab": '"', "\u00bb": '"'})
_QUOTES |= str.maketrans({"\u2212": "-"})  # the minus sign of mathematics
_QUOTES |= dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff"))  # characters without width

_NO_BLANKS = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f"  # Myanmar
    "\u1780-\u17ff"  # Khmer
    "\u3005-\u3007"  # iteration mark and zero
    "\u3040-\u30ff\u31f0-\u31ff"  # Hiragana, Katakana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"  # Han
)
"""Scripts without blanks between words, as ranges of a regular expression."""

_stands_alone = re.compile(f"[{_NO_BLANKS}]").match

CLOSING = ".!?\u3002"
"""Punctuation that may end an answer without changing it."""


def normalize(text: str) -> str:
    """A text in NFKC (full-width letters become ordinary ones, accents are composed), with straight quotes, without
    zero-width characters, with one blank for each run of white space and none at the ends. The case stays.
    """
    return " ".join(unicodedata.normalize("NFKC", text).translate(_QUOTES).split())


def same(one: str, other: str) -> bool:
    """Whether two texts are equal apart from normalization, case, blanks and closing punctuation."""
    return comparable(one) == comparable(other)


def alike(one: str, other: str) -> bool:
    """Whether two options are the same: equal apart from the encoding of accents, the form of quotes, runs of blanks
    and a full stop at the end. Case counts: "DM7" is not the chord "Dm7".
    """
    return _option(one) == _option(other)


@functools.lru_cache(maxsize=8192)
def _option(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).translate(_QUOTES).split()).removesuffix(".").strip()


@functools.lru_cache(maxsize=8192)
def comparable(text: str) -> str:
    """The form of a text that `same` compares."""
    text = "".join(normalize(text).casefold().split())
    return text.rstrip(CLOSING) or text


def pattern_of(text: str) -> str:
    """A regular expression that finds a text as `same` compares it, without closing punctuation. Use it on normalized
    text, with case ignored.
    """
    letters = "".join(normalize(text).split())
    return r"\s*".join(map(re.escape, letters.rstrip(CLOSING) or letters))


def words(text: str) -> list[str]:
    """Words of any script, in lower case: runs of letters and digits with their marks; each character of a script
    without blanks is a word, with its marks.
    """
    found, current = [], ""
    for character in unicodedata.normalize("NFKC", text).translate(_QUOTES).casefold():
        mark = unicodedata.category(character).startswith("M")
        if _stands_alone(character) and not mark:
            found, current = [*found, current] if current else found, ""
            found.append(character)
        elif mark and not current and found and _stands_alone(found[-1][0]):
            found[-1] += character  # a vowel or tone mark of Thai
        elif mark or character.isalnum() or character == "_":
            current += character
        elif current:
            found, current = [*found, current], ""
    return [*found, current] if current else found


def as_written(text: str) -> list[str]:
    """The pieces of a text that OCR compares: split at white space, and into characters for scripts without blanks.
    Case and punctuation count; the encoding of accents does not.
    """
    pieces = []
    for word in unicodedata.normalize("NFC", text).split():
        pieces += re.findall(f"[{_NO_BLANKS}]|[^{_NO_BLANKS}]+", word)
    return pieces
