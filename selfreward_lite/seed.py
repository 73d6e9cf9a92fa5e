"""Ranked human data → who trains the judge (EFT), who measures it, who answers held-out prompts.

Knows: OASST's schema (Köpf et al. 2023, arXiv 2304.07327), the selection of arXiv 2401.10020 section 3.1. Does not
know: how judgments are made; those come from the engine, through the judgments stage. Split by message tree, evaluation
first, so that no evaluation prompt is ever trained on or shown as an example. What is left out is counted by reason; deeper
messages of a tree are not looked at.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from selfreward_lite import datafiles, hub
from selfreward_lite.config import Settings
from selfreward_lite.engines.base import Completion
from selfreward_lite.errors import DataError
from selfreward_lite.records import Drop, Judgment, Outcome, Prompt, Record, Response, make_id, seed_for
from selfreward_lite.stages import judgments as judgments_stage
from selfreward_lite.stages.judgments import question
from selfreward_lite.stages.voice import Asking, Voice
from selfreward_lite.tiny import ranked as tiny_ranked
from selfreward_lite.tiny import tasks as tiny_tasks

HUMAN = "human"  # who wrote the ranked responses
_NEEDED = ("message_id", "parent_id", "text", "role", "rank")
_TINY_SPARE = 2  # ranked prompts made a wanted EFT prompt: nearly half of them give no set of judgments that agrees strictly


@dataclass(frozen=True)
class RankedPrompt:
    """A first-turn prompt with at least two ranked responses, best first."""

    prompt: Prompt
    responses: tuple[Response, ...]


@dataclass(frozen=True)
class Example:
    """One EFT example: the judge's question, and the judgment that agreed with the humans."""

    question: str
    judgment: Judgment


def load_rows(settings: Settings) -> tuple[list[dict[str, Any]], tuple[Drop, ...]]:
    """Return the messages of the ranked data, and what was skipped. Raises DataError with file and line for a bad row."""
    source = settings.seed_stage.ranked
    if source == "tiny":
        wanted = settings.seed_stage.train_examples // tiny_ranked.ANSWERS
        return list(tiny_ranked.rows(settings.seed_stage.eval_prompts + _TINY_SPARE * wanted)), ()
    found = datafiles.read_rows(hub.local(source, "dataset"), skip_bad=settings.skip_bad)
    kept = []
    for place, raw in found.rows:
        row = _typed(raw)
        reason = _unfit(row)
        if reason is None:
            kept.append(row)
        else:
            found.refuse(place, reason)
    return kept, found.drops()


def ranked_prompts(rows: Iterable[Mapping[str, Any]], run: str) -> tuple[list[RankedPrompt], Outcome]:
    """Return the usable prompts in the order of the data, and as an outcome their records and what was left out."""
    usable, drops = _usable(rows)
    answers: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    firsts: list[Mapping[str, Any]] = []
    for row in usable:
        if row["parent_id"] is None:
            firsts.append(row)
        else:
            answers[row["parent_id"]].append(row)
    found: list[RankedPrompt] = []
    seen: set[str] = set()
    for row in firsts:
        plain = " ".join(row["text"].split()).casefold()
        if plain in seen:  # else an evaluation prompt could stand among the training prompts
            drops["same prompt again"] += 1
            continue
        seen.add(plain)
        by_rank: dict[float, Mapping[str, Any]] = {}
        for answer in answers[row["message_id"]]:
            if answer["rank"] is None:
                drops["answer without a rank"] += 1
            elif by_rank.setdefault(answer["rank"], answer) is not answer:
                drops["answer of the same rank as another"] += 1  # the humans did not tell them apart
        ranked = [by_rank[rank] for rank in sorted(by_rank)]
        if len(ranked) < 2:
            drops["fewer than two ranked answers"] += 1
            continue
        found.append(_as_records(len(found), row["text"], [answer["text"] for answer in ranked], run))
    records: list[Record] = []
    for one in found:
        records += [one.prompt, *one.responses]
    return found, Outcome(tuple(records), tuple(Drop(reason, count) for reason, count in drops.items()))


@dataclass(frozen=True)
class Split:
    """Ranked prompts by what they are for: to measure judges, to teach judging (EFT), to teach answering (IFT)."""

    evaluation: list[RankedPrompt]
    eft: list[RankedPrompt]
    ift: list[RankedPrompt]


def split(found: Sequence[RankedPrompt], settings: Settings) -> Split:
    """Share the prompts out: evaluation is reserved first, IFT last. Raises DataError if nothing is left to teach judging."""
    shuffled = sorted(found, key=lambda one: seed_for(settings.seed, one.prompt.id))
    wanted = settings.seed_stage
    left = len(shuffled) - wanted.eval_prompts - wanted.ift_examples
    if left < 1:
        also = f" and {wanted.ift_examples} IFT prompts" if wanted.ift_examples else ""
        raise DataError(
            f"{len(found)} ranked prompts are too few for {wanted.eval_prompts} evaluation prompts{also}; "
            f"lower seed_stage.eval_prompts{' or seed_stage.ift_examples' if also else ''}, or give more data"
        )
    rest = shuffled[wanted.eval_prompts :]
    return Split(shuffled[: wanted.eval_prompts], rest[:left], rest[left:])


def held_out_prompts(settings: Settings, run: str, ranked: Sequence[RankedPrompt]) -> list[Prompt]:
    """Return the prompts that every model of the run answers for evaluation, and that none is trained on.

    In the tiny world they are drawn from its evaluation part; elsewhere they are the held-out `ranked` prompts.
    """
    if settings.seed_stage.ranked != "tiny":
        return [one.prompt for one in ranked[: settings.evaluation.prompts]]
    rng = random.Random(settings.seed)
    texts = dict.fromkeys(tiny_tasks.draw(rng, "evaluation").prompt for _ in range(4 * settings.evaluation.prompts))
    chosen = list(texts)[: settings.evaluation.prompts]
    return [
        Prompt(make_id(run, Prompt, 0, "held_out", index), 0, "held_out", index, text) for index, text in enumerate(chosen)
    ]


def agreeing(
    one: RankedPrompt, judgments: Mapping[str, Sequence[Judgment]], *, strict: bool = False
) -> list[Judgment] | None:
    """Return the first set of judgments, one a response, whose scores agree with the human ranking.

    Try number i takes the i-th judgment of each response. A set agrees if no pair of scores is inverted (`strict`: or equal)
    and the best response scores above the worst. None if no try does. The paper leaves ties open (SR 3.1).
    """
    columns = [judgments.get(response.id, ()) for response in one.responses]
    for tried in zip(*columns, strict=False):
        scores = [judgment.score for judgment in tried]
        read = [score for score in scores if score is not None]
        if len(read) < len(scores) or read[0] <= read[-1]:
            continue
        if all(better > worse or (better == worse and not strict) for better, worse in combinations(read, 2)):
            return list(tried)
    return None


def ask(one: RankedPrompt, decoys: Sequence[Response], voice: Voice, attempts: int, strict: bool) -> Asking:
    """Have a prompt's ranked answers judged, and its decoys where the judge agrees with the humans: others bring none along."""
    judged = yield from _judged(one.prompt, one.responses, voice, attempts)
    drawn = defaultdict(list)
    for record in judged.records:
        if isinstance(record, Judgment):
            drawn[record.response_id].append(record)
    if not decoys or agreeing(one, drawn, strict=strict) is None:
        return judged
    more = yield from _judged(one.prompt, decoys, voice, attempts)
    return Outcome((*judged.records, *more.records), (*judged.drops, *more.drops))


def _judged(prompt: Prompt, responses: Sequence[Response], voice: Voice, attempts: int) -> Asking:
    """The judgments stage on several responses at once."""
    askings = [judgments_stage.ask(prompt, response, voice, attempts) for response in responses]
    replies = yield [request for asking in askings for request in next(asking)]
    outcomes = [_end(asking, reply) for asking, reply in zip(askings, replies, strict=True)]
    return Outcome(
        tuple(record for outcome in outcomes for record in outcome.records),
        tuple(drop for outcome in outcomes for drop in outcome.drops),
    )


def _end(asking: Asking, reply: list[Completion]) -> Outcome:
    try:
        asking.send([reply])
    except StopIteration as stop:
        return stop.value
    raise RuntimeError("a judgment asks once")


def eft_examples(
    prompts: Sequence[RankedPrompt], decoys: Mapping[str, Sequence[Response]], judgments: Mapping[str, Sequence[Judgment]],
    settings: Settings,
) -> tuple[list[Example], Outcome]:
    """Return the EFT set, at most `train_examples`, and by reason how many judgments were left out.

    A prompt whose judgments agree with the humans brings those of its `decoys` along, each with the first that gives it no
    more than the worst human answer got. The papers have no decoys; why there are some is in LOG.md.
    """
    examples: list[Example] = []
    drops: Counter[str] = Counter()
    for one in prompts:
        agreed = agreeing(one, judgments, strict=settings.seed_stage.strict)
        if agreed is None:
            drops["no set of judgments agrees with the ranking"] += len(one.responses)
            continue
        examples += [
            Example(question(one.prompt, response, settings.model.templates), judgment)
            for response, judgment in zip(one.responses, agreed, strict=True)
        ]
        for decoy in decoys.get(one.prompt.id, ()):
            seen = _seen_through(judgments.get(decoy.id, ()), agreed)
            drops["no judgment sees through the decoy"] += seen is None
            if seen is not None:
                examples.append(Example(question(one.prompt, decoy, settings.model.templates), seen))
    if settings.seed_stage.cap_most_common:
        examples, thinned = _thinned(examples)
        drops["most common score"] += thinned
    drops["above train_examples"] += max(0, len(examples) - settings.seed_stage.train_examples)
    kept = examples[: settings.seed_stage.train_examples]
    return kept, Outcome(drops=tuple(Drop(reason, count) for reason, count in drops.items() if count))


def _seen_through(judgments: Sequence[Judgment], agreed: Sequence[Judgment]) -> Judgment | None:
    """The first judgment of a decoy that gives it no more than the worst human answer got."""
    limit = agreed[-1].score
    assert limit is not None
    return next((one for one in judgments if one.score is not None and one.score <= limit), None)


def _thinned(examples: list[Example]) -> tuple[list[Example], int]:
    """Leave out examples of the most common score until it is no more common than the second."""
    counts = Counter(example.judgment.score for example in examples).most_common(2)
    if len(counts) < 2:
        return examples, 0
    (common, count), (_, second) = counts
    kept, seen = [], 0
    for example in examples:
        seen += example.judgment.score == common
        if example.judgment.score != common or seen <= second:
            kept.append(example)
    return kept, count - second


def _usable(rows: Iterable[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], Counter[str]]:
    """The base filter of the seed data, with a count for every reason."""
    kept, drops = [], Counter[str]()
    for row in rows:
        if row.get("lang", "en") != "en":
            drops["not English"] += 1
        elif row.get("deleted") or row.get("review_result") is False or row.get("synthetic"):
            drops["deleted, rejected or synthetic"] += 1
        elif row.get("tree_state", "ready_for_export") != "ready_for_export":
            drops["tree not ready for export"] += 1
        elif not str(row["text"] or "").strip():
            drops["empty text"] += 1
        else:
            kept.append(row)
    return kept, drops


def _as_records(index: int, prompt_text: str, texts: Sequence[str], run: str) -> RankedPrompt:
    prompt = Prompt(make_id(run, Prompt, 0, "ranked", index), 0, "ranked", index, prompt_text.strip())
    responses = tuple(
        Response(make_id(run, Response, 0, HUMAN, prompt.id, rank), 0, HUMAN, prompt.id, rank, text.strip(), "stop", 0, rank)
        for rank, text in enumerate(texts)
    )
    return RankedPrompt(prompt, responses)


def _typed(row: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers and truth values that a CSV file could only write as text."""
    typed = dict(row)
    if isinstance(row.get("rank"), str):
        try:
            typed["rank"] = float(row["rank"])
        except ValueError:
            return typed  # and it is refused as what it is
    for name in ("deleted", "synthetic", "review_result"):
        if isinstance(row.get(name), str):
            typed[name] = {"true": True, "false": False}.get(row[name].casefold(), row[name])
    return typed


def _unfit(row: Mapping[str, Any]) -> str | None:
    """Say why a row is no message of ranked data."""
    if chat := datafiles.chat_format(row):
        return f"this file holds {chat}, which rank no answers; the seed stage needs OASST's schema ({', '.join(_NEEDED)})"
    missing = [name for name in _NEEDED if name not in row]
    if missing:
        return f"no field {missing[0]!r}; ranked data must be in OASST's schema"
    if row["role"] not in ("prompter", "assistant"):
        return f"role {row['role']!r} is neither prompter nor assistant"
    if row["rank"] is not None and not (isinstance(row["rank"], int | float) and math.isfinite(row["rank"])):
        return f"rank {row['rank']!r} is not a number"
    for name in ("message_id", "parent_id"):
        if not isinstance(row[name], str | int | None):
            return f"{name} {row[name]!r} is not an id"
    fault = datafiles.text_fault(row["text"])
    return None if row["text"] is None or fault is None else f"text {fault}"  # an empty one is dropped, as OASST has them
