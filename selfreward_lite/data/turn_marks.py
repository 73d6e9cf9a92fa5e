"""Marks of turns in one text (`Human:`, `**User:**`, `<|user|>`): where a dialogue is taken apart.

A text is a dialogue if it begins with the mark of a turn and both sides speak under marks of that
kind. Where it is not certain what is meant, the text is refused, or stays one prompt.
"""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from selfreward_lite.data.rows import BadRow

Role = Literal["system", "user", "assistant"]
ROLES: dict[str, Role] = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt"), "assistant"),
    **dict.fromkeys(("ai", "chatbot", "bard", "bing"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}


class MarkedTurn(NamedTuple):
    """What stands between two marks; `name` is what the first of them calls the speaker."""

    name: str
    content: str


# Who speaks, where people write it. Other speakers ("Bard:", "Customer:") may be of a play.
_NAMES = (
    r"user|human|prompter|system|assistant|ai assistant|ai|bot|chat ?bot|chat ?gpt"
    r"|gpt(?:-?\d[\w.-]*)?|claude|gemini|copilot|bing"
)
_LINE = r"^[^\S\n]*"
_COLON = "[:：]"
_PLAIN = re.compile(rf"{_LINE}({_NAMES}){_COLON}", re.I | re.M)
# In words, which a text may hold that is no dialogue. The group is the speaker.
_IN_WORDS = (
    re.compile(rf"###[^\S\n]?({_NAMES}){_COLON}", re.I),
    re.compile(rf"^#{{2,4}}[^\S\n]*\**({_NAMES})\**[^\S\n]*(?:{_COLON}\**|$)", re.I | re.M),
    _PLAIN,
    re.compile(
        rf"{_LINE}(?:\*\*?|__)({_NAMES})(?:{_COLON}(?:\*\*?|__)|(?:\*\*?|__)[^\S\n]*{_COLON})",
        re.I | re.M,
    ),
    # Alone in its line, a name in small letters is a section of a file of settings.
    re.compile(
        rf"{_LINE}\[({_NAMES}):?\](?:{_COLON}|(?-i:(?<=[A-Z]\]))|(?=[^\S\n]+\S))", re.I | re.M
    ),
    re.compile(rf"(?:^|(?<=>))[^\S\n]*<({_NAMES})>{_COLON}?", re.I | re.M),
    re.compile(r"\b(USER|HUMAN|ASSISTANT|SYSTEM):"),
    re.compile(r"^[^\S\n]*(you|chatgpt|claude|gemini) said:?[^\S\n]*$", re.I | re.M),
)
_IN_MARKUP = (
    re.compile(r"<\|im_start\|>(\w+)\s"),
    re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>"),
    re.compile(r"<start_of_turn>(\w+)\s"),
    re.compile(r"<[|｜](system|user|prompter|assistant)[|｜]>", re.I),
    re.compile(r"\[\|[^\S\n]?(system|user|human|assistant|ai|bot)[^\S\n]?\|\]:?", re.I),
)
_BEGIN = re.compile(r"(?:<s>|<bos>|<\|begin_of_text\|>|<｜begin▁of▁sentence｜>|\s)*")
_ENDS = (
    *("<|im_end|>", "<|eot_id|>", "<|end|>", "<|endoftext|>", "<end_of_turn>", "</s>"),
    "<｜end▁of▁sentence｜>",
)
# Where these stand inside of a text, it is not only a user's.
_MARKUP = re.compile(
    r"<[|｜][A-Za-z][\w▁]*[|｜]>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>|<extra_id_\d+>"
    r"|\[\|(?:system|[Uu]ser|[Hh]uman|[Aa]ssistant|AI|[Bb]ot)\|\]"
)
_FILLED = re.compile(
    r"###\s?(?:(?i:Human|User)|Instruction)\b.*?"
    r"(?P<mark>###\s?(?:(?i:Assistant|AI|Bot)(?=:)|Assistant\b|Response\b))"
    r"|\bUSER:.*?\b(?P<name>ASSISTANT:)",
    re.DOTALL,
)

_ORDER = (
    r"summari[sz]e|rewrite|rephrase|shorten|continue|complete|finish|translate|rate|judge|grade"
    r"|evaluate|score|classify|identify|describe|explain|write|list|check|fix|improve"
)
_TALK = (
    r"dialog(?:ue)?s?|conversations?|chats?|transcripts?|exchanges?|scenes?|scripts?|plays?|logs?"
    r"|examples?|following|below|above|formats?|templates?"
)
_SPEAKER = r"users?|humans?|bots?|assistants?|ai|chat ?bots?|chatgpt"
_ASKS_ABOUT_TURNS = re.compile(
    rf"(?:(?:now|please|then),? )*(?:(?:{_ORDER})\b.*\b(?:{_TALK}|{_SPEAKER})\b"
    rf"|(?:what|who|which|why|how|is|are|was|were|did|does|do|should|in)\b.*"
    rf"\b(?:the|that) (?:{_SPEAKER})\b)",
    re.I | re.S,
)
_KEY = re.compile(r"^[^\S\n]*[\w.-]+:(?=\s|\Z)", re.M)


def split_turns(text: str) -> list[MarkedTurn] | None:
    """Return the turns of a dialogue, None for any other text.

    Raises BadRow where marks stand elsewhere that no user writes, or where a dialogue, or a
    question with its answer, cannot be told from a prompt.

    >>> [turn.content for turn in split_turns("**User:** Hi\\n**Bot:** Ho") or []]
    ['Hi', 'Ho']
    >>> split_turns("Write a talk.\\nUser: Hi\\nBot: Ho") is None
    True
    """
    start = _BEGIN.match(text)
    body = text[start.end() :] if start else text
    for way in (*_IN_WORDS, *_IN_MARKUP):
        marks = _find_marks(way, body)
        if not marks or marks[0].start():  # the first one may be none
            continue
        if way in _IN_WORDS and not _is_dialogue(way, marks, body):
            continue
        turns = _cut(marks, body)
        for turn in turns:
            if name_role(turn.name) != "assistant":
                _refuse_markup(_MARKUP.search(turn.content))
        return turns
    _refuse_markup(_MARKUP.search(text) or _FILLED.search(text))
    _refuse_answered(body)
    _refuse_dialogue_behind_text(body)
    return None


def name_role(name: str) -> Role | None:
    """Return the role that a mark names, None if it is none.

    >>> [name_role(one) for one in ("Prompter", "GPT-4", "You", "Romeo")]
    ['user', 'assistant', 'user', None]
    """
    plain = name.strip().casefold()
    if plain == "you":
        return "user"
    return ROLES.get(plain) or ("assistant" if re.fullmatch(_NAMES, plain) else None)


def _find_marks(way: re.Pattern[str], body: str) -> list[re.Match[str]]:
    """The marks of one kind, if a text begins with one.

    `user:pass` is none: behind a name in small letters there must be a space.
    """
    if not way.match(body):
        return []
    return [
        mark
        for mark in way.finditer(body)
        if not mark[1].islower()
        or way is not _PLAIN
        or not body[mark.end() : mark.end() + 1].strip()
    ]


def _is_dialogue(way: re.Pattern[str], marks: Sequence[re.Match[str]], body: str) -> bool:
    if not {"user", "assistant"} <= {name_role(mark[1]) for mark in marks}:
        return False
    are_small = way is _PLAIN and all(mark[1].islower() for mark in marks)
    if are_small and len(_KEY.findall(body)) > len(marks):  # settings: `user: a`, `port: 1`
        return False
    return not _asks_about_turns(_cut(marks, body)[-1])


def _asks_about_turns(last: MarkedTurn) -> bool:
    """Whether a request about a dialogue stands behind it, in a paragraph of its own."""
    *before, asked = re.split(r"\n[^\S\n]*\n", last.content)
    return bool(before) and _ASKS_ABOUT_TURNS.match(asked.strip()) is not None


def _cut(marks: Sequence[re.Match[str]], body: str) -> list[MarkedTurn]:
    ends = [*(mark.start() for mark in marks[1:]), len(body)]
    return [
        MarkedTurn(mark[1], _strip_end(body[mark.end() : end], mark[1]))
        for mark, end in zip(marks, ends, strict=True)
    ]


def _strip_end(content: str, name: str) -> str:
    """What one says, without what ends a turn or a text."""
    content = content.strip()
    ends = (*_ENDS, f"</{name}>")
    while end := next((one for one in ends if content.endswith(one)), None):
        content = content.removesuffix(end).strip()
    return content


def _refuse_markup(found: re.Match[str] | None) -> None:
    if found:
        mark = next(filter(None, reversed(found.groups())), found[0])
        raise BadRow(
            f"the text holds {mark!r}, markup of a chat template, which no prompt may hold: of a "
            "dialogue or a filled template give the user's text alone; in a text about such markup "
            "write it with spaces"
        )


# -- what is refused -----------------------------------------------------------------------------

_ASKING = r"question|instruction|instruct|prompt"
_SAYING = r"answer|response|completion|output"
_ANSWERED = (
    re.compile(
        rf"(?:###[^\S\n]?|^#{{2,4}}[^\S\n]*)\**({_ASKING}|{_SAYING})\**[^\S\n]*(?:{_COLON}\**|$)",
        re.I | re.M,
    ),
    re.compile(
        rf"{_LINE}(?:\*\*|__)({_ASKING}|{_SAYING})(?:{_COLON}(?:\*\*|__)|(?:\*\*|__){_COLON})",
        re.I | re.M,
    ),
    # Not `Question:` and `Answer:`: so people write examples, and ask to check an answer.
    re.compile(
        rf"{_LINE}(instruct(?:ion)?|prompt|response|completion|output){_COLON}", re.I | re.M
    ),
)
_IN_TAGS = re.compile(
    rf"\s*<({_ASKING}|query|problem)>.*?</\1>\s*(?:<think>.*?</think>\s*)?"
    rf"(?P<mark><({_SAYING}|solution)>)\s*(?P<said>\S.*?)\s*</\3>\s*",
    re.I | re.S,
)
_HEADING = re.compile(r"^#{2,4}[^\S\n]*\w", re.M)
_MATERIAL_HEADING = re.compile(r"^#{2,4}[^\S\n]*\**(?:input|context)\b", re.I | re.M)
_LABEL = re.compile(r"^[^\S\n]*\**[A-Z][\w ]{0,20}:", re.M)
_BEGUN = re.compile(r"\(|.*(?:[:(…]|\.\.\.|step[ -]by[ -]step\.?)\Z", re.I | re.S)
_ASKS_ABOUT_ANSWER = re.compile(
    rf"(?:(?:now|please|then),? )*(?:{_ORDER}|is|was|does|did|how)\b", re.I
)


def _refuse_answered(body: str) -> None:
    """Raise BadRow for a text that is a question with its answer, under marks of one kind.

    If the last answer is empty, only begun, or asked about, the text is a prompt.
    """
    if (tags := _IN_TAGS.fullmatch(body)) and not _BEGUN.match(tags["said"]):
        raise _find_answer(tags["mark"])
    for way in _ANSWERED:
        marks = _find_marks(way, body)
        if len(marks) < 2 or len(marks) % 2:
            continue
        turns = _cut(marks, body)
        asking = [re.fullmatch(_ASKING, turn.name, re.I) is not None for turn in turns]
        if asking != [True, False] * (len(turns) // 2) or not all(turn.content for turn in turns):
            continue
        *before, end = re.split(r"\n[^\S\n]*\n", turns[-1].content)
        if _BEGUN.match(turns[-1].content) or (before and _ASKS_ABOUT_ANSWER.match(end.strip())):
            continue
        if any(map(_has_parts, turns[::2])):
            continue
        if turns[0].name.casefold() == "question" and turns[1].name.casefold() == "output":
            continue  # what a program should print
        if way is _ANSWERED[-1] and any(_LABEL.search(turn.content) for turn in turns):
            continue
        raise _find_answer(marks[1][0].strip())


def _find_answer(mark: str) -> BadRow:
    return BadRow(
        f"the text is a request with its answer (behind {mark!r}); give the request alone"
    )


def _has_parts(asked: MarkedTurn) -> bool:
    """Whether a request has headings of its own; an instruction may have an input."""
    headings = len(_HEADING.findall(asked.content))
    if asked.name.casefold().startswith("instruct"):
        headings -= len(_MATERIAL_HEADING.findall(asked.content))
    return headings > 0


_USER_MARK = re.compile(r"\n[^\S\n]*\n[^\S\n]*(Human|HUMAN|User|USER):")
# Behind a context it may stand in the next line.
_CONTEXT = re.compile(r"(?:Context|CONTEXT|Background|Passage|Document|Article|Knowledge)[:：]")
_USER_BEHIND_CONTEXT = re.compile(r"\n[^\S\n]*(Human|HUMAN|User|USER):")
_SENTENCE_END = re.compile(r"(?<=[.?!])\s+|\n")
_ASSISTANT_MARK = re.compile(r"\n[^\S\n]*(?:Assistant|ASSISTANT|AI|Bot):")
_INTRODUCES = re.compile(
    r"(?:the following|this|below|here) is an? .*\b(?:between|with)\b"
    r"|an? (?:\w+ )?(?:chat|conversation|dialog(?:ue)?) (?:between|with)\b",
    re.I | re.S,
)
_PERSONA = re.compile(r"you(?:'re| are)\b", re.I)


def _refuse_dialogue_behind_text(body: str) -> None:
    """Raise BadRow for a dialogue behind a text that does not ask about it: a system prompt."""
    context = _CONTEXT.match(body)
    user = (_USER_BEHIND_CONTEXT if context else _USER_MARK).search(body)
    said = _ASSISTANT_MARK.search(body, user.end()) if user else None
    if not user or not said or _asks_about_turns(MarkedTurn("bot", body[said.end() :])):
        return
    before = body[: user.start()].strip()
    if context:  # whose words are no request, but for one at its end
        before = _SENTENCE_END.split(before)[-1]
    if _asks_about_what_follows(before):
        return
    raise BadRow(
        f"the text holds a dialogue behind other text (from {user[1] + ':'!r} on); give the user's "
        "text alone, or messages with roles"
    )


def _asks_about_what_follows(before: str) -> bool:
    """Whether a text before a dialogue is a request about it, and no system prompt."""
    talks = re.search(rf"\b(?:{_TALK})\b", before, re.I) is not None
    if talks and re.search(rf"\b(?:{_ORDER})\b", before, re.I):
        return True
    if _INTRODUCES.match(before):
        return False
    return before.endswith((":", "?", "：", "？")) or (talks and not _PERSONA.match(before))
