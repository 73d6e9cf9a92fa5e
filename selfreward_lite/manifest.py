"""A model's folder and the file that makes it one: names and sha256 of all that belongs to it, written last.

Knows: files, hashes. Does not know: models, runs. A folder without its manifest does not exist.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Write `manifest.json` with the sha256 of every file in `folder`, last of all and at once.

    Half-written files that a killed exporter left (`*.part`) do not belong to it.
    """
    unfinished = folder / f"{MANIFEST}.part"
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".part"]
    files = {str(path.relative_to(folder)): sha256_of(path) for path in paths if path.name != MANIFEST}
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
