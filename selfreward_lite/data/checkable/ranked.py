"""Ranked answers to checkable requests in OASST's schema, to measure a judge with.

No person ranked or wrote them: `answers` writes them by program, and the exact score ranks them. A
judge's accuracy on them says how well it sees which constraints are kept, not how well it judges.
"""

import random
from collections.abc import Iterator
from itertools import combinations
from typing import Any

from selfreward_lite.data.checkable.answers import write_answer
from selfreward_lite.data.checkable.kinds import TOPIC, Constraint, encode_constraints
from selfreward_lite.data.checkable.requests import Request, draw_requests
from selfreward_lite.data.message_rows import make_message

ANSWERS = 3  # ranked answers per prompt
_DATA_SEED = 20260104  # every run has the same data set
_MADE: dict[str, Any] = {"author": "checkable", "created": "2026-01-04T00:00:00+00:00"}


def generate_ranked_rows(prompts: int) -> Iterator[dict[str, Any]]:
    """Yield the messages of `prompts` trees: a request, then its answers with rank 0 for the best.

    The request's row holds its constraints, as a prompt's record does, in the field `constraints`.
    """
    rng = random.Random(_DATA_SEED)
    made = 0
    for request in draw_requests(_DATA_SEED, "ranked", 2 * prompts + 8, least=ANSWERS - 1):
        answers = _write_ranked_answers(request, rng)
        if made == prompts:
            return
        if answers is None:
            continue
        tree = f"checkable-{made}"
        made += 1
        yield {
            **make_message(tree, None, request.text, None, **_MADE),
            "constraints": encode_constraints(request.constraints),
        }
        shown = list(enumerate(answers))
        rng.shuffle(shown)
        for rank, text in shown:
            yield make_message(f"{tree}-{rank}", tree, text, rank, **_MADE)


def _write_ranked_answers(request: Request, rng: random.Random) -> list[str] | None:
    """Answers that keep ever fewer of the constraints, best first; None if one cannot be had."""
    rules = [one for one in request.constraints if one.kind != TOPIC]
    counts = sorted(rng.sample(range(len(rules) + 1), ANSWERS), reverse=True)
    found = [_write_one(request, rules, count, rng) for count in counts]
    texts = [text for text in found if text is not None]
    return texts if len(texts) == ANSWERS else None


def _write_one(
    request: Request, rules: list[Constraint], count: int, rng: random.Random
) -> str | None:
    """An answer that keeps `count` of the rules, whichever can be had."""
    kept = list(combinations(rules, count))
    rng.shuffle(kept)
    texts = (write_answer(request, rng, some) for some in kept)
    return next((text for text in texts if text is not None), None)
