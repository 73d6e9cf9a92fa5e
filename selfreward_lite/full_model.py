"""A model of the run as one GGUF that runs anywhere: the full-precision base with its adapter merged, and a Modelfile beside it.

Knows: the order of merging, quantising, proving. Does not know: runs, command lines. The base is the original one and not what
4-bit training saw of it: merging into NF4 weights would keep their rounding for ever. So what it says is near what the run
measured, and not the same (`bench bases` says how near). `write` is a task of the workshop.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from selfreward_lite.chat import ChatFormat
from selfreward_lite.equality import conversation_ids
from selfreward_lite.errors import ExportError
from selfreward_lite.export import Dtype, Weights, base_to_gguf
from selfreward_lite.llama_folder import read_config, read_vocabulary
from selfreward_lite.ollama import modelfile
from selfreward_lite.parity import check_parity, parity
from selfreward_lite.quantise import quantise

DIRECT = get_args(Dtype)  # written as they are; the other types are made by llama.cpp, of float16


def write(
    model_dir: str, adapter_dir: str, out: str, kind: str, prove: bool, report: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Write the full model as `out` in type `kind`, and `Modelfile` beside it, alone in their folder.

    Returns `tokens`, how many token ids were compared; with `prove`, `difference`, the largest between its logits and those of
    PEFT on the full-precision base, and `agreement`, the share of positions with the same likeliest token: None without, since
    PEFT's side needs four bytes of memory a weight; `no_modelfile`, why there is none, or None. Raises ExportError, and leaves no
    file, where one cannot be written or read back, or differs by more than rounding although it is in float32.
    """
    folder, target = Path(model_dir), Path(out)
    for left in target.parent.glob("*.part"):  # of an attempt that was killed; hidden ones too
        left.unlink()
    text, refused = _modelfile(folder, target)
    write_base(folder, target, kind, adapter=Path(adapter_dir), report=report)
    try:
        ids = conversation_ids(folder, target)
        found = parity(folder, Path(adapter_dir), target, None, ids, weights="original") if prove else None
        if found and kind == "f32":
            check_parity(found)
    except ExportError:
        target.unlink()
        raise
    if text is not None:
        (target.parent / "Modelfile").write_text(text, encoding="utf-8")
    return {
        "tokens": sum(map(len, ids)), "difference": found.max_abs_diff if found else None,
        "agreement": found.agreement if found else None, "no_modelfile": refused,
    }


def write_base(
    folder: Path, out: Path, kind: str, weights: Weights = "original", adapter: Path | None = None,
    report: Callable[[dict[str, Any]], None] = lambda at: None,
) -> Path:
    """Write a Hugging Face folder, with an adapter merged where one is given, as a GGUF of any type; returns `out`."""
    if kind in DIRECT:
        return base_to_gguf(folder, out, weights=weights, dtype=kind, adapter_dir=adapter)  # type: ignore[arg-type]
    between = out.with_name(f"{out.stem}.f16.part")
    try:
        base_to_gguf(folder, between, weights=weights, dtype="f16", adapter_dir=adapter)
        return quantise(between, out, kind, lambda done, total: report({"done": done, "total": total}))
    finally:
        between.unlink(missing_ok=True)


def _modelfile(folder: Path, target: Path) -> tuple[str | None, str | None]:
    """The Modelfile, or why there is none: a model is of use without one."""
    llama = read_config(folder)
    adds_bos = read_vocabulary(folder, llama.vocab).add_bos
    try:
        return modelfile(ChatFormat.load(folder), target.name, adds_bos=adds_bos, context=llama.context), None
    except ExportError as error:
        return None, str(error)
