"""A text as words, sentences, list items and paragraphs, by rules that leave nothing open.

A word is a run of letters and digits; apostrophes and hyphens inside it belong to it. A sentence
ends after a full stop, question or exclamation mark before a space or a capital letter, and at the
end of a line. What marks a list item is no part of a word or sentence.
"""

import re

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_MARKER = re.compile(r"^[ \t]*(?:[-*•]|\d{1,2}[.)])[ \t]+", re.MULTILINE)
_ABBREVIATION = re.compile(r"\b(Mr|Mrs|Ms|Dr|St|vs|e\.g|i\.e)\.", re.IGNORECASE)
_END = re.compile(r"(?<=[.!?…])[\"'”’)\]*]*\s+|(?<=[a-z][.!?])(?=[A-Z])")
_BLANK_LINE = re.compile(r"\n[ \t]*\n")


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case.

    >>> split_words("1. Don't stop: well-known BREAD!")
    ["don't", 'stop', 'well-known', 'bread']
    """
    return _WORD.findall(_MARKER.sub("", text).casefold())


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text; a piece without a word is none.

    >>> split_sentences("I like it. Dr. Lee does, too! ...")
    ['I like it.', 'Dr Lee does, too!']
    """
    plain = _ABBREVIATION.sub(r"\1", _MARKER.sub("", text))
    pieces = (piece for line in plain.splitlines() for piece in _END.split(line))
    return [piece.strip() for piece in pieces if _WORD.search(piece)]


def count_items(text: str) -> int:
    """Return how many lines are list items: a dash, star, dot or number, a space, and a word."""
    return sum(
        _MARKER.match(line) is not None and bool(split_words(line)) for line in text.splitlines()
    )


def split_paragraphs(text: str) -> list[str]:
    """Return the parts between blank lines that hold a word."""
    return [part for part in _BLANK_LINE.split(text) if _WORD.search(part)]
