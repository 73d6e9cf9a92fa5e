"""A base as training computes with it, as a Hugging Face folder of plain weights.

For servers that load no NF4, as vLLM without a plugin: they then have the weights that the adapters
were trained on, and not those from before they were rounded.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selfreward_lite.models.gguf_export import Weights, check_finite, read_trained
from selfreward_lite.models.hf_folder import (
    INDEX,
    ModelShape,
    find_tensors,
    list_tensors,
    read_config,
    read_json,
)
from selfreward_lite.system.files import write_manifest

if TYPE_CHECKING:
    import torch

FolderDtype = Literal["bfloat16", "float16", "float32"]
SIZES: dict[FolderDtype, int] = {"bfloat16": 2, "float16": 2, "float32": 4}  # bytes of a weight
SHARD = 2e9  # bytes of a file of weights, which are in memory at once
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
        _write_json(part / "config.json", config | {"dtype": dtype})
        files: dict[str, str] = {}
        for number, shard in enumerate(_shards(model_dir, model, weights, dtype), 1):
            name = f"model-{number:05}.safetensors"
            save_file(shard, part / name, metadata={"format": "pt"})
            files |= dict.fromkeys(shard, name)
        total = {"total_size": count_bytes(model, dtype)}
        _write_json(part / INDEX, {"metadata": total, "weight_map": files})
        write_manifest(part, {"weights": "nf4" if model.packed else weights, "dtype": dtype})
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return len(files)


def _shards(
    model_dir: Path, model: ModelShape, weights: Weights, dtype: FolderDtype
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the weights by their names, about SHARD bytes at a time."""
    import torch

    files = find_tensors(model_dir, model)
    kind: torch.dtype = getattr(torch, dtype)
    shard: dict[str, torch.Tensor] = {}
    for tensor in list_tensors(model):
        value = read_trained(tensor, files, model, weights).to(kind).contiguous()
        shard[tensor.source] = check_finite(value, f"{tensor.source} in {dtype}")
        if sum(one.nbytes for one in shard.values()) > SHARD:
            yield shard
            shard = {}
    if shard:
        yield shard


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2), encoding="utf-8")
