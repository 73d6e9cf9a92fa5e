"""Trains the tiny base model: `python -m selfreward_lite.training.tiny_base.build --help`.

A Llama of about a million parameters, from scratch, on the made-up corpus; the loss is on the
assistant's tokens only. The weights that ship were made in this way.
"""

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
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


@dataclass(frozen=True)
class Recipe:
    """How the shipped base was trained.

    AdamW, linear warm-up, full rate in the first lesson, then cosine decay to a tenth. `scale`
    shortens both lessons.
    """

    scale: float = 1.0
    learning_rate: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 1

    def lessons(self) -> list[Lesson]:
        """Return the lesson of every step."""
        return [
            lesson
            for lesson in (CORRECT_LESSON, REALISTIC_LESSON)
            for _ in range(round(self.scale * lesson.steps))
        ]


def build_model(out: Path, recipe: Recipe) -> float:
    """Train the base, write it to `out`, and return the mean loss of the last 50 steps."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_tokenizer(tokenizer.build_tokenizer(list_vocabulary()), out)
    chat = ChatFormat.load(out)
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(_architecture(chat))
    losses = _train(model, chat, recipe)
    model.half().save_pretrained(out, safe_serialization=True)
    _write_generation_config(out, chat)
    for file in out.iterdir():
        file.chmod(0o644)  # safetensors writes files that only their owner can read
    return sum(losses[-50:]) / len(losses[-50:])


def _architecture(chat: ChatFormat) -> LlamaConfig:
    return LlamaConfig(
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


def _train(model: LlamaForCausalLM, chat: ChatFormat, recipe: Recipe) -> list[float]:
    lessons = recipe.lessons()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=recipe.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _learning_rate_factor(step, recipe.warmup, lessons)
    )
    rng, losses = random.Random(recipe.seed), []
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
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            progress.update(bar, advance=1, loss=losses[-1])
    return losses


def _learning_rate_factor(step: int, warmup: int, lessons: list[Lesson]) -> float:
    first = lessons.count(CORRECT_LESSON)
    decayed = max(0, step - first) / max(1, len(lessons) - first)
    return min(1.0, (step + 1) / warmup) * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * decayed)))


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
        rows = []
        for _ in range(count):
            example = kind(rng, lesson)
            prompt = chat.prompt_ids(example.messages, example.continue_with)
            rows.append((prompt, chat.completion_ids(example.completion)))
        longest = max(len(prompt) + len(completion) for prompt, completion in rows)
        ids = torch.full((count, longest), chat.pad)
        labels = torch.full((count, longest), IGNORED)
        for row, (prompt, completion) in enumerate(rows):
            end = len(prompt) + len(completion)
            ids[row, :end] = torch.tensor(prompt + completion)
            labels[row, len(prompt) : end] = torch.tensor(completion)
        yield ids, labels


def _write_generation_config(out: Path, chat: ChatFormat) -> None:
    settings = {"eos_token_id": list(chat.stop), "pad_token_id": chat.pad}
    (out / "generation_config.json").write_text(
        json.dumps(settings, indent=2) + "\n", encoding="utf-8"
    )


def main(
    scale: Annotated[
        float, typer.Option(help="Length of training; the shipped weights took 1.")
    ] = Recipe.scale,
    seed: Annotated[int, typer.Option(help="Seed of weights and corpus.")] = Recipe.seed,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = TINY_MODEL,
) -> None:
    """Train the tiny base model from scratch and write it as a Hugging Face folder."""
    loss = build_model(out, Recipe(scale=scale, seed=seed))
    typer.echo(json.dumps({"out": str(out), "scale": scale, "seed": seed, "loss": round(loss, 4)}))


if __name__ == "__main__":
    typer.run(main)
