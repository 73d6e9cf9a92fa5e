"""N judgments of each response, from the model as judge, and the score that they give it.

A judgment that cannot be read has no score; it never counts as a low one. Unless judge.close is
"drop", the engine ends it, and the score that the judge's probabilities give is forced.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from selfreward_lite.config.settings import Settings
from selfreward_lite.data.records import (
    BASE,
    Judgment,
    Outcome,
    Prompt,
    Response,
    Source,
    group_records,
    seed_for,
)
from selfreward_lite.engine.api import Completion, Request
from selfreward_lite.method.closing import (
    SCORES,
    draw_choice,
    make_score_closing,
    make_score_probe,
    write_choice,
)
from selfreward_lite.method.parsing import Reading, read_score
from selfreward_lite.method.roles import NO_TEXT_REASONS, AskGenerator, Role
from selfreward_lite.method.templates import fill_template, make_nonce

Scores = Mapping[str, float | None]  # by response id; None where too few judgments could be read
TOP_SCORE = 5.0
_PROBED = re.compile(r"score:[\s*]*([0-5])", re.IGNORECASE)  # as the engine finds a probe's place
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
        closing=make_score_closing(role.chat),
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


def read_judgment(completion: Completion, response: Response, role: Role, index: int) -> Judgment:
    """Return a completion as judgment number `index`, with its score.

    A judgment that quotes the nonce of its wrapper, or was cut, is void: nothing in it is read. One
    that is void or cannot be read gets the score that its closing gives it, if there is a closing;
    its text then ends with it.
    """
    void = make_nonce(response.id, role.templates) in completion.text or completion.finish != "stop"
    reading = None if void else read_score(completion.text, response.text)
    record_id = role.make_id(Judgment, response.id, index)
    text, score = completion.text.strip(), reading.value if reading else None
    probabilities = _find_probabilities(completion, score)
    if reading is None and completion.closing is not None:
        drawn = draw_choice(
            completion.closing, role.sampling, seed_for(role.seed, f"closing {record_id}"), SCORES
        )
        if drawn is not None:
            score = float(drawn)
            text += write_choice(completion.closing_text, drawn)
    return Judgment(
        record_id,
        role.iteration,
        role.model,
        response.id,
        index,
        text,
        completion.finish,
        len(completion.tokens),
        score,
        compute_expected_score(probabilities) if score is not None and probabilities else None,
        _name_source(reading, score),
    )


def _find_probabilities(completion: Completion, score: float | None) -> tuple[float, ...] | None:
    """Return the probabilities of the digits 0 to 5 that belong to a completion's `score`.

    Those of its probe, if the digit found there is the one that was read: a judge may mention
    another score before its own, or write its own in another form. Else those of its closing.
    """
    digits = _PROBED.findall(completion.text)
    if score is not None and digits and int(digits[-1]) == int(score) and completion.probe:
        return completion.probe
    return completion.closing


def _name_source(reading: Reading | None, score: float | None) -> Source:
    if reading is None:
        return "written" if score is None else "forced"
    return "first" if reading.is_first else "written"


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


def score_responses(judgments: Iterable[Judgment], settings: Settings) -> Scores:
    """Return the score of every judged response by its id."""
    groups = group_by_response(judgments)
    return {name: score_response(group, settings) for name, group in groups.items()}


def read_value(judgment: Judgment, by: Literal["mean", "expected"]) -> float | None:
    """Return what a judgment counts for, its score or its expected score; None if unread.

    A score in a form without an expected score counts as it is.
    """
    if by == "mean" or judgment.score is None or judgment.expected_score is None:
        return judgment.score
    return judgment.expected_score


def score_response(judgments: Iterable[Judgment], settings: Settings) -> float | None:
    """Return the unrounded mean of a response's readable scores; None if there are too few.

    Where EFT taught the judge to write its score, forced ones do not count for "enough": a text
    that keeps such a judge from writing a score has derailed it (docs/log/judging.md).
    """
    judge, eft = settings.judge, settings.seed_stage.eft
    known = [
        (value, one.source != "forced" or not eft or one.model == BASE.name)
        for one in judgments
        if (value := read_value(one, judge.score)) is not None
    ]
    needed = max(math.ceil(judge.min_read_share * judge.count), min(judge.min_read, judge.count))
    if sum(counts for _, counts in known) < needed:
        return None
    return math.fsum(value for value, _ in known) / len(known)
