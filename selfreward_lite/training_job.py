"""A training job as a file: what is trained on which rows, and how the child that trains is watched.

Knows: which text is prompt and which completion, token ids, the child's report lines. Does not know: torch, trainers
(those are in `train`, which runs as a child so that its memory really comes back). All ids come from `chat`, so a
prompt is the same tokens to a trainer as to the engine; a completion is its stripped text, encoded again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from selfreward_lite.chat import ChatFormat, user
from selfreward_lite.errors import TrainingError
from selfreward_lite.records import Drop, Judgment, JudgmentPair, Prompt, Response, ResponsePair
from selfreward_lite.stages.judgments import question

FIRST_MARGIN_LIMIT = 1e-4  # reward margin of the first step; larger means that the reference is another model
Row = dict[str, Any]
Report = Callable[[int, int, dict[str, float]], None]  # step, steps in all, what the trainer logged


@dataclass(frozen=True)
class Job:
    """Everything that the training child needs.

    `adapter_in` is the adapter to go on from, None for a fresh one; for DPO it is the reference as well. `rows` is a
    JSON-lines file of token ids: prompt_ids with completion_ids (SFT), or with chosen_ids and rejected_ids (DPO).
    """

    method: Literal["sft", "dpo"]
    model_dir: str
    quantisation: str
    adapter_in: str | None
    adapter_out: str
    rows: str
    row_count: int
    pad: int
    seed: int
    settings: Mapping[str, Any]
    lora: Mapping[str, Any]
    gradient_checkpointing: bool = True

    def save(self, path: Path) -> None:
        """Write the job as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Job:
        """Read a job that `save` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


@dataclass
class Rows:
    """Rows for a trainer, and by reason what was left out."""

    rows: list[Row] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)

    def add(self, row: Row, max_length: int) -> None:
        """Take a row unless it is too long: a trainer would cut it, and the model would never see its end."""
        longest = len(row["prompt_ids"]) + max(len(ids) for name, ids in row.items() if name != "prompt_ids")
        if longest > max_length:
            self.drops.append(Drop("longer than max_length"))
        else:
            self.rows.append(row)

    def save(self, path: Path) -> None:
        """Write one JSON object a line."""
        path.write_text("".join(f"{json.dumps(row)}\n" for row in self.rows), encoding="utf-8")


def sft_rows(examples: Iterable[tuple[str, str]], chat: ChatFormat, max_length: int) -> Rows:
    """Return rows of (what the user says, what the assistant is to answer)."""
    rows = Rows()
    for content, answer in examples:
        row = {"prompt_ids": chat.prompt_ids(user(content)), "completion_ids": chat.completion_ids(answer)}
        rows.add(row, max_length)
    return rows


def dpo_rows(
    response_pairs: Iterable[ResponsePair], judgment_pairs: Iterable[JudgmentPair], texts: Texts, chat: ChatFormat,
    max_length: int,
) -> Rows:
    """Return both kinds of pairs as rows: a prompt with two responses, or a judge's question with two judgments."""
    rows = Rows()
    for pair in response_pairs:
        chosen, rejected = texts.responses[pair.chosen_id], texts.responses[pair.rejected_id]
        rows.add(_dpo_row(chat, texts.prompts[pair.prompt_id].text, chosen.text, rejected.text), max_length)
    for judged in judgment_pairs:
        response = texts.responses[judged.response_id]
        asked = question(texts.prompts[response.prompt_id], response, texts.templates)
        better, worse = texts.judgments[judged.chosen_id], texts.judgments[judged.rejected_id]
        rows.add(_dpo_row(chat, asked, better.text, worse.text), max_length)
    return rows


@dataclass(frozen=True)
class Texts:
    """The records that pairs point to, by id, and the template set that the judge was asked with."""

    prompts: Mapping[str, Prompt]
    responses: Mapping[str, Response]
    judgments: Mapping[str, Judgment]
    templates: str


def run(job: Job, folder: Path, report: Report) -> dict[str, float]:
    """Train in a child process and return its closing facts (steps, seconds, share of weights moved, …).

    `report` is called with (step, steps in all, values) as training goes on. Raises TrainingError with the child's own
    last words if it fails; nothing of a failed job is used.
    """
    path = folder / "job.json"
    job.save(path)
    command = [sys.executable, "-m", "selfreward_lite.train", str(path)]
    with (folder / "train.log").open("w", encoding="utf-8") as log:
        # Ctrl-C is ours to handle; and the child ends by itself when its input closes, however we die.
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
            env={"CUDA_VISIBLE_DEVICES": "0", **os.environ},  # with two cards in sight, TRL splits every batch
        )
        try:
            closing = _follow(child, report)
            code = child.wait()
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
    if code != 0 or closing is None:
        raise TrainingError(f"training failed: {_last_words(folder / 'train.log', code)} (see {folder / 'train.log'})")
    return closing


def _follow(child: subprocess.Popen[str], report: Report) -> dict[str, float] | None:
    closing = None
    assert child.stdout is not None
    for line in child.stdout:
        said = json.loads(line)
        if "done" in said:
            closing = said["done"]
        else:
            report(said["step"], said["steps"], said["values"])
    return closing


def _last_words(log: Path, code: int) -> str:
    with log.open(encoding="utf-8", errors="replace") as file:
        last = deque((line.strip() for line in file if line.strip()), maxlen=1)
    return last[0] if last else f"the child ended with code {code} and without a word"


def _dpo_row(chat: ChatFormat, content: str, chosen: str, rejected: str) -> Row:
    return {
        "prompt_ids": chat.prompt_ids(user(content)),
        "chosen_ids": chat.completion_ids(chosen),
        "rejected_ids": chat.completion_ids(rejected),
    }
