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
from typing import Any

from selfreward_lite.config.settings import Settings
from selfreward_lite.data import hub, prompt_files
from selfreward_lite.data.records import Drop, Outcome, Prompt, Record, Response, make_id, seed_for
from selfreward_lite.data.tiny import ranked, tasks
from selfreward_lite.system.errors import DataError

HUMAN = "human"  # who wrote the ranked responses
_NEEDED = ("message_id", "parent_id", "text", "role", "rank")
_TINY_SPARE = 2  # ranked prompts made a wanted EFT prompt: nearly half of them give no set of judgments that agrees strictly


@dataclass(frozen=True)
class RankedPrompt:
    """A first-turn prompt with at least two ranked responses, best first."""

    prompt: Prompt
    responses: tuple[Response, ...]


def load_ranked_rows(settings: Settings) -> tuple[list[dict[str, Any]], tuple[Drop, ...]]:
    """Return the messages of the ranked data, and what was skipped. Raises DataError with file and line for a bad row."""
    source = settings.seed_stage.ranked
    if source == "tiny":
        wanted = settings.seed_stage.train_examples // ranked.ANSWERS
        return list(
            ranked.generate_ranked_rows(settings.seed_stage.eval_prompts + _TINY_SPARE * wanted)
        ), ()
    found = prompt_files.read_rows(hub.find_local(source, "dataset"), skip_bad=settings.skip_bad)
    kept = []
    for place, raw in found.rows:
        row = _typed(raw)
        reason = _unfit(row)
        if reason is None:
            kept.append(row)
        else:
            found.refuse(place, reason)
    return kept, found.drops()


def build_ranked_prompts(
    rows: Iterable[Mapping[str, Any]], run: str
) -> tuple[list[RankedPrompt], Outcome]:
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
                drops["answer of the same rank as another"] += (
                    1  # the humans did not tell them apart
                )
        ranked = [by_rank[rank] for rank in sorted(by_rank)]
        if len(ranked) < 2:
            drops["fewer than two ranked answers"] += 1
            continue
        found.append(
            _as_records(len(found), row["text"], [answer["text"] for answer in ranked], run)
        )
    records: list[Record] = []
    for one in found:
        records += [one.prompt, *one.responses]
    return found, Outcome(
        tuple(records), tuple(Drop(reason, count) for reason, count in drops.items())
    )


@dataclass(frozen=True)
class Split:
    """Ranked prompts by what they are for: to measure judges, to teach judging (EFT), to teach answering (IFT)."""

    evaluation: list[RankedPrompt]
    eft: list[RankedPrompt]
    ift: list[RankedPrompt]


def split_ranked(found: Sequence[RankedPrompt], settings: Settings) -> Split:
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


def pick_held_out_prompts(
    settings: Settings, run: str, ranked: Sequence[RankedPrompt]
) -> list[Prompt]:
    """Return the prompts that every model of the run answers for evaluation, and that none is trained on.

    In the tiny world they are drawn from its evaluation part; elsewhere they are the held-out `ranked` prompts.
    """
    if settings.seed_stage.ranked != "tiny":
        return [one.prompt for one in ranked[: settings.evaluation.prompts]]
    rng = random.Random(settings.seed)
    texts = dict.fromkeys(
        tasks.draw_task(rng, "evaluation").prompt for _ in range(4 * settings.evaluation.prompts)
    )
    chosen = list(texts)[: settings.evaluation.prompts]
    return [
        Prompt(make_id(run, Prompt, 0, "held_out", index), 0, "held_out", index, text)
        for index, text in enumerate(chosen)
    ]


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
    prompt = Prompt(
        make_id(run, Prompt, 0, "ranked", index), 0, "ranked", index, prompt_text.strip()
    )
    responses = tuple(
        Response(
            make_id(run, Response, 0, HUMAN, prompt.id, rank),
            0,
            HUMAN,
            prompt.id,
            rank,
            text.strip(),
            "stop",
            0,
            rank,
        )
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
    if chat := prompt_files.name_chat_format(row):
        return f"this file holds {chat}, which rank no answers; the seed stage needs OASST's schema ({', '.join(_NEEDED)})"
    missing = [name for name in _NEEDED if name not in row]
    if missing:
        return f"no field {missing[0]!r}; ranked data must be in OASST's schema"
    if row["role"] not in ("prompter", "assistant"):
        return f"role {row['role']!r} is neither prompter nor assistant"
    if row["rank"] is not None and not (
        isinstance(row["rank"], int | float) and math.isfinite(row["rank"])
    ):
        return f"rank {row['rank']!r} is not a number"
    for name in ("message_id", "parent_id"):
        if not isinstance(row[name], str | int | None):
            return f"{name} {row[name]!r} is not an id"
    fault = prompt_files.find_text_fault(row["text"])
    return (
        None if row["text"] is None or fault is None else f"text {fault}"
    )  # an empty one is dropped, as OASST has them
