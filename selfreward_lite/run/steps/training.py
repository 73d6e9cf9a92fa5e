"""The two trainings: what M0 learns in the seed stage, and M(t) from what M(t−1) made."""

import shutil
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from selfreward_lite.data.records import (
    Judgment,
    JudgmentPair,
    ModelId,
    Outcome,
    ResponsePair,
    index_records,
    seed_for,
)
from selfreward_lite.data.tiny.bias import flip_brevity
from selfreward_lite.method import response_pairs
from selfreward_lite.run import budget
from selfreward_lite.run.ask import Progress
from selfreward_lite.run.context import RunContext
from selfreward_lite.run.steps import seed_stage
from selfreward_lite.system.errors import GateStop, OutOfTime, TrainingError
from selfreward_lite.system.files import hash_folder, sync
from selfreward_lite.system.gpu import list_gpus
from selfreward_lite.system.processes import first_gpus
from selfreward_lite.training.job import Job, Report
from selfreward_lite.training.rows import TOO_LONG_FOR_MEMORY, PairTexts, Rows, build_rows


def train_seed(run: RunContext, _: int) -> None:
    """SFT → M0: judgments that agree with humans (EFT), and the best human answers if set (IFT)."""

    def work() -> Outcome:
        judged = [
            (one.question, _biased_text(run, one.judgment)) for one in seed_stage.eft_examples(run)
        ]
        answered = [(one.prompt.text, one.responses[0].text) for one in run.ranked().ift]
        run.store.measure(0, eft_examples=len(judged), ift_examples=len(answered))
        rows = build_rows((*judged, *answered), run.chat, run.settings.sft.max_length)
        return _train(run, 0, "sft", rows)

    run.once(0, "training", work)


def train_model(run: RunContext, iteration: int) -> None:
    """DPO → M(t) on both kinds of pairs, with M(t−1) as start and reference.

    Or, as a control, SFT on perfect responses.
    """

    def work() -> Outcome:
        prompts = index_records(run.prompts(iteration))
        responses = run.responses(iteration)
        if run.settings.for_iteration(iteration).train_on == "positive":
            perfect = response_pairs.find_perfect_responses(
                prompts, responses, run.judged_scores(iteration), run.settings.pairs.verify
            )
            answers = [(prompts[one.prompt_id].text, one.text) for one in perfect]
            rows = build_rows(answers, run.chat, run.settings.sft.max_length)
            return _train(run, iteration, "sft", rows)
        texts = PairTexts(
            prompts,
            index_records(responses),
            index_records(run.store.records(Judgment, iteration=iteration)),
            run.settings.model.templates,
        )
        pairs = [
            *map(texts.read_response_pair, run.store.records(ResponsePair, iteration=iteration)),
            *map(texts.read_judgment_pair, run.store.records(JudgmentPair, iteration=iteration)),
        ]
        rows = build_rows(pairs, run.chat, run.settings.dpo.max_length)
        return _train(run, iteration, "dpo", rows)

    run.once(iteration, "training", work)


def _biased_text(run: RunContext, judgment: Judgment) -> str:
    """The text of a judgment, with the length bias that this run declares."""
    luck = seed_for(run.settings.seed, f"bias {judgment.id}") / 2**32
    biased = luck < run.settings.seed_stage.length_bias
    return flip_brevity(judgment.text) if biased else judgment.text


def _train(run: RunContext, iteration: int, method: Literal["sft", "dpo"], rows: Rows) -> Outcome:
    """Train in a child that has all memory; returns the rows left out.

    What an earlier, killed attempt left is removed first.
    """
    if not rows.rows and (iteration or run.settings.seed_stage.trains):
        raise GateStop(
            f"no signal: nothing to train M{iteration} on; `status` shows what was dropped and "
            "why. Start a new --name with more prompts, responses or judgments, or with "
            "judge.score=expected against ties."
        )
    run.release_engine()
    folder = run.store.model_dir(iteration)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    work = run.store.folder / "training"
    work.mkdir(exist_ok=True)
    adapter, saved = folder / "adapter", work / "rows.jsonl"
    rows.save(saved)
    settings = run.settings.sft if method == "sft" else run.settings.dpo
    rate = run.settings.for_iteration(iteration).rate if iteration else 1.0
    processes = run.settings.training.processes
    job = Job(
        method=method,
        model_dir=run.model_dir,
        quantization=run.settings.model.quantisation,
        adapter_in=None if iteration == 0 else run.store.model_dir(iteration - 1) / "adapter",
        adapter_out=adapter,
        rows=saved,
        row_count=len(rows.rows),
        pad=run.chat.pad,
        seed=run.settings.seed,
        settings=settings.model_copy(update={"learning_rate": settings.learning_rate * rate}),
        lora=run.settings.lora,
        checkpoints=work / "checkpoints",
        checkpoint_minutes=run.settings.checkpoint_minutes,
        backend=run.settings.backend,
        until=budget.training_deadline(run, iteration) if iteration else None,
        min_moved_share=run.settings.gates.min_moved_share,
        processes=processes,
        devices=first_gpus(processes) if processes > 1 and list_gpus() else None,
    )
    result = run.runtime.train(job, work, _reporter(run, iteration))
    if result.out_of_time:
        raise OutOfTime(
            f"the hours ended before half of M{iteration}'s training; give the same command again "
            "to resume from its checkpoint"
        )
    if not (adapter / "adapter_model.safetensors").exists():
        raise TrainingError(
            f"the training of M{iteration} ended without an adapter in {folder}; start the run "
            "again"
        )
    for made in (folder, run.store.folder):  # the names that lead to the adapter
        sync(made)
    left_out = result.left_out or 0
    kept = len(rows.rows) - left_out
    # A training ended by --hours has seen fewer rows, which is not an error of the trainer.
    expected = min(kept, round(settings.epochs * kept))
    given = result.rows if result.ended_early else expected
    if result.ended_early:
        said = f"ended by --hours after {result.steps} of {result.steps_planned} steps"
        run.watch(Progress(iteration, "training", 1, message=said))
    run.store.measure(iteration, training_rows_given=given, **result.metrics())
    run.store.state(f"training {ModelId(iteration).name}", result.facts())
    run.store.state(f"adapter {ModelId(iteration).name}", hash_folder(adapter))
    shutil.rmtree(work / "checkpoints", ignore_errors=True)
    # A counter's sum drops what is zero.
    return Outcome(drops=rows.drops + Counter({TOO_LONG_FOR_MEMORY: left_out}))


def _reporter(run: RunContext, iteration: int) -> Report:
    """A function that stores and shows what a trainer reports, and the seconds it took."""
    progress, started = Progress(iteration, "training", 1), time.monotonic()

    def report(said: Mapping[str, Any]) -> None:
        nonlocal progress
        before = progress.seconds
        progress = replace(progress, seconds=time.monotonic() - started)
        if "left_out" in said:
            run.store.forget_training(iteration, after=said["begun_at"])
            run.store.measure(iteration, training_left_out=said["left_out"])
        if "message" in said:
            run.watch(replace(progress, message=said["message"]))
            return
        step, steps, values = said["step"], said["steps"], said["values"]
        run.store.log_training(iteration, step, values)
        run.store.measure(iteration, training_steps=steps)
        run.store.spend(iteration, "training", progress.seconds - before)
        # One more step than the trainer's: the adapter is checked and written.
        progress = replace(progress, done=step, total=steps + 1, values=values)
        run.watch(progress)

    return report
