"""Human rankings in OASST's schema, split into prompts for training and for evaluation.

Schema: Köpf et al. 2023 (arXiv 2304.07327). Selection of rows: arXiv 2401.10020, section 3.1.
Only first turns are read. Evaluation prompts are set aside first, so none is trained on. What is
left out is counted by reason.
"""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfreward_lite.config.settings import CHECKABLE, Settings
from selfreward_lite.data import hub, prompt_files
from selfreward_lite.data.checkable import ranked as checkable_ranked
from selfreward_lite.data.checkable.kinds import encode_constraints
from selfreward_lite.data.checkable.requests import add_constraints, draw_held_out_requests
from selfreward_lite.data.records import Outcome, Prompt, Record, Response, make_id, seed_for
from selfreward_lite.data.tiny import tasks
from selfreward_lite.data.tiny.ranked import ANSWERS, generate_ranked_rows
from selfreward_lite.system.errors import DataError

HUMAN = "human"  # who wrote the ranked responses
_NEEDED = ("message_id", "parent_id", "text", "role", "rank")
# Ranked prompts per wanted EFT prompt: nearly half of them give no judgments that agree strictly.
_SPARE = 2


@dataclass(frozen=True)
class RankedPrompt:
    """A first-turn prompt with at least two ranked responses, best first."""

    prompt: Prompt
    responses: tuple[Response, ...]


def load_ranked_rows(settings: Settings) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Return the messages of the ranked data, and drops. Raises DataError for a bad row."""
    seed, source = settings.seed_stage, settings.seed_stage.ranked
    if source == "tiny":
        wanted = seed.train_examples // ANSWERS
        return list(generate_ranked_rows(seed.eval_prompts + _SPARE * wanted)), Counter()
    if source == CHECKABLE:
        wanted = seed.ift_examples + 1
        if seed.eft:
            wanted += _SPARE * seed.train_examples // checkable_ranked.ANSWERS
        return list(checkable_ranked.generate_ranked_rows(seed.eval_prompts + wanted)), Counter()
    found = prompt_files.read_rows(hub.find_local(source, "dataset"), skip_bad=settings.skip_bad)
    kept = []
    for place, raw in found.rows:
        row = _convert_types(raw)
        if reason := _find_fault(row):
            found.refuse(place, reason)
        else:
            kept.append(row)
    return kept, found.skipped


def build_ranked_prompts(
    rows: Iterable[Mapping[str, Any]], namespace: str
) -> tuple[list[RankedPrompt], Outcome]:
    """Return the usable prompts in the order of the data, and an outcome with records and drops."""
    drops = Counter[str]()
    answers: dict[str | None, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if reason := _reason_to_leave_out(row):
            drops[reason] += 1
        else:
            answers[row["parent_id"]].append(row)
    found: list[RankedPrompt] = []
    seen: set[str] = set()
    for row in answers.pop(None, []):
        plain = " ".join(row["text"].split()).casefold()
        if plain in seen:  # the same prompt could be in evaluation and in training
            drops["same prompt again"] += 1
            continue
        seen.add(plain)
        by_rank: dict[float, str] = {}
        for answer in answers[row["message_id"]]:
            if answer["rank"] is None:
                drops["answer without a rank"] += 1
            elif answer["rank"] in by_rank:  # people did not tell them apart
                drops["answer of the same rank as another"] += 1
            else:
                by_rank[answer["rank"]] = answer["text"]
        if len(by_rank) < 2:
            drops["fewer than two ranked answers"] += 1
            continue
        ranked = [by_rank[rank] for rank in sorted(by_rank)]
        found.append(_build_records(len(found), row["text"], ranked, namespace))
    records: list[Record] = []
    for one in found:
        records += [one.prompt, *one.responses]
    return found, Outcome(records, drops)


@dataclass(frozen=True)
class Split:
    """Ranked prompts by purpose: measuring judges, training the judge (EFT) and the actor (IFT)."""

    evaluation: list[RankedPrompt]
    eft: list[RankedPrompt]
    ift: list[RankedPrompt]


def split_ranked(found: Sequence[RankedPrompt], settings: Settings) -> Split:
    """Return the prompts split by purpose. Raises DataError if none is left for EFT."""
    shuffled = sorted(found, key=lambda one: seed_for(settings.seed, one.prompt.id))
    wanted = settings.seed_stage
    left = len(shuffled) - wanted.eval_prompts - wanted.ift_examples
    if left < 1:
        also = f" and {wanted.ift_examples} IFT prompts" if wanted.ift_examples else ""
        raise DataError(
            f"{len(found)} ranked prompts are too few for {wanted.eval_prompts} evaluation "
            f"prompts{also}; lower seed_stage.eval_prompts"
            f"{' or seed_stage.ift_examples' if also else ''}, or give more data"
        )
    rest = shuffled[wanted.eval_prompts :]
    return Split(shuffled[: wanted.eval_prompts], rest[:left], rest[left:])


def pick_held_out_prompts(
    settings: Settings, namespace: str, ranked: Sequence[RankedPrompt]
) -> list[Prompt]:
    """Return the prompts that every model answers for evaluation, and that none is trained on.

    Checkable requests, and the tasks of the tiny world, are drawn for it; elsewhere they are the
    first of the `ranked` evaluation prompts. Where prompts to train on get constraints, a third of
    these gets some of the trained kinds, and a third some that are never trained.
    """
    count = settings.evaluation.prompts
    if settings.prompts.file == CHECKABLE:
        requests, half = draw_held_out_requests(settings.seed, count), (count + 1) // 2
        mixed = [requests[index // 2 + half * (index % 2)] for index in range(count)]
        return [
            Prompt.make(
                namespace, 0, "held_out", index, one.text, encode_constraints(one.constraints)
            )
            for index, one in enumerate(mixed)
        ]
    if added := settings.prompts.constraints:
        plain = [
            Prompt.make(namespace, 0, "held_out", index, one.prompt.text)
            for index, one in enumerate(ranked[:count])
        ]
        return [
            add_constraints(one, settings.seed, added, unseen=one.index % 3 == 2)
            if one.index % 3
            else one
            for one in plain
        ]
    if settings.seed_stage.ranked != "tiny":
        return [one.prompt for one in ranked[:count]]
    rng = random.Random(settings.seed)
    texts = dict.fromkeys(tasks.draw_task(rng, "evaluation").prompt for _ in range(4 * count))
    return [
        Prompt.make(namespace, 0, "held_out", index, text)
        for index, text in enumerate(list(texts)[:count])
    ]


def _reason_to_leave_out(row: Mapping[str, Any]) -> str | None:
    """Why a row may not be used as seed data, None if it may."""
    if row.get("lang", "en") != "en":
        return "not English"
    if row.get("deleted") or row.get("review_result") is False or row.get("synthetic"):
        return "deleted, rejected or synthetic"
    if row.get("tree_state", "ready_for_export") != "ready_for_export":
        return "tree not ready for export"
    return None if str(row["text"] or "").strip() else "empty text"


def _build_records(index: int, text: str, answers: Sequence[str], namespace: str) -> RankedPrompt:
    prompt = Prompt.make(namespace, 0, "ranked", index, text.strip())
    responses = tuple(
        Response(
            make_id(namespace, Response, 0, HUMAN, prompt.id, rank),
            0,
            HUMAN,
            prompt.id,
            rank,
            answer.strip(),
            "stop",
            0,
            rank,
        )
        for rank, answer in enumerate(answers)
    )
    return RankedPrompt(prompt, responses)


def _convert_types(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with numbers and booleans where a CSV file has only text."""
    converted = dict(row)
    if isinstance(row.get("rank"), str):
        try:
            converted["rank"] = float(row["rank"])
        except ValueError:
            return converted  # `_find_fault` will refuse it
    for name in ("deleted", "synthetic", "review_result"):
        if isinstance(row.get(name), str):
            converted[name] = {"true": True, "false": False}.get(row[name].casefold(), row[name])
    return converted


def _find_fault(row: Mapping[str, Any]) -> str | None:
    """Why a row is not a message of ranked data, None if it is."""
    if chat := prompt_files.name_chat_format(row):
        return (
            f"this file holds {chat}, which rank no answers; the seed stage needs OASST's schema "
            f"({', '.join(_NEEDED)})"
        )
    missing = [name for name in _NEEDED if name not in row]
    if missing:
        return f"no field {missing[0]!r}; ranked data must be in OASST's schema"
    role, rank, text = row["role"], row["rank"], row["text"]
    if role not in ("prompter", "assistant"):
        return f"role {role!r} is neither prompter nor assistant"
    if rank is not None and not (isinstance(rank, int | float) and math.isfinite(rank)):
        return f"rank {rank!r} is not a number"
    for name in ("message_id", "parent_id"):
        if not isinstance(row[name], str | int | None):
            return f"{name} {row[name]!r} is not an id"
    fault = prompt_files.find_text_fault(text)
    # OASST has empty texts; they are dropped later.
    return None if text is None or fault is None else f"text {fault}"
