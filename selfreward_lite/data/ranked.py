"""Human rankings in OASST's schema, split into prompts for training and for evaluation.

Schema: Köpf et al. 2023 (arXiv 2304.07327). Selection of rows: arXiv 2401.10020, section 3.1.
Only first turns are read. Evaluation prompts are set aside first, so none is trained on. What is
left out is counted by reason.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from selfreward_lite.config.settings import CHECKABLE, Settings
from selfreward_lite.data import hub
from selfreward_lite.data.checkable import ranked as checkable_ranked
from selfreward_lite.data.checkable.kinds import encode_constraints
from selfreward_lite.data.checkable.requests import add_constraints, draw_held_out_requests
from selfreward_lite.data.data_files import read_rows
from selfreward_lite.data.dialogues import split_dialogue
from selfreward_lite.data.prompt_rows import read_id
from selfreward_lite.data.ranked_rows import is_english, read_messages
from selfreward_lite.data.records import Outcome, Prompt, Record, Response, make_id, seed_for
from selfreward_lite.data.rows import BadRow, describe_counts, is_empty
from selfreward_lite.data.tiny import tasks
from selfreward_lite.data.tiny.ranked import ANSWERS, generate_ranked_rows
from selfreward_lite.system.errors import DataError

HUMAN = "human"  # who wrote the ranked responses
# Ranked prompts per wanted EFT prompt: nearly half of them give no judgments that agree strictly.
_SPARE = 2
_STEP = 50  # prompts that a program writes between two words of it
_ITS_PROMPT = "answer to a prompt that is left out"


@dataclass(frozen=True)
class RankedPrompt:
    """A first-turn prompt with at least two ranked responses, best first."""

    prompt: Prompt
    responses: tuple[Response, ...]


class RankedRows(NamedTuple):
    """The messages of ranked data, what was skipped by reason, and notes for the user."""

    rows: list[dict[str, Any]]
    skipped: Counter[str]
    notes: list[str]


def load_ranked_rows(
    settings: Settings, show: Callable[[int, int], None] = lambda done, total: None
) -> RankedRows:
    """Return the messages of the ranked data. Raises DataError for a bad row.

    Where a program writes them, `show` receives now and then how many prompts are written, of how
    many.
    """
    seed, source = settings.seed_stage, settings.seed_stage.ranked
    if source == "tiny":
        wanted = seed.eval_prompts + _SPARE * (seed.train_examples // ANSWERS)
        return RankedRows(_collect(generate_ranked_rows(wanted), wanted, show), Counter(), [])
    if source == CHECKABLE:
        wanted = seed.eval_prompts + seed.ift_examples + 1
        if seed.eft:
            wanted += _SPARE * seed.train_examples // checkable_ranked.ANSWERS
        made = checkable_ranked.generate_ranked_rows(wanted)
        return RankedRows(_collect(made, wanted, show), Counter(), [])
    found = read_rows(hub.find_local(source, "dataset"), skip_bad=settings.skip_bad)
    return RankedRows(read_messages(found), found.skipped, found.notes)


def _collect(
    rows: Iterable[dict[str, Any]], wanted: int, show: Callable[[int, int], None]
) -> list[dict[str, Any]]:
    """The rows of so many prompts, which take a while to write."""
    found: list[dict[str, Any]] = []
    prompts = 0
    for row in rows:
        found.append(row)
        prompts += row["parent_id"] is None
        if row["parent_id"] is None and prompts % _STEP == 0:
            show(prompts, wanted)
    return found


def build_ranked_prompts(
    rows: Iterable[Mapping[str, Any]], namespace: str
) -> tuple[list[RankedPrompt], Outcome]:
    """Return the usable prompts in the order of the data, and an outcome with records and drops."""
    drops = Counter[str]()
    known: dict[str | None, Any] = {}  # texts of messages by their ids
    first_turns = set[str | None]()
    answers: dict[str | None, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        own, parent = read_id(row["message_id"]), read_id(row.get("parent_id"))
        if own in known:
            same = row["text"] == known[own]
            drops["message that is there twice" if same else "id of another message"] += 1
            continue
        known[own] = row["text"]
        if parent is None:
            first_turns.add(own)
        if reason := _reason_to_leave_out(row):
            drops[reason] += 1
        else:
            answers[parent].append(row)
    found: list[RankedPrompt] = []
    seen: set[str] = set()
    for row in answers.pop(None, []):
        plain = " ".join(row["text"].split()).casefold()
        if plain in seen:  # the same prompt could be in evaluation and in training
            drops["same prompt again"] += 1
            continue
        seen.add(plain)
        ranked = _rank_answers(answers.pop(read_id(row["message_id"]), []), drops)
        if ranked:
            found.append(_build_records(len(found), row["text"], ranked, namespace))
    for parent, left in answers.items():
        drops[_reason_without_prompt(parent, known, first_turns)] += len(left)
    records: list[Record] = []
    for one in found:
        records += [one.prompt, *one.responses]
    return found, Outcome(records, drops)


def _rank_answers(answers: Iterable[Mapping[str, Any]], drops: Counter[str]) -> list[str]:
    """The ranked answers to a prompt, best first; none if there are fewer than two."""
    by_rank: dict[float, str] = {}
    ranks: dict[str, float] = {}
    for answer in answers:
        if answer["role"] != "assistant":
            drops["reply to a prompt that is not an assistant's"] += 1
        elif answer.get("rank") is None:
            drops["answer without a rank"] += 1
        elif answer["rank"] in by_rank:  # people did not tell them apart
            drops["answer of the same rank as another"] += 1
        else:
            by_rank[answer["rank"]] = answer["text"]
    for rank in sorted(by_rank):  # of the same text with two ranks the better one counts
        if ranks.setdefault(" ".join(by_rank[rank].split()), rank) != rank:
            drops["same answer again, with a worse rank"] += 1
            del by_rank[rank]
    if len(by_rank) < 2:
        drops["fewer than two ranked answers"] += 1
        if by_rank:
            drops[_ITS_PROMPT] += 1
        return []
    return [by_rank[rank] for rank in sorted(by_rank)]


def _reason_without_prompt(
    parent: str | None, known: Collection[str | None], first_turns: Collection[str | None]
) -> str:
    """Why messages are not used that answer no prompt that is used."""
    if parent in first_turns:
        return _ITS_PROMPT
    return "message of a later turn" if parent in known else "answer to a message that is not there"


@dataclass(frozen=True)
class Split:
    """Ranked prompts by purpose: measuring judges, training the judge (EFT) and the actor (IFT)."""

    evaluation: list[RankedPrompt]
    eft: list[RankedPrompt]
    ift: list[RankedPrompt]


def split_ranked(
    found: Sequence[RankedPrompt], settings: Settings, drops: Mapping[str, int] | None = None
) -> Split:
    """Return the prompts split by purpose. Raises DataError, with `drops`, if none is left for EFT.

    `drops` are the rows that were left out, by reason.
    """
    shuffled = sorted(found, key=lambda one: seed_for(settings.seed, one.prompt.id))
    wanted = settings.seed_stage
    left = len(shuffled) - wanted.eval_prompts - wanted.ift_examples
    if left < 1:
        also = f" and {wanted.ift_examples} IFT prompts" if wanted.ift_examples else ""
        left_out = f" (left out: {describe_counts(drops)})" if drops else ""
        raise DataError(
            f"{len(found)} ranked prompts are too few for {wanted.eval_prompts} evaluation "
            f"prompts{also}{left_out}; lower seed_stage.eval_prompts"
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
    if not is_english(row.get("lang")):
        return "not English"
    if row.get("deleted") or row.get("review_result") is False or row.get("synthetic"):
        return "deleted, rejected or synthetic"
    state = row.get("tree_state")
    if not is_empty(state) and state != "ready_for_export":
        return "tree not ready for export"
    text = str(row["text"] or "").strip()
    if read_id(row.get("parent_id")) is not None:
        return None if text else "empty text"
    if row["role"] != "prompter":
        return "answer without parent_id"
    if text and _is_dialogue(text):
        return "prompt that is a dialogue, or holds chat markup"
    return None if text else "empty text"


def _is_dialogue(text: str) -> bool:
    """Whether a prompt is more than a user's first turn, to which its answers are not ranked."""
    try:
        return split_dialogue(text) is not None
    except BadRow:
        return True


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
