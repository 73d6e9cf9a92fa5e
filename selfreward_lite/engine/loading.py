"""A model and its context, as llama.cpp is asked for them; what it says meanwhile.

Knows: which of llama.cpp's many settings are right on which machine, and the measurement that says so. Does not know: sequences,
sampling, adapters. Like `llama.py`, for processes that may die with native code only.
"""

# Looks into a GGUF LoRA file before llama.cpp does, because llama.cpp answers a bad one with a crash.
#
# Knows: the GGUF container and the names a LoRA file must have. Does not know: llama.cpp, the base model.

# One thread or all of them: which is faster for a tiny model, found while it works.
#
# Knows: how long steps took with either. Does not know: what a step computes. For a large model all cores are always right. A
# tiny one is nearly twice as fast on two idle cores as on one, and 2 to 18 times slower where something else wants the second
# core, since every layer waits for both (measured). So it begins with one thread, tries all of them for a few steps now and then,
# and stays with what was faster. The arithmetic of a step is the same either way.

from __future__ import annotations

import ctypes
import os
from collections import deque
from pathlib import Path
from statistics import median
from typing import Any

import gguf
import llama_cpp as cpp
import numpy as np

from selfreward_lite.system.errors import EngineError


def check_adapter(path: Path) -> None:
    """Raise EngineError, one line, unless `path` is a whole GGUF LoRA adapter that can change something."""
    if not path.is_file():
        raise EngineError(
            f"adapter {path} does not exist; export it again, or name another iteration"
        )
    try:
        reader = gguf.GGUFReader(path)
        kind = _text(reader, "general.type")
        shape = _text(reader, "adapter.type")
    except Exception as error:  # the reader raises whatever its parsing trips over
        raise EngineError(
            f"adapter {path} is truncated or not GGUF ({type(error).__name__}: {error}); export it again"
        ) from error
    if (kind, shape) != ("adapter", "lora"):
        raise EngineError(
            f"{path} is GGUF of type {kind or 'model'!r}, not a LoRA adapter; name the adapter's file"
        )
    _check_weights(path, reader)


def _text(reader: gguf.GGUFReader, name: str) -> str | None:
    field = reader.get_field(name)
    return None if field is None else str(field.contents())


def _check_weights(path: Path, reader: gguf.GGUFReader) -> None:
    """An adapter whose B matrices are all zero equals the base, whatever the hardware rounds."""
    second = [tensor for tensor in reader.tensors if tensor.name.endswith(".lora_b")]
    if not any(np.any(tensor.data) for tensor in second):
        raise EngineError(
            f"adapter {path} has no effect: its lora_b weights are all zero; it was not trained"
        )
    for tensor in reader.tensors:
        if tensor.data.dtype.kind == "f" and not np.isfinite(tensor.data).all():
            raise EngineError(
                f"adapter {path} holds numbers that are not finite in {tensor.name}; train it again"
            )


TRIAL = 5  # steps that are compared
FIRST_WAIT, LONGEST_WAIT = (
    16,
    1024,
)  # steps from one trial to the next; doubled when a trial was lost
ALARM = 3.0  # so many times slower than when it was chosen, and the other is tried at once


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ThreadTuner:
    """Says how many threads the next step is to have, from what the last ones took."""

    def __init__(self, most: int) -> None:
        self.threads = 1
        self._other = most
        self._recent: deque[float] = deque(maxlen=TRIAL)
        self._trial: list[float] = []
        self._on_trial = False
        self._usual = 0.0  # seconds of a step when the present number was chosen
        self._wait = self._left = FIRST_WAIT

    def took(self, seconds: float) -> int:
        """Book a step that was computed with `threads`; return how many the next one is to have."""
        if self._other == self.threads:
            return self.threads
        if self._on_trial:
            self._trial.append(seconds)
            if len(self._trial) == TRIAL:
                self._decide()
            return self.threads
        self._recent.append(seconds)
        self._left -= 1
        slow = (
            self._usual
            and len(self._recent) == TRIAL
            and median(self._recent) > ALARM * self._usual
        )
        if (self._left <= 0 or slow) and len(self._recent) == TRIAL:
            self._on_trial, self._trial = True, []
            self.threads, self._other = self._other, self.threads
        return self.threads

    def _decide(self) -> None:
        """Keep the number on trial if it was faster; the median, since a batch that begins a prompt is larger than others."""
        self._on_trial = False
        tried, before = median(self._trial), median(self._recent)
        if tried < before:
            self._wait, self._usual = FIRST_WAIT, tried
            self._recent = deque(self._trial, maxlen=TRIAL)
        else:
            self.threads, self._other = self._other, self.threads
            self._wait, self._usual = min(2 * self._wait, LONGEST_WAIT), before
        self._left = self._wait


TINY_PARAMETERS = 20_000_000
SCORE_ROWS = 256  # rows of attention scores that are kept without flash attention: with 512, prompts took 2 to 5 % longer
_LEVEL_ERROR, _LEVEL_CONTINUE = 4, 5


class Said:
    """Keeps llama.cpp's errors and its line about layers on the GPU; everything else it says is dropped."""

    def __init__(self) -> None:
        self.errors: deque[str] = deque(maxlen=8)
        self.offload: str | None = None
        self._level = 0

    def receive(self, level: int, text: bytes, _: Any) -> None:
        self._level = self._level if level == _LEVEL_CONTINUE else level
        line = text.decode("utf-8", errors="replace").strip()
        if self._level == _LEVEL_ERROR and line:
            self.errors.append(line)
        elif "offloaded" in line and "layers" in line:
            self.offload = line

    def take(self) -> str:
        """The last error lines as one, then forgotten."""
        said = "; ".join(self.errors) or "llama.cpp gave no reason"
        self.errors.clear()
        return said


LOG = Said()
_CALLBACK = cpp.llama_log_callback(
    LOG.receive
)  # llama.cpp keeps the bare pointer, so the name must live


def threads_for(model: Any) -> int:
    """One for a tiny model to begin with, see `pace`; else every core."""
    return 1 if cpp.llama_model_n_params(model) < TINY_PARAMETERS else cores()


def has_amx() -> bool:
    """On CPUs with AMX the repacked weights of 0.3.36 fault at the first prompt of any quantised model (measured)."""
    info = Path("/proc/cpuinfo")
    return info.is_file() and " amx_" in info.read_text(encoding="utf-8", errors="replace")


def hush() -> None:
    """Keep what llama.cpp says off the terminal; its errors are put into ours."""
    cpp.llama_log_set(_CALLBACK, ctypes.c_void_p(0))


def refuse_cpu_build(gpu_layers: int) -> None:
    """Raise EngineError where layers are to go on a card that this build of llama.cpp cannot use."""
    if gpu_layers and not cpp.llama_supports_gpu_offload():
        raise EngineError(
            "a GPU was asked for, but this llama-cpp-python is built for the CPU only; run "
            "`python -m selfreward_lite llama`, or set gpu_layers=0"
        )


def load_model(path: Path, gpu_layers: int) -> Any:
    """Return the model of a GGUF file; EngineError where it cannot be had, or a card that was asked for is not used."""
    hush()
    LOG.offload = None
    LOG.errors.clear()  # of whatever was loaded before
    refuse_cpu_build(gpu_layers)
    if not path.is_file():
        raise EngineError(f"model {path} does not exist; export or download it first")
    cpp.llama_backend_init()
    params = cpp.llama_model_default_params()
    params.n_gpu_layers = gpu_layers
    params.use_extra_bufts = not has_amx()
    model = cpp.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise EngineError(f"model {path} cannot be loaded ({LOG.take()}); is it a whole GGUF file?")
    fault = None
    if cpp.llama_model_is_recurrent(model) or cpp.llama_model_is_hybrid(model):
        fault = (
            f"model {path} is recurrent, and its prompts cannot be shared; use an attention model"
        )
    elif gpu_layers and (LOG.offload is None or "offloaded 0/" in LOG.offload):
        fault = f"a GPU was asked for, but no layer went there ({LOG.offload}); does nvidia-smi show one? Else set gpu_layers=0"
    if fault:
        cpp.llama_model_free(model)
        raise EngineError(fault)
    return model


def make_context(model: Any, settings: dict[str, int | bool]) -> Any:
    """Return a context as the engine's `settings` describe it; EngineError, and the model is freed, where memory is short."""
    params = cpp.llama_context_default_params()
    params.n_ctx = settings["context"]
    params.n_batch = settings["batch"]
    params.n_ubatch = micro_batch(settings)
    params.n_seq_max = settings["parallel"] + settings["roots"]
    # rows with logits: by default every row, 260 MB at Llama-3's vocabulary; fewer than n_seq_max aborts (measured)
    params.n_outputs_max = params.n_seq_max
    params.n_threads = params.n_threads_batch = settings["threads"] or threads_for(model)
    params.kv_unified = settings["unified"]
    if settings["exact"]:
        params.type_k = params.type_v = cpp.GGML_TYPE_F32
    if not flash(settings):
        params.flash_attn_type = cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.no_perf = True
    context = cpp.llama_init_from_model(model, params)
    if not context:
        cpp.llama_model_free(model)
        raise EngineError(
            f"no memory for a context of {settings['context']} cells ({LOG.take()}); lower the context"
        )
    return context


def flash(settings: dict[str, int | bool]) -> bool:
    """Whether to use flash attention. Not on a CPU where every sequence has its own cells: matrix products over all of them
    are nearly twice as fast a step. In a unified cache they would go over every other sequence's cells too (measured: LOG.md).
    """
    return not settings["exact"] and bool(
        settings.get("flash", settings["gpu_layers"] or settings["unified"])
    )


def micro_batch(settings: dict[str, int | bool]) -> int:
    """How many tokens are computed at once, where a bench does not say: a batch, without flash attention SCORE_ROWS at most."""
    return settings.get("micro_batch") or min(
        settings["batch"], settings["batch"] if flash(settings) else SCORE_ROWS
    )
