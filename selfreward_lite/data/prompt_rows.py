"""Rows as prompts: what is taken from each shape of a row, and which rows are refused.

Nothing that belongs to a task is dropped in silence: what `fields` lists is used, repeats what is
used, or makes the row refused by its name; any other field is named in a note.
"""

from collections.abc import Mapping
from typing import Any

from selfreward_lite.data import fields
from selfreward_lite.data.dialogues import join_first_turn, read_first_turn, split_dialogue
from selfreward_lite.data.rows import (
    BadRow,
    DataRow,
    DataRows,
    check_text,
    is_empty,
    join_texts,
    list_names,
)
from selfreward_lite.system.errors import DataError

_MAIN = (*fields.CHATS, *fields.PROMPTS, *fields.LISTS)
_NO_ID = ("", "nan", "none", "null")  # how tables and pandas write that there is none


def extract_prompts(rows: DataRows) -> list[str]:
    """Return the prompt of every row; a row without one is refused as `DataRows.refuse` does.

    Notes in `rows` name the fields that are not used. Raises DataError if there is no prompt.
    """
    found, unused = [], dict.fromkeys(sorted(rows.unread))
    for place, row in rows.rows:
        try:
            found.append(extract_prompt(row))
        except BadRow as bad:
            names = "" if _has_prompt(row) else f"; its fields are {list_names([*row, *unused])}"
            rows.refuse(place, str(bad), names)
        unused |= dict.fromkeys(name for name in row if not fields.is_read(name))
    if not found:
        raise DataError(f"{rows.path}: no prompt in it{rows.describe_skipped()}; give another file")
    if shown := [name for name in unused if not name.startswith("__")]:
        rows.notes.append(f"{rows.path}: fields that are not used: {list_names(shown)}")
    return found


def extract_prompt(row: DataRow) -> str:
    """Return the prompt of a row. Raises BadRow with the reason if it has none.

    >>> extract_prompt({"instruction": "Sort these.", "input": "b a"})
    'Sort these.\\n\\nb a'
    >>> extract_prompt({"system_prompt": "Be terse.", "question": "Why?"})
    'Be terse.\\n\\nWhy?'
    >>> extract_prompt({"conversations": [{"from": "human", "value": "Hi"}]})
    'Hi'
    """
    held = name_fields(row)
    _refuse_reply(held)
    if refused := next((name for name in fields.REFUSED if name in held), None):
        raise BadRow(
            f"field {refused!r} belongs to the task and is not used; write it into the prompt"
        )
    main = _find_main(held, row)
    parts, used = [_read_main(main, held[main])], {main}
    if main in fields.PROMPTS:
        material = [name for name in fields.MATERIAL if name in held and name != main]
        parts += [_read_material(name, held[name]) for name in material]
        used.update(material)
    before = [check_text(held[name], f"field {name!r}") for name in fields.SYSTEM if name in held]
    prompt = join_texts([part for part in (*before, *parts) if part])
    for name in (*_MAIN, *fields.MATERIAL):
        if name in held and name not in used and not _repeats(name, held[name], parts[0], prompt):
            raise BadRow(
                f"field {name!r} says something else than field {main!r}, which is used; join them "
                "in one"
            )
    return prompt


def name_fields(row: DataRow) -> dict[str, Any]:
    """Return the fields that hold something, by name as it is compared.

    Raises BadRow where two names are one.
    """
    found: dict[str, Any] = {}
    for name, value in row.items():
        if is_empty(value):
            continue
        plain = fields.normalise_name(name)
        if plain in found:
            raise BadRow(f"two fields are named {plain!r}")
        found[plain] = value
    return found


def read_id(value: Any) -> str | None:
    """Return an id as text, None where there is none; pandas writes whole numbers as 12.0.

    >>> read_id(12.0), read_id("12.0"), read_id("nan"), read_id(None)
    ('12', '12', None, None)
    """
    if is_empty(value):
        return None
    text = str(value).strip()
    if text.casefold() in _NO_ID:
        return None
    whole = text.removesuffix(".0")
    return whole if whole.isdecimal() else text


def name_shape(row: DataRow) -> str | None:
    """Return the name of the known shape of a row that ranks nothing, None for any other row."""
    names = set(map(fields.normalise_name, row))
    if {"conversations", "conversation"} & names:
        return "ShareGPT conversations"
    if "messages" in names:
        return "chat messages"
    if {"chosen", "rejected"} <= names:
        return "preference pairs (chosen, rejected)"
    return "instructions" if "instruction" in names else None


def _refuse_reply(held: Mapping[str, Any]) -> None:
    role = held.get("role")
    if read_id(held.get("parent_id")) is not None or role == "assistant":
        raise BadRow("a reply in a message tree, not a prompt")


def _has_prompt(row: DataRow) -> bool:
    return any(name in map(fields.normalise_name, row) for name in _MAIN)


def _find_main(held: Mapping[str, Any], row: DataRow) -> str:
    """The field that the prompt is taken from: a conversation, since it may have a system turn."""
    for name in _MAIN:
        if name in held and (name not in fields.LISTS or _is_list(held[name])):
            return name
    if _is_list(answer := held.get(fields.ANSWER)) or (
        isinstance(answer, str) and split_dialogue(answer)
    ):
        return fields.ANSWER
    names = [*map(fields.normalise_name, row)]
    if empty := next((name for name in _MAIN if name in names), None):
        raise BadRow(f"field {empty!r} is empty")
    raise BadRow(f"no field with a prompt (one of {', '.join((*fields.PROMPTS, *fields.CHATS))})")


def _read_main(name: str, value: Any) -> str:
    """The prompt in the field that holds it: a text, a conversation, or a message."""
    if isinstance(value, Mapping) and "replies" in value:  # a tree of OASST's
        value = value.get("text")
    elif isinstance(value, Mapping) and isinstance(value.get("role"), str):  # one message
        value = [value]
    if isinstance(value, list) or name in fields.CHATS:
        return read_first_turn(value)
    text = check_text(value, f"field {name!r}")
    turns = split_dialogue(text)
    return join_first_turn(turns) if turns else text


def _read_material(name: str, value: Any) -> str:
    """What belongs to a prompt; of self-instruct's instances the first one's, which may be none."""
    what = f"field {name!r}"
    if name != "instances":
        return check_text(value, what)
    if not (_is_list(value) and isinstance(value[0], Mapping) and "input" in value[0]):
        raise BadRow(f"{what} is not a list of objects with an input")
    first = value[0]["input"]
    return "" if is_empty(first) else check_text(first, what)


def _repeats(name: str, value: Any, main: str, prompt: str) -> bool:
    """Whether a field beside the prompt says nothing new; `text` is the whole row in Alpaca's."""
    try:
        if name == "text":
            said = _plain(check_text(value, name))
            return _plain(main) in said or said.startswith("below is ")
        if name in fields.LISTS and not _is_list(value):
            return True
        said = _read_material(name, value) if name in fields.MATERIAL else _read_main(name, value)
    except BadRow:
        return False
    return _plain(said) in _plain(prompt)


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _is_list(value: Any) -> bool:
    return isinstance(value, list)
