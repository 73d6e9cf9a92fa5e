"""Whether this machine can do what a run's settings ask of it, before the first download.

A version number proves nothing, so llama.cpp, torch, Triton, bitsandbytes and unsloth each do a
little of the run's work (`system/doctor.py`). Models that need no GPU are left alone.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from selfreward_lite.config.settings import Settings
from selfreward_lite.data import hub
from selfreward_lite.models import memory
from selfreward_lite.models.hf_folder import ModelShape
from selfreward_lite.run import plan
from selfreward_lite.run.prepare import refuse_base
from selfreward_lite.system import doctor
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.files import format_bytes
from selfreward_lite.system.gpu import (
    LARGE,
    Gpu,
    explain_missing_gpu,
    list_gpu_users,
    list_gpus,
)
from selfreward_lite.system.gpu_findings import describe_users

Say = Callable[[str], None]


def check_machine(settings: Settings, folder: Path, say: Say) -> None:
    """Raise UserError where the run would end on this machine; say what will slow it down.

    The caller holds the GPU. A base with `engine.gpu_layers=0` and less than a billion weights may
    train on the CPU; a larger one may too, but not on a machine with a GPU that torch does not see.
    """
    gpus = list_gpus()
    on_gpu = settings.engine.gpu_layers != 0 and settings.engine.kind == "llama"
    check_processes(settings.training.processes, gpus)
    shape = _find_shape(settings.model.base)
    is_large = shape is not None and memory.count_weights(shape) >= LARGE
    if gpus and (on_gpu or is_large):
        say("trying GPU, torch, llama.cpp and what trains: a minute or two …")
        doctor.check_gpu(folder, with_llama=on_gpu, backend=settings.backend, say=say)
    elif on_gpu:
        doctor.check_without_gpu(is_large=is_large)
    elif is_large:
        _refuse_missing_gpu()
        say("no GPU: a model with billions of weights answers and trains on the CPU, for days")
    if gpus and (on_gpu or is_large):
        _compare_memory(settings, shape, gpus[: settings.training.processes], on_gpu, say)


def _refuse_missing_gpu() -> None:
    """Raise UserError where this machine has a GPU that its driver does not show."""
    if missing := explain_missing_gpu():
        raise UserError(
            f"this model would train on the CPU for days ({missing}): `python -m selfreward_lite "
            "doctor` says how to fix it; if the CPU is meant, set CUDA_VISIBLE_DEVICES=-1"
        )


def _compare_memory(
    settings: Settings, shape: ModelShape | None, gpus: Sequence[Gpu], on_gpu: bool, say: Say
) -> None:
    """Say where a GPU has too little free memory: the first, `on_gpu`, for answers too."""
    for number, gpu in enumerate(gpus, start=1):
        if number == 1 and on_gpu:
            for line in describe_memory(settings, shape, gpu):
                say(line)
        elif short := describe_training_memory(settings, shape, gpu):
            say(f"memory of GPU {number}: {short}")


def check_processes(processes: int, gpus: Sequence[Gpu]) -> None:
    """Raise UserError for more processes than GPUs; without any, they train on the CPU."""
    if gpus and processes > len(gpus):
        visible = "1 GPU is" if len(gpus) == 1 else f"{len(gpus)} GPUs are"
        raise UserError(
            f"training.processes={processes} need a GPU each, and {visible} visible: set "
            f"training.processes={len(gpus)} or lower (`python -m selfreward_lite doctor` names "
            "the GPUs)"
        )


def describe_training_memory(settings: Settings, shape: ModelShape | None, gpu: Gpu) -> str | None:
    """What to say where another GPU that trains has less free memory than that needs."""
    if shape is None:
        return None
    peaks = memory.estimate_peaks(settings, shape)
    needed = max(sum(peaks[stage].values()) for stage in ("SFT", "DPO"))
    if needed <= gpu.free:
        return None
    return (
        f"training needs {format_bytes(needed)} of each GPU by the estimate of `plan`, and "
        f"{format_bytes(gpu.free)} of {format_bytes(gpu.total)} are free: close what uses it, or "
        "lower training.processes"
    )


def describe_memory(settings: Settings, shape: ModelShape | None, gpu: Gpu) -> list[str]:
    """What to say where the GPU has less free memory than `plan` expects the run to need."""
    if shape is None:
        return [
            f"{settings.model.base} is not here yet: the memory that it needs is compared with the "
            "GPU's at the next start"
        ]
    peaks = memory.estimate_peaks(settings, shape)
    most = memory.largest_peak(peaks)
    if most <= gpu.free:
        return []
    stages = {stage: sum(parts.values()) for stage, parts in peaks.items()}
    stage = max(stages, key=lambda name: stages[name])
    text = (
        f"memory: {stage} needs {format_bytes(most)} of the GPU by the estimate of `plan`, and "
        f"{format_bytes(gpu.free)} of {format_bytes(gpu.total)} are free"
    )
    advice = "lower engine.context, engine.parallel or dpo.max_length, or take a smaller preset"
    if most > gpu.total:
        return [f"{text}: {advice}"]
    who = describe_users(list_gpu_users(gpu)) or "other programs (a desktop, a browser)"
    return [
        f"{text}; in use by {who}. Close them, or {advice}. Too little memory ends a stage; on "
        "Windows (WSL2) it makes the stage many times slower instead"
    ]


def _find_shape(base: str) -> ModelShape | None:
    """The shape of a base; None for a GGUF that is still to be downloaded."""
    missing = hub.find_missing(base, "model")
    if missing and missing.file:
        return None
    with refuse_base(Path(base)):
        return plan.find_base_shape(base)
