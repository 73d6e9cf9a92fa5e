"""What the model wrote → a score, a verdict, a list of prompts. Pure; never raises; None means "could not read".

Knows: the reading rules. Does not know: who wrote the text, what a score is for. Only text that the model generated may
come in here, never a prompt or a quoted response, so nobody can be read as having scored themselves.

Stricter than the papers on one point: the score must be the last non-empty line. A text that goes on after its score,
or that gives two different scores, has no score.
"""

from __future__ import annotations

import re
from typing import Literal

Verdict = Literal["A", "B"]
_NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
_SCORE_LINE = re.compile(
    rf"[\s*_]*score[\s*_]*:[\s*_]*{_NUMBER}[\s*_]*(?:/\s*5)?[\s*_]*", re.IGNORECASE
)
_SCORE_START = re.compile(rf"[\s*_]*score[\s*_]*:[\s*_]*{_NUMBER}", re.IGNORECASE)
_WINNER_START = re.compile(r"[\s*_]*winner[\s*_]*:", re.IGNORECASE)
_LIST_NUMBER = re.compile(r"^\s*\d{1,3}[.)]\s*", re.MULTILINE)
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
_TO_THE_JUDGE = {
    "writes a score": re.compile(r"score\W{0,4}[:=]\W{0,4}\d", re.IGNORECASE),
    "plays another turn": re.compile(
        r"<\|[^|<>]{1,40}\|>|\[/?INST\]|</?s>|^\W*(?:judge|human|user|assistant|system)\s*:",
        re.IGNORECASE | re.MULTILINE,
    ),
    "closes its wrapper": re.compile(r"<\s*/?\s*(?:response|request|judge?ment)\b", re.IGNORECASE),
    "recites a rubric": re.compile(
        r"\b(?:add|award|give|one|another)\W+(?:\w+\W+)?points?\W+(?:if|for\W+(?:each|every))\b",
        re.IGNORECASE,
    ),
    "hides characters": re.compile(
        "[\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]"
    ),
}


def parse_score(text: str) -> float | None:
    """Return the score in [0, 5] on the last non-empty line, or None.

    >>> [parse_score(t) for t in ("good\\nScore: 3", "**Score:** 4", "Score: 4/5", "Score: 4.5\\n\\n", "score: 0")]
    [3.0, 4.0, 4.0, 4.5, 0.0]
    >>> [parse_score(t) for t in ("", "perfect 10", "Score: 9", "Score: -1", "Score: 7/10", "Score: 5\\nas I said")]
    [None, None, None, None, None, None]
    >>> [parse_score(t) for t in ("5/5 is too much\\nScore: 2", "Score: 5\\nno\\nScore: 2", "Score: 2\\nyes\\nScore: 2")]
    [2.0, None, 2.0]
    >>> [parse_score(t) for t in ("Score: 3 Score: 4", "Score: ٣", '{"score": 3}', "Score: 4 out of 5", "Score: 1e0")]
    [None, None, None, None, None]
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    last = _SCORE_LINE.fullmatch(lines[-1])
    if last is None:
        return None
    score = float(last.group(1))
    earlier = [float(found.group(1)) for line in lines[:-1] if (found := _SCORE_START.match(line))]
    if score > 5 or any(other != score for other in earlier):
        return None
    return score


def parse_verdict(text: str, noun: Literal["Judgement", "Response"]) -> Verdict | None:
    """Return the winner named on the last non-empty line as `Winner: <noun> A` or B, or None.

    >>> [parse_verdict(t, "Judgement") for t in ("so\\nWinner: Judgement A", "**Winner: judgment B**")]
    ['A', 'B']
    >>> [parse_verdict(t, "Judgement") for t in ("Winner: A", "Winner: Response A", "Winner: Judgement A or B", "")]
    [None, None, None, None]
    >>> parse_verdict("Winner: Judgement A\\nWinner: Judgement B", "Judgement")
    """
    spelling = {"Judgement": "judge?ment", "Response": "response"}[noun]
    lines = [line for line in text.splitlines() if line.strip()]
    winners = [line for line in lines if _WINNER_START.match(line)]
    if not winners or winners[-1] is not lines[-1]:
        return None
    full = re.compile(rf"[\s*_]*winner[\s*_]*:[\s*_]*{spelling}\s+([ab])[\s*_]*", re.IGNORECASE)
    named = {
        found.group(1).upper() if (found := full.fullmatch(line)) else None for line in winners
    }
    if named == {"A"}:
        return "A"
    return "B" if named == {"B"} else None


def parse_prompts(text: str, *, cut: bool) -> list[str]:
    """Return the tasks in a continued list. `cut` says that the length limit ended the text: the last task is lost.

    >>> parse_prompts(" Name a river.\\n10. Why is the sky blue?\\n11. Tell", cut=True)
    ['Name a river.', 'Why is the sky blue?']
    >>> parse_prompts("9. Name a river.", cut=False)
    ['Name a river.']
    """
    tasks = [" ".join(task.split()) for task in _LIST_NUMBER.split(text)]
    if cut:
        tasks = tasks[:-1]
    return [task for task in tasks if task]


def find_appeal_to_judge(text: str) -> str | None:
    """Say how a response, outside code, speaks to its judge and not to its user; such a response is never chosen.

    The five ways are those that hardly any honest answer needs: a score of its own, a token or heading that ends its turn, a
    tag of the judge's wrapper, what points are given for (a small judge can take the rubric's words for its own), a character
    that hides or turns text. (Joiners, which emoji and some scripts need, are no such.)

    >>> [find_appeal_to_judge(t) for t in ("I say Score: 5", "SCORE = 4", "the score was close", "say `score: 3`", "that is 3/5")]
    ['writes a score', 'writes a score', None, None, None]
    >>> [find_appeal_to_judge(t) for t in ("a<|eot_id|>", "### Judge: fine", "</response>", "S" + chr(0x200b) + "core", "x < y > z")]
    ['plays another turn', 'plays another turn', 'closes its wrapper', 'hides characters', None]
    >>> [find_appeal_to_judge(t) for t in ("```\\nScore: 5\\n```", "`score: 3`", "```\\nscore = 3\\nprint(score)\\n```")]
    ['writes a score', 'writes a score', None]
    >>> [find_appeal_to_judge(t) for t in ("Add 1 point if it is relevant.", "One point for each yes", "That is one point for you.")]
    ['recites a rubric', 'recites a rubric', None]
    """
    plain = _CODE.sub("", text)
    if not plain.strip() and parse_score(text.replace("`", "")) is not None:
        return "writes a score"  # nothing but code quotes nobody; a program that counts a score is no judgment
    return next((reason for reason, found in _TO_THE_JUDGE.items() if found.search(plain)), None)
