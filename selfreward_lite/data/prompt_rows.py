"""Rows as prompts: what is taken from each shape of a row, and which rows are refused.

Nothing that belongs to a task is dropped in silence: what `fields` lists is used, repeats what is
used, or makes the row refused by its name; any other field is named in a note.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selfreward_lite.data import fields, other_fields
from selfreward_lite.data.dialogues import (
    LostInside,
    join_first_turn,
    read_content,
    read_first_turn,
    refuse_place_of_media,
    split_dialogue,
)
from selfreward_lite.data.fillers import NO_TEXT, is_filler, name_fields, note_fillers
from selfreward_lite.data.left_out import (
    drop_fields,
    find_missing,
    has_inside,
    is_left_out,
    list_settings,
    read_ignored,
)
from selfreward_lite.data.other_fields import holds_words, is_said, is_text, name_part, squeeze
from selfreward_lite.data.placeholders import find_placeholder
from selfreward_lite.data.repeats import Repeats
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
from selfreward_lite.data.speakers import find_speaker, refuse_answer
from selfreward_lite.data.whole_rows import is_whole_row
from selfreward_lite.system.errors import DataError

_MAIN = (*fields.CHATS, *fields.PROMPTS, *fields.LISTS)
_NO_ID = ("", "nan", "none", "null")  # how tables and pandas write that there is none
_CELL_FAULTS = ("#REF!", "#NAME?", "#VALUE!", "#N/A", "#DIV/0!", "#NULL!", "#NUM!", "#ERROR!")


class _LostFields(BadRow):
    """Fields of a row, or of a whole file, belong to the task and are not used."""

    def __init__(self, names: Sequence[str], first: str) -> None:
        """Say the first, in words, and how to leave out all."""
        self.names, self.first = names, first
        super().__init__(
            f"{first} belongs to the task and is not used; write it into the prompt, "
            "or, if the prompt is whole without it, leave it out with the setting prompts.ignore="
            f"{list_settings(names)}"
        )


def extract_prompts(rows: DataRows, ignore: Collection[str] = ()) -> list[str]:
    """Return the prompt of every row; a row without one is refused as `DataRows.refuse` does.

    Fields named in `ignore` are left out. Notes in `rows` name the fields of each file that are not
    used. Raises DataError if there is no prompt.
    """
    left_out = read_ignored(ignore)
    found: list[str] = []
    unused: dict[Path, tuple[str, ...]] = {}
    for path, placed in rows.by_file():
        kept = [(place, drop_fields(row, left_out)) for place, row in placed]
        unread = [name for name in rows.unread.get(path, []) if not is_left_out(name, left_out)]
        inside: set[str] = set()
        found += _extract_from_file(path, kept, rows, unread, inside)
        names = (*unread, *_list_unused([row for _, row in placed], left_out), *sorted(inside))
        unused[path] = tuple(name for name in names if not name.startswith("__"))
    names_there = {name for _, row in rows.rows for name in row}.union(*rows.unread.values())
    if wrong := find_missing(left_out, [row for _, row in rows.rows], names_there):
        rows.notes.append(f"{rows.path}: no row has the fields {list_names(wrong)} to ignore")
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
            if is_left_out(name, left_out) or plain not in fields.USED or is_label:
                names[name] = None
        names.update(dict.fromkeys(path for path in dotted if has_inside(row, path)))
    return [*names]


def _extract_from_file(
    path: Path,
    placed: Sequence[tuple[str, DataRow]],
    rows: DataRows,
    unread: Sequence[str],
    inside: set[str],
) -> list[str]:
    """The prompts of a file; names of fields inside others that are not used go to `inside`."""
    task_fields = other_fields.find_task_fields(row for _, row in placed)
    speaker = find_speaker([row for _, row in placed])
    found, used = list[str](), list[DataRow]()
    for place, row in placed:
        try:
            if _is_deleted(row):
                rows.skipped["deleted"] += 1
            else:
                if speaker:
                    refuse_answer(row, speaker)
                found.append(extract_prompt(row, task_fields, unread, inside))
                used.append(row)
        except BadRow as bad:
            if isinstance(bad, _LostFields) and not rows.skip_bad:
                bad = _find_all_lost(bad, placed, task_fields, unread)
            names = "" if _has_prompt(row) else f"; its fields are {list_names([*row, *unread])}"
            rows.refuse(place, str(bad), names)
    note_fillers(path, used, rows)
    _judge_repeats(path, Repeats(found, used, unread), rows)
    return found


def _find_all_lost(
    first: _LostFields,
    placed: Sequence[tuple[str, DataRow]],
    task_fields: Collection[str],
    unread: Sequence[str],
) -> _LostFields:
    """The same fault with the fields of all rows, so that one setting leaves out all of them."""
    names = dict.fromkeys(first.names)
    for _, row in placed:
        try:
            extract_prompt(row, task_fields, unread)
        except _LostFields as lost:
            names.update(dict.fromkeys(lost.names))
        except BadRow:
            continue  # has a fault of its own, which is named when it is reached
    return _LostFields([*names], first.first)


def _judge_repeats(path: Path, repeats: Repeats, rows: DataRows) -> None:
    """Refuse a file whose rows differ only in a field of the task; name answers in a note."""
    if lost := repeats.lost:
        raise DataError(
            f"{path}: {repeats.count:,} rows have the prompt of another row and differ in field "
            f"{lost[0]!r}, which is not used; write it into the prompt, or, if the prompts are "
            f"whole without it, leave it out with the setting prompts.ignore="
            f"{list_settings(lost)}"
        )
    if repeats.answers:
        rows.notes.append(
            f"{path}: {repeats.count:,} rows have the prompt of another row and differ in "
            f"{list_names(repeats.answers)}, taken for answers; each prompt is used once"
        )


def extract_prompt(
    row: DataRow,
    task_fields: Collection[str] | None = None,
    unread: Sequence[str] = (),
    unused: set[str] | None = None,
) -> str:
    """Return the prompt of a row. Raises BadRow with the reason if it has none.

    `task_fields` are those of its file that `other_fields.find_task_fields` found, `unread` its
    columns that were not read. Fields inside those of the row that are not used are added to
    `unused`, as `messages.topic`.

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
    if found := find_placeholder(prompt, (*held, *map(fields.normalise_name, unread))):
        raise BadRow(
            f"the prompt has a place for field {found[1]!r} ({found[0]}) that is not filled in; "
            "write it there, or, if the prompt is meant so, leave that field out with the setting "
            f"prompts.ignore={fields.name_setting(found[1])}"
        )
    for name in (*_MAIN, *fields.MATERIAL, fields.ANSWER):
        if name in held and name not in used and not _repeats(name, held, asked, prompt):
            raise BadRow(
                f"field {name!r} says something else than field {main!r}, which is used; join them "
                f"in one, or leave it out with the setting prompts.ignore={name}"
            )
    if task_fields is None:
        task_fields = other_fields.find_task_fields([row])
    if lost := other_fields.list_lost(held, main, prompt, task_fields):
        raise _LostFields(lost, name_part(lost[0], held[lost[0]]))
    return prompt


@contextmanager
def _naming(name: str, unused: set[str]) -> Iterator[set[str]]:
    """Take what is found inside a field by its whole name, and say how to leave it out."""
    inside: set[str] = set()
    try:
        yield inside
    except LostInside as lost:
        names = [f"{name}.{one}" for one in lost.names]
        raise _LostFields(names, f"field {name!r}: {lost.first}") from None
    unused.update(f"{name}.{one}" for one in inside)


def _check_fields(value: Any, used: Collection[str], said: str, unused: set[str]) -> None:
    """Refuse an object inside a row with parts of the task that a text does not say."""
    if not isinstance(value, Mapping):
        return
    kept = {name: one for name, one in value.items() if not is_filler(one)}
    lost, others = other_fields.judge_beside(kept, used, said)
    if lost:
        raise LostInside("the object in it", lost)
    unused.update(others)


def _read_system(held: Mapping[str, Any], begin: str, unused: set[str]) -> list[str]:
    """What stands before the prompt, without what another field or the prompt begins with."""
    texts: list[str] = []
    for name in fields.SYSTEM:
        if name not in held:
            continue
        with _naming(name, unused) as inside:
            text = read_content(held[name], f"field {name!r}", inside)
        if not any(_begins(one, text) for one in (*texts, begin)):
            texts.append(text)
    return texts


def _add_material(asked: str, material: Sequence[str]) -> list[str]:
    """The request and what belongs to it, without what another of them says already."""
    parts, said = [asked], squeeze(asked)
    for text in filter(None, material):
        if parts[0] is asked and (_begins(text, asked) or _ends(text, asked)):
            parts = [text, *parts[1:]]
        elif not is_said(text, said):
            parts.append(text)
    return parts


def _begins(whole: str, part: str) -> bool:
    """Whether a text begins with another: as a paragraph, or with several words as a sentence.

    A word or two may stand there by accident: "Translate" before "Translate is a verb."
    """
    after = r"[^\S\n]*\n\s*\n|\s*\Z"
    if is_text(part):
        after += r"|(?<=[.?!:])\s|(?<=[。？！：])|[^\S\n]*\n"
    return re.match(rf"\s*{_match_words(part)}(?:{after})", whole, re.I) is not None


def _ends(whole: str, part: str) -> bool:
    """Whether a text ends with another, of several words and as a sentence or line of its own."""
    before = r"(?:[.?!:]\s+|[。？！：]\s*|\n\s*)"
    return is_text(part) and (
        re.search(rf"{before}{_match_words(part)}\s*\Z", whole, re.I) is not None
    )


def _match_words(text: str) -> str:
    return r"\s+".join(map(re.escape, text.split()))


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
    if text.strip().casefold() in NO_TEXT:
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
            return is_whole_row(check_text(value, name), asked, held)
        if name == fields.ANSWER:
            return _begins_alike(value, prompt)
        if name in fields.LISTS and not _is_list(value):
            words = is_text(value) or (isinstance(value, Mapping) and holds_words(value))
            return not words or is_said(value, squeeze(prompt))
        said = _read_material(name, value) if name in fields.MATERIAL else _read_main(name, value)
    except BadRow:
        return False
    return squeeze(said) in squeeze(prompt)


def _begins_alike(answer: Any, prompt: str) -> bool:
    """Whether a chosen answer is that alone, or a conversation that begins with the prompt."""
    answer = (isinstance(answer, str) and parse_list(answer)) or answer
    if isinstance(answer, list) and not all(isinstance(one, Mapping) for one in answer):
        return True
    if isinstance(answer, str) and squeeze(prompt) not in squeeze(answer):
        return True  # an answer that is a dialogue, since the prompt asks for one
    try:
        begin = read_first_turn(answer)
    except LostInside:
        return False
    except BadRow:
        return True
    return squeeze(begin) in squeeze(prompt)


def _is_list(value: Any) -> bool:
    return isinstance(parse_list(value) if isinstance(value, str) else value, list)
