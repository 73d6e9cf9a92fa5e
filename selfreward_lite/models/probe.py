"""What only a library itself can say of this machine, asked in a child process: a probe may crash, and must not take us along.

    python -m selfreward_lite.models.probe torch             versions, cards, what they can do
    python -m selfreward_lite.models.probe build             whether this llama.cpp can use a card at all
    python -m selfreward_lite.models.probe llama GPU_LAYERS  whether llama.cpp decodes a prompt, and where

Prints one JSON document. Knows: torch, llama.cpp. Does not know: what is made of the answers (`doctor`, `bench card`).
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from selfreward_lite.models.random_models import write_gguf
from selfreward_lite.system.errors import EngineError

PROMPT = (
    16  # two tokens would do: one alone passes where the matrix units of a CPU fault (measured)
)


def torch() -> dict[str, Any]:
    """Versions, and of each card in sight its name, compute capability and memory in bytes."""
    import torch

    cards = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        capability = list(torch.cuda.get_device_capability(number))
        cards.append(
            {
                "name": torch.cuda.get_device_name(number),
                "capability": capability,
                "free": free,
                "total": total,
            }
        )
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "kernels": torch.cuda.get_arch_list(),
        "cards": cards,
    }


def build() -> dict[str, Any]:
    """Version, and whether it was built with support for a card; takes nothing of one."""
    import llama_cpp

    return {"version": llama_cpp.__version__, "can_offload": llama_cpp.llama_supports_gpu_offload()}


def llama(gpu_layers: int) -> dict[str, Any]:
    """Decode a prompt of a small quantised model; `offloaded` is llama.cpp's own line about layers on the card, or None."""
    from selfreward_lite.engine.api import LlamaSpec
    from selfreward_lite.engine.llama import LlamaEngine
    from selfreward_lite.engine.loading import LOG, has_amx

    found = {**build(), "amx": has_amx()}
    with tempfile.TemporaryDirectory() as scratch:
        model = write_gguf(Path(scratch) / "probe.gguf", "10m")
        try:
            sizes = {"parallel": 2, "context": 256, "batch": 32}
            engine = LlamaEngine(LlamaSpec(model=model, gpu_layers=gpu_layers, **sizes))
        except EngineError as error:
            return {**found, "error": str(error)}
        engine.logits(list(range(300, 300 + PROMPT)))
        engine.close()
    return {**found, "error": None, "offloaded": LOG.offload}


if __name__ == "__main__":
    kind, *layers = sys.argv[1:]
    print(
        json.dumps(
            llama(int(layers[0])) if kind == "llama" else {"torch": torch, "build": build}[kind]()
        )
    )
