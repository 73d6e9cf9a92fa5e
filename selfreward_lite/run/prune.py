"""What of an old run can be removed, and how it comes back; its records never go.

    base/         the base in GGUF: made again from the model when the run is gone on with
    training/     rows, logs and checkpoints of trainings that are over
    M1 … M(n−1)   models between the first and the newest, if that is asked for: they do not come back

Knows: what lies in a run's folder. Does not know: command lines. Nothing is removed but by `remove`.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from selfreward_lite.data.store import Store


@dataclass(frozen=True)
class Part:
    """Something that can be removed: its folder, its bytes, and what becomes of it."""

    path: Path
    size: int
    words: str


def prunable(store: Store, *, models: bool) -> list[Part]:
    """Return what can be removed; with `models`, those between M0, which later ones are held against, and the newest."""
    found = [(store.folder / "base", "made again when the run is gone on with")]
    if all(ended for _, stage, _, _, _, ended in store.stages() if stage == "training"):
        found.append(
            (store.folder / "training", "rows, logs and checkpoints of trainings that are over")
        )
    if models:
        found += [
            (store.model_dir(number), "does not come back")
            for number in range(1, store.newest() or 0)
        ]
    return [Part(path, _size(path), words) for path, words in found if path.exists()]


def remove(store: Store, parts: Sequence[Part]) -> int:
    """Remove parts, and pack the file of records; returns the bytes that are free now and were not before."""
    before = _size(store.folder)
    gone = {part.path.name for part in parts if part.path.name.startswith("M")}
    store.state("pruned", sorted({*(store.fact("pruned") or []), *gone}))
    for part in parts:
        shutil.rmtree(part.path)
    store.pack()
    return before - _size(store.folder)


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
