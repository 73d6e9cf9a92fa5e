"""Fields that no prompt is made of: which of them belong to the task, and must not be lost.

Their names tell it where they are known (`fields`). Under any other name, lists and objects with
words in them belong to the task, and so do texts, unless they are long labels: the same few in all
rows of a file, and mostly no sentences.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from selfreward_lite.data import fields
from selfreward_lite.data.choices import find_choices
from selfreward_lite.data.rows import DataRow, is_empty, list_names, parse_list

_WORDS = 4  # a text has so many, a label fewer
_SIGNS = 8  # of scripts without spaces between words
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
_LONG = 200  # characters; a longer text is no label, even if it is the same in all rows
_ROWS = 5  # with a label, on average
_SHOWN = 600  # characters of names in a note
_ENDS = (*".?!:", *"。？！：")  # of a sentence; a label has none
_NUMBER = re.compile(r"\s*(?:[-+]?[.,]?\d[\d.,]*(?:[eE][-+]?\d+)?\s*%?|true|false)\s*", re.I)


def find_task_fields(rows: Iterable[DataRow]) -> frozenset[str]:
    """Return the fields of a file that belong to the task by their values, by compared name.

    >>> rows = [{"prompt": "Why?", "remark": f"Use {n} words at most."} for n in range(9)]
    >>> find_task_fields(rows)
    frozenset({'remark'})
    >>> find_task_fields({**row, "remark": "out of my own head"} for row in rows)
    frozenset()
    """
    values: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        for name, value in row.items():
            if fields.name_kind(name) == "unknown" and not is_empty(value):
                values[fields.normalise_name(name)].append(value)
    return frozenset(name for name, held in values.items() if _are_of_a_task(name, held))


def list_lost(held: Mapping[str, Any], main: str, prompt: str, found: Collection[str]) -> list[str]:
    """Return the fields of a row that belong to its task and are not in its prompt.

    `held` are its fields by compared name, `main` is the one that the prompt is taken from, and
    `found` those of the file that belong to the task by their values.
    """
    said, choices = squeeze(prompt), find_choices(held)
    return [
        name
        for name, value in held.items()
        if ((name in choices or _belongs(name, value, main, found)) and not is_said(value, said))
        or find_inside(name, value, said)
    ]


def find_inside(name: str, value: Any, said: str = "") -> str | None:
    """Return what belongs to the task in an object that is about its row, None if nothing does.

    `said` is the prompt, squeezed: what it holds already is no such part.

    >>> find_inside("meta", {"id": 7, "title": "Of ice", "context": "Ice is cold."})
    'context'
    """
    if not fields.is_about(name):
        return None
    return _find_part(parse_list(value) if isinstance(value, str) else value, said)


def _find_part(value: Any, said: str) -> str | None:
    if isinstance(value, list):
        return next(filter(None, (_find_part(one, said) for one in value)), None)
    for name, one in value.items() if isinstance(value, Mapping) else ():
        is_number = fields.name_kind(name) == "number" and not is_empty(one)
        if (is_number or changes_task(name, one)) and not is_said(one, said):
            return str(name)
        is_open = fields.name_kind(name) == "unknown" or fields.is_about(name)
        if is_open and (found := _find_part(one, said)):
            return found
    return None


def name_part(name: str, value: Any) -> str:
    """Return a field that belongs to the task as a sentence names it, with what it is in it.

    >>> name_part("hint", "Rhyme."), name_part("meta", {"context": "Ice is cold."})
    ("field 'hint'", "field 'meta' holds 'context', which")
    """
    inside = find_inside(name, value)
    return f"field {name!r}" + (f" holds {inside!r}, which" if inside else "")


def list_lost_beside_text(
    message: Mapping[str, Any], used: Collection[str], found: Collection[str]
) -> list[str]:
    """Return the fields of a message that belong to its task, where only its `text` is read.

    `used` are fields with a meaning of their own. So a second request or a conversation beside the
    text (`question`, `data`) is lost, too, unless the text holds it.
    """
    held = {name: one for name, one in message.items() if name not in used and not is_empty(one)}
    said = squeeze(message["text"]) if isinstance(message.get("text"), str) else ""
    lost = list_lost(held, "text", said, found)
    read = (*fields.SYSTEM, *fields.MATERIAL, *fields.PROMPTS, *fields.CHATS, fields.ANSWER)
    lost += [name for name in read if name in held and holds_words(held[name])]
    lost += [name for name in fields.LISTS if _can_be_text(held.get(name))]
    return [name for name in lost if not is_said(held[name], said)]


def judge_beside(
    held: Mapping[str, Any], used: Collection[str], said: str
) -> tuple[list[str], list[str]]:
    """Return the fields beside a text inside a row that belong to its task, and the other ones.

    What holds nothing is in neither list. `used` are fields with a meaning of their own; `said` is
    the text.

    >>> judge_beside({"text": "Sum up.", "context": "Ice is cold.", "id": 7}, {"text"}, "Sum up.")
    (['context'], ['id'])
    """
    named = {fields.normalise_name(name): one for name, one in held.items() if not is_empty(one)}
    beside = {name: one for name, one in named.items() if name not in used}
    whole = {name: one for name, one in beside.items() if name != "text"} | {"text": said}
    lost = list_lost_beside_text(whole, {"text"}, find_task_fields([beside]))
    return [*dict.fromkeys(lost)], [name for name in beside if name not in lost]


def list_unused_names(names: Collection[str]) -> str:
    """Return names of fields as a note shows them: those that are no known labels come first.

    Names beyond some 600 characters are counted.

    >>> list_unused_names(["id", "style", "score", "messages.topic"])
    'style, messages.topic, id, score'
    """
    known = sorted(names, key=lambda name: _is_label(name.split(".")[-1]))
    shown, room = 0, _SHOWN
    while shown < len(known) and (room := room - min(len(known[shown]), 60) - 2) > 0:
        shown += 1
    return list_names(known, shown)


def _is_label(name: str) -> bool:
    return fields.name_kind(name) == "harmless" or fields.normalise_name(name) in fields.SCHEMA


def is_text(value: Any) -> bool:
    """Return whether a value is a text rather than a label: several words, or several lines.

    >>> is_text("Ice is cold today."), is_text("open_qa"), is_text("closed question answering")
    (True, False, False)
    """
    if not isinstance(value, str):
        return False
    signs = len(_UNSPACED.findall(value))
    return len(value.split()) >= _WORDS or signs >= _SIGNS or "\n" in value.strip()


def is_sentence(value: Any) -> bool:
    """Return whether a value is a text of two words or more that ends as a sentence does.

    >>> is_sentence("Answer in French:"), is_sentence("in French"), is_sentence("Dr.")
    (True, False, False)
    """
    if not isinstance(value, str) or not value.rstrip().endswith(_ENDS):
        return False
    return len(value.split()) > 1 or is_text(value)


def is_number(value: Any) -> bool:
    """Return whether a value is a number or a truth value, or a text that is one.

    >>> [is_number(one) for one in (12, "13.5", "true", "1,000", "12 apples", "7-4")]
    [True, True, True, True, False, False]
    """
    if isinstance(value, str):
        return _NUMBER.fullmatch(value) is not None
    return isinstance(value, int | float)


def is_said(value: Any, said: str) -> bool:
    """Return whether a value is a text of several words that a squeezed text holds already."""
    return is_text(value) and squeeze(value) in said


def squeeze(text: str) -> str:
    """Return a text as it is compared: without differences of spaces and of case."""
    return " ".join(text.split()).casefold()


def _belongs(name: str, value: Any, main: str, found: Collection[str]) -> bool:
    kind = fields.name_kind(name)
    if name in fields.TITLES and (main == "text" or main in fields.CHATS):
        return main == "text"
    if name == "role":  # of a message, or what the answer should be written as
        return not (isinstance(value, str) and value.strip().casefold() in fields.ASKERS)
    if name in fields.NUMBERS:
        return isinstance(parse_list(value) if isinstance(value, str) else value, list)
    if kind == "task":
        return holds_words(value)
    return kind == "number" or (kind == "unknown" and name in found and _can_be_text(value))


def _are_of_a_task(name: str, values: Collection[Any]) -> bool:
    """Whether the values of a field with an unknown name are texts of their own."""
    lists = [one for one in values if _is_list_of_words(one)]
    if name in fields.SOURCES:
        lists = [one for one in lists if not _is_list_of_labels(one)]
    if lists or any(isinstance(one, bytes) and one for one in values):
        return True
    texts = [one for one in values if is_text(one)]
    if not texts:
        return False
    labels = len({*texts}) <= 1 + len(texts) // _ROWS and len(texts) > 1
    if not labels or any(len(one) > _LONG for one in texts):
        return True
    sentences = [one for one in texts if is_sentence(one)]
    return 2 * len(sentences) > len(values)


def _is_list_of_labels(value: Any) -> bool:
    held = parse_list(value) if isinstance(value, str) else value
    return isinstance(held, list) and all(isinstance(one, str) and not is_text(one) for one in held)


def _can_be_text(value: Any) -> bool:
    return is_text(value) or isinstance(value, bytes) or _is_list_of_words(value)


def _is_list_of_words(value: Any) -> bool:
    held = parse_list(value) if isinstance(value, str) else value
    return isinstance(held, list | Mapping) and holds_words(held)


def changes_task(name: str, value: Any) -> bool:
    """Return whether a field beside a text changes what that asks for."""
    plain = fields.normalise_name(name)
    is_task = fields.name_kind(name) in ("task", "number")
    return (is_task or plain in (*fields.SYSTEM, *fields.MATERIAL)) and holds_words(value)


def holds_words(value: Any) -> bool:
    """Return whether there is more in a value than numbers and truth values."""
    if isinstance(value, Mapping):
        return any(map(holds_words, value.values()))
    if isinstance(value, list | tuple):
        return any(map(holds_words, value))
    if isinstance(value, bytes):
        return bool(value)
    return isinstance(value, str) and not is_empty(value) and not is_number(value)
