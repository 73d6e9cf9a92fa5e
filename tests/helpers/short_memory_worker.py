"""An engine's child whose device has memory for so many cells: with more, llama.cpp aborts.

Started as a module in place of `selfreward_lite.engine.worker`. The environment says how it is
short: LIMIT (cells), AT (the prompt at which it is noticed, or "load"), HOW ("abort", or "refuse":
an adapter cannot be loaded).
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import llama_cpp

from selfreward_lite.engine import worker
from selfreward_lite.engine.api import LlamaSpec, Request
from selfreward_lite.engine.loading import _CALLBACK
from selfreward_lite.engine.scripted import Reply, ScriptedEngine
from selfreward_lite.system.errors import EngineMemoryError

ERROR = 4  # the level of an error in llama.cpp's log


def abort_for_memory() -> None:
    """What llama.cpp's `ggml_cuda_error` does, by the same two functions."""
    llama_cpp.llama_log_set(_CALLBACK, ctypes.c_void_p(0))
    ggml = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so.0"))
    ggml.ggml_log_internal(ERROR, b"CUDA error: %s\n", b"out of memory")
    ggml.ggml_log_internal(ERROR, b"  current device: 0, in function alloc at ggml-cuda.cu:558\n")
    ggml.ggml_abort(b"ggml-cuda.cu", 105, b"CUDA error")


def make_engine(spec: LlamaSpec) -> ScriptedEngine:
    """An engine that repeats prompt and seed."""
    is_short = spec.context > int(os.environ["LIMIT"])
    if is_short and os.environ["AT"] == "load":
        raise EngineMemoryError(f"no memory for a context of {spec.context} cells")

    def reply(request: Request, sample: int) -> str | Reply:
        name = bytes(request.tokens).decode()
        if is_short and name == os.environ["AT"]:
            if os.environ["HOW"] == "refuse":
                raise EngineMemoryError("no memory for adapter M0.gguf")
            abort_for_memory()
        if len(request.tokens) + request.new_tokens > spec.sequence_cells:
            return Reply("", "refused")
        return f"{name}:{request.seeds[sample]}"

    return ScriptedEngine(reply, lambda text: list(text.encode()))


if __name__ == "__main__":
    worker.make_engine = make_engine
    worker.main()
