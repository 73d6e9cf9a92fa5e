"""What torch and llama.cpp find on this machine; a child process, because a library may crash.

    python -m selfreward_lite.models.probe torch             versions, GPUs, what they can do
    python -m selfreward_lite.models.probe build             whether this llama.cpp can use a GPU
    python -m selfreward_lite.models.probe llama GPU_LAYERS  whether it decodes a prompt, and where

Prints one JSON document.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selfreward_lite.models.random_models import write_gguf
from selfreward_lite.system.errors import EngineError
from selfreward_lite.system.files import Json

PROMPT = 16  # tokens; one alone passes where the matrix units of a CPU fault (measured)


def torch() -> Json:
    """Versions, and name, compute capability and memory in bytes of each visible GPU."""
    import torch

    cards = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        capability = torch.cuda.get_device_capability(number)
        cards.append({"name": name, "capability": capability, "free": free, "total": total})
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "kernels": torch.cuda.get_arch_list(),
        "cards": cards,
    }


def build() -> Json:
    """Version, and whether it was built for a GPU; uses none of its memory."""
    import llama_cpp

    return {"version": llama_cpp.__version__, "can_offload": llama_cpp.llama_supports_gpu_offload()}


def llama(gpu_layers: int) -> Json:
    """Decode a prompt of a small model; `offloaded` is llama.cpp's line on GPU layers, or None."""
    from selfreward_lite.engine.api import LlamaSpec
    from selfreward_lite.engine.llama import LlamaEngine
    from selfreward_lite.engine.loading import LOG, has_amx

    found = {**build(), "amx": has_amx()}
    with tempfile.TemporaryDirectory() as scratch:
        model = write_gguf(Path(scratch) / "probe.gguf", "10m")
        spec = LlamaSpec(model=model, gpu_layers=gpu_layers, parallel=2, context=256, batch=32)
        try:
            engine = LlamaEngine(spec)
        except EngineError as error:
            return {**found, "error": str(error)}
        engine.logits(list(range(300, 300 + PROMPT)))
        engine.close()
    return {**found, "error": None, "offloaded": LOG.offload}


if __name__ == "__main__":
    kind, *layers = sys.argv[1:]
    probes: dict[str, Callable[..., Any]] = {"torch": torch, "build": build, "llama": llama}
    print(json.dumps(probes[kind](*map(int, layers))))
