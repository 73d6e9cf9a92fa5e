"""Fields that the setting `prompts.ignore` leaves out of rows, also inside others.

A name is that of a field (`hint`), or of one inside a field at any depth (`messages.topic`).
"""

from collections.abc import Collection, Mapping
from typing import Any

from selfreward_lite.data.fields import name_setting
from selfreward_lite.data.rows import DataRow, parse_list


def read_ignored(names: Collection[str]) -> set[str]:
    """Return the names of a setting as they are compared.

    >>> sorted(read_ignored(["Messages.Max words", "hint"]))
    ['hint', 'messages.max_words']
    """
    return set(map(_name_path, names))


def is_left_out(name: str, left_out: Collection[str]) -> bool:
    """Return whether a field of this name is left out as a whole."""
    return not _names(name).isdisjoint(left_out)


def drop_fields(row: DataRow, left_out: Collection[str]) -> DataRow:
    """Return a row without some fields, and without those inside others."""
    if not left_out:
        return row
    kept = {name: one for name, one in row.items() if not is_left_out(name, left_out)}
    for name, value in kept.items():
        begin = f"{name_setting(name)}."
        if inside := {one.removeprefix(begin) for one in left_out if one.startswith(begin)}:
            kept[name] = _drop_inside(value, inside)
    return kept


def has_inside(row: DataRow, path: str) -> bool:
    """Return whether a row has a field inside another, as `messages.topic`."""
    name, _, inside = path.partition(".")
    held = [one for key, one in row.items() if name_setting(key) == name]
    return bool(inside) and any(
        _drop_inside(one, {inside}) != _drop_inside(one, ()) for one in held
    )


def find_missing(
    left_out: Collection[str], rows: Collection[DataRow], names: set[str]
) -> list[str]:
    """Return the names that no row has, whose fields are `names`, whether read or not."""
    there = {one for name in names for one in _names(name)}
    return sorted(
        path
        for path in left_out
        if path not in there and not any(has_inside(row, path) for row in rows)
    )


def list_settings(names: Collection[str]) -> str:
    """Return names of fields as the setting takes them.

    >>> list_settings(["Notes, other", "messages.topic"])
    'notes_other,messages.topic'
    """
    return ",".join(dict.fromkeys(map(_name_path, names)))


def _drop_inside(value: Any, left_out: Collection[str]) -> Any:
    held = parse_list(value) if isinstance(value, str) else None
    value = value if held is None else held
    if isinstance(value, list):
        return [_drop_inside(one, left_out) for one in value]
    if not isinstance(value, Mapping):
        return value
    return {
        name: _drop_inside(one, left_out)
        for name, one in value.items()
        if name_setting(name) not in left_out
    }


def _names(name: str) -> set[str]:
    """A field's name as refusals print it, and as it may be given: `notes.other` has both."""
    return {name_setting(name), _name_path(name)}


def _name_path(name: str) -> str:
    return ".".join(map(name_setting, name.split(".")))
