"""Which library holds the model while it is trained: unsloth where it can be imported beside a card, else transformers and
PEFT with bitsandbytes. Chosen once per process, and said in words.

Knows: how either loads a base and puts a trainable adapter on it. Does not know: trainers, rows. unsloth rewrites transformers
and TRL as it is imported, so it comes before them or not at all: `ready` is called before anything of theirs is.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selfreward_lite.models.hf_folder import read_config
from selfreward_lite.system.errors import TrainingError
from selfreward_lite.system.gpu import list_gpus
from selfreward_lite.training.job import Job

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Backend:
    """The library that trains, and the same in words, with the reason where it is not the one that was hoped for."""

    name: Literal["unsloth", "transformers"]
    words: str


def ready(wanted: str, scratch: Path) -> Backend:
    """Choose the library for this process and import it if it is unsloth; `scratch` takes the code that unsloth generates.

    `wanted` is "auto" (unsloth, if there is a card and it can be imported), "unsloth" or "transformers". Raises TrainingError
    where "unsloth" cannot be had.
    """
    if wanted == "transformers" or (wanted == "auto" and not list_gpus()):
        return Backend("transformers", _transformers())
    if wanted == "auto" and not _installed("unsloth"):
        return Backend(
            "transformers",
            f"{_transformers()}; unsloth is not installed (pip install -r requirements-gpu.txt)",
        )
    if late := [name for name in ("transformers", "trl", "peft") if name in sys.modules]:
        raise TrainingError(
            f"unsloth must be imported before {late[0]}, which is not so here; set backend=transformers"
        )
    os.environ.setdefault(
        "UNSLOTH_DISABLE_STATISTICS", "1"
    )  # it would ask the hub for a file at every start
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(scratch / "unsloth_compiled_cache"))
    try:
        import unsloth  # noqa: F401
    except Exception as error:  # noqa: BLE001 - it fails in many ways, of which ImportError is one
        why = f"unsloth cannot be imported ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        if wanted == "unsloth":
            raise TrainingError(
                f"{why}; set backend=transformers, or mend it: `doctor` says how"
            ) from None
        return Backend("transformers", f"{_transformers()}; {why}")
    return Backend("unsloth", f"unsloth {version('unsloth')}")


def load(backend: Backend, job: Job, dtype: torch.dtype) -> Any:
    """Return the base with the trainable adapter `default` on it: that of `job.adapter_in`, or a fresh one."""
    model = (_by_unsloth if backend.name == "unsloth" else _by_transformers)(job, dtype)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainingError("no weight of the adapter is trainable")
    return model


def _by_transformers(job: Job, dtype: torch.dtype) -> Any:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model

    from selfreward_lite.models import nf4

    base = nf4.load(job.model_dir, job.quantisation, dtype, on_gpu=torch.cuda.is_available())
    if job.adapter_in is not None:
        return PeftModel.from_pretrained(base, job.adapter_in, is_trainable=True)
    return get_peft_model(
        base,
        LoraConfig(
            r=job.lora["rank"],
            lora_alpha=job.lora["alpha"],
            lora_dropout=job.lora["dropout"],
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )


def _by_unsloth(job: Job, dtype: torch.dtype) -> Any:
    import torch
    from unsloth import FastLanguageModel

    from selfreward_lite.models import nf4

    modules = [name.rsplit(".", 1)[-1] for name in read_config(Path(job.model_dir)).projections()]
    longest, checkpointing = (
        job.settings["max_length"],
        "unsloth" if torch.cuda.is_available() else False,
    )
    base, _ = FastLanguageModel.from_pretrained(
        job.model_dir,
        max_seq_length=longest,
        dtype=dtype,
        load_in_4bit=job.quantisation == "nf4",
        use_exact_model_name=True,
        local_files_only=True,
    )
    model = FastLanguageModel.get_peft_model(
        nf4.settled(base, dtype),
        r=job.lora["rank"],
        lora_alpha=job.lora["alpha"],
        lora_dropout=job.lora["dropout"],
        target_modules=modules,
        use_gradient_checkpointing=checkpointing,
        random_state=job.seed,
    )
    if job.adapter_in is not None:
        restore(model, job.adapter_in)
    return model


def restore(model: Any, adapter_in: str) -> None:
    """Put an adapter's weights on a model as they were saved: TRL rounds those of a 4-bit model to bfloat16.

    Raises TrainingError where they are not those of this model's adapter.
    """
    from peft import load_peft_weights, set_peft_model_state_dict

    weights = load_peft_weights(adapter_in, device="cpu")
    result = set_peft_model_state_dict(model, weights, adapter_name="default")
    trainable = sum(parameter.requires_grad for parameter in model.parameters())
    if result.unexpected_keys or len(weights) != trainable:
        raise TrainingError(
            f"{adapter_in} does not fit the model: {result.unexpected_keys or 'other layers'}"
        )


def _transformers() -> str:
    return f"transformers {version('transformers')}, bitsandbytes {version('bitsandbytes')}"


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
