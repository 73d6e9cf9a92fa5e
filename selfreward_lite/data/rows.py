"""Rows of the user's data, each with its place, and what becomes of those that cannot be used."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfreward_lite.system.errors import DataError

DataRow = Mapping[str, Any]
# Each with its place: the file, and the line or the number of the row in it.
PlacedRows = Iterator[tuple[str, Any]]
_TRUTH = {
    **dict.fromkeys(("true", "t", "1", "1.0", "yes"), True),
    **dict.fromkeys(("false", "f", "0", "0.0", "no"), False),
}
_SHOWN = 8  # names in a sentence, at most


class BadRow(Exception):
    """A row cannot be used; the message is the reason, in a few words."""


@dataclass
class DataRows:
    """The rows of a file or folder with their places, and what was skipped, by reason.

    `notes` are sentences for the user about what was guessed or left out. `files` are the files
    that were read, in order, each with the number of its rows; `unread` are names of columns that
    were not read, by file.
    """

    path: Path
    skip_bad: bool
    rows: list[tuple[str, DataRow]] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    files: list[tuple[Path, int]] = field(default_factory=list)
    unread: dict[Path, list[str]] = field(default_factory=dict)

    def refuse(self, place: str, reason: str, detail: str = "") -> None:
        """Count a bad row by its reason, or raise DataError if bad rows are not skipped."""
        if not self.skip_bad:
            raise DataError(
                f"{place}: {reason}{detail}; correct or remove that row, or skip such rows with "
                "--skip-bad"
            )
        self.skipped[reason] += 1

    def by_file(self) -> Iterator[tuple[Path, list[tuple[str, DataRow]]]]:
        """Yield every file that was read, with its rows."""
        start = 0
        for path, count in self.files:
            yield path, self.rows[start : start + count]
            start += count

    def describe_skipped(self) -> str:
        """Return what was skipped, in brackets after a space; "" if nothing was."""
        return f" (skipped: {describe_counts(self.skipped)})" if self.skipped else ""


def describe_counts(counts: Mapping[str, int]) -> str:
    """Return numbers of rows by reason as a sentence shows them.

    >>> describe_counts({"empty text": 1200, "not English": 3})
    '1,200 × empty text; 3 × not English'
    """
    return "; ".join(f"{count:,} × {reason}" for reason, count in counts.items())


def list_names(names: list[str], shown_names: int = _SHOWN) -> str:
    """Return names as a sentence shows them: the first ones, and how many more there are.

    >>> list_names(["a", "b"]), list_names([str(n) for n in range(20)])
    ('a, b', '0, 1, 2, 3, 4, 5, 6, 7 and 12 more')
    """
    short = [name if len(name) <= 60 else f"{name[:60]}…" for name in names[:shown_names]]
    shown = ", ".join(name if name.isprintable() else repr(name) for name in short)
    return shown if len(names) <= shown_names else f"{shown} and {len(names) - shown_names} more"


def is_empty(value: Any) -> bool:
    """Return whether a field holds nothing: null, blank text, NaN, or lists and objects of such.

    In a table, an empty list is the text [].

    >>> [is_empty(one) for one in (None, " ", [], {"text": []}, float("nan"), "[]")]
    [True, True, True, True, True, True]
    >>> [is_empty(one) for one in (0, False, "a")]
    [False, False, False]
    """
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}")
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, Mapping):
        return all(map(is_empty, value.values()))
    if isinstance(value, list):
        return all(map(is_empty, value))
    return value is None


def read_truth(name: str, value: Any) -> bool | None:
    """Return a truth value as tables and programs write it, None where there is none.

    Raises BadRow for anything else, with the `name` of its field.

    >>> [read_truth("deleted", one) for one in ("F", 1, "nan", None)]
    [False, True, None, None]
    """
    if is_empty(value):
        return None
    text = str(value).strip().casefold()
    if text in ("nan", "null", "none"):
        return None
    if text not in _TRUTH:
        raise BadRow(f"{name} {value!r} is neither true nor false")
    return _TRUTH[text]


def parse_list(text: str) -> Any:
    """Return the list or object that a text holds as JSON, None if it is none.

    Tables keep lists this way.
    """
    if text.lstrip()[:1] not in ("[", "{"):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def find_text_fault(value: Any) -> str | None:
    """Return why a value is not a text that can be stored, None if it is."""
    if not isinstance(value, str):
        return "is empty" if value is None else "is not text"
    if "\x00" in value:
        return "holds a NUL character"
    if any("\ud800" <= sign <= "\udfff" for sign in value):
        return "holds half a character (a lone surrogate)"
    return None


def join_texts(texts: Sequence[str]) -> str:
    """Return texts as one, with blank lines between them; a single one stays as it is."""
    return texts[0] if len(texts) == 1 else "\n\n".join(text.strip() for text in texts)


def _describe_value(value: Any) -> str:
    """What stands in the place of a text, and what to do."""
    if isinstance(value, Mapping):
        names = list_names([*map(str, value)])
        return f", but an object with the fields {names}; write what the task needs of it as text"
    return (
        ", but a list; write what the task needs of it as text" if isinstance(value, list) else ""
    )


def check_text(value: Any, what: str) -> str:
    """Return a text that holds something. Raises BadRow, with `what` it is, for anything else."""
    if reason := find_text_fault(value):
        raise BadRow(f"{what} {reason}{_describe_value(value)}")
    if not value.strip():
        raise BadRow(f"{what} is empty")
    return str(value)
