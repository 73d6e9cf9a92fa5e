"""N judgments of each response, from the model as judge, and the one number that they come to.

Knows: the judge template's holes, how scores are read and averaged. Does not know: the rubric's words, pairs.
A judgment that cannot be read has no score; it is never a low one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

from selfreward_lite.config.settings import Judge
from selfreward_lite.data.records import Drop, Judgment, Outcome, Prompt, Response, make_id
from selfreward_lite.engine.api import Completion, Probe
from selfreward_lite.method.parsing import parse_score
from selfreward_lite.method.roles import NO_TEXT_REASONS, AskGenerator, Role
from selfreward_lite.method.templates import fill_template, make_nonce
from selfreward_lite.models.chat_format import ChatFormat

SCORES = ("0", "1", "2", "3", "4", "5")
TOP_SCORE = 5.0
SCORE_TOLERANCE = 1e-9  # scores are means of decimals: smaller differences are rounding


def ask_for_judgments(
    prompt: Prompt, response: Response, role: Role, count: int, first: int = 0
) -> AskGenerator:
    """Sample `count` judgments of `response`, numbered from `first`."""
    ids = [
        make_id(role.id_namespace, Judgment, role.iteration, role.model, response.id, first + index)
        for index in range(count)
    ]
    seed_keys = [f"{response.id}:{first + index}" for index in range(count)]
    asked = build_judge_question(prompt, response, role.templates)
    (completions,) = yield [
        role.make_request(asked, ids[0], seed_keys, probe=score_probe(role.chat))
    ]
    kept = [
        read_judgment(completion, record_id, response, role, first + index)
        for index, (record_id, completion) in enumerate(zip(ids, completions, strict=True))
        if completion.finish not in NO_TEXT_REASONS
    ]
    drops = [
        Drop(NO_TEXT_REASONS[completion.finish])
        for completion in completions
        if completion.finish in NO_TEXT_REASONS
    ]
    drops += [Drop("could not be read") for judgment in kept if judgment.score is None]
    return Outcome(tuple(kept), tuple(drops))


def build_judge_question(prompt: Prompt, response: Response, templates: str) -> str:
    """Return the judge's question about a response: what the judge reads, and the prompt of a judgment pair."""
    nonce = make_nonce(response.id, templates)
    return fill_template(
        templates, "judge", prompt=prompt.text, response=response.text, nonce=nonce
    )


@lru_cache(maxsize=8)
def score_probe(chat: ChatFormat) -> Probe | None:
    """Return the probe for the six digits after "Score:", None where a digit is not a single token."""
    digits = [chat.text_ids(score) for score in SCORES]
    if any(len(ids) != 1 for ids in digits):
        return None
    return Probe(tuple(ids[0] for ids in digits), after="score:")


def compute_expected_score(probabilities: Sequence[float]) -> float | None:
    """Return Σ s·p(s) / Σ p(s) over the scores 0 to 5 (G-Eval, arXiv 2303.16634); None if none has any probability.

    >>> round(compute_expected_score([0, 0.02, 0.05, 0.13, 0.5, 0.3]), 2)
    4.01
    """
    total = math.fsum(probabilities)
    if not total > 0:
        return None
    return math.fsum(score * share for score, share in enumerate(probabilities)) / total


def score_response(judgments: Iterable[Judgment], settings: Judge) -> float | None:
    """Return a response's score: the unrounded mean over its readable judgments, None if too few are readable."""
    by_mean = settings.score == "mean"
    scores = (
        one.score if by_mean else one.expected_score for one in judgments if one.score is not None
    )
    known = [score for score in scores if score is not None]
    needed = max(
        math.ceil(settings.min_read_share * settings.count), min(settings.min_read, settings.count)
    )
    return math.fsum(known) / len(known) if len(known) >= needed else None


def read_judgment(
    completion: Completion, record_id: str, response: Response, role: Role, index: int
) -> Judgment:
    """Return what was said as a judgment, with its score if it can be read.

    One that quotes the nonce of its wrapper, or was cut, is void: its text stays, its score is none.
    """
    void = make_nonce(response.id, role.templates) in completion.text or completion.finish != "stop"
    score = None if void else parse_score(completion.text)
    expected = (
        compute_expected_score(completion.probe) if score is not None and completion.probe else None
    )
    return Judgment(
        record_id,
        role.iteration,
        role.model,
        response.id,
        index,
        completion.text.strip(),
        completion.finish,
        len(completion.tokens),
        score,
        expected,
    )
