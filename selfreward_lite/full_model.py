"""A model of the run as one GGUF that runs anywhere: the full-precision base with its adapter merged, and a Modelfile beside it.

Knows: the order of merging, quantising, proving. Does not know: runs, command lines. The base is the original one and not what
4-bit training saw of it: merging into NF4 weights would keep their rounding for ever. So what it says is near what the run
measured, and not the same; how near is returned. `write` is a task of the workshop.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from selfreward_lite.chat import ChatFormat
from selfreward_lite.equality import conversation_ids
from selfreward_lite.export import Dtype, base_to_gguf
from selfreward_lite.llama_folder import read_config, read_vocabulary
from selfreward_lite.ollama import modelfile
from selfreward_lite.parity import parity
from selfreward_lite.quantise import quantise

DIRECT = get_args(Dtype)  # written as they are; the other types are made by llama.cpp, of float16


def write(
    model_dir: str, adapter_dir: str, out: str, kind: str, prove: bool, report: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Write the full model as `out` in type `kind`, and `Modelfile` beside it.

    Returns `tokens`, how many token ids were compared, and, with `prove`, `difference`, the largest between its logits and those
    of PEFT on the full-precision base, and `agreement`, the share of positions with the same likeliest token: None without,
    since PEFT's side needs four bytes of memory a weight. Raises ExportError where a file cannot be written or read back.
    """
    folder, target = Path(model_dir), Path(out)
    text = _modelfile(folder, target)  # first, since a template can refuse
    if kind in DIRECT:
        base_to_gguf(folder, target, weights="original", dtype=kind, adapter_dir=Path(adapter_dir))  # type: ignore[arg-type]
    else:
        between = target.with_name(f".{target.name}.f16")
        try:
            base_to_gguf(folder, between, weights="original", dtype="f16", adapter_dir=Path(adapter_dir))
            quantise(between, target, kind, lambda done, total: report({"done": done, "total": total}))
        finally:
            between.unlink(missing_ok=True)
    ids = conversation_ids(folder, target)
    found = parity(folder, Path(adapter_dir), target, None, ids, weights="original") if prove else None
    (target.parent / "Modelfile").write_text(text, encoding="utf-8")
    return {
        "tokens": sum(map(len, ids)), "difference": found.max_abs_diff if found else None,
        "agreement": found.agreement if found else None,
    }


def _modelfile(folder: Path, target: Path) -> str:
    llama = read_config(folder)
    adds_bos = read_vocabulary(folder, llama.vocab).add_bos
    return modelfile(ChatFormat.load(folder), target.name, adds_bos=adds_bos, context=llama.context)
