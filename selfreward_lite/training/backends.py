"""The library that holds the model in training: unsloth if it works, else transformers and PEFT.

unsloth rewrites transformers and TRL as it is imported, so it must come before them: call
`choose_backend` first.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selfreward_lite.models import nf4
from selfreward_lite.models.hf_folder import list_linear, read_config
from selfreward_lite.system.errors import TrainingError
from selfreward_lite.system.gpu import list_gpus
from selfreward_lite.training.job import Job

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Backend:
    """The library that trains, and its description: versions, and why it is not unsloth."""

    name: Literal["unsloth", "transformers"]
    description: str


def choose_backend(
    wanted: Literal["auto", "unsloth", "transformers"], scratch: Path, processes: int = 1
) -> Backend:
    """Choose the library for this process, and import it if it is unsloth.

    `scratch` takes the code that unsloth generates. "auto" is unsloth, if there is a GPU, it can be
    imported, and one process trains. Raises TrainingError where "unsloth" cannot be used.
    """
    plain = f"transformers {version('transformers')}, bitsandbytes {version('bitsandbytes')}"
    if processes > 1:
        if wanted == "unsloth":
            raise TrainingError(
                "unsloth trains in one process; set backend=transformers, or training.processes=1"
            )
        return Backend("transformers", f"{plain}, in {processes} processes")
    if wanted == "transformers" or (wanted == "auto" and not list_gpus()):
        return Backend("transformers", plain)
    if wanted == "auto" and find_spec("unsloth") is None:
        missing = "unsloth is not installed (pip install -r requirements-gpu.txt)"
        return Backend("transformers", f"{plain}; {missing}")
    if late := [name for name in ("transformers", "trl", "peft") if name in sys.modules]:
        raise TrainingError(
            f"unsloth must be imported before {late[0]}, but was not; set backend=transformers"
        )
    # it would ask the hub for a file at every start
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(scratch / "unsloth_compiled_cache"))
    try:
        import unsloth  # noqa: F401
    except Exception as error:  # noqa: BLE001 - it fails in many ways, of which ImportError is one
        reason = next(iter(str(error).splitlines()), "")
        why = f"unsloth cannot be imported ({type(error).__name__}: {reason})"
        if wanted == "unsloth":
            raise TrainingError(
                f"{why}; set backend=transformers, or run `doctor` to see how to fix it"
            ) from None
        return Backend("transformers", f"{plain}; {why}")
    _keep_chunked_head()
    return Backend("unsloth", f"unsloth {version('unsloth')}")


def _keep_chunked_head() -> None:
    """Take back TRL's head from unsloth's CPU backend.

    What that puts in its place returns five values, as another version of TRL expects (unsloth_zoo
    2026.10.9). On a GPU it calls TRL's.
    """
    from trl.trainer import dpo_trainer, utils

    modules: tuple[Any, ...] = (utils, dpo_trainer)
    for module in modules:
        head = module._ChunkedLogProbFunction
        if getattr(head, "_unsloth_cpu_dispatch", False):
            module._ChunkedLogProbFunction = head._kernel


def load_model(backend: Backend, job: Job, dtype: torch.dtype) -> Any:
    """The base with the trainable adapter `default`: `job.adapter_in`, or a fresh one."""
    load = _load_with_unsloth if backend.name == "unsloth" else _load_with_transformers
    lora = {
        "r": job.lora.rank,
        "lora_alpha": job.lora.alpha,
        "lora_dropout": job.lora.dropout,
    }
    model = load(job, dtype, lora)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainingError("no weight of the adapter is trainable")
    return model


def _load_with_transformers(job: Job, dtype: torch.dtype, lora: dict[str, Any]) -> Any:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model

    base = nf4.load_model(job.model_dir, job.quantization, dtype, on_gpu=torch.cuda.is_available())
    if job.adapter_in is not None:
        return PeftModel.from_pretrained(base, job.adapter_in, is_trainable=True)
    config = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", **lora)
    return get_peft_model(base, config)


def _load_with_unsloth(job: Job, dtype: torch.dtype, lora: dict[str, Any]) -> Any:
    import torch
    from unsloth import FastLanguageModel

    linear = list_linear(read_config(job.model_dir))
    base, _ = FastLanguageModel.from_pretrained(
        str(job.model_dir),
        max_seq_length=job.settings.max_length,
        dtype=dtype,
        load_in_4bit=job.quantization == "nf4",
        use_exact_model_name=True,
        local_files_only=True,
    )
    model = FastLanguageModel.get_peft_model(
        nf4.set_compute_dtype(base, dtype),
        target_modules=[
            tensor.source.split(".")[-2] for tensor in linear if tensor.name.startswith("blk.0.")
        ],
        use_gradient_checkpointing="unsloth" if torch.cuda.is_available() else False,
        random_state=job.seed,
        **lora,
    )
    if job.adapter_in is not None:
        restore_adapter(model, job.adapter_in)
    return model


def restore_adapter(model: Any, adapter_in: Path) -> None:
    """Put an adapter's weights on a model as they were saved.

    TRL rounds those of a 4-bit model to bfloat16. Raises TrainingError where they do not belong to
    this model's adapter.
    """
    from peft import load_peft_weights, set_peft_model_state_dict

    weights = load_peft_weights(str(adapter_in), device="cpu")
    result: Any = set_peft_model_state_dict(model, weights, adapter_name="default")
    trainable = sum(parameter.requires_grad for parameter in model.parameters())
    if result.unexpected_keys or len(weights) != trainable:
        raise TrainingError(
            f"{adapter_in} does not fit the model: {result.unexpected_keys or 'other layers'}"
        )
