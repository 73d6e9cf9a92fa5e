"""Which GGUF base is nearest to the model that an adapter was trained on? Logits, and how well the judge still judges.

Knows: the ways to make a base (from 4-bit weights given back, or from the originals; in three types), and what is measured of
each. Does not know: a run's stages; it reads a run's ranked answers and asks no others. QLoRA training sees NF4 weights, so NF4
with the adapter, computed by PEFT, is what every base is held against. Torch works in this process: only a bench's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from selfreward_lite.data.records import Judgment
from selfreward_lite.method import judgments
from selfreward_lite.method.metrics import judge_quality
from selfreward_lite.models.gguf_export import Weights, adapter_to_gguf
from selfreward_lite.models.merge import write_base
from selfreward_lite.models.parity import conversation_ids, parity
from selfreward_lite.run.ask import drive
from selfreward_lite.run.context import Run, bind, grouped

Say = Callable[[str], None]
WAYS: tuple[tuple[Weights, str], ...] = (
    ("nf4", "f32"), ("nf4", "q8_0"), ("nf4", "q4_k_m"), ("original", "f32"), ("original", "q8_0"), ("original", "q4_k_m"),
)  # fmt: skip


@dataclass(frozen=True)
class Distance:
    """One base with the adapter, held against NF4 with the adapter: its size in bytes, the largest difference of a logit, the
    mean divergence in nats, the share of positions with the same likeliest token; judge pair accuracy and its error, of a run.
    """

    weights: str
    kind: str
    size: int
    difference: float
    divergence: float
    agreement: float
    judge_pair_accuracy: float | None = None
    judge_pair_accuracy_error: float | None = None

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.kind} of {'NF4' if self.weights == 'nf4' else 'the original'}"


def compare(
    model_dir: Path,
    adapter_dir: Path,
    scratch: Path,
    judge: Callable[[Path, Path], tuple[float, float]] | None,
    say: Say,
) -> Iterator[Distance]:
    """Make every base and yield how far it is; `judge(base, adapter)` gives pair accuracy and its error with two GGUF files."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # one for each of PEFT's models, between our own lines
    adapter = adapter_to_gguf(adapter_dir, model_dir, scratch / "adapter.gguf")
    for weights, kind in WAYS:
        say(f"{kind} of the {weights} weights")
        base = write_base(model_dir, scratch / f"{weights}-{kind}.gguf", kind, weights)
        ids = conversation_ids(model_dir, base)
        found = parity(model_dir, adapter_dir, base, adapter, ids, weights="nf4")
        accuracy = judge(base, adapter) if judge else (None, None)
        yield Distance(
            weights,
            kind,
            base.stat().st_size,
            found.max_abs_diff,
            found.divergence,
            found.agreement,
            *accuracy,
        )
        base.unlink()


def judge_of(run: Run, model: int, count: int) -> Callable[[Path, Path], tuple[float, float]]:
    """Return what measures a base as the judge of a run: `count` judgments of each ranked answer that no model was trained on."""
    ranked = run.ranked().evaluation
    answers = [(one.prompt, answer) for one in ranked for answer in one.responses]
    settings = run.settings.judge.model_copy(update={"count": count})

    def measure(base: Path, adapter: Path) -> tuple[float, float]:
        engine = run.tools.open_engine(base, run.settings.engine)
        voice = replace(run.voice(model, run.settings.judge.draw, model), adapter=str(adapter))
        try:
            items = [
                (answer.id, bind(judgments.ask, prompt, answer, voice, count))
                for prompt, answer in answers
            ]
            records = (
                record for _, outcome, _ in drive(engine, items) for record in outcome.records
            )
            drawn = [record for record in records if isinstance(record, Judgment)]
        finally:
            engine.close()
        by_answer = grouped(drawn, lambda one: one.response_id)
        scores = {name: judgments.summarise(found, settings) for name, found in by_answer.items()}
        quality = judge_quality(ranked, scores)
        return quality.accuracy, quality.error

    return measure
