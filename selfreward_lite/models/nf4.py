"""NF4, the 4-bit type of QLoRA (arXiv 2305.14314, section 3): a base loaded in it, and what is left of a weight in it.

Knows: bitsandbytes, and how its packed weights lie in a safetensors file. Does not know: GGUF, adapters, trainers. torch,
transformers and bitsandbytes are imported inside functions: importing this file is cheap.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfreward_lite.models.hf_folder import STATE, read_config
from selfreward_lite.system.errors import ExportError

if TYPE_CHECKING:
    import torch


def load_model(
    model_dir: str | Path, quantisation: str, dtype: torch.dtype, *, on_gpu: bool
) -> Any:
    """Return the model of a folder, on the first card or in memory; `quantisation` is "nf4" or "none".

    A folder whose weights are packed already is loaded as it is. All matrices compute in `dtype`, whatever the folder says.
    Raises ExportError where a weight did not come from the folder.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    settings: dict[str, Any] = {}
    if quantisation == "nf4" and not read_config(Path(model_dir)).packed:
        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    model, found = AutoModelForCausalLM.from_pretrained(
        str(model_dir),
        dtype=dtype,
        device_map={"": 0 if on_gpu else "cpu"},
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        **settings,
    )
    if wrong := [
        *found["missing_keys"],
        *found["mismatched_keys"],
    ]:  # transformers fills them with random numbers
        raise ExportError(
            f"{model_dir}: {len(wrong)} weights could not be loaded, first {wrong[0]}: download the model again"
        )
    return set_compute_dtype(model, dtype)


def set_compute_dtype(model: Any, dtype: torch.dtype) -> Any:
    """Have the 4-bit layers of a loaded model compute in `dtype`, with right gradients; returns the model."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # On CPUs with AVX512-BF16, a layer that ran without gradients repacks itself and then gives wrong ones.
            module.support_avx512bf16_for_cpu = False
            module.compute_dtype = (
                dtype  # a T4 would compute nonsense in the bfloat16 of most packed folders
            )
    return model


def round_to_nf4(weight: torch.Tensor) -> torch.Tensor:
    """Return what is left of a weight in NF4 with double quantisation, in its own dtype."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    # On the device where training would quantise, since a card's rounding need not be the CPU's.
    device = "cuda" if torch.cuda.is_available() else "cpu"
    packed, state = quantize_4bit(
        weight.to(device), blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    return dequantize_4bit(packed, state).cpu()


def unpack_nf4(packed: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return a weight (out, in) in float32 from its packed bytes and the tensors beside it.

    bitsandbytes makes of them the type that it computes in, whatever type they were packed from. `parts` are named by what
    follows the weight's name and a dot. Raises ValueError where they do not belong together.
    """
    import torch
    from bitsandbytes.functional import QuantState, dequantize_4bit

    if STATE not in parts:
        raise ValueError(f"{STATE} is missing")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        state = QuantState.from_dict(dict(parts), device)
        state.dtype = torch.float32
        return dequantize_4bit(packed.to(device), state).cpu()
    except (KeyError, AssertionError, RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
