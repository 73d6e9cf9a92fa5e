"""One prompt of a run and everything that became of it: responses, their judgments, battles, and why there is a pair or none.

    find       prompts by words and by what they gave, a page at a time
    look       one of them, whole

Knows: which records belong to a prompt, and the pair builder's rules, which it asks again. Does not know: pages. Reads by the
store's indices only, so that a prompt of a hundred thousand judgments' run costs what its own records cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from selfreward_lite.config.settings import Schedule, parse
from selfreward_lite.data.ranked import HUMAN
from selfreward_lite.data.records import (
    Battle,
    Judgment,
    JudgmentPair,
    ModelId,
    Prompt,
    Rating,
    Response,
    ResponsePair,
)
from selfreward_lite.data.store import Store
from selfreward_lite.method import judgments, response_pairs
from selfreward_lite.system.errors import UserError

PAGE = 50
RANKED, HELD_OUT = "ranked by people", "held out"
Outcome = Literal["all", "gave a pair", "gave none"]


@dataclass(frozen=True)
class PromptHit:
    """A prompt that was found; the scores of its pair, None without one."""

    id: str
    text: str
    chosen: float | None
    rejected: float | None
    judgment_pair: bool


@dataclass(frozen=True)
class Answer:
    """A response with its judgments, and its part: chosen, rejected, or what hindered it."""

    response: Response
    judgments: tuple[Judgment, ...]
    part: str

    def means(self, of: Literal["score", "expected_score"]) -> dict[str, float]:
        """Return the mean of what each judge gave it, by the judge's name; without those that could not be read."""
        found: dict[str, list[float]] = {}
        for one in self.judgments:
            value = getattr(one, of)
            if one.score is not None and value is not None:
                found.setdefault(one.model, []).append(value)
        return {judge: fmean(values) for judge, values in found.items()}


@dataclass(frozen=True)
class BattleView:
    """Two judgments of one response, compared: which was shown first, what was said, the strength that each was given."""

    battle: Battle
    first: Judgment
    second: Judgment
    first_strength: float | None
    second_strength: float | None


@dataclass(frozen=True)
class PromptHistory:
    """A prompt with everything that became of it. `why` says in words why there is a pair, or none."""

    prompt: Prompt
    answers: tuple[Answer, ...]
    why: str
    fights: tuple[BattleView, ...]
    judgment_pair: JudgmentPair | None


def list_groups(store: Store) -> list[str]:
    """Return the groups of prompts that a run has: one for every model that was trained on pairs, the newest first."""
    rows = store.select(
        "SELECT DISTINCT iteration FROM record_prompt WHERE iteration > 0 ORDER BY iteration DESC"
    )
    found = [ModelId(iteration).name for (iteration,) in rows]
    return [
        *found,
        *(name for name, origin in _ORIGINS.items() if store.count(Prompt, origin=origin)),
    ]


def find_prompts(
    store: Store, group: str, words: str = "", outcome: Outcome = "all", page: int = 0
) -> tuple[list[PromptHit], int]:
    """Return a page of the prompts of a group that hold all the `words`, in their order, and how many there are in all.

    Raises UserError for a group that the run does not have.
    """
    origin = _ORIGINS.get(group)
    if group not in list_groups(store):
        raise UserError(f"{store.folder.name} has no prompts of {group!r}; choose one of the list")
    conditions = ["p.iteration = ?"]
    given: list[object] = [0 if origin else int(group[1:])]
    if origin:
        conditions.append("p.origin = ?")
        given.append(origin)
    for word in words.split():
        conditions.append("p.text LIKE ? ESCAPE '\\'")
        given.append(f"%{word.translate(_PLAIN)}%")
    if outcome != "all":
        conditions.append("pair.id IS NULL" if outcome == "gave none" else "pair.id IS NOT NULL")
    found = (
        "FROM record_prompt p LEFT JOIN record_responsepair pair ON pair.iteration = p.iteration AND pair.prompt_id = p.id "
        f"WHERE {' AND '.join(conditions)}"
    )
    (total,) = store.select(f"SELECT count(*) {found}", *given)[0]
    rows = store.select(
        "SELECT p.id, p.text, pair.chosen_score, pair.rejected_score, EXISTS (SELECT 1 FROM record_response r JOIN "
        "record_judgmentpair j ON j.iteration = r.iteration AND j.response_id = r.id WHERE r.iteration = p.iteration AND "
        f'r.prompt_id = p.id) {found} ORDER BY p."index" LIMIT {PAGE} OFFSET ?',
        *given,
        page * PAGE,
    )
    return [PromptHit(*row[:4], judgment_pair=bool(row[4])) for row in rows], total


def load_history(store: Store, prompt_id: str) -> PromptHistory:
    """Return a prompt with everything that became of it. Raises UserError where the run has no such prompt."""
    found = store.records(Prompt, id=prompt_id)
    if not found:
        raise UserError(f"{store.folder.name} has no prompt {prompt_id}; choose one of the list")
    (prompt,), settings = found, parse(store.fact("settings"))
    drawn = _drawn(store, prompt)
    trained, paired = prompt.iteration > 0, store.is_done(prompt.iteration, "response_pairs")
    scores = {
        response.id: judgments.score_response(judged, settings.judge) for response, judged in drawn
    }
    schedule = settings.for_iteration(max(1, prompt.iteration))
    pair = next(
        iter(store.records(ResponsePair, iteration=prompt.iteration, prompt_id=prompt.id)), None
    )
    answers = tuple(
        Answer(
            response,
            judged,
            (_part(prompt, response, scores[response.id], pair) if paired else "")
            if trained
            else _author(response),
        )
        for response, judged in drawn
    )
    why = (
        _why(store, prompt, [response for response, _ in drawn], scores, schedule)
        if trained
        else _WHY[prompt.origin]
    )
    if trained and settings.judge.score == "expected":
        why += " Scores are expected scores here."
    fights, judgment_pair = _fights(store, drawn)
    return PromptHistory(prompt, answers, why, fights, judgment_pair)


def _drawn(store: Store, prompt: Prompt) -> list[tuple[Response, tuple[Judgment, ...]]]:
    """The responses to a prompt, the models' in their order, each with its judgments."""
    last = max((row[0] for row in store.select("SELECT DISTINCT iteration FROM stages")), default=0)
    iterations = [prompt.iteration] if prompt.iteration else range(last + 1)
    found = [
        one for t in iterations for one in store.records(Response, iteration=t, prompt_id=prompt.id)
    ]
    found.sort(key=lambda one: (one.iteration, one.model != "base", one.rank or 0, one.index))
    return [
        (
            one,
            tuple(
                judged
                for t in iterations
                for judged in store.records(Judgment, iteration=t, response_id=one.id)
            ),
        )
        for one in found
    ]


def _why(
    store: Store,
    prompt: Prompt,
    responses: Sequence[Response],
    scores: dict[str, float | None],
    schedule: Schedule,
) -> str:
    """Why there is a pair, or none, by the rules that made it."""
    if not store.is_done(prompt.iteration, "response_pairs"):
        return "Pairs are made when every response of the iteration is judged; this one is not that far."
    scored = response_pairs.find_eligible(prompt, responses, scores)
    made = response_pairs.choose_pair(scored, schedule.rho)
    if reason := response_pairs.no_pair_reason(scored, made, schedule):
        return f"No pair: {reason}."
    limits = response_pairs.score_tiers(scored, schedule.rho)
    assert limits is not None
    high = sum(one.may_win and one.score >= limits[0] - judgments.SCORE_TOLERANCE for one in scored)
    low = sum(one.score <= limits[1] + judgments.SCORE_TOLERANCE for one in scored)
    return (
        f"Chosen: the shortest of {high} that scored {limits[0]:.2f} or more. Rejected: the longest of {low} that scored "
        f"{limits[1]:.2f} or less (length control, rho = {schedule.rho:g})."
    )


def _part(
    prompt: Prompt, response: Response, score: float | None, pair: ResponsePair | None
) -> str:
    if pair is not None and response.id in (pair.chosen_id, pair.rejected_id):
        return "chosen" if response.id == pair.chosen_id else "rejected"
    return response_pairs.exclusion_reason(prompt, response, score) or ""


def _author(response: Response) -> str:
    return (
        f"people's rank {response.rank}"
        if response.model == HUMAN and response.rank is not None
        else ""
    )


def _fights(
    store: Store, drawn: Sequence[tuple[Response, tuple[Judgment, ...]]]
) -> tuple[tuple[BattleView, ...], JudgmentPair | None]:
    """The battles among the judgments of the response that was contested most, and what they gave."""
    for response, judged in drawn:
        by_id, t = {one.id: one for one in judged}, response.iteration
        battles = [
            battle
            for one in judged
            for battle in store.records(Battle, iteration=t, first_id=one.id)
        ]
        if battles:
            strengths = {
                one.judgment_id: one.strength
                for judgment in judged
                for one in store.records(Rating, iteration=t, judgment_id=judgment.id)
            }
            fights = tuple(
                BattleView(
                    one,
                    by_id[one.first_id],
                    by_id[one.second_id],
                    strengths.get(one.first_id),
                    strengths.get(one.second_id),
                )
                for one in battles
            )
            return fights, next(
                iter(store.records(JudgmentPair, iteration=t, response_id=response.id)), None
            )
    return (), None


_ORIGINS = {RANKED: "ranked", HELD_OUT: "held_out"}
_WHY = {
    "ranked": "Ranked by people: judgments of these answers taught M0 to judge, or measure every model's judging.",
    "held_out": "Held out: every model answers it, and none is trained on it.",
}
_PLAIN = str.maketrans({"%": "\\%", "_": "\\_", "\\": "\\\\"})
