"""NF4, the 4-bit type of QLoRA (arXiv 2305.14314, section 3): loading, rounding, unpacking.

torch, transformers and bitsandbytes are imported inside functions, so importing this file is cheap.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfreward_lite.models.hf_folder import read_config
from selfreward_lite.system.errors import ExportError

if TYPE_CHECKING:
    import torch


def load_model(model_dir: Path, quantization: str, dtype: torch.dtype, *, on_gpu: bool) -> Any:
    """The model of a folder, on the first GPU or the CPU; `quantization` is "nf4" or "none".

    A folder with packed weights is loaded as it is. All matrices compute in `dtype`, whatever the
    folder says. Raises ExportError where a weight did not come from the folder.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    loader: Any = AutoModelForCausalLM
    settings: dict[str, Any] = {}
    if quantization == "nf4" and not read_config(model_dir).packed:
        settings["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    model, found = loader.from_pretrained(
        model_dir,
        dtype=dtype,
        device_map={"": 0 if on_gpu else "cpu"},
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        **settings,
    )
    # transformers fills these with random numbers
    if wrong := [*found["missing_keys"], *found["mismatched_keys"]]:
        raise ExportError(
            f"{model_dir}: {len(wrong)} weights could not be loaded, first {wrong[0]}: "
            "download the model again"
        )
    return set_compute_dtype(model, dtype)


def set_compute_dtype(model: Any, dtype: torch.dtype) -> Any:
    """Make a model's 4-bit layers compute in `dtype`, with correct gradients; returns the model."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # On CPUs with AVX512-BF16, a layer that ran without gradients repacks itself and then
            # gives wrong ones.
            module.support_avx512bf16_for_cpu = False
            # A T4 would compute nonsense in the bfloat16 of most packed folders.
            module.compute_dtype = dtype
    return model


def round_to_nf4(weight: torch.Tensor) -> torch.Tensor:
    """A weight rounded to NF4 with double quantization, in its own dtype."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    # On the device of training: a GPU may round in another way than the CPU.
    packed, state = quantize_4bit(
        weight.to(_device()), blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    return dequantize_4bit(packed, state).cpu()


def unpack_nf4(packed: torch.Tensor, parts: Mapping[str, torch.Tensor], place: str) -> torch.Tensor:
    """A weight (out, in) in float32 from its packed bytes and the tensors beside it.

    `parts` are named by what follows the weight's name and a dot. bitsandbytes itself unpacks to
    the type that it computes in, whatever type was packed. Raises ExportError, naming the `place`,
    where the parts do not belong together.
    """
    import torch
    from bitsandbytes.functional import QuantState, dequantize_4bit

    try:
        state = QuantState.from_dict(dict(parts), torch.device(_device()))
        state.dtype = torch.float32
        return dequantize_4bit(packed.to(_device()), state).cpu()
    except (KeyError, AssertionError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise ExportError(
            f"{place} cannot be unpacked ({type(error).__name__}: {error}): download it again"
        ) from None


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
