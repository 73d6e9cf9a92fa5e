"""One prompt of a run with all that was made from it: responses, judgments, battles, pairs.

`find_prompts` searches a page at a time, `load_history` reads one prompt completely. Both use the
store's indices only, so one prompt costs the same in a large run as in a small one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from selfreward_lite.data import queries
from selfreward_lite.data.checkable.score import score_answer
from selfreward_lite.data.queries import PromptHit
from selfreward_lite.data.records import (
    Battle,
    Judgment,
    JudgmentPair,
    ModelId,
    Prompt,
    R,
    Rating,
    Response,
    ResponsePair,
    index_records,
)
from selfreward_lite.data.store import Store
from selfreward_lite.method import judgments, response_pairs
from selfreward_lite.system.errors import UserError

PAGE = 50
NOTES = {
    "veto": " A response that breaks a constraint is never chosen.",
    "score": " The share of the constraints kept decides before the judge does.",
}
LENGTHS = {
    "apart": ("the shortest", "the longest", "length control"),
    "any": ("the first drawn", "the first drawn", "whatever their lengths"),
}
RANKED, HELD_OUT = "ranked by people", "held out"
JudgedResponse = tuple[Response, tuple[Judgment, ...]]
PairFilter = Literal["all", "gave a pair", "gave none"]
_ORIGINS = {RANKED: "ranked", HELD_OUT: "held_out"}
_EXPLAINED_ORIGINS = {
    "ranked": "Ranked by people: judgments of these answers taught M0 to judge, or measure how "
    "well every model judges.",
    "held_out": "Held out: every model answers it, and none is trained on it.",
}


@dataclass(frozen=True)
class JudgedAnswer:
    """A response with its judgments, and its part: chosen, rejected, or why it was in no pair.

    `checks` says which of the prompt's constraints it keeps; it is empty where there are none.
    """

    response: Response
    judgments: tuple[Judgment, ...]
    part: str
    checks: str = ""

    def means(self, by: Literal["mean", "expected"]) -> dict[str, float]:
        """Return the mean score by each judge, by its name, without unread judgments."""
        found: dict[str, list[float]] = {}
        for one in self.judgments:
            if (value := judgments.read_value(one, by)) is not None:
                found.setdefault(one.model, []).append(value)
        return {judge: fmean(values) for judge, values in found.items()}


@dataclass(frozen=True)
class PromptHistory:
    """A prompt with all that was made from it. `why` explains why there is a pair, or none.

    `judgments` are those of all answers, by id; `strengths` those of judgments that were rated.
    """

    prompt: Prompt
    answers: tuple[JudgedAnswer, ...]
    why: str
    judgments: dict[str, Judgment]
    battles: list[Battle]
    strengths: dict[str, float]
    judgment_pair: JudgmentPair | None


def list_groups(store: Store) -> list[str]:
    """Return the groups of prompts of a run: M2, M1, … trained on them, then those for all."""
    models = [ModelId(t).name for t in queries.list_prompt_iterations(store)]
    return models + [name for name, one in _ORIGINS.items() if store.count(Prompt, origin=one)]


def find_prompts(
    store: Store, group: str, words: str = "", pairs: PairFilter = "all", page: int = 0
) -> tuple[list[PromptHit], int]:
    """Return a page of the prompts of a group that hold all the `words`, and their total number.

    Raises UserError for a group that the run does not have.
    """
    if group not in list_groups(store):
        raise UserError(f"{store.folder.name} has no prompts of {group!r}; choose one of the list")
    origin = _ORIGINS.get(group)
    iteration = 0 if origin else int(group[1:])
    has_pair = None if pairs == "all" else pairs == "gave a pair"
    return queries.search_prompts(
        store, iteration, origin, words.split(), has_pair, limit=PAGE, offset=page * PAGE
    )


def load_history(store: Store, prompt_id: str) -> PromptHistory:
    """Return a prompt with all that was made from it. Raises UserError for an unknown prompt."""
    found = store.records(Prompt, id=prompt_id)
    if not found:
        raise UserError(f"{store.folder.name} has no prompt {prompt_id}; choose one of the list")
    (prompt,) = found
    judged = _load_responses(store, prompt)
    if prompt.iteration > 0:
        parts, why = _explain_pair(store, prompt, judged)
    else:
        parts = {one.id: f"people's rank {one.rank}" for one, _ in judged if one.rank is not None}
        why = _EXPLAINED_ORIGINS[prompt.origin]
    answers = tuple(
        JudgedAnswer(one, given, parts.get(one.id, ""), describe_checks(prompt, one))
        for one, given in judged
    )
    by_id = index_records(one for _, given in judged for one in given)
    battles = [
        battle
        for one in by_id.values()
        for battle in store.records(Battle, iteration=one.iteration, first_id=one.id)
    ]
    strengths = {
        rating.judgment_id: rating.strength
        for one in by_id.values()
        for rating in store.records(Rating, iteration=one.iteration, judgment_id=one.id)
    }
    pairs = (
        pair
        for one in battles[:1]  # all are between judgments of one response
        for pair in store.records(
            JudgmentPair, iteration=one.iteration, response_id=one.response_id
        )
    )
    return PromptHistory(prompt, answers, why, by_id, battles, strengths, next(pairs, None))


def describe_checks(prompt: Prompt, response: Response) -> str:
    """Return the exact score of a response, and which of its prompt's constraints it breaks.

    Empty for a prompt without constraints.
    """
    points = score_answer(prompt, response.text, response.finish)
    if points is None:
        return ""
    broken = [kind for kind, kept in zip(points.kinds, points.kept, strict=True) if not kept]
    count = len(points.kinds)
    text = f"exact score {points.score:.2f}: keeps {sum(points.kept)} of {count} constraints"
    if broken:
        text += f", not {', '.join(broken)}".replace("_", " ")
    return (
        f"{text}; earns nothing, since it is no answer ({points.fault})" if points.fault else text
    )


def _load_responses(store: Store, prompt: Prompt) -> list[JudgedResponse]:
    """The responses to a prompt with their judgments; the base's first, then by rank and index."""
    iterations = [prompt.iteration] if prompt.iteration else store.models()

    def load(kind: type[R], **where: str) -> list[R]:
        return [one for t in iterations for one in store.records(kind, iteration=t, **where)]

    found = load(Response, prompt_id=prompt.id)
    found.sort(key=lambda one: (one.iteration, one.model != "base", one.rank or 0, one.index))
    return [(one, tuple(load(Judgment, response_id=one.id))) for one in found]


def _explain_pair(
    store: Store, prompt: Prompt, judged: Sequence[JudgedResponse]
) -> tuple[dict[str, str], str]:
    """The part of each response by its id, and why there is a pair or none, by the pair rules."""
    settings = store.settings()
    note = " Scores are expected scores here." if settings.judge.score == "expected" else ""
    if not store.is_done(prompt.iteration, "response_pairs"):
        why = (
            "Pairs are made when every response of the iteration is judged; this one is not that "
            "far."
        )
        return {}, why + note
    responses = [response for response, _ in judged]
    verify = settings.pairs.verify
    if verify != "off" and prompt.constraints:
        note += NOTES[verify]
    scores = None
    if settings.judge.count:
        scores = {one.id: judgments.score_response(given, settings) for one, given in judged}
    parts = {
        one.id: response_pairs.exclusion_reason(prompt, one, scores, verify) or ""
        for one in responses
    }
    for pair in store.records(ResponsePair, iteration=prompt.iteration, prompt_id=prompt.id):
        parts |= {pair.chosen_id: "chosen", pair.rejected_id: "rejected"}
    schedule = settings.for_iteration(prompt.iteration)
    scored = response_pairs.find_eligible(prompt, responses, scores, verify)
    made = response_pairs.choose_pair(scored, schedule)
    if isinstance(made, str):
        return parts, f"No pair: {made}.{note}"
    chosen, rejected, how = LENGTHS[schedule.lengths]
    why = (
        f"Chosen: {chosen} of {made.high} that scored {made.least:.2f} or more. Rejected: "
        f"{rejected} of {made.low} that scored {made.most:.2f} or less ({how}, "
        f"rho = {schedule.rho:g})."
    )
    return parts, why + note
