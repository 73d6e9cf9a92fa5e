"""unsloth as it is on a GPU, where there is none: a program, since it precedes transformers.

    python unsloth_on_cpu.py plain FOLDER      TRL and PEFT
    python unsloth_on_cpu.py unsloth FOLDER    after that: "trainers", then "kernels"

trainers   those that unsloth puts in the place of TRL's, around the same model
kernels    these, and its own Llama with fused LoRA kernels in float16, which Triton interprets

Each trains SFT, then DPO from the adapter of "plain". Prints one JSON document.
"""

import json
import os
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRITON_INTERPRET": "1",
    "UNSLOTH_ALLOW_CPU": "1",  # else it takes its CPU backend, without any of this
    "UNSLOTH_DISABLE_STATISTICS": "1",
}
# Few tokens: Triton interprets a kernel in Python. Later losses depend on gradients.
WORDS = {"sft": ["a", "b"], "dpo": ["a", "b", "c", "d"]}
SMALL = {"batch": 2, "micro_batch": 2, "epochs": 1, "learning_rate": 1e-3, "max_length": 64}


def use_trainers(folder: Path) -> None:
    """Import unsloth and let it replace TRL's trainers, which it leaves alone without a GPU."""
    os.environ["UNSLOTH_COMPILE_LOCATION"] = str(folder / "unsloth_compiled_cache")
    import unsloth  # noqa: F401
    from unsloth.context_parallel import patch_sft_trainer
    from unsloth.models import rl
    from unsloth.trainer import _patch_trl_trainer

    os.environ["UNSLOTH_ALLOW_CPU"] = "0"
    rl.patch_trl_disable_gradient_checkpointing()
    for trainer in ("sft_trainer", "dpo_trainer"):  # of all that `rl.patch_trl_rl_trainers` does
        rl._patch_trl_rl_trainers(trainer)
    _patch_trl_trainer()
    patch_sft_trainer()


@dataclass
class Device:
    """What unsloth asks of a GPU (an RTX 3090 here) before it loads a model."""

    name: str = "played"
    total_memory: int = 24 * 2**30
    major: int = 8
    minor: int = 6
    multi_processor_count: int = 82


class OneDevice(int):
    """The number of GPUs; a list with an entry for each is indexed by a device, here the CPU."""

    def __rmul__(self, other: Any) -> Any:
        return ByDevice(other) if isinstance(other, list) else int(self) * other


class ByDevice(list):
    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key if isinstance(key, slice) else 0)

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key if isinstance(key, slice) else 0, value)


def play_gpu() -> set[str]:
    """Let unsloth load its own Llama on the CPU, in float16.

    Returns a set that will hold the names of the functions that its layers then call.
    """
    import torch
    from unsloth.kernels import utils
    from unsloth.models import llama

    from selfreward_lite.training import backends

    answers = {
        "get_device_properties": Device(),
        "get_device_capability": (8, 6),
        "get_device_name": "played",
        "mem_get_info": (22 * 2**30, 24 * 2**30),
        "current_device": 0,
        "synchronize": None,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, _answer=answer, **__: _answer)
    llama.DEVICE_COUNT = OneDevice(1)
    llama.DEVICE_TYPE_TORCH = "cpu"
    llama.get_current_device = lambda: "cpu"
    llama.is_bfloat16_supported = lambda *_, **__: True  # Triton's interpreter has none
    utils._current_device = lambda *_: None
    load, called = backends.load_model, set[str]()

    def load_in_float16(backend: Any, job: Any, dtype: Any) -> Any:
        model = load(backend, job, torch.float16)  # in float32 its fused kernels are left out
        model._unsloth_forced_float32 = True  # no autocast, which a CPU has for bfloat16 only
        for layer in model.base_model.model.model.layers:
            attention = layer.self_attn
            for function in (attention.apply_qkv, attention.apply_o, layer.mlp.forward):
                called.add(function.__name__)
        return model

    backends.load_model = load_in_float16
    return called


def make_half_model(folder: Path) -> Path:
    """The tiny model with half of its layers; the weights of the others are not read."""
    from selfreward_lite.data.tiny import TINY_MODEL

    if not folder.exists():
        shutil.copytree(TINY_MODEL, folder)
        config = json.loads((folder / "config.json").read_text())
        config["num_hidden_layers"] //= 2
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def make_small_job(folder: Path, method: str, adapter_in: Path | None, name: str) -> Any:
    """A job of short rows, two a step."""
    from training_jobs import make_job

    from selfreward_lite import config
    from selfreward_lite.data.tiny import TINY_MODEL
    from selfreward_lite.models.chat_format import ChatFormat

    chat = ChatFormat.load(TINY_MODEL)
    model, tiny = make_half_model(folder / "model"), config.load("tiny")
    job = make_job(
        folder, tiny, chat, method, adapter_in=adapter_in, name=name, model=model, **SMALL
    )
    rows = []
    for word in WORDS[method]:
        prompt = chat.prompt_ids([{"role": "user", "content": f"Sort {word} a."}])
        good, bad = chat.completion_ids(f"a {word}."), chat.completion_ids("no")
        chosen = {"completion_ids": good} if method == "sft" else {"chosen_ids": good}
        rejected = {} if method == "sft" else {"rejected_ids": bad}
        rows.append({"prompt_ids": prompt, **chosen, **rejected})
    job.rows.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return job.model_copy(
        update={"row_count": len(rows), "quantization": "none", "min_moved_share": 0.0}
    )


def train(mode: str, folder: Path) -> dict[str, Any]:
    """What an SFT and a DPO said."""
    import trl

    from selfreward_lite.training import trainer
    from selfreward_lite.training.backends import Backend

    found: dict[str, Any] = {"classes": [trl.SFTTrainer.__name__, trl.DPOTrainer.__name__]}
    backend = Backend("unsloth" if mode == "kernels" else "transformers", mode)
    for method, adapter in (("sft", None), ("dpo", folder / "plain-sft")):
        job = make_small_job(folder, method, adapter, f"{mode}-{method}")
        said: list[Any] = []
        result = trainer.train(job, said.append, backend)
        steps = [one["values"] for one in said if "values" in one]
        found[method] = {
            "losses": [values["loss"] for values in steps],
            "margins": [values.get("rewards/margins") for values in steps],
            "moved": result.moved_share,
        }
    return found


def main() -> None:
    mode, folder = sys.argv[1], Path(sys.argv[2])
    os.environ |= ENVIRONMENT
    if mode == "plain":
        print(json.dumps(train("plain", folder)))
        return
    use_trainers(folder)
    trainers = train("trainers", folder)
    called = play_gpu()
    kernels = {**train("kernels", folder), "called": sorted(called)}
    print(json.dumps({"version": version("unsloth"), "trainers": trainers, "kernels": kernels}))


if __name__ == "__main__":
    main()
