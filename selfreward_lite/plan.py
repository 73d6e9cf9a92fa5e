"""What a run, or a file, needs before it is begun. So far: disk.

Knows: sizes of models, adapters and records as arithmetic. Does not know: speed, cards. Records are counted at their longest,
so that a run that passes does not fill the disk in its third night.
"""

from __future__ import annotations

from selfreward_lite.config import Settings
from selfreward_lite.llama_folder import Llama

GGUF_BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}  # bytes a weight; Q8_0 keeps 32 weights in 34 bytes
TOKEN_BYTES = 4.5  # bytes of text a token, on the long side for English
RECORD_BYTES = 400  # ids, numbers and index entries of one record
ADAPTER_BYTES = 8  # a weight in float32 in the PEFT folder, and in the GGUF
ID_BYTES = 6  # of a token id in a trainer's rows
LOG_BYTES = 8_000_000  # SQLite's write-ahead log, and what trainers and exporters say
CANARIES = 50


def disk(settings: Settings, llama: Llama, iterations: int, *, seed_stage: bool, base_written: bool) -> dict[str, int]:
    """Return the bytes that a run still needs, by what needs them: `base`, `adapters`, `records`, `working files`.

    `iterations` are those still to do; `seed_stage` says whether that is too.
    """
    base = 0.0 if base_written else weights(llama) * GGUF_BYTES[settings.model.gguf]
    adapters = (iterations + seed_stage) * adapter_weights(llama, settings.lora.rank) * ADAPTER_BYTES
    records = iterations * (_records(settings) + _evaluation(settings))
    if seed_stage:
        # twice the examples wanted are judged, since not all agree; the base and M0 are both measured
        drawn = 2 * settings.seed_stage.train_examples * settings.seed_stage.attempts
        records += drawn * _judgment(settings) + 2 * _evaluation(settings)
    longest = max(settings.sft.max_length, 2 * settings.dpo.max_length)
    rows = max(settings.seed_stage.train_examples * (iterations < 1), 2 * settings.prompts.count * (iterations > 0))
    working = LOG_BYTES + rows * longest * ID_BYTES if iterations or seed_stage else 0
    return {"base": int(base), "adapters": int(adapters), "records": int(records), "working files": int(working)}


def weights(llama: Llama) -> int:
    """Return the weights of a model's matrices; its norms are lost beside them."""
    block = sum(rows * columns for _, (rows, columns), _ in llama.projections().values())
    return llama.layers * block + llama.vocab * llama.hidden * (1 if llama.tied else 2)


def adapter_weights(llama: Llama, rank: int) -> int:
    """Return the weights of a LoRA on every linear layer of the blocks: rank · (in + out) each (arXiv 2106.09685)."""
    return llama.layers * rank * sum(rows + columns for _, (rows, columns), _ in llama.projections().values())


def _records(settings: Settings) -> float:
    """Bytes of what one iteration trains on: every response and judgment at its longest, battles among all judgments."""
    responses = settings.prompts.count * settings.responses.count
    battles = settings.prompts.count * settings.judge.count * (settings.judge.count - 1)
    return (
        responses * (RECORD_BYTES + TOKEN_BYTES * settings.responses.draw.max_tokens)
        + responses * settings.judge.count * _judgment(settings)
        + battles * (RECORD_BYTES + TOKEN_BYTES * settings.meta_judge.draw.max_tokens)
    )


def _evaluation(settings: Settings) -> float:
    """Bytes of what one model answers and judges to be measured; four ranked answers a prompt."""
    asked = settings.evaluation
    judged = settings.seed_stage.eval_prompts * 4 * asked.judgments + 2 * asked.outside_prompts * asked.outside_judgments
    judged += CANARIES * asked.canary_judgments
    return asked.prompts * (RECORD_BYTES + TOKEN_BYTES * asked.draw.max_tokens) + judged * _judgment(settings)


def _judgment(settings: Settings) -> float:
    return RECORD_BYTES + TOKEN_BYTES * settings.judge.draw.max_tokens
