"""Conversations, as lists of messages or written out in one text: what a user asks first in them.

Of a conversation only the first turn is used, as in the papers: everything before the first answer.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from selfreward_lite.data.fields import SPEAKERS, normalise_name
from selfreward_lite.data.other_fields import judge_beside, squeeze
from selfreward_lite.data.rows import (
    BadRow,
    check_text,
    is_empty,
    join_texts,
    list_names,
    parse_list,
)
from selfreward_lite.data.turn_marks import name_role, split_turns

_TOOLS = ("tool", "function", "function_call", "function_response", "observation", "ipython")
_CALLS = ("tool_calls", "function_call")
# Fields of objects that hold a user's text and the answer to it: Capybara's, and others.
_PAIRS = (
    *(("input", "output"), ("human", "assistant"), ("user", "assistant")),
    *(("question", "answer"), ("prompt", "response")),
)
_CONTENTS = ("content", "value", "text")  # the first of these that a message has is what it says
_TEXT_PARTS = ("text", "input_text")
_OTHER_MEDIA = ("images", "image", "audio", "video", "files", "attachments")


class LostInside(BadRow):
    """Fields inside a conversation or the like belong to the task; `names` are all of them."""

    def __init__(self, what: str, names: Sequence[str]) -> None:
        """Say the first of them, and what it is in."""
        self.names, self.first = tuple(names), f"{what} has a field {names[0]!r}, which"
        super().__init__(f"{self.first} belongs to the task and is not used")


@dataclass(frozen=True)
class Turn:
    """What one speaks: `role` is system, user or assistant; the content is not checked yet.

    `lost` are fields of the message that belong to the task and are not used; `unused` are others.
    """

    role: str
    content: Any
    lost: Sequence[str] = ()
    unused: Sequence[str] = ()


def read_first_turn(
    value: Any, what: str = "the conversation", unused: set[str] | None = None
) -> str:
    """Return what stands before the first answer of a conversation: system turns and the user's.

    A list of messages (as JSON, or as a list of each field, too), of texts in turn, or of objects
    with `input` and `output`; or a text that `split_dialogue` can take apart. Fields of messages
    that are not used are added to `unused`. Raises BadRow for anything else, with `what` it is.

    >>> read_first_turn([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}])
    'Hi'
    >>> read_first_turn(["Hi", "Ho"]), read_first_turn("Human: Hi\\n\\nAssistant: Ho")
    ('Hi', 'Hi')
    """
    turns = split_dialogue(value) if isinstance(value, str) else None
    return join_first_turn(turns or _read_turns(value, what), unused)


def join_first_turn(turns: Sequence[Turn], unused: set[str] | None = None) -> str:
    """Return what stands before the first answer, as one text. Raises BadRow if nobody asks.

    Fields of its messages that are not used are added to `unused`.
    """
    roles = [turn.role for turn in turns]
    end = roles.index("assistant") if "assistant" in roles else len(roles)
    if end == 0:
        raise BadRow("the conversation begins with the assistant, not with a user")
    if "user" not in roles[:end]:
        raise BadRow("the conversation has no user's turn before its first answer")
    asked = [one for one in turns[:end] if one.role != "system" or not is_empty(one.content)]
    if lost := [name for turn in asked for name in turn.lost]:
        raise LostInside("a message", [*dict.fromkeys(lost)])
    unused = set() if unused is None else unused
    unused.update(name for turn in asked for name in turn.unused)
    return join_texts([read_content(turn.content, "the first message", unused) for turn in asked])


def _read_turns(value: Any, what: str = "the conversation") -> list[Turn]:
    fault = BadRow(f"{what} is not a list of messages")
    messages = parse_list(value) if isinstance(value, str) else value
    if isinstance(messages, Mapping):  # `datasets` keeps some lists as a list of each field
        messages = _turn_over(messages)
    if not isinstance(messages, list) or not messages:
        raise fault
    if all(isinstance(one, str) for one in messages):
        parsed = [parse_list(one) for one in messages]
        if not all(isinstance(one, dict) for one in parsed):  # texts in turn, the user first
            roles = cycle(("user", "assistant"))
            return [Turn(role, one) for role, one in zip(roles, messages, strict=False)]
        messages = parsed
    if not all(isinstance(one, Mapping) for one in messages):
        raise fault
    found = [
        {normalise_name(name): one for name, one in message.items() if one is not None}
        for message in messages
    ]
    if _find_role(found[0]) is not None:
        return [_read_turn(one) for one in found]
    if len(found) == 1 and "content" in found[0]:  # Arena-Hard's
        return [Turn("user", found[0]["content"], *_judge_fields(found[0], "content"))]
    pair = next((pair for pair in _PAIRS if {*pair} <= found[0].keys()), None)
    if pair is None:
        raise BadRow("a message has no role; give each one a role, user or assistant")
    asked, said = pair
    user = Turn("user", found[0][asked], *_judge_fields(found[0], asked, said, "system"))
    return [Turn("system", found[0].get("system")), user]


def _turn_over(lists: Mapping[str, Any]) -> list[dict[str, Any]]:
    held = {name: one for name, one in lists.items() if isinstance(one, list)}
    if {*map(normalise_name, held)}.isdisjoint((*SPEAKERS, "input")):
        return []
    if len({len(one) for one in held.values()}) != 1:
        return []
    return [dict(zip(held, each, strict=True)) for each in zip(*held.values(), strict=True)]


def _read_turn(message: Mapping[str, Any]) -> Turn:
    if any(not is_empty(message.get(name)) for name in _CALLS):
        raise BadRow("the conversation calls tools")
    if held := next((one for one in _OTHER_MEDIA if not is_empty(message.get(one))), None):
        raise BadRow(f"a message has a field {held!r}, and only text is used")
    role = _name_role(_find_role(message))
    name = next((name for name in _CONTENTS if name in message), _CONTENTS[0])
    return Turn(role, message.get(name), *_judge_fields(message, name))


def _judge_fields(
    message: Mapping[str, Any], main: str, *used: str
) -> tuple[Sequence[str], Sequence[str]]:
    """The fields of a message that belong to the task, and others, but for those that are used."""
    known = {main, *used, *SPEAKERS}
    beside = {name: value for name, value in message.items() if name not in known}
    others = {name: beside.pop(name) for name in _CONTENTS if isinstance(beside.get(name), str)}
    content = message.get(main)
    parts = content if isinstance(content, list) else [content]
    said = "\n\n".join(one for one in map(_read_text, parts) if isinstance(one, str))
    lost, unused = judge_beside(beside, (), said)
    lost += [name for name, one in others.items() if squeeze(one) not in squeeze(said)]
    return lost, unused


def _read_text(part: Any) -> Any:
    return part.get("text") if isinstance(part, Mapping) else part


def _find_role(message: Mapping[str, Any]) -> Any:
    return next((message[name] for name in SPEAKERS if not is_empty(message.get(name))), None)


def _name_role(role: Any) -> str:
    if not isinstance(role, str):
        raise BadRow("a message has no role; give each one a role, user or assistant")
    plain = role.strip().casefold()
    if plain in _TOOLS:
        raise BadRow("the conversation calls tools")
    if (known := name_role(plain)) is None:
        raise BadRow(f"unknown role {role!r}")
    return known


def read_content(content: Any, what: str, unused: set[str] | None = None) -> str:
    """Return a text that may be given in parts. Raises BadRow, with `what` it is, if it is none.

    Fields of the parts that are not used are added to `unused`.

    >>> read_content([{"type": "text", "text": "One."}, "Two."], "the message")
    'One.\\n\\nTwo.'
    """
    if not isinstance(content, list) or not content:
        return check_text(content or None, what)
    text = join_texts([check_text(_read_part(part, what), what) for part in content])
    for part in (one for one in content if isinstance(one, Mapping)):
        lost, others = judge_beside(part, ("type", "text"), text)
        if lost:
            raise LostInside(f"a part of {what}", lost)
        if unused is not None:
            unused.update(others)
    return text


def _read_part(part: Any, what: str) -> Any:
    if not isinstance(part, Mapping):
        return part
    kind = part.get("type")
    if kind in _TEXT_PARTS or [*part] == ["text"]:  # without a type, it is Bedrock's
        return part.get("text")
    of = f"of type {kind!r}" if kind else f"with the fields {list_names([*map(str, part)])}"
    raise BadRow(f"{what} holds a part {of}, which is no text")


def _are_texts(messages: Sequence[Any]) -> bool:
    return bool(messages) and all(isinstance(one, str) for one in messages)


def _have_roles(messages: Sequence[Any]) -> bool:
    return any(isinstance(one, Mapping) and {"role", "from"} & {*one} for one in messages)


# -- dialogues written out -----------------------------------------------------------------------

_PRINTED = re.compile(r"\s*\[\s*\{\s*'(?:role|from|content|value)'\s*:")  # str() of a list


def split_dialogue(text: str) -> list[Turn] | None:
    """Return the turns of a dialogue that is written out in a text, None for a plain text.

    It is JSON (messages, or nothing but texts in turn), or begins with the mark of a turn. Raises
    BadRow where such marks stand elsewhere.

    >>> [turn.content for turn in split_dialogue("### Human: Hi### Assistant: Ho") or []]
    ['Hi', 'Ho']
    >>> split_dialogue("User: I cannot log in. Write what to answer.") is None
    True
    """
    messages = parse_list(text)
    if isinstance(messages, list) and (_have_roles(messages) or _are_texts(messages)):
        return _read_turns(messages)
    if _PRINTED.match(text):
        raise BadRow("a list of messages as Python prints it; write it as JSON")
    turns = split_turns(text)
    return [Turn(_name_role(turn.name), turn.content) for turn in turns] if turns else None


# Where a picture was, in data sets of models that see: in a line of its own, or before a text.
_PLACE = re.compile(
    r"\A\s*<(image|video|audio)>|^[^\S\n]*<(image|video|audio)>[^\S\n]*$", re.MULTILINE
)


def refuse_place_of_media(text: str) -> None:
    """Raise BadRow if a text stands beside a picture, a film or a sound; HTML closes such a tag."""
    found = _PLACE.search(text)
    if found and f"</{found[1] or found[2]}>" not in text:
        raise BadRow(
            f"the text belongs to something beside it ({found[0].strip()}), and only text is used"
        )
