"""A runtime without models: actor, judge and meta-judge answer by functions of the seed."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from selfreward_lite.config.settings import EngineSettings, Model
from selfreward_lite.engine.api import Engine, Request
from selfreward_lite.engine.scripted import Reply, ScriptedEngine
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.models.parity import AdapterParity
from selfreward_lite.training.job import Job, TrainingResult

# How each template begins, in all template sets.
OPENINGS = {
    "judge": ("Judge the answer.", "You are going to grade", "Here is a request, and an answer"),
    "meta_judge": (
        "Compare two judgments",
        "You are going to compare two judgments",
        "Here are a request, an answer to it, and two judgments",
    ),
    "compare": (
        "Compare two answers",
        "You are going to compare two answers",
        "Here are a request and two answers",
    ),
    "new_prompts": ("Add one new task", "Below is a numbered list", "Here is a numbered list"),
}
WORDS = (
    "river",
    "stone",
    "cloud",
    "amber",
    "violet",
    "harbour",
    "lantern",
    "meadow",
    "copper",
    "saffron",
    "winter",
    "orchard",
)


class Script:
    """Replies to any request; `length` multiplies the words, `pause` delays each (seconds)."""

    def __init__(self, chat: ChatFormat, length: int = 1, pause: float = 0.0) -> None:
        self._chat, self._length, self._pause = chat, length, pause

    def reply(self, request: Request, sample: int) -> Reply:
        if self._pause:
            time.sleep(self._pause)
        asked = self._chat.tokenizer.decode(list(request.tokens), skip_special_tokens=True)
        kind = next(
            (kind for kind, begins in OPENINGS.items() if any(text in asked for text in begins)),
            "act",
        )
        rng = random.Random(request.seeds[sample])
        said = getattr(self, f"_{kind}")(rng, len(request.probe.tokens) if request.probe else 0)
        closing = request.closing
        if closing is None:
            return said
        shares = [rng.random() / 2 / len(closing.choices) for _ in closing.choices]
        text = self._chat.tokenizer.decode(list(closing.tokens_behind(said.text)))
        return said._replace(closing=tuple(shares), closing_text=text)

    def _act(self, rng: random.Random, _: int) -> Reply:
        text = " ".join(rng.choices(WORDS, k=self._length * rng.randint(3, 12)))
        return Reply(text, "length" if rng.random() < 0.03 else "stop")

    def _judge(self, rng: random.Random, places: int) -> Reply:
        if rng.random() < 0.05:
            return Reply("I would rather not say.")
        score = rng.randint(0, 5)
        reasons = " ".join(rng.choices(WORDS, k=self._length * rng.randint(4, 9)))
        weights = [rng.random() for _ in range(places)]
        return Reply(
            f"{reasons}\nScore: {score}",
            probe=tuple(weight / sum(weights) for weight in weights) or None,
        )

    def _meta_judge(self, rng: random.Random, _: int) -> Reply:
        return Reply(f"{rng.choice(WORDS)}\nWinner: Judgement {rng.choice('AAB')}")

    def _compare(self, rng: random.Random, _: int) -> Reply:
        return Reply(f"{rng.choice(WORDS)}\nWinner: Response {rng.choice('AB')}")

    def _new_prompts(self, rng: random.Random, _: int) -> Reply:
        if rng.random() < 0.3:
            return Reply(" Hi.")  # the filters drop it, so that a second round is needed
        return Reply(" Tell me about " + " ".join(rng.sample(WORDS, 6)) + ".")


@dataclass(frozen=True)
class ScriptedRuntime:
    """A `Runtime` of functions."""

    open_engine: Callable
    train: Callable
    export_base: Callable
    export_adapter: Callable


def scripted_runtime(
    chat: ChatFormat, *, length: int = 1, pause: float = 0.0, train_seconds: float = 0.0
) -> ScriptedRuntime:
    """Return a runtime without torch and llama.cpp; completions arrive shuffled."""
    script = Script(chat, length, pause)

    def open_engine(base: Path, settings: EngineSettings) -> Engine:
        return ScriptedEngine(script.reply, chat.text_ids, shuffle_seed=None if pause else 5)

    def train(job: Job, folder: Path, report) -> TrainingResult:
        rows = [json.loads(line) for line in Path(job.rows).read_text().splitlines()]
        assert len(rows) == job.row_count
        for step in range(3):
            time.sleep(train_seconds / 3)
            report({"step": step + 1, "steps": 3, "values": {"loss": 0.693 - step / 10}})
        adapter = Path(job.adapter_out)
        adapter.mkdir(parents=True)
        (adapter / "adapter_model.safetensors").write_text(json.dumps(rows))
        return TrainingResult(steps=3, rows=len(rows), moved_share=1.0, first_margin=0.0)

    def export_base(model_dir: Path, out: Path, model: Model) -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("base")

    def export_adapter(model_dir, adapter, base, out, token_lists, model) -> AdapterParity:
        time.sleep(train_seconds / 3)
        out.write_text("adapter")
        return AdapterParity(difference=0.0, change=1.0, share=1.0, agreement=1.0)

    return ScriptedRuntime(open_engine, train, export_base, export_adapter)
