"""unsloth trains the adapter: SFT, then DPO; PEFT and llama.cpp read the result.

Its CPU backend proves the calls, not the kernels of a GPU (see `test_unsloth_as_on_gpu.py`). It is
installed beside the rest, without what it depends on, as in `.ci/run`:
`pip install --no-deps unsloth==2026.10.9 unsloth_zoo==2026.10.9 triton==3.7.1`.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from training_jobs import make_job

from selfreward_lite import config
from selfreward_lite.config.settings import Model
from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.run.runtime import open_runtime

pytestmark = pytest.mark.unsloth
NF4 = Model(base="tiny", templates="compact", quantisation="nf4", gguf="f32")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """M0 and M1 by unsloth, and M0 by transformers, with what each said."""
    folder, chat, tiny = (
        tmp_path_factory.mktemp("unsloth"),
        ChatFormat.load(TINY_MODEL),
        config.load("tiny"),
    )
    found = {"folder": folder}
    with open_runtime(backend="unsloth") as runtime:

        def work(method, name, before=None):
            said = []
            job = make_job(folder, tiny, chat, method, adapter_in=before, name=name)
            facts = runtime.train(
                job.model_copy(update={"backend": "unsloth"}), folder, said.append
            )
            values = [one["values"] for one in said if "values" in one]
            found[name] = {"facts": facts, "words": said[0]["message"], "values": values}

        work("sft", "M0")
        work("dpo", "M1", folder / "M0")
    with open_runtime() as runtime:
        said = []
        found["other"] = runtime.train(
            make_job(folder, tiny, chat, "sft", name="other"), folder, said.append
        )
        found["other values"] = [one["values"] for one in said if "values" in one]
    return found


def test_it_was_unsloth(trained):
    for name in ("M0", "M1"):
        assert trained[name]["words"].startswith("unsloth 2026.")


def test_dpo_has_the_chunked_head_of_trl(tmp_path):
    """Its memory is what plans count on; unsloth's own head returns other values."""
    code = (
        "import sys; from pathlib import Path\n"
        "from selfreward_lite.training.backends import choose_backend\n"
        "assert choose_backend('unsloth', Path(sys.argv[1])).name == 'unsloth'\n"
        "from trl.trainer import dpo_trainer, utils\n"
        "heads = {m._ChunkedLogProbFunction for m in (dpo_trainer, utils)}\n"
        "print([(head.__module__, head.__name__) for head in heads])"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()[-1]
    assert said == "[('trl.trainer.utils', '_ChunkedLogProbFunction')]"


def test_sft_and_dpo_move_every_weight(trained):
    for name in ("M0", "M1"):
        facts = trained[name]["facts"]
        assert facts.steps == 12
        assert facts.moved_share > 0.9
    first, last = trained["M0"]["values"][0], trained["M0"]["values"][-1]
    assert last["loss"] < first["loss"] / 2


def test_the_reference_of_dpo_is_the_model_before(trained):
    assert trained["M1"]["facts"].first_margin == 0.0
    assert trained["M1"]["values"][-1]["rewards/margins"] > 0.3


def test_it_learns_what_transformers_learn(trained):
    # The same rows, rate and first weights up to how each draws them: the losses of every step
    # agree closely.
    ours, theirs = (
        [one["loss"] for one in values]
        for values in (trained["M0"]["values"], trained["other values"])
    )
    assert ours[0] == pytest.approx(theirs[0], rel=1e-3)
    assert ours[-1] == pytest.approx(theirs[-1], rel=0.3)


def test_a_token_weighs_the_same_in_sft_as_without_unsloth(tmp_path, tiny, chat):
    """One row at a time, so that a mean of their means would be another loss."""
    losses: dict[str, list[float]] = {}
    for backend in ("unsloth", "transformers"):
        job = make_job(tmp_path, tiny, chat, "sft", name=backend, micro_batch=1, epochs=1)
        rows = [json.loads(line) for line in job.rows.read_text().splitlines()]
        for row in rows[::3]:
            row["completion_ids"] = chat.completion_ids("The answer is a c f. " * 6)
        job.rows.write_text("".join(json.dumps(row) + "\n" for row in rows))
        job = job.model_copy(update={"backend": backend})
        said: list[dict] = []
        with open_runtime(backend=backend) as runtime:
            facts = runtime.train(job, tmp_path, said.append)
        assert facts.backend.startswith(backend)
        assert facts.loss.startswith("mean over a step's tokens")
        losses[backend] = [one["values"]["loss"] for one in said if "values" in one]
    # Only the first step begins with the same weights: a fresh adapter does nothing.
    assert losses["unsloth"][0] == pytest.approx(losses["transformers"][0], rel=1e-4)


def test_llama_cpp_runs_what_unsloth_trained(trained, tmp_path):
    chat = ChatFormat.load(TINY_MODEL)
    probes = [chat.prompt_ids([{"role": "user", "content": "Sort the letters c a b."}])]
    base = tmp_path / "base" / "base.gguf"
    with open_runtime() as runtime:
        runtime.export_base(TINY_MODEL, base, NF4)
        measured = runtime.export_adapter(
            TINY_MODEL, trained["folder"] / "M1", base, tmp_path / "M1.gguf", probes, NF4
        )
    assert measured.difference < 1e-3
    assert measured.change > 0.1


def test_an_adapter_of_unsloth_is_a_plain_one(trained):
    ours, theirs = (
        load_file(trained["folder"] / name / "adapter_model.safetensors")
        for name in ("M0", "other")
    )
    assert {name: weight.shape for name, weight in ours.items()} == {
        name: weight.shape for name, weight in theirs.items()
    }


def test_nothing_is_written_where_one_stands(trained):
    assert not Path("unsloth_compiled_cache").exists()
