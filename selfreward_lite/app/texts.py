"""Texts that other programs send: every one can be encoded."""

from collections import deque
from typing import Any

from selfreward_lite.system.errors import UserError


def refuse_half_characters(given: Any, name: str = "") -> None:
    r"""Raise UserError for a text with a lone surrogate, anywhere in a value, and name its place.

    JSON can hold one, as in "\ud83d". It has no UTF-8, so no model, file or answer can hold it.

    >>> refuse_half_characters({"stop": ["end", "a\ud83d b"]})
    Traceback (most recent call last):
    selfreward_lite.system.errors.UserError: stop[1] holds half a character: leave it out
    """
    waiting = deque([(name, given)])
    while waiting:
        place, value = waiting.popleft()
        match value:
            case str():
                if _has_half(value):
                    raise _refuse(place or "the text")
            case dict():
                if any(_has_half(str(key)) for key in value):
                    raise _refuse(f"a name in {place}" if place else "a name")
                waiting += [(f"{place}.{key}" if place else key, one) for key, one in value.items()]
            case list() | tuple():
                waiting += [(f"{place}[{number}]", one) for number, one in enumerate(value)]


def _has_half(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= sign <= "\udfff" for sign in text)


def _refuse(place: str) -> UserError:
    return UserError(f"{show_name(place)} holds half a character: leave it out")


def show_name(name: str) -> str:
    """Return a name that a caller chose, short and in one line."""
    return name[:80] if name.isprintable() else ascii(name[:80])
