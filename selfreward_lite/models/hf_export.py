"""A base as training computes with it, as a Hugging Face folder of plain weights.

For servers that load no NF4, as vLLM without a plugin: they then have the weights that the adapters
were trained on, and not those from before they were rounded.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from selfreward_lite.models.gguf_export import Weights, check_finite, read_trained
from selfreward_lite.models.hf_folder import (
    INDEX,
    ModelShape,
    find_tensors,
    list_tensors,
    read_config,
    read_json,
    split_weights,
    write_json,
    write_weights,
)
from selfreward_lite.system.files import write_manifest

if TYPE_CHECKING:
    import torch

FolderDtype = Literal["bfloat16", "float16", "float32"]
SIZES: dict[FolderDtype, int] = {"bfloat16": 2, "float16": 2, "float32": 4}  # bytes of a weight
COPIED = (".json", ".jinja", ".model", ".txt")  # tokenizer and chat template; never code


def count_bytes(model: ModelShape, dtype: FolderDtype) -> int:
    """The size of the weights of a folder."""
    return SIZES[dtype] * sum(math.prod(tensor.shape) for tensor in list_tensors(model))


def write_folder(model_dir: Path, out: Path, weights: Weights, dtype: FolderDtype) -> int:
    """Write the base as the folder `out`; returns how many tensors it has.

    `weights` as for a GGUF: "nf4" rounds the linear layers as training in 4 bits does; a folder of
    NF4 weights is unpacked either way. The folder appears complete or not at all, with the sha256
    of its files in manifest.json. Raises ExportError where a file is broken, or a value does not
    fit `dtype`.
    """
    from safetensors.torch import save_file

    model = read_config(model_dir)
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        for path in sorted(model_dir.iterdir()):
            if path.suffix in COPIED and path.is_file() and path.name not in ("config.json", INDEX):
                shutil.copy2(path, part / path.name)
        config = {
            key: value
            for key, value in read_json(model_dir / "config.json").items()
            if key not in ("quantization_config", "torch_dtype")
        }
        write_json(part / "config.json", config | {"dtype": dtype})
        shards = split_weights(_read_weights(model_dir, model, weights, dtype))
        names = write_weights(part, shards, save_file)
        write_manifest(part, {"weights": "nf4" if model.packed else weights, "dtype": dtype})
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return len(names)


def _read_weights(
    model_dir: Path, model: ModelShape, weights: Weights, dtype: FolderDtype
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights with their names."""
    import torch

    files = find_tensors(model_dir, model)
    kind: torch.dtype = getattr(torch, dtype)
    for tensor in list_tensors(model):
        value = read_trained(tensor, files, model, weights).to(kind).contiguous()
        yield tensor.source, check_finite(value, f"{tensor.source} in {dtype}")
