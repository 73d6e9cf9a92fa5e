"""Pairs and examples as token-id rows."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfreward_lite.data.records import (
    Drop,
    Judgment,
    JudgmentPair,
    Prompt,
    Response,
    ResponsePair,
)
from selfreward_lite.method.judgments import build_judge_question
from selfreward_lite.models.chat_format import ChatFormat, user

TOO_LONG = "longer than max_length"
Row = dict[str, Any]


@dataclass
class Rows:
    """Rows for a trainer, and by reason what was left out."""

    rows: list[Row] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)

    def add(self, row: Row, max_length: int) -> None:
        """Take a row unless it is too long: a trainer would cut it, and the model would never see its end."""
        if length(row) > max_length:
            self.drops.append(Drop(TOO_LONG))
        else:
            self.rows.append(row)

    def save(self, path: Path) -> None:
        """Write one JSON object a line."""
        path.write_text("".join(f"{json.dumps(row)}\n" for row in self.rows), encoding="utf-8")


def length(row: Row) -> int:
    """Return the tokens of a row: its prompt and the longest of its completions."""
    return len(row["prompt_ids"]) + max(map(len, _completions(row)))


def tokens(row: Row) -> int:
    """Return the tokens that a row is trained on: its prompt with each of its completions."""
    completions = _completions(row)
    return len(completions) * len(row["prompt_ids"]) + sum(map(len, completions))


def _completions(row: Row) -> list[list[int]]:
    """The row's completions; beside them a trainer may have put numbers of its own."""
    return [ids for name, ids in row.items() if name.endswith("_ids") and name != "prompt_ids"]


def arranged(rows: Sequence[Row], epochs: float, batch: int, seed: int) -> list[Row]:
    """Return the rows in the order in which a trainer is to see them, all epochs after one another.

    Every epoch is shuffled anew; inside a batch, rows stand by length. The batch, and so the step, is the same in any
    order, but the micro-batches that it is cut into are padded less: of judgments among short responses, half was padding.
    """
    rng = random.Random(seed)
    order: list[Row] = []
    while len(order) < round(epochs * len(rows)):
        order += rng.sample(rows, len(rows))
    order = order[: round(epochs * len(rows))]
    return [
        row
        for start in range(0, len(order), batch)
        for row in sorted(order[start : start + batch], key=length)
    ]


def micro_batches(batch: int, wanted: int) -> Iterator[int]:
    """Yield how many examples to put on the device at once: as many as wanted, then fewer each time, always a divisor of batch.

    >>> list(micro_batches(32, 6)), list(micro_batches(6, 4))
    ([4, 2, 1], [3, 1])
    """
    size = wanted
    while size >= 1:
        if batch % size == 0:
            yield size
            size //= 2
        else:
            size -= 1


def sft_rows(examples: Iterable[tuple[str, str]], chat: ChatFormat, max_length: int) -> Rows:
    """Return rows of (what the user says, what the assistant is to answer)."""
    rows = Rows()
    for content, answer in examples:
        row = {
            "prompt_ids": chat.prompt_ids(user(content)),
            "completion_ids": chat.completion_ids(answer),
        }
        rows.add(row, max_length)
    return rows


def dpo_rows(
    response_pairs: Iterable[ResponsePair],
    judgment_pairs: Iterable[JudgmentPair],
    texts: Texts,
    chat: ChatFormat,
    max_length: int,
) -> Rows:
    """Return both kinds of pairs as rows: a prompt with two responses, or a judge's question with two judgments."""
    rows = Rows()
    for said, chosen, rejected in (
        *map(texts.of_responses, response_pairs),
        *map(texts.of_judgments, judgment_pairs),
    ):
        rows.add(
            {
                "prompt_ids": chat.prompt_ids(user(said)),
                "chosen_ids": chat.completion_ids(chosen),
                "rejected_ids": chat.completion_ids(rejected),
            },
            max_length,
        )
    return rows


@dataclass(frozen=True)
class Texts:
    """The records that pairs point to, by id, and the template set that the judge was asked with.

    A pair in texts is what the user says, the chosen answer and the rejected one.
    """

    prompts: Mapping[str, Prompt]
    responses: Mapping[str, Response]
    judgments: Mapping[str, Judgment]
    templates: str

    def of_responses(self, pair: ResponsePair) -> tuple[str, str, str]:
        """Return a pair of responses in texts."""
        chosen, rejected = self.responses[pair.chosen_id], self.responses[pair.rejected_id]
        return self.prompts[pair.prompt_id].text, chosen.text, rejected.text

    def of_judgments(self, pair: JudgmentPair) -> tuple[str, str, str]:
        """Return a pair of judgments in texts: the user's part is the judge's question."""
        response = self.responses[pair.response_id]
        asked = build_judge_question(self.prompts[response.prompt_id], response, self.templates)
        return asked, self.judgments[pair.chosen_id].text, self.judgments[pair.rejected_id].text
