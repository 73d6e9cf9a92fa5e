"""JSON, read strictly; where it cannot be read, the frequent causes in plain words."""

import json
from typing import Any

from selfreward_lite.data.text_files import find_no_utf8

_UNCLOSED = "it ends in the middle of an object or a text"
# How the rest of the text begins, from where it cannot be read on.
_BEGINNINGS = (
    (("//", "/*", "#"), "a comment, which JSON does not have; remove it"),
    (("'",), "single quotes; JSON has double ones"),
    (("“", "”", "„", "‘", "’", "«"), 'curly quotes; JSON has straight ones (")'),
    (("None", "True", "False", "undefined"), "JSON has null, true and false for this"),
    (("\0",), "zero bytes, as a crash leaves them at the end of a file; remove them"),
)
# How json's own message begins.
_MESSAGES = (
    ("Invalid control", r"a line break, a tab or a zero byte inside of a text; write \n or \t"),
    ("Invalid \\", r"a backslash that means nothing in JSON; write two (\\)"),
    ("Unterminated", f"{_UNCLOSED}; close its quote"),
    ("Extra data", "more behind its end; write each object in a line of its own"),
    ("Expecting ','", "no comma here, or a quote inside of a text without a backslash before it"),
    ("Expecting ':'", "no colon behind the name of a field"),
    ("Expecting property", "no name of a field in double quotes"),
)


class JsonFault(ValueError):
    """A text is no JSON; the message is the cause. `place` is where it was seen, if anywhere."""

    def __init__(self, cause: str, place: int | None = None, *, more: bool = False) -> None:
        super().__init__(cause)
        self.place = place
        self.more = more  # a complete value, and something behind it
        self.unclosed = cause.startswith(_UNCLOSED)


def parse_json(text: str) -> Any:
    """Return what a text from a file holds as JSON. Raises JsonFault if it is none.

    >>> parse_json('{"prompt": "Why?"}')
    {'prompt': 'Why?'}
    """
    if (place := find_no_utf8(text)) is not None:
        raise JsonFault("letters that are not UTF-8; save the file as UTF-8", place)
    try:
        return json.loads(text, object_pairs_hook=_build_unique)
    except JsonFault:
        raise
    except json.JSONDecodeError as error:
        more = error.msg.startswith("Extra data")
        raise JsonFault(_find_cause(text, error), error.pos, more=more) from None
    except RecursionError:
        raise JsonFault("nested too deeply") from None
    except ValueError:  # Python reads no whole numbers of thousands of digits
        raise JsonFault("a number with too many digits") from None


def _find_cause(text: str, error: json.JSONDecodeError) -> str:
    rest = text[error.pos :].lstrip()
    for beginnings, cause in _BEGINNINGS:
        if rest.startswith(beginnings):
            return cause
    before = text[: error.pos].rstrip() + rest[:1]
    if before.endswith((",]", ",}")) or rest[1:].lstrip().startswith(("]", "}")) and rest[0] == ",":
        return "a comma before a closing bracket; remove it"
    if not rest:
        return _UNCLOSED
    known = (cause for message, cause in _MESSAGES if error.msg.startswith(message))
    return next(known, "no value of JSON here")


def _build_unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise JsonFault(f"the field {twice!r} is there twice")
    return made
