"""Pairs and examples as rows of token ids, in the order in which they are trained on."""

import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from selfreward_lite.data.records import (
    Judgment,
    JudgmentPair,
    Prompt,
    Response,
    ResponsePair,
)
from selfreward_lite.method.judgments import build_judge_question
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.models.chat_template import user

TOO_LONG = "longer than max_length"
TOO_LONG_FOR_MEMORY = "too long for the memory"
# Where memory is too short for the longest row, rows of up to this share of its length are tried.
SHORTER = 0.75
MOST_LEFT_OUT = 0.5  # of the rows, for want of memory: fewer would be other data
Row = dict[str, list[int]]  # prompt_ids, and completion_ids or chosen_ids and rejected_ids


@dataclass
class Rows:
    """Rows for a trainer, and what was left out, with the reason."""

    rows: list[Row] = field(default_factory=list)
    drops: Counter[str] = field(default_factory=Counter)

    def save(self, path: Path) -> None:
        """Write one JSON object a line."""
        path.write_text("".join(f"{json.dumps(row)}\n" for row in self.rows), encoding="utf-8")


def row_length(row: Row) -> int:
    """How many tokens a row has: its prompt and the longest of its completions."""
    return len(row["prompt_ids"]) + max(map(len, _completions(row)))


def count_tokens(row: Row) -> int:
    """How many tokens are computed for a row: its prompt with each of its completions."""
    return sum(len(row["prompt_ids"]) + len(completion) for completion in _completions(row))


def _completions(row: Row) -> list[list[int]]:
    """The row's completions; a trainer may have added numbers of its own."""
    return [ids for name, ids in row.items() if name.endswith("_ids") and name != "prompt_ids"]


def arrange_rows(rows: Sequence[Row], epochs: float, batch: int, seed: int) -> list[Row]:
    """The rows in the order of training, all epochs after one another.

    Every epoch is shuffled anew; within a batch, rows are sorted by length. The batch, and so the
    step, is the same in any order, but its micro-batches need less padding: of judgments among
    short responses, half was padding.
    """
    rng = random.Random(seed)
    order: list[Row] = []
    count = round(epochs * len(rows))
    while len(order) < count:
        order += rng.sample(rows, len(rows))
    batches = [order[start : min(start + batch, count)] for start in range(0, count, batch)]
    return [row for one in batches for row in sorted(one, key=row_length)]


@dataclass(frozen=True)
class DealtRows:
    """The rows of one process; `counted` of its micro-batches count, and the rest do not."""

    rows: list[Row]
    counted: int


def deal_rows(
    order: Sequence[Row], batch: int, micro_batch: int, process: int, processes: int
) -> DealtRows:
    """The rows of one of several processes, which together do each step as one would.

    A step's micro-batches are dealt in turn. All processes must compute as often, so in the last
    step, which may have too few, a process can get a row in the place of a micro-batch: it does not
    count. `processes * micro_batch` divides `batch`.
    """
    rows: list[Row] = []
    counted = 0
    for start in range(0, len(order), batch):
        step = order[start : start + batch]
        parts = [step[at : at + micro_batch] for at in range(0, len(step), micro_batch)]
        own = parts[process::processes]
        counted += len(own)
        rows += [row for part in own for row in part]
        if len(own) < math.ceil(len(parts) / processes):
            rows.append(step[0])  # the shortest
    return DealtRows(rows, counted)


def list_micro_batches(batch: int, wanted: int) -> Iterator[int]:
    """Yield sizes of micro-batches to try: as wanted, then smaller; always a divisor of the batch.

    >>> list(list_micro_batches(32, 6)), list(list_micro_batches(6, 4))
    ([4, 2, 1], [3, 1])
    """
    size = wanted
    while size >= 1:
        if batch % size == 0:
            yield size
            size //= 2
        else:
            size -= 1


def list_lengths(rows: Sequence[Row], wanted: int) -> Iterator[int]:
    """Yield lengths to try where memory is short: as wanted, then shorter ones.

    Rows longer than that are left out, some more each time, but never more than MOST_LEFT_OUT.

    >>> rows = [{"prompt_ids": [0], "completion_ids": [0] * count} for count in (3, 5, 7, 15)]
    >>> list(list_lengths(rows, 20))
    [20, 12, 6]
    """
    lengths, length = [row_length(row) for row in rows], wanted
    fitting = len(lengths)
    while fitting >= (1 - MOST_LEFT_OUT) * len(lengths):
        yield length
        longest = max((one for one in lengths if one <= length), default=0)
        length = int(SHORTER * longest)
        fitting = sum(one <= length for one in lengths)


def build_rows(texts: Iterable[tuple[str, ...]], chat: ChatFormat, max_length: int) -> Rows:
    """Rows of a user's message with one answer, or with a chosen and a rejected one."""
    rows = Rows()
    for message, *answers in texts:
        names = ["completion_ids"] if len(answers) == 1 else ["chosen_ids", "rejected_ids"]
        row = {"prompt_ids": list(chat.prompt_ids(user(message)))}
        for name, answer in zip(names, answers, strict=True):
            row[name] = list(chat.completion_ids(answer))
        if row_length(row) > max_length:  # a trainer would cut off its end
            rows.drops[TOO_LONG] += 1
        else:
            rows.rows.append(row)
    return rows


@dataclass(frozen=True)
class PairTexts:
    """The records that pairs refer to, by id, and the judge's template set.

    A pair as texts is the user's message, the chosen answer and the rejected one.
    """

    prompts: Mapping[str, Prompt]
    responses: Mapping[str, Response]
    judgments: Mapping[str, Judgment]
    templates: str

    def read_response_pair(self, pair: ResponsePair) -> tuple[str, str, str]:
        """A pair of responses as texts."""
        chosen, rejected = self.responses[pair.chosen_id], self.responses[pair.rejected_id]
        return self.prompts[pair.prompt_id].text, chosen.text, rejected.text

    def read_judgment_pair(self, pair: JudgmentPair) -> tuple[str, str, str]:
        """A pair of judgments as texts: the user's message is the judge's question."""
        response = self.responses[pair.response_id]
        question = build_judge_question(self.prompts[response.prompt_id], response, self.templates)
        return question, self.judgments[pair.chosen_id].text, self.judgments[pair.rejected_id].text
