"""A model and its context in llama.cpp, its log, its threads, and a check of adapter files.

Imports native code that may crash its process, as `llama.py` does.
"""

import ctypes
import os
import re
from collections import deque
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

import gguf
import llama_cpp as cpp
import numpy as np

from selfreward_lite.engine.api import LlamaSpec
from selfreward_lite.system import cuda
from selfreward_lite.system.cores import count_cores
from selfreward_lite.system.errors import EngineError, EngineMemoryError
from selfreward_lite.system.gpu import list_gpus

# -- adapter files: llama.cpp would crash on a bad one ----------


def check_adapter(path: str) -> None:
    """Raise EngineError unless `path` is a complete GGUF LoRA adapter that changes something."""
    if not os.path.isfile(path):
        raise EngineError(
            f"adapter {path} does not exist; export it again, or name another iteration"
        )
    try:
        reader = gguf.GGUFReader(path)
        fields = [reader.get_field(name) for name in ("general.type", "adapter.type")]
        kind, shape = (field and str(field.contents()) for field in fields)
    except Exception as error:  # the reader raises any error that its parsing runs into
        raise EngineError(
            f"adapter {path} is truncated or not GGUF ({type(error).__name__}: {error}); "
            "export it again"
        ) from error
    if (kind, shape) != ("adapter", "lora"):
        raise EngineError(
            f"{path} is GGUF of type {kind or 'model'!r}, not a LoRA adapter; name the adapter's "
            "file"
        )
    # With B matrices of zeros the model equals its base, however the hardware rounds.
    if not any(np.any(tensor.data) for tensor in reader.tensors if tensor.name.endswith(".lora_b")):
        raise EngineError(
            f"adapter {path} has no effect: its lora_b weights are all zero; it was not trained"
        )
    for tensor in reader.tensors:
        if tensor.data.dtype.kind == "f" and not np.isfinite(tensor.data).all():
            raise EngineError(
                f"adapter {path} has numbers that are not finite in {tensor.name}; train it again"
            )


# -- threads ----------

TINY_PARAMETERS = 20_000_000
TRIAL = 5  # steps that are compared
FIRST_WAIT, LONGEST_WAIT = 16, 1024  # steps between two trials; doubled when a trial is lost
ALARM = 3.0  # so many times slower than at the last choice, and the other number is tried at once


def is_tiny(model: Any) -> bool:
    """Whether more threads may make a loaded model slower."""
    return int(cpp.llama_model_n_params(model)) < TINY_PARAMETERS


def threads_for(model: Any, spec: LlamaSpec) -> int:
    """The wanted threads, else one to begin with for a tiny model, see ThreadTuner, or all."""
    return spec.threads or (1 if is_tiny(model) else count_cores())


class ThreadTuner:
    """Chooses between one thread and all of them for a tiny model, from how long steps take.

    For a large model all cores are always right. A tiny one is nearly twice as fast on two idle
    cores as on one, and 2 to 18 times slower if something else uses the second core, since every
    layer waits for both (measured). So it begins with one thread, tries all of them for a few steps
    now and then, and keeps what was faster. Results do not depend on the number.
    """

    def __init__(self, most: int) -> None:
        self.threads = 1
        self._other = most
        self._recent: deque[float] = deque(maxlen=TRIAL)
        self._trial: list[float] | None = None  # steps with the other number, if it is tried
        self._usual = inf  # seconds of a step when the present number was chosen
        self._wait = self._left = FIRST_WAIT

    def add_step(self, seconds: float) -> int:
        """Note how long a step with `threads` took; returns the number for the next one."""
        if self._trial is not None:
            self._trial.append(seconds)
            if len(self._trial) == TRIAL:
                self._decide(self._trial)
            return self.threads
        self._recent.append(seconds)
        self._left -= 1
        if len(self._recent) == TRIAL and self._other != self.threads:
            is_slow = median(self._recent) > ALARM * self._usual
            if self._left <= 0 or is_slow:
                self._trial = []
                self.threads, self._other = self._other, self.threads
        return self.threads

    def _decide(self, trial: list[float]) -> None:
        """Keep the number on trial if it was faster, by medians: prompts make some steps longer."""
        self._trial = None
        tried, before = median(trial), median(self._recent)
        if tried < before:
            self._wait, self._usual = FIRST_WAIT, tried
            self._recent = deque(trial, maxlen=TRIAL)
        else:
            self.threads, self._other = self._other, self.threads
            self._wait, self._usual = min(2 * self._wait, LONGEST_WAIT), before
        self._left = self._wait


# -- llama.cpp's log ----------

_LEVEL_ERROR, _LEVEL_CONTINUE = 4, 5
# "CUDA error: out of memory": llama.cpp aborts next, and then names no reason.
FATAL = re.compile(r"\w+ error: ")
# Said by a loader that gives up, of a GPU's memory or the machine's.
NO_MEMORY = re.compile(r"out of memory|(failed|unable) to allocate")


class LogCapture:
    """Keeps llama.cpp's errors and its line about layers on the GPU; drops the rest of its log."""

    def __init__(self) -> None:
        self.errors: deque[str] = deque(maxlen=8)
        self.offload: str | None = None
        self._level = 0

    def receive(self, level: int, text: bytes, _: Any) -> None:
        if level != _LEVEL_CONTINUE:
            self._level = level
        line = text.decode("utf-8", errors="replace").strip()
        if self._level == _LEVEL_ERROR and line:
            self.errors.append(line)
            if FATAL.match(line):
                os.write(2, f"{line}\n".encode())
        elif "offloaded" in line and "layers" in line:
            self.offload = line

    def clear(self) -> None:
        self.errors.clear()
        self.offload = None

    def take_errors(self) -> str:
        """The last error lines, joined; they are forgotten."""
        lines = "; ".join(self.errors) or "llama.cpp gave no reason"
        self.errors.clear()
        return lines


LOG = LogCapture()
_CALLBACK = cpp.llama_log_callback(LOG.receive)  # llama.cpp keeps a pointer, so this must live


# -- model and context ----------

# Tokens at once without flash attention; with 512, prompts took 2 to 5 % longer.
NO_FLASH_ROWS = 256


def has_amx() -> bool:
    """Whether this CPU has AMX.

    There the repacked weights of llama-cpp-python 0.3.36 crash at the first prompt of any quantized
    model (measured).
    """
    info = Path("/proc/cpuinfo")
    return info.is_file() and " amx_" in info.read_text(encoding="utf-8", errors="replace")


def refuse_cpu_build(gpu_layers: int) -> None:
    """Raise EngineError if layers are to go on a GPU and this llama.cpp can use none."""
    if gpu_layers and not cpp.llama_supports_gpu_offload():
        gpus = list_gpus()
        why, advice = cuda.explain_idle(gpus[0].driver if gpus else None)
        raise EngineError(f"a GPU was asked for, but {why}; {advice}, or set gpu_layers=0")


def load_model(
    path: Path, gpu_layers: int, *, exact: bool = False, vocab_only: bool = False
) -> Any:
    """The model of a GGUF file; EngineError if it cannot be loaded or the GPU is not used.

    `exact` leaves its weights as they are in the file; `vocab_only` loads no weights at all.
    """
    cpp.llama_log_set(_CALLBACK, ctypes.c_void_p(0))  # off the terminal; errors become part of ours
    LOG.clear()  # of models that were loaded before
    refuse_cpu_build(gpu_layers)
    if not path.is_file():
        raise EngineError(f"model {path} does not exist; export or download it first")
    cpp.llama_backend_init()
    params = cpp.llama_model_default_params()
    params.n_gpu_layers = gpu_layers
    params.vocab_only = vocab_only
    params.use_extra_bufts = not (exact or has_amx())  # repacked weights round in another way
    model = cpp.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        why = LOG.take_errors()
        if NO_MEMORY.search(why):
            raise EngineError(
                f"no memory for model {path} ({why}); close other programs that use the device, or "
                "take a smaller base"
            )
        raise EngineError(f"model {path} cannot be loaded ({why}); is it a complete GGUF file?")
    fault = None
    if cpp.llama_model_is_recurrent(model) or cpp.llama_model_is_hybrid(model):
        fault = (
            f"model {path} is recurrent, and its prompts cannot be shared; use an attention model"
        )
    elif gpu_layers and (LOG.offload is None or "offloaded 0/" in LOG.offload):
        fault = (
            f"a GPU was asked for, but no layer went there ({LOG.offload}); does nvidia-smi show "
            "one? Else set gpu_layers=0"
        )
    if fault:
        cpp.llama_model_free(model)
        raise EngineError(fault)
    return model


def make_context(model: Any, spec: LlamaSpec) -> Any:
    """A context for a model; if memory is short, frees the model and raises EngineError."""
    params = cpp.llama_context_default_params()
    params.n_ctx = spec.context
    params.n_batch = spec.batch
    params.n_ubatch = micro_batch(spec)
    params.n_seq_max = spec.parallel + spec.roots
    # Rows with logits. By default every row has them, 260 MB at Llama-3's vocabulary; fewer than
    # n_seq_max abort (measured).
    params.n_outputs_max = params.n_seq_max
    params.n_threads = params.n_threads_batch = threads_for(model, spec)
    params.kv_unified = spec.unified
    if spec.exact:
        params.type_k = params.type_v = cpp.GGML_TYPE_F32
        # The child that proves an export may see a GPU: nothing of an exact context goes there.
        params.offload_kqv = params.op_offload = bool(spec.gpu_layers)
    if not uses_flash(spec):
        params.flash_attn_type = cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.no_perf = True
    context = cpp.llama_init_from_model(model, params)
    if not context:
        cpp.llama_model_free(model)
        raise EngineMemoryError(
            f"no memory for a context of {spec.context} cells ({LOG.take_errors()}); lower the "
            "context"
        )
    return context


def uses_flash(spec: LlamaSpec) -> bool:
    """Whether flash attention is used.

    If `spec.flash` does not say, not on a CPU where every sequence has its own cells: with most of
    them used, matrix products over all make a step nearly twice as fast. In a unified cache they
    would include other sequences' cells too (measured: docs/log/engine.md).
    """
    default = bool(spec.gpu_layers) or spec.unified
    return not spec.exact and (default if spec.flash is None else spec.flash)


def micro_batch(spec: LlamaSpec) -> int:
    """How many tokens are computed at once: the batch, less without flash attention."""
    return spec.micro_batch or (spec.batch if uses_flash(spec) else min(spec.batch, NO_FLASH_ROWS))
