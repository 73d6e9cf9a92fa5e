"""A training under way, on disk: adapter, optimizer and progress, without any pickle.

    <folder>/step-<n>/{adapter,optimizer}.safetensors, state.json; manifest.json, written last

A checkpoint of another job, or one that its manifest does not confirm, is ignored.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from selfreward_lite.training.step_folders import list_complete, write_step

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class State:
    """Steps done, losses, what the first step logged, the scale of float16's gradients."""

    job: str
    step: int
    losses: list[float]
    first: dict[str, float]
    scaler: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A state with the adapter's weights by name, and their two moments and step counts."""

    state: State
    adapter: Weights
    optimizer: Weights


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; once it is complete, those of earlier steps are removed."""

    def write(target: Path) -> None:
        for name in ("adapter", "optimizer"):
            weights: Weights = getattr(checkpoint, name)
            save_file(
                {key: weight.contiguous() for key, weight in weights.items()},
                target / f"{name}.safetensors",
            )
        (target / "state.json").write_text(json.dumps(asdict(checkpoint.state)))

    write_step(folder, checkpoint.state.step, write)


def find_newest(folder: Path, job: str) -> Checkpoint | None:
    """The complete checkpoint of this job with the most steps, None if there is none."""
    for path in list_complete(folder):
        state = State(**json.loads((path / "state.json").read_bytes()))
        if state.job == job:
            adapter = load_file(path / "adapter.safetensors")
            return Checkpoint(state, adapter, load_file(path / "optimizer.safetensors"))
    return None
