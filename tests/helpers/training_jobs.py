"""A small training job on the tiny model."""

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
    **changes,
) -> Job:
    rows = folder / f"{name}.jsonl"
    made = Rows()
    for index in range(24):
        prompt = chat.prompt_ids(
            [{"role": "user", "content": f"Sort the letters c {'abde'[index % 4]} f."}]
        )
        if method == "sft":
            made.add(
                {
                    "prompt_ids": prompt,
                    "completion_ids": chat.completion_ids("The answer is a c f."),
                },
                256,
            )
        else:
            made.add(
                {
                    "prompt_ids": prompt,
                    "chosen_ids": chat.completion_ids("The answer is a c f."),
                    "rejected_ids": chat.completion_ids("f c Hope this helps you today."),
                },
                256,
            )
    made.save(rows)
    settings = (
        tiny.sft.model_dump() if method == "sft" else {**tiny.dpo.model_dump(), "anchor": 1.0}
    )
    settings |= {"batch": 8, "micro_batch": 8, "epochs": 4, **changes}
    return Job(
        method,
        str(TINY_MODEL),
        "nf4",
        adapter_in and str(adapter_in),
        str(folder / name),
        str(rows),
        len(made.rows),
        chat.pad,
        0,
        settings,
        tiny.lora.model_dump(),
        str(folder / f"{name}-checkpoints"),
    )
