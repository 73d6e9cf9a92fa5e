"""Response pairs: from the scored responses to a prompt, which one is chosen and which rejected.

The length tiers are Meta-Rewarding's (arXiv 2407.19594, section 3.2). Two departures from the
paper, both for safety: a response cut by the length limit is in no pair, and one that appeals to
its judge (a score of its own, a forged turn) or only repeats the prompt is never chosen. A third
one is a setting: where a prompt has constraints that a program can check, their exact score may
forbid a response to win, or may decide before the judge does (pairs.verify).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from selfreward_lite.config.settings import Schedule, Verify
from selfreward_lite.data.checkable.score import score_answer
from selfreward_lite.data.records import Outcome, Prompt, Response, ResponsePair, make_id
from selfreward_lite.method.judgments import SCORE_TOLERANCE, TOP_SCORE, Scores
from selfreward_lite.method.parsing import find_appeal_to_judge
from selfreward_lite.method.templates import neutralize

NONE_MAY_WIN = "no response may be chosen"
# Of a score that constraints decide. With it, the judge's 5 points count half a point at most, and
# one constraint of three, the most that a prompt has, one and a half.
JUDGE_SHARE = 0.1


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
    scores: Scores | None,
    schedule: Schedule,
    verify: Verify = "off",
    *,
    id_namespace: str,
    iteration: int,
) -> Outcome:
    """Return at most one pair per prompt, and by reason how many prompts gave none.

    `responses` maps a prompt's id to its responses, `scores` a response's id to the judge's score;
    None where no judge was asked.
    """
    pairs: list[ResponsePair] = []
    drops = Counter[str]()
    for prompt in prompts:
        answers = responses.get(prompt.id, ())
        made = choose_pair(find_eligible(prompt, answers, scores, verify), schedule)
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
    prompt: Prompt, responses: Iterable[Response], scores: Scores | None, verify: Verify = "off"
) -> list[ScoredResponse]:
    """Return the responses that can be in a pair: complete and scored."""
    found = []
    for response in responses:
        score, passes = verify_score(prompt, response, scores, verify)
        if response.finish == "stop" and score is not None:
            wins = passes and _may_win(prompt.text, response.text)
            found.append(ScoredResponse(response.id, score, len(response.text), wins))
    return found


def verify_score(
    prompt: Prompt, response: Response, scores: Scores | None, verify: Verify
) -> tuple[float | None, bool]:
    """Return what ranks a response, 0 to 5, and whether its constraints let it be chosen.

    The judge's score alone ranks, unless `verify` is "score" and the prompt has constraints: then
    their exact score does, and the judge decides between equal ones only. None if nothing ranks it.
    A text that is no answer, whatever it keeps, is never chosen then.
    """
    judged = None if scores is None else scores.get(response.id)
    points = None if verify == "off" else score_answer(prompt, response.text, response.finish)
    if points is None:
        return judged, True
    if verify == "veto":
        return judged, points.share == 1.0
    if scores is None:
        return points.score, points.fault is None
    if judged is None:
        return None, False
    return (1 - JUDGE_SHARE) * points.score + JUDGE_SHARE * judged, points.fault is None


def choose_pair(scored: Sequence[ScoredResponse], schedule: Schedule) -> ChosenPair | str:
    """Return the pair of the scored responses to one prompt, or why there is none.

    With best S₊ and worst S₋: chosen is the shortest response scoring at least (1−rho)·S₊ + rho·S₋,
    rejected the longest scoring at most (1−rho)·S₋ + rho·S₊. rho in [0, 0.5); 0 is best against
    worst. With `schedule.lengths` "any" they are the first of these in `scored`.

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
        return NONE_MAY_WIN
    worst = min(one.score for one in scored)
    if best - worst <= SCORE_TOLERANCE:
        return "all scores equal"
    rho = schedule.rho
    least, most = (1 - rho) * best + rho * worst, (1 - rho) * worst + rho * best
    high = [one for one in scored if one.may_win and one.score >= least - SCORE_TOLERANCE]
    low = [one for one in scored if one.score <= most + SCORE_TOLERANCE]
    if schedule.lengths == "apart":
        chosen = min(high, key=lambda one: (one.length, -one.score))
        rejected = max(low, key=lambda one: (one.length, -one.score))
    else:
        chosen, rejected = high[0], low[0]
    if chosen.score - rejected.score < schedule.min_gap - SCORE_TOLERANCE:
        return "scores too close"
    limit = schedule.max_chosen_response
    if limit is not None and chosen.length > limit:
        return "chosen response too long"
    return ChosenPair(chosen, rejected, least, most, len(high), len(low))


def find_perfect_responses(
    prompts: Mapping[str, Prompt],
    responses: Iterable[Response],
    scores: Scores | None,
    verify: Verify = "off",
) -> list[Response]:
    """Return the complete responses of the highest score (arXiv 2401.10020, section 2.3)."""
    found = []
    for response in responses:
        score, passes = verify_score(prompts[response.prompt_id], response, scores, verify)
        if response.finish == "stop" and passes and (score or 0.0) >= TOP_SCORE - SCORE_TOLERANCE:
            found.append(response)
    return found


def exclusion_reason(
    prompt: Prompt, response: Response, scores: Scores | None, verify: Verify = "off"
) -> str | None:
    """Return why a response can be in no pair, or can never be chosen; None if neither holds."""
    score, passes = verify_score(prompt, response, scores, verify)
    if response.finish != "stop":
        return "cut by the length limit: in no pair"
    if score is None:
        return "too few judgments could be read: in no pair"
    if not passes:
        what = "breaks a constraint" if verify == "veto" else "is no answer to the request"
        return f"{what}: never chosen"
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
