"""A model and its context, as llama.cpp is asked for them; what it says meanwhile.

Knows: which of llama.cpp's many settings are right on which machine, and the measurement that says so. Does not know: sequences,
sampling, adapters. Like `llama.py`, for processes that may die with native code only.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from pathlib import Path
from typing import Any

import llama_cpp as cpp

from selfreward_lite.engines.pace import cores
from selfreward_lite.errors import EngineError

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
_CALLBACK = cpp.llama_log_callback(LOG.receive)  # llama.cpp keeps the bare pointer, so the name must live


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
        fault = f"model {path} is recurrent, and its prompts cannot be shared; use an attention model"
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
        raise EngineError(f"no memory for a context of {settings['context']} cells ({LOG.take()}); lower the context")
    return context


def flash(settings: dict[str, int | bool]) -> bool:
    """Whether to use flash attention. Not on a CPU where every sequence has its own cells: matrix products over all of them
    are nearly twice as fast a step. In a unified cache they would go over every other sequence's cells too (measured: LOG.md).
    """
    return not settings["exact"] and bool(settings.get("flash", settings["gpu_layers"] or settings["unified"]))


def micro_batch(settings: dict[str, int | bool]) -> int:
    """How many tokens are computed at once, where a bench does not say: a batch, without flash attention SCORE_ROWS at most."""
    return settings.get("micro_batch") or min(settings["batch"], settings["batch"] if flash(settings) else SCORE_ROWS)
