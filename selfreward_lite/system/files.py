"""What a disk has free, and a refusal before anything is written that it cannot hold.

Knows: bytes. Does not know: what needs them.
"""

# A model's folder and the file that makes it one: names and sha256 of all that belongs to it, written last.
#
# Knows: files, hashes. Does not know: models, runs. A folder without its manifest does not exist.

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selfreward_lite.system.errors import UserError

MARGIN = 1.1


def check_disk(
    path: Path,
    needs: dict[str, int],
    wanted_by: str = "this run",
    advice: str = "free space, or give another --runs-dir",
) -> None:
    """Raise UserError, with the numbers, where the disk on which `path` lies or will lie cannot hold `needs`."""
    free, needed = free_bytes(path), sum(needs.values()) * MARGIN
    if free < needed:
        parts = ", ".join(f"{what} {format_bytes(size)}" for what, size in needs.items() if size)
        raise UserError(
            f"the disk of {path} has {format_bytes(free)} free and {wanted_by} needs {format_bytes(needed)} "
            f"({parts}, and a tenth to spare); {advice}"
        )


def free_bytes(path: Path) -> int:
    """Return the bytes that are free where `path` lies or, so far as it does not exist yet, will lie."""
    return shutil.disk_usage(
        next(place for place in (path, *path.absolute().parents) if place.exists())
    ).free


def format_bytes(count: float) -> str:
    """Return bytes in the unit that people read."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


MANIFEST = "manifest.json"


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Write `manifest.json` with the sha256 of every file in `folder`, last of all and at once.

    Half-written files that a killed exporter left (`*.part`) do not belong to it.
    """
    unfinished = folder / f"{MANIFEST}.part"
    paths = [
        path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".part"
    ]
    files = {
        str(path.relative_to(folder)): sha256_of(path) for path in paths if path.name != MANIFEST
    }
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump({"files": files, **facts}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(folder / MANIFEST)


def manifest_faults(folder: Path) -> list[str]:
    """Return what differs between a folder and its manifest, one line each."""
    if not (folder / MANIFEST).exists():
        return [f"{folder}: no manifest, so this folder is not complete"]
    try:
        listed = dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"])
    except (ValueError, KeyError, TypeError):
        return [f"{folder / MANIFEST}: is damaged"]
    faults = []
    for name, digest in listed.items():
        path = folder / name
        if not path.exists():
            faults.append(f"{path}: missing")
        elif sha256_of(path) != digest:
            faults.append(f"{path}: differs from its sha256 in the manifest")
    return faults


def manifest_fact(folder: Path, name: str) -> Any:
    """Return a fact that the manifest of a complete folder states, None if it does not."""
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8")).get(name)


def folder_hash(folder: Path) -> str:
    """Return one sha256 over the names and contents of a folder's files."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder that its manifest says is whole, unless that very folder is there."""
    manifest = source / MANIFEST
    if not manifest.exists():
        return
    there = target / MANIFEST
    if there.exists() and there.read_bytes() == manifest.read_bytes():
        return
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file so that it is there whole or not at all; raises OSError where only a part of it arrives."""
    part = target.with_name(f"{target.name}.part")
    shutil.copyfile(source, part)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    if part.stat().st_size != source.stat().st_size:
        raise OSError(None, "only a part of it arrived")
    part.rename(target)


# ---------------------------------------------------------------------------------------------- writing a file


@contextmanager
def whole_file(out: Path) -> Iterator[Path]:
    """A temporary path beside `out`; it becomes `out`, synced to disk, only if the block ends well."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
    if (
        os.name == "posix"
    ):  # the new name must survive a power cut too; Windows cannot sync a folder
        folder = os.open(out.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
