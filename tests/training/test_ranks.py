"""Two processes on a CPU train what one does; if one is killed, the training resumes.

Each training starts processes that import torch and TRL, so all take two minutes of CPU.
"""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from training_jobs import make_job

from selfreward_lite import config
from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.run.runtime import Runtime, open_runtime
from selfreward_lite.system.errors import TrainingError
from selfreward_lite.training.job import Job, TrainingResult

pytestmark = pytest.mark.server
CLOSE = 1e-5  # weights of up to 0.1; gradients are added in another order


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with open_runtime() as opened:
        yield opened


@pytest.fixture(scope="module")
def folder(tmp_path_factory, runtime) -> Path:
    """M0, for DPO to begin with."""
    made = tmp_path_factory.mktemp("ranks")
    runtime.train(make(made, "sft", "M0"), made, lambda said: None)
    return made


def make(
    folder: Path, method: str, name: str, processes: int = 1, rows: int = 24, **changes: Any
) -> Job:
    """A job of rows of many lengths, eight a step; four at once by default."""
    fields = {name: changes.pop(name) for name in ("quantization",) if name in changes}
    job = make_job(
        folder,
        config.load("tiny"),
        ChatFormat.load(TINY_MODEL),
        method,
        adapter_in=folder / "M0" if method == "dpo" else None,
        name=name,
        **{"micro_batch": 4, "epochs": 1, **changes},
    )
    made = [json.loads(line) for line in job.rows.read_text().splitlines()][:rows]
    for number, row in enumerate(made):
        answer = row["completion_ids" if method == "sft" else "chosen_ids"]
        answer[-1:-1] = row["prompt_ids"][: number % 5]
    job.rows.write_text("".join(json.dumps(row) + "\n" for row in made))
    return job.model_copy(
        update={"processes": processes, "row_count": rows, "checkpoint_minutes": 0.0, **fields}
    )


def train(runtime: Runtime, folder: Path, job: Job) -> tuple[TrainingResult, list[dict]]:
    logged: list[dict] = []

    def report(said):
        if "values" in said:
            logged.append(said["values"])

    return runtime.train(job, folder, report), logged


def furthest(folder: Path, one: str, other: str) -> float:
    left, right = (load_file(folder / name / "adapter_model.safetensors") for name in (one, other))
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


# 19 rows leave three for the last step: of four at once, one process has them, and the other a row
# that does not count. 22 leave six: one has four, and the other two.
@pytest.mark.parametrize(
    ("method", "quantization", "rows", "at_once"),
    [("sft", "none", 19, 2), ("dpo", "none", 22, 4), ("dpo", "nf4", 19, 4)],
)
def test_two_processes_train_what_one_does(runtime, folder, method, quantization, rows, at_once):
    name = f"{method}-{quantization}"
    done = {
        processes: train(
            runtime,
            folder,
            make(
                folder,
                method,
                f"{name}-{processes}",
                processes,
                rows,
                quantization=quantization,
                micro_batch=at_once,
            ),
        )
        for processes in (1, 2)
    }
    (alone, one), (together, two) = done[1], done[2]
    difference = furthest(folder, f"{name}-1", f"{name}-2")
    print(f"\n{name}: largest difference of a weight {difference:.1e}")
    assert difference < CLOSE
    assert (alone.processes, together.processes) == (1, 2)
    assert (together.steps, together.rows, together.tokens) == (3, rows, alone.tokens)
    assert together.first_margin == alone.first_margin == 0.0
    assert "in 2 processes" in together.backend
    for step, (left, right) in enumerate(zip(one, two, strict=True)):
        for figure in ("loss", "rewards/margins", "logps/chosen", "learning_rate"):
            assert right.get(figure) == pytest.approx(left.get(figure), abs=1e-4), (step, figure)


def kill_second(job: Job) -> None:
    """SIGKILL the second of the processes that do a job."""
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_text().split("\0")
            is_second = "RANK=1" in (entry / "environ").read_text().split("\0")
        except (OSError, ValueError):
            continue
        if is_second and "selfreward_lite.training.rank" in words:
            done = Job.model_validate_json(Path(words[3]).read_text())
            if done.adapter_out == job.adapter_out:
                os.kill(int(entry.name), signal.SIGKILL)
                return
    raise AssertionError("the second process was not found")


def test_a_killed_process_costs_no_step_but_the_last(runtime, folder):
    """Twelve steps; the checkpoint is resumed by two processes, and by one."""
    job = make(folder, "sft", "killed", 2, epochs=4)

    def kill(said):
        if said.get("step") == 2:
            kill_second(job)

    runtime.train(make(folder, "sft", "whole", 2, epochs=4), folder, lambda said: None)
    with pytest.raises(TrainingError, match=r"process 2 of 2 was ended by SIGKILL.*to resume"):
        runtime.train(job, folder, kill)
    kept = folder / "kept-checkpoints"
    shutil.copytree(job.checkpoints, kept)
    result = runtime.train(job, folder, lambda said: None)
    assert (result.processes, result.steps) == (2, 12)
    assert 1 <= result.begun_at < 12  # the first may be ahead before the second is dead
    assert furthest(folder, "whole", "killed") == 0.0
    alone = {"adapter_out": folder / "alone", "checkpoints": kept, "processes": 1}
    again = runtime.train(job.model_copy(update=alone), folder, lambda said: None)
    assert (again.processes, again.begun_at) == (1, result.begun_at)
    assert furthest(folder, "whole", "alone") < CLOSE


def test_two_processes_resume_what_one_began(runtime, folder):
    job = make(folder, "sft", "begun-alone", epochs=4)

    def interrupt(said):
        if said.get("step") == 2:
            raise KeyboardInterrupt  # the parent's Ctrl-C

    with pytest.raises(KeyboardInterrupt):
        runtime.train(job, folder, interrupt)
    together = job.model_copy(update={"processes": 2})
    assert runtime.train(together, folder, lambda said: None).begun_at >= 1
    runtime.train(make(folder, "sft", "all-alone", epochs=4), folder, lambda said: None)
    assert furthest(folder, "all-alone", "begun-alone") < CLOSE


def test_the_time_limit_ends_both_processes(runtime, folder):
    """At its first step the time is over: too early for a model, so a checkpoint is left."""
    job = make(folder, "sft", "late", 2, epochs=4).model_copy(update={"until": 1.0})
    result, _ = train(runtime, folder, job)
    assert (result.steps, result.out_of_time) == (1, True)
    assert not (folder / "late").exists()
    assert (job.checkpoints / "step-1").is_dir()
