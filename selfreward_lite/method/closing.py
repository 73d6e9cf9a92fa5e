"""The end of a judgment whose judge wrote no score, or no winner, that can be read.

The engine goes on behind the judgment with fixed text ("Score:"), and gives the judge's own
probabilities for what may follow. One of the choices is drawn, as the judge would have drawn it.
A response cannot write there: the text is fixed, and only the next token counts.
"""

import math
import random
from collections.abc import Sequence
from functools import lru_cache

from selfreward_lite.engine.api import Bracket, Closing, Probe, Sampling
from selfreward_lite.method.parsing import Noun
from selfreward_lite.models.chat_format import ChatFormat

SCORES = ("0", "1", "2", "3", "4", "5")
SIDES = ("A", "B")


@lru_cache(maxsize=8)
def make_score_probe(chat: ChatFormat) -> Probe | None:
    """Return the probe for the six digits after "Score:"; None if a digit is not a single token."""
    found = _find_choices(chat, "Score: ", SCORES)
    return Probe(found[1], after="score:") if found else None


@lru_cache(maxsize=8)
def make_score_closing(chat: ChatFormat) -> Closing | None:
    """Return what ends a judgment with a score; None if a digit is not a single token."""
    return _make_closing(chat, "\nScore: ", SCORES)


@lru_cache(maxsize=8)
def make_verdict_closing(chat: ChatFormat, noun: Noun) -> Closing | None:
    """Return what ends a comparison with a winner; None if A or B is not a single token."""
    return _make_closing(chat, f"\nWinner: {noun} ", SIDES)


def can_close(chat: ChatFormat) -> bool:
    """Return whether every judgment and verdict can be closed with the tokens of this model."""
    verdicts = (make_verdict_closing(chat, "Judgement"), make_verdict_closing(chat, "Response"))
    return None not in (make_score_closing(chat), *verdicts)


def draw_choice(
    probabilities: Sequence[float], sampling: Sampling, seed: int, choices: Sequence[str]
) -> str | None:
    """Return one of the choices, drawn with a judge's settings; None if all have probability 0.

    Temperature, `top_k` and `top_p` are applied to the choices alone, as if nothing else could
    follow.

    >>> warm = Sampling(temperature=1.0, top_p=1.0, max_tokens=9)
    >>> drawn = [draw_choice((0.0, 0.1, 0.3), warm, seed, "ABC") for seed in range(1000)]
    >>> [round(drawn.count(letter) / 1000, 1) for letter in "ABC"]
    [0.0, 0.2, 0.8]
    >>> draw_choice((0.4, 0.6), warm.model_copy(update={"temperature": 0.0}), 1, "AB")
    'B'
    """
    ranked = sorted(zip(probabilities, choices, strict=True), key=lambda one: -one[0])
    ranked = [one for one in ranked if one[0] > 0]
    if not ranked or sampling.temperature <= 0:
        return ranked[0][1] if ranked else None
    ranked = ranked[: sampling.top_k or None]
    top = math.log(ranked[0][0])
    weights = [math.exp((math.log(share) - top) / sampling.temperature) for share, _ in ranked]
    total, kept = math.fsum(weights), 0
    while kept < len(weights) and math.fsum(weights[:kept]) < sampling.top_p * total:
        kept += 1
    names = [choice for _, choice in ranked[:kept]]
    return random.Random(seed).choices(names, weights[:kept])[0]


def write_choice(closing_text: str, choice: str) -> str:
    """Return a closing with its choice; the space before it belongs to either, by the tokenizer.

    >>> write_choice("\\nScore: ", "4"), write_choice("\\nWinner: Judgement", "A")
    ('\\nScore: 4', '\\nWinner: Judgement A')
    """
    return f"{closing_text.rstrip(' ')} {choice}"


def _make_closing(chat: ChatFormat, text: str, choices: Sequence[str]) -> Closing | None:
    found = _find_choices(chat, text, choices)
    if found is None:
        return None
    brackets = [("```", "```"), ("<think>", "</think>")]
    ends = (Bracket(opens, end, _end_bracket(chat, end)) for opens, end in brackets)
    return Closing(*found, tuple(ends))


def _end_bracket(chat: ChatFormat, end: str) -> tuple[int, ...]:
    """The tokens of an end on a new line; some models have a token of their own for it."""
    if end in chat.special:
        return (*_ids_behind_text(chat, "\n"), chat.special[end])
    return _ids_behind_text(chat, f"\n{end}")


def _ids_behind_text(chat: ChatFormat, text: str) -> tuple[int, ...]:
    """The tokens of a text that goes on; SentencePiece puts a space before one that begins."""
    lead, ids = chat.text_ids("a"), chat.text_ids(f"a{text}")
    return tuple(ids[len(lead) :] if ids[: len(lead)] == lead else chat.text_ids(text))


def _find_choices(
    chat: ChatFormat, text: str, choices: Sequence[str]
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The tokens of a text, and the token of each choice behind it; None if one is not a token."""
    lines = [_ids_behind_text(chat, text + choice) for choice in choices]
    starts = {line[:-1] for line in lines}
    return (lines[0][:-1], tuple(line[-1] for line in lines)) if len(starts) == 1 else None
