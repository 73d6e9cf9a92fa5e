"""A program that measures the memory of one training step of a model that is nearly all vocabulary.

`python logit_memory.py {sft,dpo} TOKENS VOCABULARY FOLDER` prints by how many bytes the longest
rows raise the peak of the process.
"""

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from selfreward_lite import config
from selfreward_lite.config.settings import Lora
from selfreward_lite.data import tiny
from selfreward_lite.training import trainer
from selfreward_lite.training.backends import Backend
from selfreward_lite.training.job import Job


def kilobytes(name: str) -> int:
    """Return the memory of this process: VmRSS is now, VmHWM the peak."""
    (line,) = [
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)
    ]
    return int(line.split()[1])


def main(method: str, tokens: int, vocabulary: int, folder: Path) -> None:
    torch.set_num_threads(1)
    shape = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=vocabulary, max_position_embeddings=4096, **shape)
    ).to(torch.bfloat16)
    model.save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(tiny.TINY_MODEL).save_pretrained(folder / "model")
    lora = Lora(rank=8, alpha=8)
    fresh = LoraConfig(r=8, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(model, fresh).save_pretrained(folder / "adapter")
    half = list(range(10, 10 + tokens // 2))
    others = ["chosen_ids", "rejected_ids"] if method == "dpo" else ["completion_ids"]
    (folder / "rows").write_text(
        json.dumps({"prompt_ids": half} | dict.fromkeys(others, half)) + "\n"
    )
    settings = getattr(config.load("overnight"), method)
    small = {"batch": 1, "micro_batch": 1, "epochs": 1, "max_length": tokens}
    job = Job(
        method=method,
        model_dir=folder / "model",
        quantization="none",
        adapter_in=folder / "adapter" if method == "dpo" else None,
        adapter_out=folder / "out",
        rows=folder / "rows",
        row_count=1,
        pad=0,
        seed=0,
        lora=lora,
        checkpoints=folder / "kept",
        settings=settings.model_copy(update=small),
        min_moved_share=0.0,
    )
    peaks = []
    longest_first = trainer.Watcher.on_train_begin

    def measured(self, *arguments, **named):
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        peaks.append(kilobytes("VmRSS"))
        longest_first(self, *arguments, **named)
        peaks.append(kilobytes("VmHWM"))

    trainer.Watcher.on_train_begin = measured
    trainer._compute_dtype = lambda: torch.bfloat16  # as on a GPU; a CPU gets float32 otherwise
    trainer.train_once(job, 1, lambda said: None, Backend("transformers", "transformers"))
    print((peaks[1] - peaks[0]) * 1024)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
