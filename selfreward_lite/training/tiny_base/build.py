"""Trains the tiny base model: `python -m selfreward_lite.training.tiny_base.build --help`.

A Llama of about a million parameters, from scratch, on the made-up corpus; the loss is on the
assistant's tokens only. The weights that ship were made in this way.
"""

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM

from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.training.tiny_base import tokenizer
from selfreward_lite.training.tiny_base.corpus import (
    CORRECT_LESSON,
    REALISTIC_LESSON,
    Lesson,
    list_vocabulary,
)

IGNORED = -100  # the label that PyTorch's cross-entropy leaves out
# AdamW, linear warm-up, full rate in the first lesson, then cosine decay to a tenth.
LEARNING_RATE, WARMUP = 2e-3, 100
SCALE, SEED = 1.0, 1  # of the base that ships


def build_model(out: Path, scale: float = SCALE, seed: int = SEED) -> float:
    """Train the base, write it to `out`, and return the mean loss of the last 50 steps.

    `scale` shortens both lessons.
    """
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_tokenizer(tokenizer.build_tokenizer(list_vocabulary()), out)
    chat = ChatFormat.load(out)
    torch.manual_seed(seed)
    architecture = LlamaConfig(
        vocab_size=chat.tokenizer.get_vocab_size(),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=chat.tokenizer.token_to_id(tokenizer.BOS),
        eos_token_id=chat.end_of_turn,
        pad_token_id=chat.pad,
    )
    model = LlamaForCausalLM(architecture)
    lessons: list[Lesson] = []
    for lesson in (CORRECT_LESSON, REALISTIC_LESSON):
        lessons += [lesson] * round(scale * lesson.steps)
    last = _train(model, chat, lessons, random.Random(seed))[-50:]
    model.half().save_pretrained(out)
    settings = {"eos_token_id": list(chat.stop), "pad_token_id": chat.pad}
    (out / "generation_config.json").write_text(
        json.dumps(settings, indent=2) + "\n", encoding="utf-8"
    )
    for file in out.iterdir():
        file.chmod(0o644)  # safetensors writes files that only their owner can read
    return sum(last) / len(last)


def _train(
    model: LlamaForCausalLM, chat: ChatFormat, lessons: list[Lesson], rng: random.Random
) -> list[float]:
    """Train one step for each lesson; returns their losses."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _learning_rate_factor(step, lessons)
    )
    losses = []
    columns = (
        TextColumn("training the tiny base"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
    )
    with Progress(*columns) as progress:
        bar = progress.add_task("", total=len(lessons), loss=math.nan)
        for lesson in lessons:
            losses.append(_add_gradients(model, chat, rng, lesson))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            progress.update(bar, advance=1, loss=losses[-1])
    return losses


def _learning_rate_factor(step: int, lessons: list[Lesson]) -> float:
    first = lessons.count(CORRECT_LESSON)
    decayed = max(0, step - first) / max(1, len(lessons) - first)
    return min(1.0, (step + 1) / WARMUP) * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * decayed)))


def _add_gradients(
    model: LlamaForCausalLM, chat: ChatFormat, rng: random.Random, lesson: Lesson
) -> float:
    """Add up the gradients of one step, all assistant tokens alike; returns the mean loss."""
    batches = list(_make_batches(chat, rng, lesson))
    tokens = sum(int((labels != IGNORED).sum()) for _, labels in batches)
    total = 0.0
    for ids, labels in batches:
        # Padding is on the right, where a causal model cannot see it; no attention mask is needed.
        hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state
        targets = labels[:, 1:]
        kept = targets != IGNORED
        logits = model.lm_head(hidden[kept])
        loss = torch.nn.functional.cross_entropy(logits, targets[kept], reduction="sum") / tokens
        loss.backward()
        total += loss.item()
    return total


def _make_batches(
    chat: ChatFormat, rng: random.Random, lesson: Lesson
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (ids, labels) of shape (examples, longest), a padded batch for each kind."""
    for kind, count in lesson.mix:
        ids, labels = [], []
        for _ in range(count):
            example = kind(rng, lesson)
            prompt = chat.prompt_ids(example.messages, example.continue_with)
            completion = chat.completion_ids(example.completion)
            ids.append(torch.tensor(prompt + completion))
            labels.append(torch.tensor((IGNORED,) * len(prompt) + completion))
        yield (
            pad_sequence(ids, batch_first=True, padding_value=chat.pad),
            pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        )


def main(
    scale: Annotated[
        float, typer.Option(help="Length of training; the shipped weights took 1.")
    ] = SCALE,
    seed: Annotated[int, typer.Option(help="Seed of weights and corpus.")] = SEED,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = TINY_MODEL,
) -> None:
    """Train the tiny base model from scratch and write it as a Hugging Face folder."""
    loss = build_model(out, scale, seed)
    typer.echo(json.dumps({"out": str(out), "scale": scale, "seed": seed, "loss": round(loss, 4)}))


if __name__ == "__main__":
    typer.run(main)
