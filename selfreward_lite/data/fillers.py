"""Words that people and programs write where there is nothing, and a row's fields without them."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from selfreward_lite.data import fields
from selfreward_lite.data.rows import BadRow, DataRow, DataRows, is_empty, list_names

# What people write where a task has no material. They may mean themselves, too.
_WORDS_FOR_NOTHING = ("n/a", "none", "nan", "null")
_FILLERS = ("<noinput>", "noinput", "no input", *_WORDS_FOR_NOTHING)
NO_TEXT = (*_FILLERS, "<na>", "undefined")  # the same, where the prompt itself should be


def is_filler(value: Any) -> bool:
    """Return whether a value is a word that stands for nothing.

    >>> is_filler(" N/A "), is_filler("None."), is_filler("nothing")
    (True, True, False)
    """
    return isinstance(value, str) and value.strip().rstrip(".").casefold() in _FILLERS


def name_fields(row: DataRow) -> dict[str, Any]:
    """Return the fields that hold something, by name as it is compared.

    Raises BadRow where two names are one.
    """
    found: dict[str, Any] = {}
    for name, value in row.items():
        plain = fields.normalise_name(name)
        if is_empty(value) or (plain not in fields.ASKING and is_filler(value)):
            continue
        if plain in found:
            raise BadRow(f"two fields are named {plain!r}")
        found[plain] = value
    return found


def note_fillers(path: Path, used: Iterable[DataRow], rows: DataRows) -> None:
    """Say in a note of `rows` which words in fields of the task were taken for nothing."""
    counts = Counter(
        (str(value).strip(), name)
        for row in used
        for name, value in row.items()
        if isinstance(value, str) and _may_mean_itself(fields.normalise_name(name), value)
    )
    if counts:
        found = [
            f"{text!r} in {name!r} (rows: {count:,})" for (text, name), count in counts.items()
        ]
        rows.notes.append(
            f"{path}: taken for empty: {list_names(found)}; where it is meant, put it in quotes or "
            "write it into the prompt"
        )


def _may_mean_itself(name: str, value: str) -> bool:
    word = value.strip().casefold()
    if name in (*fields.SYSTEM, *fields.MATERIAL):
        return word in (*_WORDS_FOR_NOTHING, "[]", "{}")
    return word in _WORDS_FOR_NOTHING and fields.name_kind(name) == "task"
