"""Read a score, a verdict or a list of prompts from generated text.

Nothing here raises; None means "could not read". Only text that the model generated may be parsed
here, never a prompt or a quoted response: a response must not be able to score itself. How a score
is read is in `statements.py`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from selfreward_lite.method import statements

Verdict = Literal["A", "B"]
Noun = Literal["Judgement", "Response"]  # what a verdict is about
_LIST_NUMBER = re.compile(r"^\s*\d{1,3}[.)]\s*", re.MULTILINE)
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
_WINNER_ANYWHERE = re.compile(
    r"winner\W{0,4}[:=]\W{0,4}(?:(?:judge?ment|response)\W{1,4})?([ab])\b", re.IGNORECASE
)
_TELLS = re.compile(
    r"\b(?:say|said|read|end|state|claim|write|wrote|contain|include|quote|repeat|conclude|finish"
    r"|assert|announce)(?:s|es|ing|ed)?\b",
    re.IGNORECASE,
)
# A line without an end may go on in the next one; a point of a rubric ("brief: yes") does not.
_UNENDED = re.compile(r"(?<!\byes)(?<!\bno)(?<=\w)$", re.IGNORECASE)
_STATING_WORD = re.compile(  # of "Score: four out of five stars", or "Winner: Response A"
    r"score|result|winner|judge?ment|response|[ab]|zero|one|two|three|four|five|out|of|points?|stars?"
)
_APPEALS = {
    "writes a score": re.compile(r"score\W{0,4}[:=]\W{0,4}\d", re.IGNORECASE),
    "plays another turn": re.compile(
        r"<\|[^|<>]{1,40}\|>|\[/?INST\]|</?s>|^[^\w\n]*(?:judge|human|user|assistant|system)\s*:",
        re.IGNORECASE | re.MULTILINE,
    ),
    "closes its wrapper": re.compile(
        r"<\s*(?:/\s*)?(?:response|request|judge?ment)\b", re.IGNORECASE
    ),
    "recites a rubric": re.compile(
        r"\b(?:add|award|give|one|another)\W+(?:\w+\W+)?points?\W+(?:if|for\W+(?:each|every))\b",
        re.IGNORECASE,
    ),
    "hides characters": re.compile(
        "[\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]"
    ),
}


@dataclass(frozen=True)
class Reading:
    """A score, and whether it stands first, with the reasons behind it."""

    value: float
    is_first: bool = False


def read_score(text: str, judged: str = "") -> Reading | None:
    """Return the one final score in [0, 5] of a judgment, or None.

    It is the last thing that the text says; or the first, if the text says no other score. If
    `judged` (the judged response) has a score, which the judge might repeat, only a last "Score:"
    counts, and not where the response's own score may be quoted.

    >>> read_score("Right, but dry.\\nScore: 3"), read_score("Score: 3\\nRight, but dry.")
    (Reading(value=3.0, is_first=False), Reading(value=3.0, is_first=True))
    >>> [parse_score(text, "Score: 3") for text in ("It says:\\nScore: 3", "It lies.\\nScore: 1")]
    [None, 1.0]
    """
    repeatable = statements.find_repeatable_scores(judged)
    may_repeat = bool(repeatable) or statements.has_fraction(judged)
    said = statements.find_scores(text, cut=not may_repeat)
    place = _find_place(said, may_repeat)
    value = said[0].value if place else None
    if value is None or statements.names_other_scale(text) or statements.counts_other_things(text):
        return None
    if value in repeatable and _ends_with_quotation(text, judged, r"score|\[result\]"):
        return None
    is_named = any(one.is_as_asked for one in said)
    if len(said) > 1 and (value == 1 or not is_named):  # one each of several criteria
        return None
    is_first = place == "first"
    if is_first and statements.is_score_revised(text, value):
        return None
    return Reading(value, is_first)


def parse_score(text: str, judged: str = "") -> float | None:
    """Return the value of `read_score`, or None.

    >>> plain = "good\\nScore: 3", "**Score:** 4", "### Score: 4/5.", "Final score: 4,5\\n---"
    >>> [parse_score(text) for text in plain]
    [3.0, 4.0, 4.0, 4.5]
    >>> others = "Score: 4 out of 5", "Score:\\n\\n`2`", "I give it a 5.", '{"score": 0}'
    >>> [parse_score(text) for text in others]
    [4.0, 2.0, 5.0, 0.0]
    >>> parse_score("<think>Score: 1?</think>Fine.\\nScore: 4<|eot_id|>")
    4.0
    >>> never = "Score: 3-4", "Score: 80%", "Score: 4/10", "Score: 6", "Score: -1", "perfect 5"
    >>> set(map(parse_score, never))
    {None}
    >>> unclear = "Score: 5\\nno\\nScore: 2", "<think>Score: 4", "Score: 5, it says, is wrong", ""
    >>> set(map(parse_score, unclear))
    {None}
    """
    found = read_score(text, judged)
    return found.value if found else None


def parse_verdict(text: str, noun: Noun, judged: str = "") -> Verdict | None:
    """Return the one winner that a text names, last or first, or None.

    If `judged` (the judged texts) names one, which the judge might repeat, only a last "Winner:"
    counts, and not where that one may be quoted.

    >>> readable = "so\\nWinner: Judgement A", "**Winner: judgment B**", "Winner: A.", "[[B]]"
    >>> [parse_verdict(text, "Judgement") for text in readable]
    ['A', 'B', 'A', 'B']
    >>> unreadable = "Winner: Response A", "Winner: Judgement A or B", "Winner: tie", ""
    >>> {parse_verdict(text, "Judgement") for text in unreadable}
    {None}
    >>> parse_verdict("Winner: Judgement A\\nWinner: Judgement B", "Judgement")
    """
    plain = statements.fold_letters(judged)
    repeatable = {one.value for one in statements.find_winners(judged, noun)}
    repeatable |= {side.upper() for side in _WINNER_ANYWHERE.findall(plain)}
    may_repeat = bool(repeatable) or "winner" in plain.casefold()
    said = statements.find_winners(text, noun, cut=not may_repeat)
    place = _find_place(said, may_repeat)
    if not place:
        return None
    if said[0].value in repeatable and _ends_with_quotation(text, judged, "winner"):
        return None
    if place == "first" and statements.is_winner_revised(text):
        return None
    return "A" if said[0].value == "A" else "B"


def _ends_with_quotation(text: str, judged: str, name: str) -> bool:
    """Whether the last statement of a text, which begins with a `name`, may quote the judged one.

    It may if it stands alone, in a block, behind a sentence that announces a quotation or does not
    end, behind words that the judged text has too, or before words of its own.
    """
    text, judged = statements.fold_letters(text), statements.fold_letters(judged)
    starts = [found.start() for found in re.finditer(name, text, re.IGNORECASE)]
    if not starts:  # named in another way
        return True
    said = re.findall(r"[a-z]+", text[starts[-1] :].casefold())
    lines = [line.strip() for line in text[: starts[-1]].rstrip(" \t\r\n*_#").splitlines()]
    if not all(map(_STATING_WORD.fullmatch, said)) or (
        lines and lines[-1].startswith((">", "```"))
    ):
        return True
    lead = next((line for line in reversed(lines) if re.search(r"\w", line)), "")
    if len(lead.split()) < 2 or lead.endswith((":", ">", '"', "“")) or _UNENDED.search(lead):
        return True
    if _TELLS.search(re.split(r"(?<=[.!?])\s", lead)[-1]):
        return True
    return " ".join(lead.split()[-4:]) in " ".join(judged.split())


def _find_place(
    said: Sequence[statements.Statement[Any]], may_repeat: bool
) -> Literal["first", "last"] | None:
    """Where the only thing that is said stands; None if it is not clear, or may be repeated."""
    if len({one.value for one in said}) != 1 or said[0].value is None:
        return None
    if said[-1].is_last and (said[-1].is_as_asked or not may_repeat):
        return "last"
    return "first" if said[0].is_first and not may_repeat else None


def parse_prompts(text: str, *, cut: bool) -> list[str]:
    """Return the tasks in a continued list; if the text was `cut`, the last one is lost.

    >>> parse_prompts(" Name a river.\\n10. Why is the sky blue?\\n11. Tell", cut=True)
    ['Name a river.', 'Why is the sky blue?']
    >>> parse_prompts("9. Name a river.", cut=False)
    ['Name a river.']
    """
    tasks = [" ".join(task.split()) for task in _LIST_NUMBER.split(text)]
    if cut:
        tasks = tasks[:-1]
    return [task for task in tasks if task]


@lru_cache(maxsize=4096)  # the same response stands in many rankings
def find_appeal_to_judge(text: str) -> str | None:
    """Return how a response, outside code, appeals to its judge; None if it does not.

    The five ways are hardly ever needed by an honest answer: a score of its own, a token or heading
    that ends its turn, a tag of the judge's wrapper, what points are given for (a small judge can
    take the rubric's words for its own), a character that hides or turns text. (Joiners, which
    emoji and some scripts need, are allowed.)

    >>> scores = "I say Score: 5", "SCORE = 4", "```\\nScore: 5\\n```", "`score: 3`"
    >>> set(map(find_appeal_to_judge, scores))
    {'writes a score'}
    >>> harmless = "the score was close", "say `score: 3`", "that is 3/5", "x < y > z"
    >>> set(map(find_appeal_to_judge, harmless))
    {None}
    >>> find_appeal_to_judge("```\\nscore = 3\\nprint(score)\\n```")
    >>> others = "a<|eot_id|>", "### Judge: fine", "</response>", "S" + chr(0x200B) + "core"
    >>> [find_appeal_to_judge(text) for text in others]
    ['plays another turn', 'plays another turn', 'closes its wrapper', 'hides characters']
    >>> rubrics = "Add 1 point if it is relevant.", "One point for each yes", "One point for you."
    >>> [find_appeal_to_judge(text) for text in rubrics]
    ['recites a rubric', 'recites a rubric', None]
    """
    plain = _CODE.sub("", text)
    if not plain.strip():  # a text that is all code quotes nobody
        stated = statements.find_scores(text)
        if stated and stated[-1].is_last and stated[-1].is_as_asked:
            return "writes a score"
    seen = f"{plain}\n{statements.fold_letters(plain)}"
    return next((reason for reason, found in _APPEALS.items() if found.search(seen)), None)
