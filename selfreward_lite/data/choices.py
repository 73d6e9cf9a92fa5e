"""Choices of a question under names of answers (`answerA`, `Answer 1`, `answers`), or of nothing.

One answer is an answer. Several with letters or numbers, or a list of which a label says the place,
are what the question asks to choose from.
"""

import re
from collections.abc import Mapping
from typing import Any

from selfreward_lite.data.fields import normalise_name
from selfreward_lite.data.rows import parse_list

# Options of quizzes, CosmosQA's `answer0`, SocialIQA's `answerA`, GPQA's `Incorrect Answer 1`.
_NUMBERED = re.compile(r"((?:(?:in)?correct_|wrong_)?answer)_?(?:[a-h]|\d{1,2})")
_LETTERS = re.compile(r"()(?:[a-h]|\d)")  # as columns of their own; the name before them is empty
_LISTS = ("answers", "answer_list", "possible_answers", "all_answers")  # ReClor's, QuAIL's
_PLACES = re.compile(
    r"label|labels|gold|target|answer|(?:correct|right|gold|true)(?:_answer|_option|_choice)?"
    r"|(?:(?:correct|right|gold|true|answer|label|option|choice)_)+(?:id|idx|index|key)"
)


def find_choices(held: Mapping[str, Any]) -> list[str]:
    """Return the fields of a row that are the choices of its question, by compared name.

    >>> find_choices({"question": "Which?", "answer_a": "Ice", "answer_b": "Fire", "label": 1})
    ['answer_a', 'answer_b']
    >>> find_choices({"question": "Which?", "answers": ["Ice", "Fire"], "label": 1})
    ['answers']
    >>> find_choices({"question": "Which?", "answers": ["Ice", "Ice, of course"]})
    []
    """
    groups: dict[str, list[str]] = {}
    for name in held:
        if found := _NUMBERED.fullmatch(name) or _LETTERS.fullmatch(name):
            # GPQA has one correct answer and several that are not.
            group = found[1].rpartition("_")[2]
            groups.setdefault(group or ("1" if name.isdigit() else "a"), []).append(name)
    for begin in ({"a", "b"}, {"1", "2"}):  # x, y or a alone are something else
        if not begin <= held.keys():
            groups.pop(min(begin), None)
    numbered = {name for names in groups.values() if len(names) > 1 for name in names}
    return [name for name in held if name in numbered or _is_list_of_choices(name, held)]


def may_be_choice(name: str) -> bool:
    """Return whether a field of this name may hold choices, or say which of them is right."""
    plain = normalise_name(name)
    ways = (_NUMBERED, _LETTERS, _PLACES)
    return plain in _LISTS or any(way.fullmatch(plain) for way in ways)


def _is_list_of_choices(name: str, held: Mapping[str, Any]) -> bool:
    if name not in _LISTS:
        return False
    value = held[name]
    answers = parse_list(value) if isinstance(value, str) else value
    if not isinstance(answers, list) or len(answers) < 2:
        return False
    if not all(isinstance(one, str) for one in answers):
        return False
    others = {other: one for other, one in held.items() if other != name}
    return any(
        _PLACES.fullmatch(other) and _is_place(one, len(answers)) for other, one in others.items()
    )


def _is_place(value: Any, count: int) -> bool:
    """Whether a value is a place in a list: a number, or a letter."""
    text = str(value).strip().removesuffix(".0").casefold()
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return False
    if len(text) == 1 and text in "abcdefgh":
        return "abcdefgh".index(text) < count
    return text.isdecimal() and int(text) <= count
