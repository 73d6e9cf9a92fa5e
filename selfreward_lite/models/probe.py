"""What torch and llama.cpp do on this machine; a child process, because a library may crash.

    python -m selfreward_lite.models.probe torch             versions, GPUs, what they can do
    python -m selfreward_lite.models.probe triton            whether a kernel is compiled and runs
    python -m selfreward_lite.models.probe four_bit GPU      whether 4-bit weights multiply (0: CPU)
                                                             and PEFT puts an adapter on a model
    python -m selfreward_lite.models.probe unsloth           whether it can be imported
    python -m selfreward_lite.models.probe build             whether this llama.cpp can use a GPU
    python -m selfreward_lite.models.probe llama GPU_LAYERS  whether it decodes a prompt, and where

Prints one JSON document, {"error": line} where a library raised something. What libraries print
goes to stderr.
"""

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

from selfreward_lite.models.random_models import write_gguf
from selfreward_lite.system import cuda
from selfreward_lite.system.errors import EngineError
from selfreward_lite.system.files import Json
from selfreward_lite.system.gpu import BF16
from selfreward_lite.system.processes import open_wire

PROMPT = 16  # tokens; one alone passes where the matrix units of a CPU fault (measured)
ROWS, INPUTS, OUTPUTS = 8, 512, 256  # of the 4-bit product
LINE = 300  # characters of an error


def torch() -> Json:
    """Versions, the GPUs that torch can use, and why a sum on the first one fails, or None."""
    import torch

    cards = []
    fault = None
    # The number of devices is the driver's, also where torch can use none of them.
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        for number in range(count):
            free, total = torch.cuda.mem_get_info(number)
            name = torch.cuda.get_device_name(number)
            capability = torch.cuda.get_device_capability(number)
            cards.append({"name": name, "capability": capability, "free": free, "total": total})
        if torch.version.cuda:
            torch.cuda.init()  # type: ignore[no-untyped-call]
            if float(torch.ones(64, device="cuda").mul(2).sum()) != 128:
                fault = "a sum of 64 numbers is wrong"
    except Exception as error:  # noqa: BLE001 - of CUDA, the driver or torch
        fault = describe(error)
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "kernels": torch.cuda.get_arch_list(),
        "cards": cards,
        "fault": fault,
    }


def triton() -> Json:
    """Compile and run a kernel on the GPU. Without Python.h this fails, as a training would."""
    from selfreward_lite.models import triton_probe

    error = triton_probe.run("cuda")
    wrong = f"its kernel is off by {error}" if error else None
    return {"version": version("triton"), "error": wrong}


def four_bit(gpu: int) -> Json:
    """Multiply rows by a matrix packed in NF4, forward and backward, on the GPU or the CPU.

    `packing` is how far the packed matrix is from the original, `product` and `gradient` how far
    they are from those of the unpacked matrix; each as a share of the size of what is right.
    `adapter` says why PEFT cannot put an adapter on a model, None if it can.
    """
    import torch
    from bitsandbytes import functional, matmul_4bit

    device, dtype, name = "cpu", torch.float32, "the CPU"
    if gpu:
        has_bf16 = torch.cuda.get_device_capability() >= BF16
        device, dtype = "cuda", torch.bfloat16 if has_bf16 else torch.float16
        name = "the GPU"
    torch.manual_seed(0)
    weight = torch.randn(OUTPUTS, INPUTS)
    rows = torch.randn(ROWS, INPUTS).to(device, dtype).requires_grad_()
    above = torch.randn(ROWS, OUTPUTS).to(device, dtype)
    packed, state = functional.quantize_4bit(
        weight.to(device, dtype), blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    plain = functional.dequantize_4bit(packed, state).float().cpu()
    product = matmul_4bit(rows, packed.t(), quant_state=state)
    product.backward(above)

    def share(found: torch.Tensor, right: torch.Tensor) -> float:
        return float((found.detach().float().cpu() - right).norm() / right.norm())

    assert rows.grad is not None
    return {
        "version": version("bitsandbytes"),
        "adapter": _find_adapter_fault(),
        "device": name,
        "packing": share(plain, weight),
        "product": share(product, rows.detach().float().cpu() @ plain.t()),
        "gradient": share(rows.grad, above.float().cpu() @ plain),
    }


def _find_adapter_fault() -> str | None:
    """Why PEFT cannot put an adapter on a model; None if it can.

    It raises where the torchao that it finds is older than it knows, or newer than torch is.
    """
    import torch

    try:
        from peft import LoraConfig, get_peft_model

        model = torch.nn.Sequential(torch.nn.Linear(2, 2))
        get_peft_model(model, LoraConfig(target_modules=["0"]))
    except Exception as error:  # noqa: BLE001 - of PEFT, transformers or torchao
        return describe(error)
    return None


def unsloth() -> Json:
    """Import unsloth, first of all, as a training does; how many seconds that took."""
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")  # it would ask the hub for a file
    started = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", scratch)
        import unsloth  # noqa: F401

    return {"version": version("unsloth"), "seconds": time.monotonic() - started}


def build() -> Json:
    """Version, the CUDA it was built with, and whether it can use a GPU; takes no memory of it."""
    import llama_cpp

    return {
        "version": llama_cpp.__version__,
        "cuda": cuda.build_cuda(),
        "can_offload": llama_cpp.llama_supports_gpu_offload(),
    }


def llama(gpu_layers: int) -> Json:
    """Decode a prompt of a small model; `offloaded` is llama.cpp's line on GPU layers, or None.

    With a GPU, `difference` says how far its logits are from the CPU's, as a share of their size.
    """
    from selfreward_lite.engine.loading import LOG, has_amx

    found = {**build(), "amx": has_amx(), "offloaded": None, "difference": None}
    with tempfile.TemporaryDirectory() as scratch:
        model = write_gguf(Path(scratch) / "probe.gguf", "10m")
        try:
            logits = _read_logits(model, gpu_layers)
            found["offloaded"] = LOG.offload
            if not np.isfinite(logits).all():
                raise EngineError("its logits are not finite")
            if gpu_layers:
                right = _read_logits(model, 0)
                found["difference"] = float(np.linalg.norm(logits - right) / np.linalg.norm(right))
        except EngineError as error:
            return {**found, "error": str(error)}
    return {**found, "error": None}


def _read_logits(model: Path, gpu_layers: int) -> np.ndarray:
    """The logits of a short text; EngineError where llama.cpp cannot load or decode."""
    from selfreward_lite.engine.api import LlamaSpec
    from selfreward_lite.engine.llama import LlamaEngine

    spec = LlamaSpec(model=model, gpu_layers=gpu_layers, parallel=2, context=256, batch=32)
    engine = LlamaEngine(spec)
    try:
        return engine.logits(list(range(300, 300 + PROMPT)))
    finally:
        engine.close()


def describe(error: BaseException) -> str:
    """An error in one line: its first, and what a library calls the original one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    original = [line for line in lines[1:] if line.startswith("Original error")]
    text = f"{type(error).__name__}: {' '.join([*lines[:1], *original])}"
    return text[:LINE]


PROBES: dict[str, Callable[..., Json]] = {
    "torch": torch,
    "triton": triton,
    "four_bit": four_bit,
    "unsloth": unsloth,
    "build": build,
    "llama": llama,
}


def main() -> None:
    """Answer for the probe that the command names."""
    send = open_wire()
    kind, *numbers = sys.argv[1:]
    try:
        answer = PROBES[kind](*map(int, numbers))
    except Exception as error:  # noqa: BLE001 - whatever a library raises is the answer
        traceback.print_exc()
        answer = {"error": describe(error)}
    send(answer)


if __name__ == "__main__":
    main()
