"""A run's copy in a bucket (S3, Google Cloud Storage, Hugging Face), through fsspec.

    <address>/<run>/files/<sha256>         contents, each under its own hash
    <address>/<run>/manifest-<n>.json      one copy: names, sizes and hashes of all its files

A bucket renames nothing, so no file is written twice. The copy is the manifest with the highest
number. It is put after all its files; only then the manifests before it are removed, and only then
the files that it does not name. Whenever a machine vanishes, one whole copy is there.

Keys are read by the drivers, from the environment or their own files. None is accepted in an
address, and none is in a message.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, NonNegativeInt, ValidationError

from selfreward_lite.system.errors import UserError
from selfreward_lite.system.files import FULL, check_disk, hash_file

LONGEST = 300  # characters of a driver's message that are shown
ADVICE = "give another --restore-from, or leave it out to start again"


@dataclass(frozen=True)
class Driver:
    """What to install for a kind of address, what one looks like, where its keys are."""

    package: str
    example: str
    keys: str
    options: dict[str, Any] = field(default_factory=dict)


DRIVERS = {
    "s3": Driver(
        "s3fs==2026.2.0",
        "s3://BUCKET/FOLDER",
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials",
        # With botocore's five tries, a server that never answers would hold a run up for longer.
        {"config_kwargs": {"retries": {"max_attempts": 1}}},
    ),
    "gs": Driver("gcsfs==2026.2.0", "gs://BUCKET/FOLDER", "GOOGLE_APPLICATION_CREDENTIALS"),
    "hf": Driver("huggingface_hub", "hf://buckets/OWNER/NAME", "HF_TOKEN, or `hf auth login`"),
}
_SECRET_NAMES = re.compile("KEY|SECRET|TOKEN|PASSW|CREDENTIAL", re.IGNORECASE)


class Unreachable(OSError):
    """The bucket did not do what it was asked; `strerror` says why, without keys."""


def _check_name(name: str) -> str:
    """A name from a bucket must not lead out of the folder that it is restored to."""
    path = PurePosixPath(name)
    odd = not path.parts or ".." in path.parts or str(path) != name or "\0" in name
    if path.is_absolute() or odd:
        raise ValueError("leads out of the run's folder")
    return name


class File(BaseModel, frozen=True):
    """Size and hash of a file; the hash is its name in the bucket too."""

    size: NonNegativeInt
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

    @property
    def key(self) -> str:
        """Where its content lies, below the run."""
        return f"files/{self.sha256}"


class Manifest(BaseModel, frozen=True):
    """One copy: the run's `birth`, its committed items, and its files by name."""

    birth: str | None
    items: NonNegativeInt
    files: dict[Annotated[str, AfterValidator(_check_name)], File]


def is_address(root: str | Path) -> bool:
    """Whether it is the address of a bucket, not a folder.

    >>> is_address("s3://bucket/runs"), is_address("/content/drive"), is_address("runs")
    (True, False, False)
    """
    # One slash is a mistyped address rather than a folder of this name.
    return re.match(rf"[\w+.:-]+://|({'|'.join(DRIVERS)}):", str(root)) is not None


def parse_address(address: str) -> tuple[str, str]:
    """The kind of an address and what follows it. Raises UserError; keys are not repeated."""
    kind, slashes, rest = address.partition("://")
    if kind not in DRIVERS or not slashes:
        examples = ", ".join(driver.example for driver in DRIVERS.values())
        raise UserError(f"a copy can be kept in a folder or at {examples}; other addresses cannot")
    driver = DRIVERS[kind]
    if set(rest) & set("@?#"):
        raise UserError(
            f"an address with '@', '?' or '#' may hold a key or a password: give {driver.example}, "
            f"and the key where the driver looks for it ({driver.keys})"
        )
    parts = rest.rstrip("/").split("/")
    if "" in parts or (kind == "hf" and (parts[0] != "buckets" or len(parts) < 3)):
        raise UserError(f"{address}: is no address of a bucket; give {driver.example}")
    return kind, "/".join(parts)


class Bucket:
    """The copy of one run at an address. Raises Unreachable where the bucket fails."""

    def __init__(self, address: str, run: str) -> None:
        import fsspec

        kind, path = parse_address(address)
        driver = DRIVERS[kind]
        self.shown = f"{kind}://{path}/{run}"
        try:
            system = fsspec.get_filesystem_class(kind)
        except ImportError as error:
            raise UserError(
                f"{kind}:// needs a package that cannot be imported ({error.__cause__ or error}): "
                f"pip install {driver.package}"
            ) from None
        try:
            with _reaching():
                self._there = system(**driver.options, skip_instance_cache=True)
                self._root = f"{self._there._strip_protocol(f'{kind}://{path}')}/{run}"
        except Unreachable as error:
            raise UserError(
                f"{self.shown}: cannot be used ({error.strerror}); its keys are read from "
                f"{driver.keys}"
            ) from None
        self._sizes: dict[str, int] = {}

    def read_newest(self) -> Manifest | None:
        """The newest whole copy's manifest, None if there is none. Lists the bucket anew.

        Raises UserError if it cannot be read: it may be of another version, or the only one.
        """
        self._list()
        names = self._manifests()
        while names:
            name = names.pop()
            with _reaching():
                text = self._there.cat_file(f"{self._root}/{name}")
            try:
                return Manifest.model_validate_json(text)
            except ValidationError as error:
                first = error.errors()[0]
                # Cut in the middle, its copy was not finished, and the one before it is whole.
                if first["type"] != "json_invalid" or not names:
                    raise UserError(
                        f"{self.shown}/{name} cannot be read ({first['msg']}); give another "
                        "address, or move that copy away"
                    ) from None
        return None

    def has(self, file: File) -> bool:
        """Whether a file is there in full, by the list that was read last."""
        return self._sizes.get(file.key) == file.size

    def put(self, path: Path) -> File:
        """Copy a file unless it is there already; returns its size and hash."""
        file = File(size=path.stat().st_size, sha256=hash_file(path))
        if not self.has(file):
            with _reaching():
                self._there.put_file(str(path), f"{self._root}/{file.key}")
            self._sizes[file.key] = file.size
        return file

    def finish(self, manifest: Manifest) -> None:
        """Make `manifest` the copy, and remove what the copy before it needed.

        Raises Unreachable, and changes nothing, unless all its files are there.
        """
        if manifest != self.read_newest():
            lost = [name for name, file in manifest.files.items() if not self.has(file)]
            if lost:
                raise Unreachable(None, f"only a part of {lost[0]} arrived")
            number = max((_number(name) for name in self._manifests()), default=0) + 1
            name = f"manifest-{number:08}.json"
            with _reaching():
                self._there.pipe_file(
                    f"{self._root}/{name}", manifest.model_dump_json(indent=1).encode()
                )
            self._list()
        named = {file.key for file in manifest.files.values()}
        files = [name for name in self._sizes if name.startswith("files/") and name not in named]
        for name in (*self._manifests()[:-1], *files):
            with _reaching():
                self._there.rm_file(f"{self._root}/{name}")

    def download(self, manifest: Manifest, folder: Path) -> None:
        """Restore a copy to a folder. Raises UserError if a file is missing or differs."""
        need = sum(file.size for file in manifest.files.values())
        check_disk(folder.parent, {"the copy": need}, "restoring")
        for name, file in manifest.files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if not self.has(file):
                raise UserError(f"{self.shown}: {name} is missing there; {ADVICE}")
            with _reaching():
                self._there.get_file(f"{self._root}/{file.key}", str(target))
            if target.stat().st_size != file.size or hash_file(target) != file.sha256:
                raise UserError(f"{self.shown}: {name} differs from its sha256; {ADVICE}")

    def _list(self) -> None:
        """Read the sizes of all that is there, by name below the run."""
        with _reaching():
            self._there.invalidate_cache()
            found = self._there.find(self._root, detail=True)
        self._sizes = {
            name.removeprefix(f"{self._root}/"): facts["size"] for name, facts in found.items()
        }

    def _manifests(self) -> list[str]:
        found = (name for name in self._sizes if re.fullmatch(r"manifest-\d+\.json", name))
        return sorted(found, key=_number)


def _number(manifest: str) -> int:
    return int(manifest.removeprefix("manifest-").removesuffix(".json"))


@contextmanager
def _reaching() -> Iterator[None]:
    """Every failure inside is Unreachable: drivers raise errors of their own, of many kinds.

    A full disk here is not the bucket's failure, and stays what it is.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        raise Unreachable(None, describe(error)) from error


def describe(error: Exception) -> str:
    """A driver's error in one line, without keys from the environment or an address in it."""
    text = " ".join(str(error).split())
    for name, value in os.environ.items():
        if _SECRET_NAMES.search(name) and len(value) >= 8:
            text = text.replace(value, "…")
    text = re.sub(r"://[^/\s]*@", "://…@", text)
    text = re.sub(r"(://[^\s?]*)\?\S*", r"\1?…", text)  # signatures of signed addresses
    return f"{type(error).__name__}: {text}"[:LONGEST]
