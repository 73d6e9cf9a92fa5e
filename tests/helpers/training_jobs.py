"""A small training job on the tiny model, or on another."""

from pathlib import Path

from selfreward_lite.config.settings import Settings
from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.training.backends import Backend
from selfreward_lite.training.job import Job
from selfreward_lite.training.rows import Rows

BY_TRANSFORMERS = Backend("transformers", "transformers")


def make_job(
    folder: Path,
    tiny: Settings,
    chat: ChatFormat,
    method: str,
    *,
    adapter_in: Path | None = None,
    name: str = "out",
    model: Path = TINY_MODEL,
    **changes,
) -> Job:
    rows = folder / f"{name}.jsonl"
    made = Rows()
    for index in range(24):
        prompt = chat.prompt_ids(
            [{"role": "user", "content": f"Sort the letters c {'abde'[index % 4]} f."}]
        )
        if method == "sft":
            made.rows.append(
                {
                    "prompt_ids": prompt,
                    "completion_ids": chat.completion_ids("The answer is a c f."),
                }
            )
        else:
            made.rows.append(
                {
                    "prompt_ids": prompt,
                    "chosen_ids": chat.completion_ids("The answer is a c f."),
                    "rejected_ids": chat.completion_ids("f c Hope this helps you today."),
                }
            )
    made.save(rows)
    settings = tiny.sft if method == "sft" else tiny.dpo.model_copy(update={"anchor": 1.0})
    changes = {"batch": 8, "micro_batch": 8, "epochs": 4, **changes}
    return Job(
        method=method,
        model_dir=model,
        quantization="nf4",
        adapter_in=adapter_in,
        adapter_out=folder / name,
        rows=rows,
        row_count=len(made.rows),
        pad=chat.pad,
        seed=0,
        settings=type(settings).model_validate(settings.model_dump() | changes),
        lora=tiny.lora,
        checkpoints=folder / f"{name}-checkpoints",
    )
