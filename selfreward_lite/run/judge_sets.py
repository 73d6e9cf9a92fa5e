"""Sets of ranked answers that measure a judge: loaded for a run, and asked about."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from selfreward_lite.config.settings import Settings
from selfreward_lite.data import hub, ranked, task_sets, votes
from selfreward_lite.data.download import Show
from selfreward_lite.data.judge_sets import FACT, NAMES, OWN, PAIR_SETS, VOTES, JudgeSet
from selfreward_lite.data.ranked import RankedPrompt
from selfreward_lite.data.rows import describe_counts
from selfreward_lite.data.store import Store
from selfreward_lite.data.task_sets import SETS
from selfreward_lite.method import comparisons, judgments
from selfreward_lite.method.passport import Way
from selfreward_lite.method.roles import Role
from selfreward_lite.run.ask import Item
from selfreward_lite.run.context import RunReader
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.files import Json


def load_judge_set(
    run: RunReader,
    source: str | None,
    show: Show,
    folder: Path | None = None,
    *,
    skip_bad: bool = False,
) -> JudgeSet:
    """The set that a name, a file or the hub's owner/name stands for; pinned ones are fetched.

    `source` may be "votes" of the app, "tiny", or None: the run's own evaluation prompts. `folder`
    holds the files of a pinned set, which then is not fetched. `skip_bad` leaves out bad rows, as
    the run does if it was started so. Prompts that M0 was or could have been trained on are left
    out. What is left out is counted. Raises UserError where nothing is left.
    """
    pinned = NAMES.get(source or "")
    if folder is not None and pinned is None:
        raise UserError(
            f"--from holds files of {', '.join(PAIR_SETS)} or oasst; name one of them as --ranked"
        )
    if pinned is not None and folder is None:
        task_sets.fetch_set(pinned, show)
    if pinned in PAIR_SETS:
        found = _load_pairs(run, pinned, folder)
    else:
        found = _load_ranked(run, source, pinned, show, folder, skip_bad)
    if not found.ranked:
        counts = f" (left out: {describe_counts(found.left_out)})" if found.left_out else ""
        raise UserError(
            f"{source or run.store.folder.name}: no prompt with two ranked answers in it{counts}; "
            "give other --ranked data"
        )
    return found


def list_judgments(asked: JudgeSet, role: Role, count: int) -> list[Item]:
    """Items that ask for `count` judgments of every answer of a set, by the answer's id."""
    return [
        (answer.id, judgments.ask_for_judgments(prompt, [answer], role, count))
        for prompt, answer in asked.answers()
    ]


def list_comparisons(asked: JudgeSet, role: Role) -> list[Item]:
    """Items that have every better answer of a set compared with the worse one, both orders."""
    return [
        (
            f"{better.id} {worse.id}",
            comparisons.ask_for_comparison(prompt, better, worse, role),
        )
        for prompt, better, worse in asked.pairs()
    ]


def describe(settings: Settings, asked: JudgeSet, whole: JudgeSet, way: Way, count: int) -> Json:
    """How a passport is asked for, as it is kept with it; `whole` is the set without a limit."""
    return {
        "set": asked.name,
        "title": asked.title,
        "digest": whole.digest,
        "way": way,
        "judgments": count,
        "prompts": asked.prompts,
        "of_prompts": whole.prompts,
        "answers": len(asked.answers()),
        "left_out": asked.left_out,
        "temperature": settings.judge.draw.temperature,
        "templates": settings.model.templates,
        "settings": settings.judge.model_dump(mode="json"),
    }


def keep_passports(store: Store, documents: Sequence[Json]) -> None:
    """Keep passports in a store, each in place of an earlier one of its set and way."""
    known = store.fact(FACT) or {}
    named = {f"{one['asked']['set']} {one['way']}": one for one in documents}
    store.state(FACT, known | named)


def _load_pairs(run: RunReader, name: str, folder: Path | None) -> JudgeSet:
    pairs, drops = task_sets.read_pairs(name, folder)
    seen = _list_trained_texts(run)
    kept = [pair for pair in pairs if pair.prompt not in seen]
    left_out = _count_trained(dict(drops), len(pairs) - len(kept), "pairs")
    return JudgeSet.of_pairs(name, kept, run.store.id_namespace, left_out)


def _load_ranked(
    run: RunReader,
    source: str | None,
    pinned: str | None,
    show: Show,
    folder: Path | None,
    skip_bad: bool,
) -> JudgeSet:
    """Ranked data in OASST's schema, as of seed_stage.ranked; see `load_judge_set`."""
    if source is None:
        return JudgeSet.of("", OWN, run.ranked().evaluation, {})
    notes: list[str] = []
    if source == VOTES:
        rows, drops = votes.build_ranked_rows(votes.load_votes(run.store.folder))
        title = "votes of the app"
    else:
        if pinned is not None:
            (path,) = task_sets.find_paths(pinned, folder)
            title = SETS[pinned].title
        else:
            path = hub.fetch_dataset(source, show)
            title = source if hub.parse_repository(source) else path.name
        settings = run.settings.with_values("seed_stage", ranked=str(path))
        if skip_bad:
            settings = settings.model_copy(update={"skip_bad": True})
        rows, drops, notes = ranked.load_ranked_rows(settings)
    content = json.dumps(rows, sort_keys=True, default=str).encode()
    digest = hashlib.blake2b(content, digest_size=8).hexdigest()
    prompts, outcome = ranked.build_ranked_prompts(rows, f"{run.store.id_namespace}, {digest}")
    seen = _list_trained_texts(run)
    kept: list[RankedPrompt] = [one for one in prompts if one.prompt.text not in seen]
    left_out = _count_trained(dict(drops + outcome.drops), len(prompts) - len(kept), "prompts")
    return replace(JudgeSet.of(pinned or source, title, kept, left_out), notes=tuple(notes))


def _list_trained_texts(run: RunReader) -> set[str]:
    own = run.ranked()
    return {one.prompt.text for one in (*own.eft, *own.ift)}


def _count_trained(left_out: dict[str, int], count: int, what: str) -> dict[str, int]:
    if count:
        left_out[f"{what} that M0 was trained on, or could have been"] = count
    return left_out
