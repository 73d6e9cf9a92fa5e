"""An interrupted training, or one short of memory, ends with the same weights."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from training_jobs import BY_TRANSFORMERS, make_job

from selfreward_lite import config
from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.run.runtime import open_runtime
from selfreward_lite.system.errors import TrainingError
from selfreward_lite.training import checkpoints
from selfreward_lite.training import job as job_module
from selfreward_lite.training import trainer as training_trainer
from selfreward_lite.training.job import Job, TrainingResult
from selfreward_lite.training.token_trainers import TokenDPOTrainer, TokenSFTTrainer

pytestmark = pytest.mark.slow  # real trainings, most of a minute
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat.load(TINY_MODEL)


@pytest.fixture(scope="module")
def begun(tmp_path_factory, chat) -> Path:
    """M0, for DPO to begin with; `whole-sft` and `whole-dpo`, never interrupted."""
    folder = tmp_path_factory.mktemp("begun")
    done(make(folder, chat, "sft", "M0"))
    for method in ("sft", "dpo"):
        done(make(folder, chat, method, f"whole-{method}"))
    return folder


def make(folder: Path, chat: ChatFormat, method: str, name: str, **changes) -> Job:
    before = folder / "M0" if method == "dpo" else None
    job = make_job(
        folder, config.load("tiny"), chat, method, adapter_in=before, name=name, **changes
    )
    return job.model_copy(update={"checkpoint_minutes": 0.0})


def done(job: Job, report=lambda said: None) -> TrainingResult:
    return training_trainer.train(job, report, BY_TRANSFORMERS)


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(folder / name / "adapter_model.safetensors")


def furthest(folder: Path, one: str, other: str) -> float:
    left, right = weights(folder, one), weights(folder, other)
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


class Killed(Exception):
    pass


def killed_after(step: int):
    def report(said):
        if said.get("step") == step:
            raise Killed

    return report


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("method", "moments"),
    [
        ("dpo", (4, 7, 11)),
        *(pytest.param(*case, marks=SLOW) for case in [("sft", (5,)), ("dpo", (1,))]),
    ],
)
def test_killed_training_resumes_to_the_same_bits(begun, chat, method, moments):
    # Twelve steps. The report of a step comes before its checkpoint, so each death costs the step
    # it falls in.
    job = make(begun, chat, method, f"killed-{method}-{len(moments)}")
    for step in moments:
        with pytest.raises(Killed):
            done(job, killed_after(step))
    said = []
    facts = done(job, said.append)
    assert facts.begun_at == moments[-1] - 1
    assert facts.steps == 12
    assert facts.rows == 24
    if facts.begun_at:
        assert {"message": f"resumes from step {moments[-1] - 1}"} in said
    assert [one["step"] for one in said if "step" in one] == list(range(moments[-1], 13))
    assert furthest(begun, f"whole-{method}", f"killed-{method}-{len(moments)}") == 0.0
    assert facts.moved_share > 0.9
    assert facts.first_margin == 0.0


@SLOW
def test_the_learning_rate_goes_on_where_it_was(begun, chat):
    job, rates = make(begun, chat, "sft", "rates"), {}

    def note(said):
        if "step" in said:
            rates[said["step"]] = said["values"]["learning_rate"]

    done(job, note)
    whole = dict(rates)
    job = make(begun, chat, "sft", "rates-killed")
    with pytest.raises(Killed):
        done(job, killed_after(6))
    rates.clear()
    done(job, note)
    assert rates == {step: rate for step, rate in whole.items() if step >= 6}
    assert max(whole.values()) > 2 * whole[12]


@SLOW
def test_killed_child_resumes(begun, chat):
    job = make(begun, chat, "dpo", "child")
    with open_runtime() as runtime:
        with pytest.raises(KeyboardInterrupt):  # the parent's Ctrl-C, upon which it kills its child

            def interrupt(said):
                if said.get("step") == 5:
                    raise KeyboardInterrupt

            runtime.train(job, begun, interrupt)
        facts = runtime.train(job, begun, lambda said: None)
    assert facts.begun_at >= 4
    assert furthest(begun, "whole-dpo", "child") == 0.0


def test_half_written_checkpoint_is_ignored(begun, chat):
    job = make(begun, chat, "sft", "halves")
    with pytest.raises(Killed):
        done(job, killed_after(6))
    folder = Path(job.checkpoints)
    (newest,) = folder.iterdir()
    assert newest.name == "step-5"
    later = folder / "step-9"  # killed while it was written: files, and no manifest yet
    later.mkdir()
    (later / "adapter.safetensors").write_bytes(
        (newest / "adapter.safetensors").read_bytes()[:1000]
    )
    kept = checkpoints.find_newest(folder, job.digest())
    assert kept is not None
    assert kept.state.step == 5
    flipped = bytearray((newest / "optimizer.safetensors").read_bytes())
    flipped[-1] ^= 1
    (newest / "optimizer.safetensors").write_bytes(flipped)
    assert checkpoints.find_newest(folder, job.digest()) is None
    assert done(job).begun_at == 0
    assert furthest(begun, "whole-sft", "halves") == 0.0


def test_a_checkpoint_of_another_job_is_left_alone(begun, chat):
    job = make(begun, chat, "sft", "other")
    with pytest.raises(Killed):
        done(job, killed_after(6))
    assert checkpoints.find_newest(Path(job.checkpoints), job.digest()) is not None
    for changed in (
        {"seed": 1},
        {"settings": job.settings.model_copy(update={"learning_rate": 1e-3})},
        {"adapter_in": begun / "M0"},
    ):
        assert (
            checkpoints.find_newest(Path(job.checkpoints), job.model_copy(update=changed).digest())
            is None
        )
    rows = Path(job.rows).read_text().splitlines()
    Path(job.rows).write_text("\n".join(rows[::-1]) + "\n")
    assert checkpoints.find_newest(Path(job.checkpoints), job.digest()) is None


def test_a_checkpoint_holds_no_pickle(begun, chat):
    job = make(begun, chat, "sft", "files")
    with pytest.raises(Killed):
        done(job, killed_after(3))
    (folder,) = Path(job.checkpoints).iterdir()
    assert {path.name for path in folder.iterdir()} == {
        "adapter.safetensors", "optimizer.safetensors", "state.json", "manifest.json"
    }  # fmt: skip
    assert json.loads((folder / "state.json").read_text())["step"] == 2


def test_checkpoints_come_by_time(begun, chat):
    job = make(begun, chat, "sft", "seldom").model_copy(update={"checkpoint_minutes": 10.0})
    with pytest.raises(Killed):
        done(job, killed_after(8))
    assert not Path(job.checkpoints).exists()


@pytest.mark.parametrize(("share", "model"), [(0.25, False), (0.75, True)])
def test_end_of_hours_leaves_a_model_or_a_checkpoint(begun, chat, monkeypatch, share, model):
    job = make(begun, chat, "sft", f"hours-{model}")
    now = [1000.0]
    monkeypatch.setattr(job_module, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def report(said):
        now[0] += "step" in said

    until = {"until": 1000.0 + 12 * share - 0.5, "checkpoint_minutes": 60.0}
    facts = done(job.model_copy(update=until), report)
    assert facts.ended_early
    # The clock moves as a step is reported, which is after its check.
    assert (facts.steps, facts.steps_planned) == (12 * share + 1, 12)
    assert bool(facts.out_of_time) is not model
    assert (begun / job.adapter_out / "adapter_model.safetensors").exists() is model
    if not model:
        whole = done(job)
        assert whole.begun_at == facts.steps > 0
        assert furthest(begun, "whole-sft", f"hours-{model}") == 0.0


# -- memory ----------


@pytest.fixture
def memory(monkeypatch):
    """A device that holds so many rows at once; returns the batches, as (rows, longest)."""
    seen: list[tuple[int, int]] = []

    def holds(limit: int, from_call: int = 0):
        for kind in (TokenDPOTrainer, TokenSFTTrainer):
            step = kind.training_step

            def limited(self, model, inputs, num_items_in_batch=None, step=step):
                rows, length = inputs["input_ids"].shape
                # chosen and rejected lie in one batch
                rows //= 2 if isinstance(self, TokenDPOTrainer) else 1
                seen.append((rows, length))
                if rows > limit and len(seen) > from_call:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return step(self, model, inputs, num_items_in_batch)

            monkeypatch.setattr(kind, "training_step", limited)
        return seen

    return holds


@pytest.mark.parametrize("method", [pytest.param("sft", marks=SLOW), "dpo"])
def test_fewer_rows_at_once_where_memory_is_short(begun, chat, memory, method):
    seen = memory(limit=2)
    said = []
    facts = done(make(begun, chat, method, f"short-{method}"), said.append)
    assert facts.micro_batch == 2
    assert facts.steps == 12, "the batch stays what it is"
    assert [one["message"] for one in said if "message" in one][1:] == [
        "no memory for 8 of the longest rows at once", "no memory for 4 of the longest rows at once"
    ]  # fmt: skip
    assert [rows for rows, _ in seen][:3] == [8, 4, 2], "found out before the first step"
    assert furthest(begun, f"whole-{method}", f"short-{method}") < 1e-4, (
        "the same model, but for rounding"
    )


@SLOW
def test_row_that_never_fits_ends_with_advice(begun, chat, memory):
    memory(limit=0)
    with pytest.raises(
        TrainingError, match=r"not even one row of up to 256 tokens.*lower dpo\.max_length"
    ):
        done(make(begun, chat, "dpo", "never"))
    assert not (begun / "never" / "adapter_model.safetensors").exists()


@SLOW
def test_memory_that_runs_out_later_costs_no_step(begun, chat, memory):
    memory(limit=4, from_call=7)
    facts = done(make(begun, chat, "dpo", "way"))
    assert facts.micro_batch == 4
    assert facts.begun_at == 6
    assert facts.steps == 12
    assert furthest(begun, "whole-dpo", "way") < 1e-4


@pytest.mark.parametrize(
    "words",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "[enforce fail at alloc_cpu.cpp:113] err == 0. DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_errors_of_short_memory_are_recognized(begun, chat, monkeypatch, words):
    tried = []

    def short(job, size, report, backend):
        tried.append(size)
        if size > 2:
            raise RuntimeError(words)
        return TrainingResult(1, 1, 1.0, 0.0, micro_batch=size)

    monkeypatch.setattr(training_trainer, "train_once", short)
    assert done(make(begun, chat, "sft", "words")).micro_batch == 2
    assert tried == [8, 4, 2]


def test_another_error_is_not_taken_for_short_memory(begun, chat, monkeypatch):
    def broken(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(training_trainer, "train_once", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        done(make(begun, chat, "sft", "broken"))


def test_steps_that_float16_left_out_are_not_counted_as_tried():
    """On a T4 the first steps may overflow; then unmoved weights do not prove a low rate."""
    layer = torch.nn.Linear(2, 2)
    accelerator = SimpleNamespace(optimizer_step_was_skipped=True)
    trainer = SimpleNamespace(model=layer, accelerator=accelerator)
    job = SimpleNamespace(method="sft", checkpoint_minutes=9, min_moved_share=0.9, until=None)
    watcher = training_trainer.Watcher(
        trainer, job, checkpoints.State("job", 0, [], {}, {}), lambda said: None
    )
    for step in range(1, 8):
        watcher.on_step_end(None, SimpleNamespace(global_step=step, max_steps=40), None)
    assert watcher.skipped == 7
    accelerator.optimizer_step_was_skipped = False
    for step in range(8, 12):
        watcher.on_step_end(None, SimpleNamespace(global_step=step, max_steps=40), None)
    with pytest.raises(TrainingError, match="of the adapter's weights moved in 5 steps"):
        watcher.on_step_end(None, SimpleNamespace(global_step=12, max_steps=40), None)


def test_a_step_that_float16_left_out_is_heard_of():
    """With the optimizer made here: accelerate cannot see that a fused one skips a step."""
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

    Accelerator(cpu=True)
    layer, scaler = torch.nn.Linear(2, 2), torch.amp.GradScaler("cpu")
    trainer = SimpleNamespace(model=layer, accelerator=SimpleNamespace(scaler=scaler))
    training_trainer._set_optimizer(
        trainer, SimpleNamespace(settings=SimpleNamespace(learning_rate=0.1, warmup=0.0)), 10, 0
    )
    optimizer = AcceleratedOptimizer(trainer.optimizer, device_placement=False, scaler=scaler)
    for worst, left_out in ((torch.inf, True), (1.0, False)):
        before = layer.weight.detach().clone()
        scaler.scale(layer(torch.ones(1, 2)).sum() * worst).backward()
        optimizer.step()
        assert optimizer.step_was_skipped is left_out
        assert torch.equal(before, layer.weight) is left_out
        optimizer.zero_grad()


def test_the_longest_rows_are_tried_before_the_first_step(begun, chat, memory):
    seen = memory(limit=99)
    job = make(begun, chat, "sft", "longest", micro_batch=4)
    longer = chat.completion_ids("The answer is a c f, and nothing more than that.")
    rows = [json.loads(line) for line in Path(job.rows).read_text().splitlines()]
    rows[5]["completion_ids"] = list(longer)
    Path(job.rows).write_text("".join(json.dumps(row) + "\n" for row in rows))
    done(job)
    assert seen[0] == (4, len(rows[5]["prompt_ids"]) + len(longer))
    assert len(seen) == 1 + 12 * 2


@SLOW
def test_trying_them_leaves_no_trace(begun, chat, monkeypatch):
    monkeypatch.setattr(training_trainer.Watcher, "on_train_begin", lambda *_, **__: None)
    for method in ("sft", "dpo"):
        logged = []
        done(
            make(begun, chat, method, f"untried-{method}"),
            lambda said, logged=logged: logged.append(said.get("values")),
        )
        assert furthest(begun, f"whole-{method}", f"untried-{method}") == 0.0


def test_other_errors_are_not_taken_for_short_memory():
    for text in ("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED", "mat1 and mat2 shapes"):
        assert not training_trainer.is_out_of_memory(RuntimeError(text))
