"""Columns that text takes on a terminal: wide characters take two, combining ones none."""

import unicodedata

_NOTHING = ("Mn", "Me", "Cf", "Cc")
# Vowels and final consonants of Hangul, which are drawn inside of the consonant before them.
_JAMO = range(0x1160, 0x1200)


def cells(text: str) -> int:
    """Return how many columns a text takes."""
    if text.isascii():
        return len(text)
    return sum(map(_cells_of, text))


def fit(text: str, width: int, *, mark: str = "") -> str:
    """Return a text cut or padded to exactly ``width`` columns; one that is cut ends in ``mark``."""
    wanted = cells(text)
    if wanted > width:
        text = cut(text, width - cells(mark)) + mark
        wanted = cells(text)
    return text + " " * (width - wanted)


def cut(text: str, width: int) -> str:
    """Return as much of a text as ``width`` columns hold; no character is halved."""
    taken = 0
    for end, character in enumerate(text):
        taken += _cells_of(character)
        if taken > width:
            return text[:end]
    return text


def _cells_of(character: str) -> int:
    if character.isascii():
        return 1
    if unicodedata.category(character) in _NOTHING or ord(character) in _JAMO:
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
