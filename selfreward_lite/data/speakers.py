"""Files with a message in each row: who speaks stands beside its `text`."""

from collections.abc import Sequence
from typing import Any

from selfreward_lite.data import fields
from selfreward_lite.data.rows import BadRow, DataRow
from selfreward_lite.data.turn_marks import name_role

# A request under another of these names than `text` makes a row more than a message.
_OTHERS = frozenset(fields.ASKING) - {"text"}


def find_speaker(rows: Sequence[DataRow]) -> str | None:
    """Return the field that says who speaks, if both a user and an assistant do; else None."""
    named = [{fields.normalise_name(name): one for name, one in row.items()} for row in rows[:1]]
    if not named or "text" not in named[0] or not _OTHERS.isdisjoint(named[0]):
        return None
    for name in (one for one in fields.ROW_SPEAKERS if one in named[0]):
        held = {_read_field(row, name) for row in rows}
        roles = {name_role(one) if isinstance(one, str) else None for one in held}
        if {"user", "assistant"} <= roles <= {"user", "assistant", "system"}:
            return name
    return None


def refuse_answer(row: DataRow, speaker: str) -> None:
    """Raise BadRow for a message that is not a user's."""
    said = _read_field(row, speaker)
    if said is not None and name_role(said) != "user":
        raise BadRow(
            f"a message of {said!r}, by its field {speaker!r}, and not a user's; write each "
            "conversation in one row, as a list 'messages', or, if all texts are prompts, leave "
            f"the field out with the setting prompts.ignore={speaker}"
        )


def _read_field(row: DataRow, name: str) -> Any:
    """What a row has under a compared name; an object or a list counts as nothing."""
    value = next((one for key, one in row.items() if fields.normalise_name(key) == name), None)
    return value if isinstance(value, str) else None
