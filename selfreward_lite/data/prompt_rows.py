"""Rows as prompts: what is taken from each shape of a row, and which rows are refused.

Nothing that belongs to a task is dropped in silence: what `fields` lists is used, repeats what is
used, or makes the row refused by its name; any other field is named in a note.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selfreward_lite.data import fields, other_fields
from selfreward_lite.data.dialogues import (
    LostField,
    join_first_turn,
    read_content,
    read_first_turn,
    refuse_place_of_media,
    split_dialogue,
)
from selfreward_lite.data.other_fields import holds_words, is_said, is_text, name_part, squeeze
from selfreward_lite.data.rows import (
    BadRow,
    DataRow,
    DataRows,
    check_text,
    is_empty,
    join_texts,
    list_names,
    parse_list,
    read_truth,
)
from selfreward_lite.data.turn_marks import name_role
from selfreward_lite.system.errors import DataError

_MAIN = (*fields.CHATS, *fields.PROMPTS, *fields.LISTS)
_NO_ID = ("", "nan", "none", "null")  # how tables and pandas write that there is none
_TEMPLATE = 12  # words that a template of a whole row may add, beside Alpaca's
# What people write where a task has no material.
_FILLERS = ("<noinput>", "noinput", "no input", "n/a", "none", "nan", "null")
_NO_TEXT = (*_FILLERS, "<na>", "undefined")  # the same, where the prompt itself should be
_ASKING = (*fields.CHATS, *(name for name in fields.PROMPTS if name not in fields.MATERIAL))
_CELL_FAULTS = ("#REF!", "#NAME?", "#VALUE!", "#N/A", "#DIV/0!", "#NULL!", "#NUM!", "#ERROR!")


def extract_prompts(rows: DataRows, ignore: Collection[str] = ()) -> list[str]:
    """Return the prompt of every row; a row without one is refused as `DataRows.refuse` does.

    Fields named in `ignore` are left out. Notes in `rows` name the fields of each file that are not
    used. Raises DataError if there is no prompt.
    """
    left_out = {fields.normalise_name(name) for name in ignore}
    found: list[str] = []
    unused: dict[Path, tuple[str, ...]] = {}
    for path, placed in rows.by_file():
        kept = [(place, _drop(row, left_out)) for place, row in placed]
        unread = rows.unread.get(path, [])
        inside: set[str] = set()
        found += _extract_from_file(kept, rows, unread, inside)
        names = (*unread, *_list_unused([row for _, row in placed], left_out), *sorted(inside))
        unused[path] = tuple(name for name in names if not name.startswith("__"))
    _note_wrong_names(rows, left_out)
    if not found:
        raise DataError(f"{rows.path}: no prompt in it{rows.describe_skipped()}; give another file")
    for shown in dict.fromkeys(filter(None, unused.values())):
        files = [path for path, others in unused.items() if others == shown]
        what = "fields that are not used"
        if 1 < len(files) < len(unused):
            what += f" in {list_names([str(path.relative_to(rows.path)) for path in files])}"
        place = files[0] if len(files) == 1 else rows.path
        rows.notes.append(f"{place}: {what}: {other_fields.list_unused_names(shown)}")
    return found


def _note_wrong_names(rows: DataRows, left_out: set[str]) -> None:
    """Add a note on names of fields to leave out that no row has."""
    names = {name for _, row in rows.rows for name in row}.union(*rows.unread.values())
    there = {*map(fields.normalise_name, names)}
    for path in left_out - there:
        if any(_has_inside(row, path) for _, row in rows.rows):
            there.add(path)
    if wrong := sorted(left_out - there):
        rows.notes.append(f"{rows.path}: no row has the fields {list_names(wrong)} to ignore")


def _drop(row: DataRow, left_out: Collection[str]) -> DataRow:
    """A row without some fields, and without those inside others (`messages.topic`)."""
    if not left_out:
        return row
    kept = {name: one for name, one in row.items() if fields.normalise_name(name) not in left_out}
    for name, value in kept.items():
        begin = f"{fields.normalise_name(name)}."
        if inside := {one.removeprefix(begin) for one in left_out if one.startswith(begin)}:
            kept[name] = _drop_inside(value, inside)
    return kept


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
        if fields.normalise_name(name) not in left_out
    }


def _has_inside(row: DataRow, path: str) -> bool:
    """Whether a row has a field inside another, as `messages.topic`."""
    name, _, inside = path.partition(".")
    held = [one for key, one in row.items() if fields.normalise_name(key) == name]
    return bool(inside) and any(
        _drop_inside(one, {inside}) != _drop_inside(one, ()) for one in held
    )


def _list_unused(rows: Sequence[DataRow], left_out: Collection[str]) -> list[str]:
    """The fields that hold something and are not used, by the names that they have."""
    names: dict[str, None] = {}
    dotted = sorted(path for path in left_out if "." in path)
    for row in rows:
        for name, value in row.items():
            if name in names or is_empty(value):
                continue
            plain = fields.normalise_name(name)
            is_label = plain in fields.LISTS and not _is_list(value)
            if plain in left_out or plain not in fields.USED or is_label:
                names[name] = None
        names.update(dict.fromkeys(path for path in dotted if _has_inside(row, path)))
    return [*names]


def _extract_from_file(
    placed: Sequence[tuple[str, DataRow]], rows: DataRows, unread: Sequence[str], inside: set[str]
) -> list[str]:
    """The prompts of a file; names of fields inside others that are not used go to `inside`."""
    task_fields = other_fields.find_task_fields(row for _, row in placed)
    speaker = _find_speaker([row for _, row in placed])
    found = []
    for place, row in placed:
        try:
            if _is_deleted(row):
                rows.skipped["deleted"] += 1
            else:
                if speaker:
                    _refuse_answer(row, speaker)
                found.append(extract_prompt(row, task_fields, inside))
        except BadRow as bad:
            names = "" if _has_prompt(row) else f"; its fields are {list_names([*row, *unread])}"
            rows.refuse(place, str(bad), names)
    return found


def _find_speaker(rows: Sequence[DataRow]) -> str | None:
    """The field that says who speaks, in a file with a message in each row as its `text`."""
    named = [{fields.normalise_name(name): one for name, one in row.items()} for row in rows[:1]]
    if not named or "text" not in named[0] or not ({*_ASKING} - {"text"}).isdisjoint(named[0]):
        return None
    for name in (one for one in fields.ROW_SPEAKERS if one in named[0]):
        held = {_read_field(row, name) for row in rows}
        roles = {name_role(one) if isinstance(one, str) else None for one in held}
        if {"user", "assistant"} <= roles <= {"user", "assistant", "system"}:
            return name
    return None


def _read_field(row: DataRow, name: str) -> Any:
    """What a row has under a compared name; an object or a list counts as nothing."""
    value = next((one for key, one in row.items() if fields.normalise_name(key) == name), None)
    return value if isinstance(value, str) else None


def _refuse_answer(row: DataRow, speaker: str) -> None:
    """Raise BadRow for a message that is not a user's."""
    said = _read_field(row, speaker)
    if said is not None and name_role(said) != "user":
        raise BadRow(
            f"a message of {said!r}, by its field {speaker!r}, and not a user's; write each "
            "conversation in one row, as a list 'messages', or, if all texts are prompts, leave "
            f"the field out with the setting prompts.ignore={speaker}"
        )


def extract_prompt(
    row: DataRow, task_fields: Collection[str] | None = None, unused: set[str] | None = None
) -> str:
    """Return the prompt of a row. Raises BadRow with the reason if it has none.

    `task_fields` are those of its file that `other_fields.find_task_fields` found. Fields inside
    those of the row that are not used are added to `unused`, as `messages.topic`.

    >>> extract_prompt({"instruction": "Sort these.", "input": "b a"})
    'Sort these.\\n\\nb a'
    >>> extract_prompt({"system_prompt": "Be terse.", "question": "Why?"})
    'Be terse.\\n\\nWhy?'
    >>> extract_prompt({"conversations": [{"from": "human", "value": "Hi"}]})
    'Hi'
    """
    held = name_fields(row)
    _refuse_reply(held)
    main = _find_main(held, row)
    unused = set() if unused is None else unused
    with _naming(main, unused) as inside:
        asked, used = _read_main(main, held[main], inside), {main}
    parts = [asked]
    if main in fields.PROMPTS:
        material = [name for name in fields.MATERIAL if name in held and name != main]
        parts = _add_material(asked, [_read_material(name, held[name]) for name in material])
        used.update(material)
    prompt = join_texts([*_read_system(held, parts[0], unused), *parts])
    refuse_place_of_media(prompt)
    instances = held.get("instances")
    if isinstance(instances, list):
        with _naming("instances", unused) as inside:
            _check_fields(instances[0], ("input", "instruction_with_input"), prompt, inside)
    for name in (*_MAIN, *fields.MATERIAL, fields.ANSWER):
        if name in held and name not in used and not _repeats(name, held, asked, prompt):
            raise BadRow(
                f"field {name!r} says something else than field {main!r}, which is used; join them "
                f"in one, or leave it out with the setting prompts.ignore={name}"
            )
    if task_fields is None:
        task_fields = other_fields.find_task_fields([row])
    if lost := other_fields.list_lost(held, main, prompt, task_fields):
        names = ",".join(lost)
        raise BadRow(
            f"{name_part(lost[0], held[lost[0]])} belongs to the task and is not used; "
            "write it into the prompt, or, if the prompt is whole without it, leave it out with "
            f"the setting prompts.ignore={names}"
        )
    return prompt


@contextmanager
def _naming(name: str, unused: set[str]) -> Iterator[set[str]]:
    """Take what is found inside a field by its whole name, and say how to leave it out."""
    inside: set[str] = set()
    try:
        yield inside
    except LostField as lost:
        names = ",".join(f"{name}.{one}" for one in lost.names)
        raise BadRow(
            f"field {name!r}: {lost}, or, if the prompt is whole without it, leave it out with "
            f"the setting prompts.ignore={names}"
        ) from None
    unused.update(f"{name}.{one}" for one in inside)


def _check_fields(value: Any, used: Collection[str], said: str, unused: set[str]) -> None:
    """Refuse an object inside a row with parts of the task that a text does not say."""
    if not isinstance(value, Mapping):
        return
    kept = {name: one for name, one in value.items() if not is_filler(one)}
    lost, others = other_fields.judge_beside(kept, used, said)
    if lost:
        raise LostField("the object in it", lost)
    unused.update(others)


def _read_system(held: Mapping[str, Any], begin: str, unused: set[str]) -> list[str]:
    """What stands before the prompt, without what another field or the prompt begins with."""
    texts: list[str] = []
    for name in fields.SYSTEM:
        if name not in held:
            continue
        with _naming(name, unused) as inside:
            text = read_content(held[name], f"field {name!r}", inside)
        known = [squeeze(one) for one in (*texts, begin)]
        if not any(_begins(one, squeeze(text)) for one in known):
            texts.append(text)
    return texts


def _add_material(asked: str, material: Sequence[str]) -> list[str]:
    """The request and what belongs to it, without what another of them says already."""
    parts, said = [asked], squeeze(asked)
    for text in filter(None, material):
        if parts[0] is asked and _begins_or_ends(squeeze(text), said):
            parts = [text, *parts[1:]]
        elif not is_said(text, said):
            parts.append(text)
    return parts


def _begins_or_ends(whole: str, part: str) -> bool:
    """Whether a text begins with the words of another, or ends with them if they are several."""
    before = whole[: -len(part)]
    if _begins(whole, part):
        return True
    return is_text(part) and whole.endswith(part) and not before[-1:].isalnum()


def _begins(whole: str, part: str) -> bool:
    return whole.startswith(part) and not whole[len(part) :][:1].isalnum()


def name_fields(row: DataRow) -> dict[str, Any]:
    """Return the fields that hold something, by name as it is compared.

    Raises BadRow where two names are one.
    """
    found: dict[str, Any] = {}
    for name, value in row.items():
        plain = fields.normalise_name(name)
        if is_empty(value) or (plain not in _ASKING and is_filler(value)):
            continue
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


def _is_deleted(row: DataRow) -> bool:
    held = [one for name, one in row.items() if fields.normalise_name(name) == "deleted"]
    return bool(held) and read_truth("deleted", held[0]) is True


def is_filler(value: Any) -> bool:
    """Return whether a value is a word that people and programs write where there is nothing."""
    return isinstance(value, str) and value.strip().rstrip(".").casefold() in _FILLERS


def _find_main(held: Mapping[str, Any], row: DataRow) -> str:
    """The field that the prompt is taken from: a conversation, since it may have a system turn."""
    for name in _MAIN:
        if name in held and (name not in fields.LISTS or _is_list(held[name])):
            return name
    if _is_list(answer := held.get(fields.ANSWER)) or (
        isinstance(answer, str) and split_dialogue(answer)
    ):
        return fields.ANSWER
    for name in fields.LISTS:
        if name in held:
            raise BadRow(_describe_no_list(name, held[name]))
    names = [*map(fields.normalise_name, row)]
    if empty := next((name for name in _MAIN if name in names), None):
        raise BadRow(f"field {empty!r} is empty")
    raise BadRow(f"no field with a prompt (one of {', '.join((*fields.PROMPTS, *fields.CHATS))})")


def _describe_no_list(name: str, value: Any) -> str:
    if isinstance(value, Mapping):  # Label Studio's
        inside = list_names([*map(str, value)])
        return (
            f"field {name!r} holds an object with the fields {inside}, not a conversation; write "
            "those fields as the row's own"
        )
    return f"field {name!r} is not a list of messages or texts, and no other field holds a prompt"


def _read_main(name: str, value: Any, unused: set[str] | None = None) -> str:
    """The prompt in the field that holds it: a text, a conversation, or a message."""
    unused = set() if unused is None else unused
    if isinstance(value, Mapping) and "replies" in value:  # a tree of OASST's
        tree, value = value, value.get("text")
        _check_fields(tree, fields.SCHEMA, value if isinstance(value, str) else "", unused)
    elif isinstance(value, Mapping) and isinstance(value.get("role"), str):  # one message
        value = [value]
    if isinstance(value, list) or name in (*fields.CHATS, *fields.LISTS, fields.ANSWER):
        return read_first_turn(value, f"field {name!r}", unused)
    if other_fields.is_number(value):
        raise BadRow(f"field {name!r} is only a number or a truth value")
    text = check_text(value, f"field {name!r}")
    if text.strip() in _CELL_FAULTS:
        raise BadRow(f"field {name!r} holds an error of a spreadsheet ({text.strip()})")
    if text.strip().casefold() in _NO_TEXT:
        raise BadRow(f"field {name!r} holds only {text.strip()!r}, which stands for nothing")
    turns = split_dialogue(text)
    return join_first_turn(turns, unused) if turns else text


def _read_material(name: str, value: Any) -> str:
    """What belongs to a prompt; of self-instruct's instances the first one's, which may be none."""
    what = f"field {name!r}"
    if name != "instances":
        # A table gives a whole number as text, too.
        return str(value) if type(value) is int else check_text(value, what)
    if not (_is_list(value) and isinstance(value[0], Mapping) and "input" in value[0]):
        raise BadRow(f"{what} is not a list of objects with an input")
    first = value[0]["input"]
    return "" if is_empty(first) else check_text(first, what)


def _repeats(name: str, held: Mapping[str, Any], asked: str, prompt: str) -> bool:
    """Whether a field beside the prompt says nothing new; `text` is the whole row in Alpaca's."""
    value = held[name]
    try:
        if name == "text":
            return _is_whole_row(squeeze(check_text(value, name)), held, asked)
        if name == fields.ANSWER:
            return _begins_alike(value, prompt)
        if name in fields.LISTS and not _is_list(value):
            words = is_text(value) or (isinstance(value, Mapping) and holds_words(value))
            return not words or is_said(value, squeeze(prompt))
        said = _read_material(name, value) if name in fields.MATERIAL else _read_main(name, value)
    except BadRow:
        return False
    return squeeze(said) in squeeze(prompt)


def _is_whole_row(text: str, held: Mapping[str, Any], asked: str) -> bool:
    """Whether a text is made of the other fields of its row, and of a template's few words."""
    if text.startswith("below is "):
        return True
    if squeeze(asked) not in text:
        return False
    others = _list_texts([one for name, one in held.items() if name != "text"])
    for other in sorted((*map(squeeze, others), squeeze(asked)), key=len, reverse=True):
        text = text.replace(other, " ")
    return len(text.split()) <= _TEMPLATE


def _list_texts(value: Any) -> list[str]:
    """The texts in a value, not its labels."""
    if isinstance(value, Mapping):
        value = [*value.values()]
    if isinstance(value, list):
        return [text for one in value for text in _list_texts(one)]
    return [value] if is_text(value) else []


def _begins_alike(answer: Any, prompt: str) -> bool:
    """Whether a chosen answer is that alone, or a conversation that begins with the prompt."""
    answer = (isinstance(answer, str) and parse_list(answer)) or answer
    if isinstance(answer, list) and not all(isinstance(one, Mapping) for one in answer):
        return True
    if isinstance(answer, str) and squeeze(prompt) not in squeeze(answer):
        return True  # an answer that is a dialogue, since the prompt asks for one
    try:
        begin = read_first_turn(answer)
    except LostField:
        return False
    except BadRow:
        return True
    return squeeze(begin) in squeeze(prompt)


def _is_list(value: Any) -> bool:
    return isinstance(parse_list(value) if isinstance(value, str) else value, list)
