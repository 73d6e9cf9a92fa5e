"""N judgments of each response, from the model as judge, and the score that they give it.

A judgment that cannot be read has no score; it never counts as a low one.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Literal

from selfreward_lite.config.settings import Judge
from selfreward_lite.data.records import Judgment, Outcome, Prompt, Response, group_records
from selfreward_lite.engine.api import Completion, Probe, Request
from selfreward_lite.method.parsing import parse_score
from selfreward_lite.method.roles import NO_TEXT_REASONS, AskGenerator, Role
from selfreward_lite.method.templates import fill_template, make_nonce
from selfreward_lite.models.chat_format import ChatFormat

Scores = Mapping[str, float | None]  # by response id; None where too few judgments could be read
SCORES = ("0", "1", "2", "3", "4", "5")
TOP_SCORE = 5.0
SCORE_TOLERANCE = 1e-9  # scores are means of decimals: smaller differences are rounding


def ask_for_judgments(
    prompt: Prompt, responses: Sequence[Response], role: Role, count: int, first: int = 0
) -> AskGenerator:
    """Sample `count` judgments of each response, numbered from `first`."""
    replies = yield [
        make_judge_request(prompt, response, role, count, first) for response in responses
    ]
    kept, drops = [], Counter[str]()
    for response, completions in zip(responses, replies, strict=True):
        for index, completion in enumerate(completions, first):
            if completion.finish in NO_TEXT_REASONS:
                drops[NO_TEXT_REASONS[completion.finish]] += 1
                continue
            kept.append(read_judgment(completion, response, role, index))
            if kept[-1].score is None:
                drops["could not be read"] += 1
    return Outcome(kept, drops)


def make_judge_request(
    prompt: Prompt, response: Response, role: Role, count: int, first: int = 0
) -> Request:
    """Return the request for judgments number `first` to `first + count - 1` of a response."""
    return role.make_request(
        build_judge_question(prompt, response, role.templates),
        role.make_id(Judgment, response.id, first),
        [f"{response.id}:{index}" for index in range(first, first + count)],
        probe=make_score_probe(role.chat),
    )


def build_judge_question(prompt: Prompt, response: Response, templates: str) -> str:
    """Return the judge's question about a response; it is also the prompt of a judgment pair."""
    return fill_template(
        templates,
        "judge",
        prompt=prompt.text,
        response=response.text,
        nonce=make_nonce(response.id, templates),
    )


@lru_cache(maxsize=8)
def make_score_probe(chat: ChatFormat) -> Probe | None:
    """Return the probe for the six digits after "Score:"; None if a digit is not a single token."""
    lines = [chat.text_ids(f"Score: {score}") for score in SCORES]
    starts = {tuple(ids[:-1]) for ids in lines}
    if len(starts) > 1:
        return None
    return Probe(tuple(ids[-1] for ids in lines), after="score:")


def read_judgment(completion: Completion, response: Response, role: Role, index: int) -> Judgment:
    """Return a completion as judgment number `index`, with its score if it can be read.

    A judgment that quotes the nonce of its wrapper, or was cut, is void: its text is kept, without
    a score.
    """
    void = make_nonce(response.id, role.templates) in completion.text or completion.finish != "stop"
    score = None if void else parse_score(completion.text)
    probe = completion.probe
    return Judgment(
        role.make_id(Judgment, response.id, index),
        role.iteration,
        role.model,
        response.id,
        index,
        completion.text.strip(),
        completion.finish,
        len(completion.tokens),
        score,
        compute_expected_score(probe) if score is not None and probe else None,
    )


def compute_expected_score(probabilities: Sequence[float]) -> float | None:
    """Return Σ s·p(s) / Σ p(s) over the scores 0 to 5; None if all p are 0.

    (G-Eval, arXiv 2303.16634.)

    >>> round(compute_expected_score([0, 0.02, 0.05, 0.13, 0.5, 0.3]), 2)
    4.01
    """
    total = math.fsum(probabilities)
    if not total > 0:
        return None
    return math.fsum(score * share for score, share in enumerate(probabilities)) / total


def group_by_response(judgments: Iterable[Judgment]) -> dict[str, list[Judgment]]:
    """Group judgments by the id of the response they judge."""
    return group_records(judgments, lambda judgment: judgment.response_id)


def score_responses(judgments: Iterable[Judgment], settings: Judge) -> Scores:
    """Return the score of every judged response by its id."""
    groups = group_by_response(judgments)
    return {name: score_response(group, settings) for name, group in groups.items()}


def read_value(judgment: Judgment, by: Literal["mean", "expected"]) -> float | None:
    """Return what a judgment counts for, its score or its expected score; None if unread."""
    if judgment.score is None:
        return None
    return judgment.expected_score if by == "expected" else judgment.score


def score_response(judgments: Iterable[Judgment], settings: Judge) -> float | None:
    """Return the unrounded mean of a response's readable scores; None if there are too few."""
    known = [value for one in judgments if (value := read_value(one, settings.score)) is not None]
    needed = max(
        math.ceil(settings.min_read_share * settings.count), min(settings.min_read, settings.count)
    )
    return math.fsum(known) / len(known) if len(known) >= needed else None
