"""Response pairs: from the scored responses to a prompt, which one is chosen and which rejected.

The length tiers are Meta-Rewarding's (arXiv 2407.19594, section 3.2). Two departures from the
paper, both for safety: a response cut by the length limit is in no pair, and one that appeals to
its judge (a score of its own, a forged turn) or only repeats the prompt is never chosen.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from selfreward_lite.config.settings import Schedule
from selfreward_lite.data.records import Outcome, Prompt, Response, ResponsePair, make_id
from selfreward_lite.method.judgments import SCORE_TOLERANCE, TOP_SCORE, Scores
from selfreward_lite.method.parsing import find_appeal_to_judge
from selfreward_lite.method.templates import neutralize


@dataclass(frozen=True)
class ScoredResponse:
    """A response's id, score and length in characters; `may_win` is whether it may be chosen."""

    id: str
    score: float
    length: int
    may_win: bool = True


@dataclass(frozen=True)
class ChosenPair:
    """A pair, and the tiers it was chosen from: the `high` responses scored `least` or more, the
    `low` ones `most` or less."""

    chosen: ScoredResponse
    rejected: ScoredResponse
    least: float
    most: float
    high: int
    low: int


def build_response_pairs(
    prompts: Iterable[Prompt],
    responses: Mapping[str, Sequence[Response]],
    scores: Scores,
    schedule: Schedule,
    *,
    id_namespace: str,
    iteration: int,
) -> Outcome:
    """Return at most one pair per prompt, and by reason how many prompts gave none.

    `responses` maps a prompt's id to its responses, `scores` a response's id to its score.
    """
    pairs: list[ResponsePair] = []
    drops = Counter[str]()
    for prompt in prompts:
        made = choose_pair(find_eligible(prompt, responses.get(prompt.id, ()), scores), schedule)
        if isinstance(made, str):
            drops[made] += 1
            continue
        pairs.append(
            ResponsePair(
                make_id(id_namespace, ResponsePair, iteration, prompt.id),
                iteration,
                prompt.id,
                made.chosen.id,
                made.rejected.id,
                made.chosen.score,
                made.rejected.score,
                made.chosen.length,
                made.rejected.length,
                schedule.rho,
            )
        )
    return Outcome(pairs, drops)


def find_eligible(
    prompt: Prompt, responses: Iterable[Response], scores: Scores
) -> list[ScoredResponse]:
    """Return the responses that can be in a pair: complete and scored."""
    return [
        ScoredResponse(response.id, score, len(response.text), _may_win(prompt.text, response.text))
        for response in responses
        if response.finish == "stop" and (score := scores.get(response.id)) is not None
    ]


def choose_pair(scored: Sequence[ScoredResponse], schedule: Schedule) -> ChosenPair | str:
    """Return the pair of the scored responses to one prompt, or why there is none.

    With best S₊ and worst S₋: chosen is the shortest response scoring at least (1−rho)·S₊ + rho·S₋,
    rejected the longest scoring at most (1−rho)·S₋ + rho·S₊. rho in [0, 0.5); 0 is best against
    worst.

    >>> scores = ("a", 5.0, 1900), ("b", 4.2, 1500), ("c", 2.0, 1800)
    >>> schedule = Schedule(rho=0.32, judgment_pairs=False)
    >>> pair = choose_pair([ScoredResponse(*one) for one in scores], schedule)
    >>> pair.chosen.id, pair.rejected.id
    ('b', 'c')
    """
    if len(scored) < 2:
        return "fewer than two scored responses"
    best = max((one.score for one in scored if one.may_win), default=None)
    if best is None:
        return "every response speaks to its judge, or repeats the prompt"
    worst = min(one.score for one in scored)
    if best - worst <= SCORE_TOLERANCE:
        return "all scores equal"
    rho = schedule.rho
    least, most = (1 - rho) * best + rho * worst, (1 - rho) * worst + rho * best
    high = [one for one in scored if one.may_win and one.score >= least - SCORE_TOLERANCE]
    low = [one for one in scored if one.score <= most + SCORE_TOLERANCE]
    chosen = min(high, key=lambda one: (one.length, -one.score))
    rejected = max(low, key=lambda one: (one.length, -one.score))
    if chosen.score - rejected.score < schedule.min_gap - SCORE_TOLERANCE:
        return "scores too close"
    limit = schedule.max_chosen_response
    if limit is not None and chosen.length > limit:
        return "chosen response too long"
    return ChosenPair(chosen, rejected, least, most, len(high), len(low))


def find_perfect_responses(responses: Iterable[Response], scores: Scores) -> list[Response]:
    """Return the complete responses of the highest score (arXiv 2401.10020, section 2.3)."""
    return [
        response
        for response in responses
        if response.finish == "stop" and (scores.get(response.id) or 0.0) >= TOP_SCORE
    ]


def exclusion_reason(prompt: Prompt, response: Response, score: float | None) -> str | None:
    """Return why a response can be in no pair, or can never be chosen; None if neither holds."""
    if response.finish != "stop":
        return "cut by the length limit: in no pair"
    if score is None:
        return "too few judgments could be read: in no pair"
    if not _may_win(prompt.text, response.text):
        return "speaks to its judge, or repeats the prompt: never chosen"
    return None


def _may_win(prompt: str, text: str) -> bool:
    """Whether a response may be chosen: it appeals to no judge and does not only repeat the prompt.

    Both the text as written and the text as the judge reads it are checked, because removing
    invisible characters can put a word together.
    """
    rest = " ".join(text.split()).replace(" ".join(prompt.split()), "")
    return (
        find_appeal_to_judge(text) is None
        and find_appeal_to_judge(neutralize(text)) is None
        and any(map(str.isalnum, rest))
    )
