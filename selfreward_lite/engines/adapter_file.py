"""Looks into a GGUF LoRA file before llama.cpp does, because llama.cpp answers a bad one with a crash.

Knows: the GGUF container and the names a LoRA file must have. Does not know: llama.cpp, the base model.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from selfreward_lite.errors import EngineError


def check_adapter(path: Path) -> None:
    """Raise EngineError, one line, unless `path` is a whole GGUF LoRA adapter that can change something."""
    if not path.is_file():
        raise EngineError(f"adapter {path} does not exist; export it again, or name another iteration")
    try:
        reader = gguf.GGUFReader(path)
        kind = _text(reader, "general.type")
        shape = _text(reader, "adapter.type")
    except Exception as error:  # the reader raises whatever its parsing trips over
        raise EngineError(
            f"adapter {path} is truncated or not GGUF ({type(error).__name__}: {error}); export it again"
        ) from error
    if (kind, shape) != ("adapter", "lora"):
        raise EngineError(f"{path} is GGUF of type {kind or 'model'!r}, not a LoRA adapter; name the adapter's file")
    _check_weights(path, reader)


def _text(reader: gguf.GGUFReader, name: str) -> str | None:
    field = reader.get_field(name)
    return None if field is None else str(field.contents())


def _check_weights(path: Path, reader: gguf.GGUFReader) -> None:
    """An adapter whose B matrices are all zero equals the base, whatever the hardware rounds."""
    second = [tensor for tensor in reader.tensors if tensor.name.endswith(".lora_b")]
    if not any(np.any(tensor.data) for tensor in second):
        raise EngineError(f"adapter {path} has no effect: its lora_b weights are all zero; it was not trained")
    for tensor in reader.tensors:
        if tensor.data.dtype.kind == "f" and not np.isfinite(tensor.data).all():
            raise EngineError(f"adapter {path} holds numbers that are not finite in {tensor.name}; train it again")
