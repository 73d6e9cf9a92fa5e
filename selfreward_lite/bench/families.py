"""Parity of every supported family: small random models with real tokenizers, in float32.

Each is exported, adapted, packed in 4 bits, merged and read back from its GGUF as a real one is.
"""

from dataclasses import dataclass
from pathlib import Path

from selfreward_lite.bench import Say
from selfreward_lite.models import gguf_folder, parity, random_models
from selfreward_lite.models.checks import check_folder
from selfreward_lite.models.gguf_export import adapter_to_gguf, base_to_gguf
from selfreward_lite.models.hf_folder import ModelShape, read_config
from selfreward_lite.models.merge import write_model
from selfreward_lite.models.vocabulary import read_vocabulary
from selfreward_lite.system.errors import ExportError, UserError


@dataclass(frozen=True)
class FamilyParity:
    """What was measured of one model: largest differences of a logit, and `features` in words.

    `tokens` are the ids of `parity.CONVERSATIONS`, equal in our chat format, transformers and
    llama.cpp. `nf4` is the base in 4 bits, `unpacked` the model that is read from its own GGUF in
    float16. `share` is how much of the adapter's effect arrives; `no_modelfile` says why there is
    none.
    """

    model: str
    family: str
    features: list[str]
    tokens: int
    base: float
    adapter: float
    share: float
    agreement: float
    nf4: float
    merged: float
    unpacked: float
    no_modelfile: str | None


def measure_families(tokenizers: Path, folder: Path, say: Say) -> list[FamilyParity]:
    """Measure every model whose tokenizer is in `tokenizers`, in a folder of the model's name.

    Models and GGUFs are written below `folder`. Raises UserError where there is no tokenizer, and
    ExportError where something differs in a token.
    """
    there = {file.parent.name for file in tokenizers.glob("*/tokenizer.json")}
    found = [name for name in random_models.FAMILY_MODELS if name in there]
    for name in sorted(there - set(found)):
        say(f"left out: {tokenizers / name}: no model of that name")
    if not found:
        raise UserError(
            f"{tokenizers} holds no tokenizer; put tokenizer.json and tokenizer_config.json of a "
            f"model into a folder named {', '.join(random_models.FAMILY_MODELS)}"
        )
    rows = []
    for name in found:
        say(name)
        rows.append(measure_family(name, tokenizers / name, folder / name))
    return rows


def measure_family(name: str, tokenizer: Path, folder: Path) -> FamilyParity:
    """Measure one of `random_models.FAMILY_MODELS`; writes its files into `folder`."""
    model = random_models.write_family(folder / "model", name, tokenizer)
    check_folder(model)
    shape = read_config(model)
    base = base_to_gguf(model, folder / "base.gguf", weights="original", dtype="f32")
    ids = parity.conversation_ids(model, base)
    adapter = random_models.write_adapter(model, folder / "adapter")
    lora = adapter_to_gguf(adapter, model, folder / "adapter.gguf")
    found = parity.parity(model, adapter, base, lora, ids, weights="original")
    assert found.base is not None
    assert found.adapter_share is not None
    packed = base_to_gguf(model, folder / "nf4.gguf", weights="nf4", dtype="f32")
    nf4 = parity.parity(model, None, packed, None, ids, weights="nf4")
    merged = write_model(model, adapter, folder / "merged.gguf", "f32", prove=True)
    assert merged.difference is not None
    half = base_to_gguf(model, folder / "half.gguf", weights="original", dtype="f16")
    again = gguf_folder.unpack_gguf(half, folder / "unpacked")
    check_folder(again)
    copy = base_to_gguf(again, folder / "copy.gguf", weights="original", dtype="f32")
    if parity.conversation_ids(again, copy) != ids:
        raise ExportError(f"{again}: token ids are others than those of {model}")
    unpacked = parity.parity(model, None, copy, None, ids, weights="original")
    return FamilyParity(
        model=name,
        family=shape.family.name,
        features=list_features(model, shape),
        tokens=sum(map(len, ids)),
        base=found.base.max_abs_diff,
        adapter=found.max_abs_diff,
        share=found.adapter_share,
        agreement=found.agreement,
        nf4=nf4.max_abs_diff,
        merged=merged.difference,
        unpacked=unpacked.max_abs_diff,
        no_modelfile=merged.no_modelfile,
    )


def list_features(model: Path, shape: ModelShape) -> list[str]:
    """What sets a model apart from a plain Llama, in words."""
    there = {
        "scaled rotation": shape.rope is not None,
        "biases": bool(shape.family.biased),
        "QK-norm": shape.family.head_norms,
        "sliding window": shape.window is not None,
        "tied embeddings": shape.tied,
        "SentencePiece": read_vocabulary(model, shape.vocab).kind.model == "llama",
    }
    return [name for name, has in there.items() if has]


def build_table(rows: list[FamilyParity]) -> str:
    """The measured values as a Markdown table."""
    head = (
        "model",
        "it has",
        "token ids",
        "base",
        "with LoRA",
        "LoRA that arrives",
        "base in NF4",
        "merged",
        "from its GGUF",
        "Modelfile",
    )
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        cells = (
            f"`{row.model}`",
            ", ".join(row.features) or "–",
            f"{row.tokens} equal",
            f"{row.base:.1e}",
            f"{row.adapter:.1e}",
            f"{row.share:.4f}",
            f"{row.nf4:.1e}",
            f"{row.merged:.1e}",
            f"{row.unpacked:.1e}",
            row.no_modelfile or "yes",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
