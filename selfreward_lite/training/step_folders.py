"""Folders of checkpoints: which one is complete, and when an older one may go.

<folder>/step-<n>/   the files of a checkpoint; manifest.json, written last
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from selfreward_lite.system.files import find_manifest_faults, write_manifest


def write_step(folder: Path, step: int, write: Callable[[Path], None]) -> None:
    """Let `write` fill the folder of a step; once it is complete, other steps are removed."""
    target = folder / f"step-{step}"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    write(target)
    write_manifest(target, {})
    for other in folder.iterdir():
        if other != target:
            shutil.rmtree(other, ignore_errors=True)


def list_complete(folder: Path) -> Iterator[Path]:
    """Yield the folders that their manifests confirm, the one with the most steps first."""
    steps = [int(path.name.removeprefix("step-")) for path in folder.glob("step-*")]
    for step in sorted(steps, reverse=True):
        path = folder / f"step-{step}"
        if not find_manifest_faults(path):
            yield path
