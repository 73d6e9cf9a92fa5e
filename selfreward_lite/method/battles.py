"""Battles: the model as meta-judge says which of two judgments of one response is better, both ways round.

Knows: which response of a prompt is worth it, the meta-judge template's holes. Does not know: ratings.
(arXiv 2407.19594, section 2.2.)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from statistics import pvariance

from selfreward_lite.data.records import (
    Battle,
    Drop,
    Judgment,
    Outcome,
    Prompt,
    Response,
    make_id,
    seed_for,
)
from selfreward_lite.engine.api import Completion
from selfreward_lite.method.parsing import parse_verdict
from selfreward_lite.method.roles import AskGenerator, Role
from selfreward_lite.method.templates import fill_template, make_nonce


def most_contested(judgments: Sequence[Sequence[Judgment]], seed: int) -> int | None:
    """Return which of a prompt's responses has the judgments of highest score variance; ties are drawn by `seed`.

    `judgments` lists each response's judgments. Only readable ones count, and two of them must differ as texts: equal
    texts can be told apart by their position alone. None if no response qualifies.
    """
    variances = []
    for index, of_response in enumerate(judgments):
        if len(find_readable(of_response)) >= 2:
            scores = [judgment.score for judgment in of_response if judgment.score is not None]
            tie_breaker = seed_for(seed, f"tie {of_response[0].response_id}")
            variances.append((round(pvariance(scores), 9), tie_breaker, index))
    return max(variances)[2] if variances else None


def find_readable(judgments: Sequence[Judgment]) -> list[Judgment]:
    """Return the judgments that have a score, each text once."""
    first: dict[str, Judgment] = {}
    for judgment in judgments:
        if judgment.score is not None:
            first.setdefault(judgment.text, judgment)
    return list(first.values())


def ask_for_battles(
    prompt: Prompt, response: Response, judgments: Sequence[Judgment], role: Role
) -> AskGenerator:
    """Ask for every ordered pair of the readable judgments of `response`."""
    pairs = list(permutations(find_readable(judgments), 2))
    ids = [
        make_id(role.id_namespace, Battle, role.iteration, role.model, first.id, second.id)
        for first, second in pairs
    ]
    replies = yield [
        role.make_request(
            _question(prompt, response, first, second, role.templates),
            record_id,
            [f"{first.id}:{second.id}"],
        )
        for (first, second), record_id in zip(pairs, ids, strict=True)
    ]
    battles = [
        Battle(
            record_id,
            role.iteration,
            role.model,
            response.id,
            first.id,
            second.id,
            _verdict(completion),
            completion.text.strip(),
        )
        for (first, second), record_id, (completion,) in zip(pairs, ids, replies, strict=True)
    ]
    undecided = sum(battle.verdict == 0 for battle in battles)
    return Outcome(tuple(battles), (Drop("undecided", undecided),) if undecided else ())


def _question(
    prompt: Prompt, response: Response, first: Judgment, second: Judgment, templates: str
) -> str:
    return fill_template(
        templates,
        "meta_judge",
        prompt=prompt.text,
        response=response.text,
        nonce=make_nonce(response.id, templates),
        judgment_a=first.text,
        judgment_b=second.text,
    )


def _verdict(completion: Completion) -> int:
    """+1 for the first, −1 for the second; a cut or unreadable text decides nothing."""
    winner = parse_verdict(completion.text, "Judgement") if completion.finish == "stop" else None
    return {"A": 1, "B": -1, None: 0}[winner]
