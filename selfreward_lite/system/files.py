"""Free disk space, files and folders that appear complete or not at all, and their hashes.

A model's folder is complete when it has a manifest, which is written last.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selfreward_lite.system.errors import UserError

Json = dict[str, Any]  # a JSON object
MARGIN = 1.1
FULL = (errno.ENOSPC, errno.EDQUOT)  # of a disk, or of what a user may keep there
MANIFEST = "manifest.json"


# -- disk space ----------


def check_disk(
    path: Path,
    needs: dict[str, int],
    wanted_by: str = "this run",
    advice: str = "free space, or give another --runs-dir",
) -> None:
    """Raise UserError, with the numbers, if the disk of `path` cannot hold `needs` (bytes)."""
    free, needed = free_bytes(path), sum(needs.values()) * MARGIN
    if free < needed:
        parts = ", ".join(f"{what} {format_bytes(size)}" for what, size in needs.items() if size)
        raise UserError(
            f"the disk of {path} has {format_bytes(free)} free and {wanted_by} needs "
            f"{format_bytes(needed)} ({parts}, and a tenth to spare); {advice}"
        )


def free_bytes(path: Path) -> int:
    """Free bytes on the disk of `path`, which need not exist yet."""
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    return shutil.disk_usage(existing).free


def format_bytes(count: float) -> str:
    """Bytes as text: "1.5 GB" or "20.0 MB"."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


# -- manifests ----------


def write_manifest(folder: Path, facts: Json) -> None:
    """Write `manifest.json`: the sha256 of every file in `folder`, and `facts`.

    All that it lists survives a power cut, and so does the folder's own name. Unfinished files that
    a killed exporter left (`*.part`) are not listed.
    """
    files = {
        str(path.relative_to(folder)): hash_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".part" and path.name != MANIFEST
    }
    for left in folder.glob(f".{MANIFEST}.*.part"):  # of a process that was killed
        left.unlink()
    sync_folder(folder)
    with atomic_write(folder / MANIFEST) as part:
        part.write_text(json.dumps({"files": files, **facts}, indent=2), encoding="utf-8")
    sync(folder.parent)


def find_manifest_faults(folder: Path) -> list[str]:
    """The differences between a folder and its manifest, one line each."""
    if not (folder / MANIFEST).exists():
        return [f"{folder}: no manifest, so this folder is not complete"]
    try:
        listed = dict(json.loads((folder / MANIFEST).read_bytes())["files"])
    except (ValueError, KeyError, TypeError):
        return [f"{folder / MANIFEST}: is damaged"]
    faults = []
    for name, digest in listed.items():
        path = folder / name
        if not path.exists():
            faults.append(f"{path}: missing")
        elif hash_file(path) != digest:
            faults.append(f"{path}: differs from its sha256 in the manifest")
    return faults


def read_manifest_fact(folder: Path, name: str) -> Any:
    """A fact from the manifest of a complete folder; None if it is not there."""
    return json.loads((folder / MANIFEST).read_bytes()).get(name)


def hash_folder(folder: Path) -> str:
    """One sha256 over the names and contents of a folder's files."""
    digest = hashlib.sha256()
    for path in sorted(filter(Path.is_file, folder.iterdir())):
        digest.update(f"{path.name} {hash_file(path)}\n".encode())
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """The sha256 of a file, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- copying and writing ----------


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder that has a manifest, unless `target` has the same one.

    The manifest is removed first and copied last, so half a copy is none. What `target` holds
    already stays where it is.
    """
    manifest, existing = source / MANIFEST, target / MANIFEST
    if not manifest.exists():
        return
    if existing.exists() and existing.read_bytes() == manifest.read_bytes():
        sync(target)  # the copy may have ended before its name was safe
        return
    if existing.exists():
        existing.unlink()
        sync(target)
    copy_files(source, target)
    copy_file(manifest, existing)


def copy_files(source: Path, target: Path) -> None:
    """Make a folder hold the files of another, but its manifest and unfinished `*.part`.

    Each file is copied completely or not at all; those that are the same stay. A power cut takes
    nothing of it.
    """
    make_folder(target)
    wanted = {path.relative_to(source) for path in _list_files(source)}
    for name in sorted(wanted):
        there = target / name
        if not there.exists() or not _are_same(source / name, there):
            make_folder(there.parent)
            copy_file(source / name, there)
    for path in _list_files(target, with_parts=True):
        if path.relative_to(target) not in wanted:
            path.unlink()
    for place, _, _ in os.walk(target):  # what stays may be of a copy that ended before its sync
        sync(Path(place))


def _list_files(folder: Path, *, with_parts: bool = False) -> list[Path]:
    """The files below a folder, but its manifest. Raises OSError where it cannot be read."""

    def refuse(error: OSError) -> None:
        raise error

    found = [
        Path(place, name) for place, _, names in os.walk(folder, onerror=refuse) for name in names
    ]
    return [
        path
        for path in found
        if path != folder / MANIFEST
        and (
            with_parts or not any(part.endswith(".part") for part in path.relative_to(folder).parts)
        )
    ]


def _are_same(one: Path, other: Path) -> bool:
    return one.stat().st_size == other.stat().st_size and hash_file(one) == hash_file(other)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, completely or not at all; raises OSError if only a part arrives."""
    part = target.with_name(f"{target.name}.part")
    shutil.copyfile(source, part)
    sync(part)
    if part.stat().st_size != source.stat().st_size:
        raise OSError(None, "only a part of it arrived")
    part.rename(target)
    sync(target.parent)


@contextmanager
def atomic_write(out: Path) -> Iterator[Path]:
    """A temporary path beside `out`, renamed to `out` and synced if the block succeeds."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        yield part
        sync(part)
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
    sync(out.parent)  # the new name must survive a power cut


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, so that a power cut leaves their names."""
    new = [one for one in folder.parents if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for one in (folder, *new):
        sync(one.absolute().parent)


def sync_folder(folder: Path) -> None:
    """Sync all that is in a folder, and its names, so that a power cut leaves it whole."""
    for place, _, names in os.walk(folder):
        for path in (*(Path(place, name) for name in names), Path(place)):
            sync(path)


def sync(path: Path) -> None:
    """Sync the content of a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some network drives cannot sync a folder's names
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(handle)
