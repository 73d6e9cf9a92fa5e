"""Named queries over the records of a run; SQL where a view has more than fit in memory."""

from collections import defaultdict
from typing import NamedTuple

from selfreward_lite.config.settings import Settings
from selfreward_lite.data.ranked import HUMAN, RankedPrompt, Split, split_ranked
from selfreward_lite.data.records import ModelId, Prompt, Response, group_records
from selfreward_lite.data.store import Store

_ESCAPED = str.maketrans({"%": "\\%", "_": "\\_", "\\": "\\\\"})


class PromptHit(NamedTuple):
    """A prompt that was found; the scores of its response pair are None without one."""

    id: str
    text: str
    chosen: float | None
    rejected: float | None
    judgment_pair: bool


class PairMeans(NamedTuple):
    """Mean score and length of the chosen or the rejected responses of an iteration's pairs."""

    iteration: int
    which: str
    score: float
    characters: float


class DecidedBattle(NamedTuple):
    """Which judgment of a battle won, and which has the higher score: +1 the first, −1 the second.

    `lead` is 0 for equal scores, None if one could not be read.
    """

    verdict: int
    lead: int | None


def load_split(store: Store, settings: Settings) -> Split:
    """Return the ranked prompts of a run by purpose, as its first step stored them."""
    by_prompt = group_records(
        store.records(Response, model=HUMAN), lambda response: response.prompt_id
    )
    found = [
        RankedPrompt(prompt, tuple(by_prompt[prompt.id]))
        for prompt in store.records(Prompt, origin="ranked")
    ]
    return split_ranked(found, settings)


def list_prompt_iterations(store: Store) -> list[int]:
    """Return the iterations after the seed stage that have prompts, the last one first."""
    query = (
        "SELECT DISTINCT iteration FROM record_prompt WHERE iteration > 0 ORDER BY iteration DESC"
    )
    return [iteration for (iteration,) in store.select(query)]


def find_last_step(store: Store, iteration: int) -> int:
    """Return the last training step that was logged, 0 without one."""
    return store.select_value("SELECT max(step) FROM training WHERE iteration = ?", iteration) or 0


def search_prompts(
    store: Store,
    iteration: int,
    origin: str | None,
    words: list[str],
    has_pair: bool | None,
    limit: int,
    offset: int,
) -> tuple[list[PromptHit], int]:
    """Return one page of the prompts that hold all the words, and how many there are in all.

    None for `origin` or `has_pair` means any.
    """
    conditions = ["p.iteration = ?", "p.origin = coalesce(?, p.origin)"]
    conditions += ["p.text LIKE ? ESCAPE '\\'"] * len(words)
    values = [iteration, origin, *(f"%{word.translate(_ESCAPED)}%" for word in words)]
    if has_pair is not None:
        conditions.append(f"pair.id IS {'NOT ' if has_pair else ''}NULL")
    found = (
        "FROM record_prompt p LEFT JOIN record_responsepair pair ON pair.iteration = p.iteration "
        f"AND pair.prompt_id = p.id WHERE {' AND '.join(conditions)}"
    )
    rows = store.select(
        "SELECT p.id, p.text, pair.chosen_score, pair.rejected_score, EXISTS (SELECT 1 FROM "
        "record_response r JOIN record_judgmentpair j ON j.iteration = r.iteration AND "
        "j.response_id = r.id WHERE r.iteration = p.iteration AND r.prompt_id = p.id) "
        f'{found} ORDER BY p."index" LIMIT ? OFFSET ?',
        *values,
        limit,
        offset,
    )
    hits = [
        PromptHit(name, text, chosen, rejected, bool(judgment_pair))
        for name, text, chosen, rejected, judgment_pair in rows
    ]
    return hits, store.select_value(f"SELECT count(*) {found}", *values)


def read_lengths(store: Store, iteration: int, limit: int) -> list[tuple[int, float | None]]:
    """Return (characters, mean score) of the first judged responses of an iteration."""
    return store.select(
        "SELECT length(r.text), (SELECT avg(j.score) FROM record_judgment j WHERE j.iteration = "
        "r.iteration AND j.response_id = r.id) FROM record_response r WHERE r.iteration = ? AND "
        "r.model = ? AND r.id IN (SELECT item FROM items WHERE iteration = r.iteration AND "
        "stage = 'judgments') ORDER BY r.rowid LIMIT ?",
        iteration,
        ModelId(iteration - 1).name,
        limit,
    )


def average_pairs(store: Store) -> list[PairMeans]:
    """Return means of the chosen and of the rejected responses of every iteration."""
    rows = store.select(
        "SELECT iteration, 'chosen', avg(chosen_score), avg(chosen_length) FROM "
        "record_responsepair GROUP BY iteration UNION ALL SELECT iteration, 'rejected', "
        "avg(rejected_score), avg(rejected_length) FROM record_responsepair GROUP BY iteration "
        "ORDER BY 1, 2"
    )
    return [PairMeans(*row) for row in rows]


def read_decided_battles(store: Store, iteration: int) -> list[DecidedBattle]:
    """Return the battles of an iteration that have a winner."""
    rows = store.select(
        "SELECT b.verdict, (f.score > s.score) - (f.score < s.score) FROM record_battle b JOIN "
        "record_judgment f ON f.id = b.first_id JOIN record_judgment s ON s.id = b.second_id WHERE "
        "b.iteration = ? AND b.verdict != 0",
        iteration,
    )
    return [DecidedBattle(*row) for row in rows]


def average_ranked_scores(store: Store, model: int) -> dict[str, dict[str, float]]:
    """Return the mean scores that M<model> gave human-ranked answers, by prompt and answer id."""
    rows = store.select(
        "SELECT r.prompt_id, r.id, avg(j.score) FROM record_judgment j JOIN record_response r ON "
        "r.id = j.response_id WHERE j.iteration = ? AND j.model = ? AND r.model = 'human' "
        "GROUP BY r.id HAVING avg(j.score) IS NOT NULL",
        model,
        ModelId(model).name,
    )
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for prompt, answer, score in rows:
        found[prompt][answer] = round(score, 9)
    return found
