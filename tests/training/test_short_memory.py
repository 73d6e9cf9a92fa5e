"""A training whose memory holds so many tokens at once: shorter rows, counted; and NaN."""

import gc
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_jobs import BY_TRANSFORMERS, make_job

from selfreward_lite.system.errors import TrainingError
from selfreward_lite.training import trainer
from selfreward_lite.training.checkpoints import State
from selfreward_lite.training.job import Job, TrainingResult
from selfreward_lite.training.token_trainers import TokenDPOTrainer, TokenSFTTrainer

torch.set_num_threads(1)
LONG = 6  # of 24 rows


@pytest.fixture(scope="module")
def begun(tmp_path_factory, tiny, chat) -> Path:
    """M0, for DPO to begin with."""
    folder = tmp_path_factory.mktemp("begun")
    train(make_job(folder, tiny, chat, "sft", name="M0", epochs=1))
    return folder


def train(job: Job, report: Callable[[Any], None] = lambda said: None) -> TrainingResult:
    return trainer.train(job, report, BY_TRANSFORMERS)


@pytest.fixture
def make(begun, tiny, chat) -> Callable[..., Job]:
    """Make a job of 24 rows, of which so many are long; one row at a time, three steps."""

    def job(method: str, name: str, long: int = LONG) -> Job:
        made = make_job(
            begun,
            tiny,
            chat,
            method,
            adapter_in=begun / "M0" if method == "dpo" else None,
            name=name,
            epochs=1,
            micro_batch=1,
        )
        rows = [json.loads(line) for line in made.rows.read_text().splitlines()]
        answer = "completion_ids" if method == "sft" else "rejected_ids"
        for row in rows[:long]:
            row[answer] = chat.completion_ids("The answer is a c f, and a b c d e f. " * 3)
        made.rows.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return made.model_copy(update={"checkpoint_minutes": 0.0})

    return job


Fails = Callable[[int, int], bool]  # by the number of a forward pass, and its longest row


@pytest.fixture
def device(monkeypatch) -> Callable[[Fails], list[int]]:
    """Play a device without memory for some forward passes; returns the longest row of each."""

    def fails_at(fails: Fails) -> list[int]:
        seen: list[int] = []
        for kind in (TokenDPOTrainer, TokenSFTTrainer):

            def forward(self, model, inputs, *args, compute=kind.compute_loss, **named):
                seen.append(inputs["input_ids"].shape[1])
                if fails(len(seen), seen[-1]):
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
                return compute(self, model, inputs, *args, **named)

            monkeypatch.setattr(kind, "compute_loss", forward)
        return seen

    return fails_at


def messages(said: list[dict[str, Any]]) -> list[str]:
    return [one["message"] for one in said if "message" in one][1:]  # without the backend


def difference(folder: Path, one: str, other: str) -> float:
    left, right = (load_file(folder / name / "adapter_model.safetensors") for name in (one, other))
    return max(float((left[name] - right[name]).abs().max()) for name in left)


@pytest.mark.parametrize("method", ["sft", pytest.param("dpo", marks=pytest.mark.slow)])
def test_the_longest_rows_are_left_out_and_counted(begun, make, device, method):
    seen = device(lambda _, length: length > 60)
    said: list[dict[str, Any]] = []
    result = train(make(method, f"short-{method}"), said.append)
    assert (result.left_out, result.rows, result.steps) == (LONG, 24 - LONG, 3)
    assert result.max_length is not None and result.max_length < max(seen)
    first, second = messages(said)
    assert first == "no memory for 1 of the longest rows at once"
    assert "6 of 24 rows are left out, too long for the memory: those of more than" in second
    assert [one["left_out"] for one in said if "left_out" in one] == [LONG]
    # The others are trained on as if those had never been.
    alone = make(method, f"alone-{method}")
    rows = alone.rows.read_text().splitlines()[LONG:]
    alone.rows.write_text("\n".join(rows) + "\n")
    assert train(alone.model_copy(update={"row_count": len(rows)})).left_out == 0
    assert difference(begun, f"short-{method}", f"alone-{method}") == 0.0


def test_not_more_than_half_of_the_rows_are_left_out(begun, make, device):
    device(lambda _, length: length > 60)
    with pytest.raises(TrainingError, match=r"less than half of all; .* lower sft\.max_length"):
        train(make("sft", "most", long=13))
    assert not (begun / "most").exists()


@pytest.mark.slow
def test_memory_that_another_program_took_costs_no_row(make, device):
    device(lambda number, _: number == 12)  # the trial is the first, a step has eight
    said: list[dict[str, Any]] = []
    result = train(make("sft", "taken"), said.append)
    assert messages(said)[0] == "no memory left after step 1"
    assert (result.left_out, result.rows, result.steps) == (0, 24, 3)


@pytest.mark.slow
def test_memory_that_fails_at_one_step_again_and_again(make, device):
    seen = device(lambda number, length: number > 1 and length > 60)
    said: list[dict[str, Any]] = []
    result = train(make("dpo", "again"), said.append)
    assert result.left_out == LONG and result.begun_at == 0
    assert max(seen[-(24 - LONG) :]) <= 60
    steps = [one["step"] for one in said if "step" in one]
    assert steps[-3:] == [1, 2, 3], "what was done with the longer rows is done anew"


@pytest.mark.slow
def test_a_training_with_fewer_rows_resumes_with_them(begun, make, device, monkeypatch):
    class Killed(Exception):
        pass

    def kill(said):
        if said.get("step") == 2:
            raise Killed

    limit = [60]
    device(lambda _, length: length > limit[0])
    job = make("sft", "killed")
    with pytest.raises(Killed):
        train(job, kill)
    limit[0] = 999  # a program was closed
    said: list[dict[str, Any]] = []
    result = train(job, said.append)
    assert (result.left_out, result.begun_at, result.steps) == (LONG, 1, 3)
    assert [one["begun_at"] for one in said if "left_out" in one] == [1]
    limit[0] = 60
    assert train(make("sft", "undisturbed")).left_out == LONG
    assert difference(begun, "killed", "undisturbed") == 0.0


@pytest.mark.slow
def test_the_trial_holds_what_later_steps_hold(make, monkeypatch):
    """AdamW's moments come with the first step: what passes the trial must not die at the second.

    Counted: numbers in float32 tensors of the shapes that weights of the adapter have.
    """
    held: list[int] = []
    compute = TokenSFTTrainer.compute_loss

    def forward(self, model, inputs, *args, **named):
        shapes = {weight.shape for _, weight in trainer._named_trainable(self.model)}
        gradients = [w.grad for _, w in trainer._named_trainable(self.model) if w.grad is not None]
        tensors = [one for one in gc.get_objects() if type(one) is torch.Tensor]
        shown = {id(one): one for one in (*tensors, *gradients)}.values()
        held.append(sum(one.numel() for one in shown if one.shape in shapes))
        return compute(self, model, inputs, *args, **named)

    monkeypatch.setattr(TokenSFTTrainer, "compute_loss", forward)
    train(make("sft", "held"))
    assert len(held) == 1 + 24
    assert held[0] == max(held)
    assert held[1] < held[0], "the first step has no moments yet"


# -- NaN ----------


@pytest.mark.parametrize("method", ["sft", pytest.param("dpo", marks=pytest.mark.slow)])
def test_a_gradient_that_is_no_number_ends_the_training_at_its_step(
    begun, make, monkeypatch, method
):
    kind = TokenSFTTrainer if method == "sft" else TokenDPOTrainer
    compute, passes = kind.compute_loss, [0]

    def forward(self, model, inputs, *args, **named):
        loss = compute(self, model, inputs, *args, **named)
        passes[0] += 1
        if passes[0] == 12:  # in the second step; the trial was the first
            loss.register_hook(lambda gradient: gradient * math.nan)
        return loss

    monkeypatch.setattr(kind, "compute_loss", forward)
    said: list[dict[str, Any]] = []
    with pytest.raises(TrainingError, match="the gradient is not a number at step 2; lower"):
        train(make(method, f"nan-{method}"), said.append)
    assert [one["step"] for one in said if "step" in one] == [1]
    assert not (begun / f"nan-{method}" / "adapter_model.safetensors").exists()


def test_a_scaler_leaves_such_a_step_out_by_itself():
    layer, said = torch.nn.Linear(2, 2), []
    job = SimpleNamespace(
        method="sft", checkpoint_minutes=9, min_moved_share=0.9, is_out_of_time=False
    )
    for scaler, ends in ((object(), False), (None, True)):
        made = SimpleNamespace(model=layer, accelerator=SimpleNamespace(scaler=scaler))
        watcher = trainer.Watcher(made, job, State("job", 0, [], {}, {}), said.append)
        logs, at = {"loss": 0.5, "grad_norm": math.inf}, SimpleNamespace(global_step=1, max_steps=9)
        if ends:
            with pytest.raises(TrainingError, match="not a number at step 1"):
                watcher.on_log(None, at, None, logs)
        else:
            watcher.on_log(None, at, None, logs)
    assert [one["step"] for one in said] == [1]


def test_weights_that_are_no_numbers_have_not_moved():
    layer = torch.nn.Linear(4, 1, bias=False)
    before = trainer.trainable_weights(layer)
    with torch.no_grad():
        layer.weight += 1.0
        assert trainer.moved_share(before, layer) == 1.0
        layer.weight[0, :3] = math.nan
        assert trainer.moved_share(before, layer) == 0.25
