"""What can be removed of an old run, and how it comes back; its records never go.

base/         the base in GGUF: made again from the model when the run resumes
training/     rows, logs and checkpoints of finished trainings
M1 … M(n−1)   models between the first and the newest, if asked for: they do not come back
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from selfreward_lite.data.store import Store


@dataclass(frozen=True)
class Part:
    """A folder that can be removed, its bytes, and what its removal means."""

    path: Path
    size: int
    effect: str


def find_parts(store: Store, *, models: bool) -> list[Part]:
    """What can be removed; with `models`, those between M0 and the newest too."""
    found = [(store.folder / "base", "made again when the run resumes")]
    if all(row.ended for row in store.stages() if row.stage == "training"):
        found.append(
            (store.folder / "training", "rows, logs and checkpoints of finished trainings")
        )
    if models:
        found += [
            (store.model_dir(number), "does not come back")
            for number in range(1, store.newest() or 0)
        ]
    return [Part(path, _size(path), effect) for path, effect in found if path.exists()]


def remove_parts(store: Store, parts: Sequence[Part]) -> int:
    """Remove parts, and compact the file of records; returns the bytes freed."""
    before = _size(store.folder)
    gone = {part.path.name for part in parts if part.path.name.startswith("M")}
    store.state("pruned", sorted({*(store.fact("pruned") or []), *gone}))
    for part in parts:
        shutil.rmtree(part.path)
    store.pack()
    return before - _size(store.folder)


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
