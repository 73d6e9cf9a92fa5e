"""What a run needs before it starts. So far: disk.

Knows: sizes of models, adapters and records as arithmetic. Does not know: speed, cards. Records are counted at their longest,
so that a run that passes does not fill the disk in its third night.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from selfreward_lite.config import Settings
from selfreward_lite.errors import UserError
from selfreward_lite.llama_folder import Llama, read_config

GGUF_BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}  # bytes a weight; Q8_0 keeps 32 weights in 34 bytes
TOKEN_BYTES = 4.5  # bytes of text a token, on the long side for English
RECORD_BYTES = 400  # ids, numbers and index entries of one record
ADAPTER_BYTES = 8  # a weight in float32 in the PEFT folder, and in the GGUF
MARGIN = 1.1


def disk(settings: Settings, iterations: int, *, base_written: bool) -> dict[str, int]:
    """Return the bytes that a run still needs, by what needs them: `base`, `adapters`, `records`."""
    llama = read_config(settings.model.folder)
    base = 0.0 if base_written else weights(llama) * GGUF_BYTES[settings.model.gguf]
    adapters = iterations * adapter_weights(llama, settings.lora.rank) * ADAPTER_BYTES
    records = iterations * _records(settings)
    return {"base": int(base), "adapters": int(adapters), "records": int(records)}


def check_disk(folder: Path, needs: dict[str, int]) -> None:
    """Raise UserError, with the numbers, where the disk of `folder` cannot hold `needs`."""
    free, needed = shutil.disk_usage(folder).free, sum(needs.values()) * MARGIN
    if free < needed:
        parts = ", ".join(f"{what} {_size(size)}" for what, size in needs.items() if size)
        raise UserError(
            f"the disk of {folder} has {_size(free)} free and this run needs {_size(needed)} ({parts}, and a tenth to spare); "
            "free space, or give another --runs-dir"
        )


def weights(llama: Llama) -> int:
    """Return the weights of a model's matrices; its norms are lost beside them."""
    block = sum(rows * columns for _, (rows, columns), _ in llama.projections().values())
    return llama.layers * block + llama.vocab * llama.hidden * (1 if llama.tied else 2)


def adapter_weights(llama: Llama, rank: int) -> int:
    """Return the weights of a LoRA on every linear layer of the blocks: rank · (in + out) each (arXiv 2106.09685)."""
    return llama.layers * rank * sum(rows + columns for _, (rows, columns), _ in llama.projections().values())


def _records(settings: Settings) -> float:
    """Bytes of one iteration's records: every response and judgment at its longest, battles among all judgments."""
    responses = settings.prompts.count * settings.responses.count
    judgments = responses * settings.judge.count
    battles = settings.prompts.count * settings.judge.count * (settings.judge.count - 1)
    held_out = settings.evaluation.prompts + settings.seed_stage.eval_prompts * 4 * settings.evaluation.judgments
    return (
        responses * (RECORD_BYTES + TOKEN_BYTES * settings.responses.draw.max_tokens)
        + (judgments + held_out) * (RECORD_BYTES + TOKEN_BYTES * settings.judge.draw.max_tokens)
        + battles * (RECORD_BYTES + TOKEN_BYTES * settings.meta_judge.draw.max_tokens)
    )


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
