"""What must survive: broken model files, failed trainings, templates, engines. See test_faults."""

import json
import math
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scripted_run
from error_text import one_line
from repository import ROOT
from safetensors.numpy import load_file, save_file

from selfreward_lite import config
from selfreward_lite.data.records import Judgment
from selfreward_lite.data.store import Store
from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.run import loop
from selfreward_lite.run.steps import seed_stage
from selfreward_lite.system.errors import (
    ConfigError,
    EngineError,
    GateStop,
    TrainingError,
    UserError,
)

pytestmark = pytest.mark.slow  # real trainings that go wrong

# -- broken model files ----------


def copy_base(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY_MODEL, tmp_path / "base-model"))


@pytest.mark.parametrize("share", [0.99, 0.5, 0.01])
def test_truncated_weights_are_refused_before_the_run(tmp_path, share):
    base = copy_base(tmp_path)
    weights = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(weights[: int(len(weights) * share)])
    with pytest.raises(ConfigError, match=r"model\.safetensors cannot be read.*again") as error:
        scripted_run.run(tmp_path / "run", **{"model.base": str(base)})
    one_line(error)


def test_flipped_byte_is_caught_by_its_hash(tmp_path):
    base = copy_base(tmp_path)
    scripted_run.run(tmp_path / "run", **{"model.base": str(base), "iterations": "0"})
    for path, says in (
        (base / "model.safetensors", "the base model was changed after the run started"),
        (
            tmp_path / "run" / "M0" / "adapter" / "adapter_model.safetensors",
            "differs from its sha256",
        ),
    ):
        content = path.read_bytes()
        path.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
        with pytest.raises(UserError, match=says) as error:
            scripted_run.run(tmp_path / "run", **{"model.base": str(base), "iterations": "1"})
        one_line(error)
        path.write_bytes(content)
    scripted_run.run(tmp_path / "run", **{"model.base": str(base), "iterations": "1"})


def test_a_base_of_random_weights_is_told_that_it_cannot_judge(tmp_path):
    """By the real engine; it never writes a score, so EFT would have nothing to learn from."""
    base, rng = copy_base(tmp_path), np.random.default_rng(1)
    weights = load_file(base / "model.safetensors")
    drawn = {
        name: rng.normal(0, 0.02, one.shape).astype(one.dtype) for name, one in weights.items()
    }
    save_file(drawn, base / "model.safetensors", {"format": "pt"})
    command = [sys.executable, "-m", "selfreward_lite", "run", "--runs-dir", str(tmp_path)]
    ended = subprocess.run(
        [*command, "--set", f"model.base={base}"], capture_output=True, text=True, cwd=ROOT
    )
    assert ended.returncode == GateStop.exit_code, ended.stderr
    said = " ".join(ended.stderr.split())
    assert re.search(
        r"\b0 of \d+ scores were written as asked, so EFT has nothing to learn from", said
    )
    with Store.read(tmp_path / "tiny") as store:
        assert 0 < store.count(Judgment) <= 100
        assert store.refusals(0).keys() == {"ability"}


MALFORMED = {
    "config.json": ['{"architectures": ["LlamaForCausalLM"]}', "[]", None],
    "tokenizer.json": ["{}", "[]", '{"model": {"type": "BPE"}}'],
    "tokenizer_config.json": ["[]", '{"bos_token": 7}'],
    "generation_config.json": ['{"eos_token_id"'],
    "chat_template.jinja": [
        "{% for x",
        "{{ raise_exception('no') }}",
        "{{ messages.foo.bar }}",
        "no message in it",
    ],
}


@pytest.mark.parametrize(
    ("file", "content"), [(file, one) for file, contents in MALFORMED.items() for one in contents]
)
def test_malformed_model_folder_is_one_line_before_the_run(tmp_path, file, content):
    base = copy_base(tmp_path)
    if content is None:
        config_json = json.loads((base / file).read_text())
        content = json.dumps({**config_json, "hidden_size": None})
    (base / file).write_text(content)
    with pytest.raises(ConfigError) as error:
        scripted_run.run(tmp_path / "run", **{"model.base": str(base)})
    one_line(error)
    with Store.write(tmp_path / "run") as store:
        assert store.fact("settings") is None, "the name is still free"


def test_weights_of_another_shape_are_refused_before_the_run(tmp_path):
    base = copy_base(tmp_path)
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**settings, "intermediate_size": 7}))
    with pytest.raises(ConfigError, match=r"gate_proj.weight has shape .*config\.json says \(7, "):
        scripted_run.run(tmp_path / "run", **{"model.base": str(base)})


def test_base_damaged_in_the_seed_stage_is_found_on_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(
        loop, "SEED_STAGE", loop.SEED_STAGE[: loop.SEED_STAGE.index(seed_stage.judge_ranked)]
    )
    scripted_run.run(tmp_path / "run", iterations="0")
    monkeypatch.undo()
    (tmp_path / "run" / "base" / "base.gguf").write_text("garbled")
    with pytest.raises(UserError, match=r"base\.gguf: differs from its sha256"):
        scripted_run.run(tmp_path / "run", iterations="0")


@pytest.mark.parametrize(
    "content", [b"", b"GGUF" + b"\xff" * 1000, None], ids=["empty", "garbage", "absent"]
)
@pytest.mark.parametrize("file", ["base/base.gguf", "M0/adapter.gguf"])
def test_broken_or_missing_gguf_is_refused_before_loading(tmp_path, file, content):
    scripted_run.run(tmp_path / "run", iterations="0")
    path = tmp_path / "run" / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(
        UserError,
        match=rf"{path.name}: (missing|differs).*restore it from a copy, or start a new --name",
    ) as error:
        scripted_run.run(tmp_path / "run", iterations="1")
    one_line(error)


# -- trainings that fail ----------


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    from training_jobs import make_job

    from selfreward_lite.models.chat_format import ChatFormat
    from selfreward_lite.run.runtime import open_runtime

    tiny, chat = config.load("tiny"), ChatFormat.load(TINY_MODEL)
    folder = tmp_path_factory.mktemp("trainer")
    with open_runtime() as runtime:

        def train(method: str, name: str, adapter_in: Path | None = None, **changes):
            job = make_job(folder, tiny, chat, method, adapter_in=adapter_in, name=name, **changes)
            return runtime.train(job, folder, lambda *_: None)

        train("sft", "M0")
        yield folder, train


def test_nan_in_an_adapter_stops_training_and_saves_nothing(trainer):
    import torch
    from safetensors.torch import load_file, save_file

    folder, train = trainer
    shutil.copytree(folder / "M0", folder / "nan")
    weights = load_file(folder / "nan" / "adapter_model.safetensors")
    name = next(name for name in weights if "lora_B" in name)
    weights[name].view(-1)[0] = torch.nan
    save_file(weights, folder / "nan" / "adapter_model.safetensors")
    with pytest.raises(TrainingError, match=r"not a number at step 1|not M\(t-1\)"):
        train("dpo", "from-nan", folder / "nan")
    assert not (folder / "from-nan" / "adapter_model.safetensors").exists()
    assert (folder / "M0" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        ([0.7, math.nan], "not a number"),
        ([0.0], "exactly 0"),
        ([math.log(2)] * 5, "stayed at 0.693"),
        ([math.inf], "not a number"),
    ],
)
def test_dead_loss_ends_the_training(losses, says):
    import torch

    from selfreward_lite.training.checkpoints import State
    from selfreward_lite.training.trainer import Watcher

    trainer = SimpleNamespace(model=torch.nn.Linear(2, 2), accelerator=SimpleNamespace(scaler=None))
    watcher = Watcher(
        trainer,
        SimpleNamespace(method="sft", checkpoint_minutes=9),
        State("job", 0, [], {}, {}),
        lambda _: None,
    )
    with pytest.raises(TrainingError, match=f"{says}.*lower the learning rate"):
        for step, loss in enumerate(losses, 1):
            watcher.on_log(
                None, SimpleNamespace(global_step=step, max_steps=9), None, {"loss": loss}
            )


def test_gradients_are_the_same_after_an_evaluation_pass(trainer):
    import torch
    from training_jobs import make_job

    from selfreward_lite.models.chat_format import ChatFormat
    from selfreward_lite.training import backends

    folder, _ = trainer
    job = make_job(
        folder,
        config.load("tiny"),
        ChatFormat.load(TINY_MODEL),
        "dpo",
        adapter_in=folder / "M0",
        name="grad",
    )
    model = backends.load_model(backends.Backend("transformers", ""), job, torch.float32)
    backends.restore_adapter(model, job.adapter_in)
    ids = torch.tensor([[1, 5, 9, 40, 80]])

    def gradients() -> torch.Tensor:
        model.train()
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        return torch.cat(
            [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
        )

    before = gradients()
    model.eval()
    with torch.no_grad():
        model(input_ids=ids)
    after = gradients()
    assert torch.nn.functional.cosine_similarity(before, after, dim=0).item() == pytest.approx(
        1.0, abs=1e-4
    )
    assert torch.allclose(before, after, atol=1e-6)


def test_steps_too_small_to_move_weights_end_the_training(trainer):
    folder, train = trainer
    with pytest.raises(
        TrainingError, match=r"of the adapter's weights moved in 5 steps.*raise the learning rate"
    ):
        train("dpo", "frozen", folder / "M0", learning_rate=1e-14)
    assert not (folder / "frozen" / "adapter_model.safetensors").exists()


# -- template, beginning, end, padding ----------


def test_conversations_have_equal_ids_in_both_libraries(tmp_path, chat):
    from transformers import AutoTokenizer

    from selfreward_lite.data.tiny.tasks import draw_task
    from selfreward_lite.models.gguf_export import base_to_gguf
    from selfreward_lite.models.parity import open_tokenizer

    base_to_gguf(TINY_MODEL, tmp_path / "base.gguf", weights="original", dtype="f32")
    theirs = AutoTokenizer.from_pretrained(TINY_MODEL)
    rng = random.Random(0)
    with open_tokenizer(tmp_path / "base.gguf") as llama:
        for number in range(20):
            messages = [{"role": "user", "content": draw_task(rng, "corpus").prompt}]
            messages += [
                {"role": "assistant", "content": "a b"},
                {"role": "user", "content": f"Why {number}?"},
            ] * (number % 3)
            expected = theirs.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=True
            )["input_ids"]
            text = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            assert list(chat.prompt_ids(messages)) == expected == llama.encode(text, special=True)
            assert expected.count(theirs.bos_token_id) == 1
    assert chat.completion_ids("a b")[-1] in chat.stop
    assert chat.pad not in chat.stop


# -- the engine ----------


def test_missing_gpu_ends_the_run_before_it_begins(
    tmp_path,
):
    # tests/engine/test_llama.py has the engine's own refusal.
    command = [
        sys.executable,
        "-m",
        "selfreward_lite",
        "run",
        "--runs-dir",
        str(tmp_path),
        "--set",
        "engine.gpu_layers=-1",
    ]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 2
    assert "a GPU is to be used" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not list(tmp_path.rglob("*.gguf"))  # nothing was made or downloaded


def test_misspelled_argument_is_an_error():
    from selfreward_lite.engine.api import LlamaSpec

    with pytest.raises(ValueError, match="paralel"):
        LlamaSpec(model=Path("none.gguf"), paralel=3)
    with pytest.raises(ConfigError, match=r"engine\.paralel: no such setting"):
        config.load("tiny", {"engine.paralel": "3"})


def test_models_on_amx_cpus_load_without_faulting_buffers(
    monkeypatch,
):
    from selfreward_lite.engine import loading

    seen = []
    monkeypatch.setattr(loading, "has_amx", lambda: True)
    monkeypatch.setattr(
        loading.cpp,
        "llama_model_load_from_file",
        lambda path, params: seen.append(params.use_extra_bufts),
    )
    with pytest.raises(EngineError):
        loading.load_model(TINY_MODEL / "config.json", 0)
    assert seen == [False]
