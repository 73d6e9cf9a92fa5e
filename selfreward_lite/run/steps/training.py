"""The two trainings of a run: what M0 learns in the seed stage, and what M(t) learns from what M(t−1) made.

Knows: which records become which rows. Does not know: how they were made (`steps`), how a trainer works (`runtime`).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from typing import Any

from selfreward_lite.data.records import Judgment, JudgmentPair, Outcome, ResponsePair, seed_for
from selfreward_lite.data.tiny.bias import flip_brevity
from selfreward_lite.method import judgments
from selfreward_lite.method.judgments import TOP_SCORE
from selfreward_lite.run import budget, context
from selfreward_lite.run.ask import Progress
from selfreward_lite.run.context import RunContext
from selfreward_lite.run.steps import seed_stage
from selfreward_lite.system.errors import GateStop, OutOfTime, TrainingError
from selfreward_lite.training.job import Job
from selfreward_lite.training.rows import Rows, Texts, dpo_rows, sft_rows


def train_seed(run: RunContext, _: int) -> None:
    """SFT on the judgments that agree with the humans (EFT), and on the best human answers where they are wanted (IFT) → M0."""

    def work() -> Outcome:
        judged = [
            (one.question, _declared(run, one.judgment)) for one in seed_stage.eft_examples(run)
        ]
        answered = [(one.prompt.text, one.responses[0].text) for one in run.ranked().ift]
        run.store.measure(0, eft_examples=len(judged), ift_examples=len(answered))
        rows = sft_rows((*judged, *answered), run.chat, run.settings.sft.max_length)
        _train(run, 0, "sft", rows)
        return Outcome(drops=rows.drops)

    run.once(0, "training", work)


def _declared(run: RunContext, judgment: Judgment) -> str:
    """What a judgment says, with the bias that this run declares."""
    luck = seed_for(run.settings.seed, f"bias {judgment.id}") / 2**32
    return (
        flip_brevity(judgment.text) if luck < run.settings.seed_stage.length_bias else judgment.text
    )


def train(run: RunContext, iteration: int) -> None:
    """DPO on both kinds of pairs, from M(t−1) with M(t−1) as reference → M(t); or, as a control, SFT on perfect responses."""
    schedule = run.settings.for_iteration(iteration)

    def positive() -> Outcome:
        rows = sft_rows(_perfect(run, iteration), run.chat, run.settings.sft.max_length)
        _train(run, iteration, "sft", rows, rate=schedule.rate)
        return Outcome(drops=tuple(rows.drops))

    def pairs() -> Outcome:
        texts = Texts(
            {one.id: one for one in context.prompts_of(run, iteration)},
            {one.id: one for one in context.responses_of(run, iteration)},
            {one.id: one for one in run.store.records(Judgment, iteration=iteration)},
            run.settings.model.templates,
        )
        rows = dpo_rows(
            run.store.records(ResponsePair, iteration=iteration),
            run.store.records(JudgmentPair, iteration=iteration),
            texts,
            run.chat,
            run.settings.dpo.max_length,
        )
        _train(run, iteration, "dpo", rows, rate=schedule.rate)
        return Outcome(drops=tuple(rows.drops))

    run.once(iteration, "training", pairs if schedule.train_on == "pairs" else positive)


def _perfect(run: RunContext, iteration: int) -> list[tuple[str, str]]:
    """Prompts with those responses that every judgment gave the highest score (arXiv 2401.10020, section 2.3)."""
    asked = {one.id: one.text for one in context.prompts_of(run, iteration)}
    judged = context.judgments_of(run, iteration)
    return [
        (asked[one.prompt_id], one.text)
        for one in context.responses_of(run, iteration)
        if one.finish == "stop"
        and (judgments.score_response(judged.get(one.id, ()), run.settings.judge) or 0.0)
        >= TOP_SCORE
    ]


def _train(run: RunContext, iteration: int, method: str, rows: Rows, rate: float = 1.0) -> None:
    """Train in a child, alone on the machine's memory, at `rate` times the learning rate that is set.

    What an earlier, killed attempt left is cleared first.
    """
    if not rows.rows and (iteration or run.settings.seed_stage.trains):
        raise GateStop(
            f"no signal: nothing to train M{iteration} on; `status` shows what was dropped and why. Start a new --name with "
            "more prompts, responses or judgments, or with judge.score=expected against ties."
        )
    run.release_engine()
    folder = run.store.model_dir(iteration)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    work = run.store.folder / "training"
    work.mkdir(exist_ok=True)
    rows.save(work / "rows.jsonl")
    settings = run.settings.sft if method == "sft" else run.settings.dpo
    job = Job(
        method="sft" if method == "sft" else "dpo",
        model_dir=str(run.model_dir),
        quantisation=run.settings.model.quantisation,
        adapter_in=None if iteration == 0 else str(run.store.model_dir(iteration - 1) / "adapter"),
        adapter_out=str(folder / "adapter"),
        rows=str(work / "rows.jsonl"),
        row_count=len(rows.rows),
        pad=run.chat.pad,
        seed=run.settings.seed,
        settings={**settings.model_dump(), "learning_rate": settings.learning_rate * rate},
        lora=run.settings.lora.model_dump(),
        checkpoints=str(work / "checkpoints"),
        checkpoint_minutes=run.settings.checkpoint_minutes,
        backend=run.settings.backend,
        until=budget.until(run, iteration) if iteration else None,
        min_moved_share=run.settings.gates.min_moved_share,
    )
    progress = Progress(iteration, "training", 1)
    started = time.monotonic()

    def report(said: Mapping[str, Any]) -> None:
        if "words" in said:
            progress.words = said["words"]
        else:
            run.log_training(iteration, said, time.monotonic() - started - progress.seconds)
            progress.done, progress.total = (
                said["step"],
                said["steps"] + 1,
            )  # one more: the adapter is checked and written
            progress.values = said["values"]
        progress.seconds = time.monotonic() - started
        run.watch(progress)

    facts = run.runtime.train(job, work, report)
    if facts.get("out_of_time"):
        raise OutOfTime(
            f"the hours ended before half of M{iteration}'s training; the same command goes on from its checkpoint"
        )
    if not (folder / "adapter" / "adapter_model.safetensors").exists():
        raise TrainingError(
            f"the training of M{iteration} ended without an adapter in {folder}; start the run again"
        )
    # Ended by the hours that were given, it has seen fewer; that is no fault of the trainer's.
    given = (
        facts["rows"]
        if facts.get("ended_early")
        else min(len(rows.rows), round(settings.epochs * len(rows.rows)))
    )
    run.store.measure(iteration, training_rows_given=given)
    run.store.measure(iteration, **{f"training_{name}": value for name, value in facts.items()})
    shutil.rmtree(work / "checkpoints", ignore_errors=True)
