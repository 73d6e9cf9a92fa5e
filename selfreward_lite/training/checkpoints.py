"""A training under way, kept on disk: adapter, optimizer and how far it is, as safetensors and JSON. Never a pickle.

    <folder>/step-<n>/adapter.safetensors  optimizer.safetensors  state.json  manifest.json, written last

Knows: when such a folder is whole, and whose it is. Does not know: trainers. A checkpoint of another job, or one that its
manifest does not confirm, is as good as none.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfreward_lite.system.files import manifest_faults, write_manifest

if TYPE_CHECKING:
    import torch

    Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class State:
    """How far a training is: optimizer steps done, losses so far, what its first step said, the scale of fp16's gradients."""

    job: str
    step: int
    losses: list[float]
    first: dict[str, float]
    scaler: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A state with the adapter's weights, by name, and the optimizer's two moments and step count of each."""

    state: State
    adapter: Weights
    optimizer: Weights


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; when it is whole, and not before, those of earlier steps are removed."""
    from safetensors.torch import save_file

    target = folder / f"step-{checkpoint.state.step}"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    save_file(
        {name: weight.contiguous() for name, weight in checkpoint.adapter.items()},
        target / "adapter.safetensors",
    )
    save_file(
        {name: weight.contiguous() for name, weight in checkpoint.optimizer.items()},
        target / "optimizer.safetensors",
    )
    (target / "state.json").write_text(json.dumps(asdict(checkpoint.state)), encoding="utf-8")
    write_manifest(target, {})
    for other in folder.iterdir():
        if other != target:
            shutil.rmtree(other, ignore_errors=True)


def newest(folder: Path, job: str) -> Checkpoint | None:
    """Return the checkpoint of this job with the most steps, None if there is none that is whole."""
    from safetensors.torch import load_file

    for path in sorted(
        folder.glob("step-*"), key=lambda one: int(one.name.removeprefix("step-")), reverse=True
    ):
        if manifest_faults(path):
            continue
        state = State(**json.loads((path / "state.json").read_text(encoding="utf-8")))
        if state.job == job:
            return Checkpoint(
                state,
                load_file(path / "adapter.safetensors"),
                load_file(path / "optimizer.safetensors"),
            )
    return None
