"""Models and data sets of the Hugging Face hub: fetched once, and the very same files ever after.

    owner/name                          the newest revision at the first download, which is then kept to
    owner/name@revision                 that one
    owner/name/file.gguf[@revision]     one file of a repository

What was downloaded lies in $HF_HOME/selfreward_lite, with a list of the sha256 of every file; what the hub's own cache holds
already is linked to and not fetched. Later calls take the files from there, and refuse them where a digest has changed. Knows:
names, revisions, digests. Does not know: what is in a file. A token for a closed repository is taken from the environment,
and never kept. The hub's own download begins every file anew in every process (huggingface_hub 1.33), so it is done here.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import httpx

from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.files import check_disk, sha256_of

Kind = Literal["model", "dataset"]
Show = Callable[[str, int, int], None]
LEDGER = "downloads.json"
SILENCE = httpx.Timeout(60.0)  # seconds without a byte; a line that hangs is a line that broke
ATTEMPTS, PAUSE = 5, 0.5  # that bring nothing, one after the other; seconds, doubled each time
BUSY = (429, 500, 502, 503, 504)  # answers after which it may be tried again
LONGEST_WAIT = 300.0  # seconds, if the hub asks for more
PATIENCE = 2.0  # seconds for another command to let go of a lock

# Of a model, what lies at the top: below it there are other copies of the weights. Of a data set, the first kind that is there:
# the same rows often lie there as Parquet and as something else. Nothing that is a pickle.
WANTED = {
    "model": (r"[^/]+\.(json|safetensors|jinja)",),
    "dataset": (r".*\.parquet", r".*\.jsonl", r".*\.csv"),
}
_NAME = re.compile(
    r"(?P<id>[A-Za-z0-9][\w.-]*/[\w.-]+?)(?:/(?P<file>[\w.-]+\.gguf))?(?:@(?P<revision>[\w./-]+))?",
    re.ASCII,
)

# sha256 of what is in OASST1's two Parquet files, from the hub's own page of the commit that wrote them:
# https://huggingface.co/datasets/OpenAssistant/oasst1/commit/2d4574960db0e3c27588c77113c58dca9715b687
CITED = {
    "OpenAssistant/oasst1": {
        "data/train-00000-of-00001-b42a775f407cee45.parquet": "bbfadf5ed1278ba2208c837fdcad865adf65f5df55d80abadab2745db13fcb5e",
        "data/validation-00000-of-00001-134b8fd0c89408b6.parquet": "24002597bb13a7edd42d92f773762f25e285f72c31a70449393d0ded1dc7b416",
    },
}


def show_nothing(file: str, done: int, total: int) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Repository:
    """A repository of the hub, or one file of it, at a revision (a branch, a tag or a commit); None is its newest."""

    id: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        name = f"{self.id}/{self.file}" if self.file else self.id
        return f"{name}@{self.revision}" if self.revision else name


def parse_repository(text: str) -> Repository | None:
    """Return the repository that a setting names; None for everything else, a path that exists first of all.

    >>> parse_repository("unsloth/llama-3-8b-Instruct-bnb-4bit")
    Repository(id='unsloth/llama-3-8b-Instruct-bnb-4bit', revision=None, file=None)
    >>> parse_repository("a/b/c.Q4_K_M.gguf@main")
    Repository(id='a/b', revision='main', file='c.Q4_K_M.gguf')
    >>> parse_repository("tiny"), parse_repository("./models/llama"), parse_repository("/models/llama")
    (None, None, None)
    """
    match = None if Path(text).exists() else _NAME.fullmatch(text)
    return Repository(match["id"], match["revision"], match["file"]) if match else None


def fetch(repository: Repository, kind: Kind, show: Show) -> tuple[Path, Repository]:
    """Return the folder of a repository's files, downloaded if need be, and the repository at its commit.

    An interrupted download goes on where it stopped. `show` is told a file, the bytes that are there and those of the whole.
    Raises UserError, in one line with what to do next, where it cannot be had, does not fit the disk, or is not what was
    downloaded before.
    """
    known = _known(repository, kind)
    if known is None:
        with hub_errors(repository):
            known = _download(repository, kind, show)
    else:
        _confirm(known)
    return known.folder, replace(repository, revision=known.commit)


def find_local(text: str, kind: Kind) -> Path:
    """Return the place on this machine that a setting names: a path as it is, a repository's folder if it was downloaded.

    Raises UserError where it was not.
    """
    repository = parse_repository(text)
    if repository is None:
        return Path(text)
    known = _known(repository, kind)
    if known is None:
        raise UserError(
            f"{repository} is not on this machine; `run` downloads it, or give a folder or file"
        )
    return known.folder / repository.file if repository.file else known.folder


def fetch_config(repository: Repository) -> Path:
    """Return a folder with the config.json of a model, a kilobyte, and nothing else of it; raises UserError as `fetch` does."""
    from huggingface_hub import hf_hub_download

    with hub_errors(repository):
        return Path(
            hf_hub_download(repository.id, "config.json", revision=repository.revision)
        ).parent


def is_downloaded(repository: Repository, kind: Kind) -> bool:
    """Whether a repository was downloaded."""
    return _known(repository, kind) is not None


def fetch_path(text: str, kind: Kind, show: Show) -> Path:
    """Return the place on this machine of what is named, downloaded if need be; raises as `fetch` does."""
    repository = parse_repository(text)
    if repository is not None:
        fetch(repository, kind, show)
    return find_local(text, kind)


def find_model_folder(base: str) -> Path:
    """Return the folder of a base model: the one that ships, one on this machine, or one downloaded before.

    Raises UserError where there is none.
    """
    found = TINY_MODEL if base == "tiny" else find_local(base, "model")
    if not (found / "config.json").exists():
        raise UserError(
            f"{found}: no model there; set model.base to a Hugging Face model folder, or to owner/name on the hub"
        )
    return found


@dataclass(frozen=True)
class _Known:
    """A download: its folder, its commit, and the sha256 of every file by its path."""

    folder: Path
    commit: str
    files: dict[str, str]


def _known(repository: Repository, kind: Kind) -> _Known | None:
    """What the list says of a repository: of the commit asked for, else of the one that its branch stood at the first time."""
    for entry in _read_ledger():
        asked = (repository.revision or "main") in (entry["commit"], *entry["asked"])
        if asked and (entry["kind"], entry["id"], entry.get("file")) == (
            kind,
            repository.id,
            repository.file,
        ):
            where = Path(entry["folder"])
            if all((where / name).exists() for name in entry["files"]):
                return _Known(where, entry["commit"], entry["files"])
    return None


def _confirm(known: _Known) -> None:
    for name, digest in known.files.items():
        if sha256_of(known.folder / name) != digest:
            raise UserError(
                f"{known.folder / name} is not what was downloaded (its sha256 has changed); delete {known.folder} and give the "
                "same command again"
            )


def _download(repository: Repository, kind: Kind, show: Show) -> _Known:
    from huggingface_hub import HfApi

    asked = repository.revision or "main"
    info = HfApi().repo_info(repository.id, repo_type=kind, revision=asked, files_metadata=True)
    wanted = _wanted(info.siblings or [], kind, repository.file)
    if not wanted:
        raise UserError(
            f"{repository} holds no file that can be used (safetensors and JSON, or tables); name another"
        )
    at = replace(repository, revision=info.sha)
    place = _home() / kind / str(at).replace("/", "--")
    with _alone(place, f"another command is downloading {repository}"):
        missing = [one for one in wanted if not (place / one.rfilename).exists()]
        needs = {"download": sum(one.size or 0 for one in missing)}
        check_disk(place, needs, str(repository), "free space, or set HF_HOME elsewhere")
        files = {
            one.rfilename: _fetch_file(at, kind, one, place / one.rfilename, show) for one in wanted
        }
    named_as = {"kind": kind, "id": repository.id, "file": repository.file}
    entry = {**named_as, "commit": info.sha, "asked": [asked], "folder": str(place), "files": files}
    with _alone(_home() / LEDGER, f"another command is writing {_home() / LEDGER}"):
        _write_ledger([*_read_ledger(), entry])
    return _Known(place, info.sha, files)


@contextmanager
def _alone(path: Path, words: str) -> Iterator[None]:
    """Hold the lock that stands beside a path; UserError where another process has it."""
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(WeakFileLock(path.with_name(f"{path.name}.lock"), timeout=PATIENCE))
        except Timeout:
            raise UserError(
                f"{words}; wait until it is done, and give the same command again"
            ) from None
        yield


def _wanted(files: list[Any], kind: Kind, only: str | None) -> list[Any]:
    """Of a repository's files, the one that is named, or those of the first kind that there is."""
    if only is not None:
        return [one for one in files if one.rfilename == only]
    for pattern in WANTED[kind]:
        if found := [one for one in files if re.fullmatch(pattern, one.rfilename)]:
            return found
    return []


def _fetch_file(at: Repository, kind: Kind, file: Any, path: Path, show: Show) -> str:
    """Put one file in its place and return its sha256: what is there already, a link to the hub's own cache, or its bytes.

    Raises UserError where what the hub sends is not what it announces.
    """
    from huggingface_hub import try_to_load_from_cache

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        digest, fault = _look_at(at, file, path)
        if fault is None:
            return digest
    path.unlink(missing_ok=True)  # a link to what is gone, too
    cached = try_to_load_from_cache(at.id, file.rfilename, revision=at.revision, repo_type=kind)
    if isinstance(cached, str):
        digest, fault = _look_at(at, file, Path(cached))
        if fault is None:
            path.symlink_to(Path(cached).resolve())
            return digest
    part = path.with_name(f"{path.name}.part")
    _receive(at, kind, file, part, show)
    digest, fault = _look_at(at, file, part)
    if fault is not None:
        part.unlink()
        raise UserError(
            f"{path} is not what {at.id} announces ({fault}); give the same command again"
        )
    part.rename(path)
    return digest


def _look_at(at: Repository, file: Any, path: Path) -> tuple[str, str | None]:
    """A file's sha256, and what tells it from the one that was announced: its size, its sha256 (where it lies in LFS, or is
    cited), its git hash; None where nothing does."""
    if file.size is not None and path.stat().st_size != file.size:
        return "", f"{path.stat().st_size} bytes of {file.size}"
    digest = sha256_of(path)
    cited = CITED.get(at.id, {}).get(file.rfilename)
    if {cited, file.lfs.sha256 if file.lfs else None} - {None, digest}:
        return digest, "sha256"
    if not file.lfs and file.blob_id:
        data = path.read_bytes()
        if (
            hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
            != file.blob_id
        ):
            return digest, "git's hash"
    return digest, None


def _receive(at: Repository, kind: Kind, file: Any, part: Path, show: Show) -> None:
    """Get what is missing of a file, over a line that may break and a hub that may be busy, as long as there is progress."""
    from huggingface_hub import errors, hf_hub_url

    url = hf_hub_url(at.id, file.rfilename, repo_type=kind, revision=at.revision)
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            return _stream(url, part, file, show)
        except (httpx.TransportError, errors.HfHubHTTPError) as error:
            asked = ""  # by a busy hub: so many seconds
            if isinstance(error, errors.HfHubHTTPError):
                if error.response.status_code not in BUSY:
                    raise
                asked = error.response.headers.get("Retry-After", "")
            failures = 1 if part.stat().st_size > before else failures + 1
            if failures == ATTEMPTS:
                raise
            time.sleep(
                max(
                    PAUSE * 2**failures,
                    min(float(asked), LONGEST_WAIT) if asked.isdecimal() else 0.0,
                )
            )


def _stream(url: str, part: Path, file: Any, show: Show) -> None:
    """Append what is still missing of a file."""
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    with part.open("ab") as out:
        done = out.tell()
        if file.size is not None and done >= file.size:
            return  # whole, or more than that: its digest will say
        headers = (
            build_hf_headers()
            | ({"Range": f"bytes={done}-"} if done else {})
            | {"Accept-Encoding": "identity"}
        )
        with get_session().stream(
            "GET", url, headers=headers, follow_redirects=True, timeout=SILENCE
        ) as response:
            hf_raise_for_status(response)
            if done and response.status_code == 200:  # it sends all of it, whatever was asked
                out.truncate(0)
                done = 0
            for piece in response.iter_bytes(2**20):
                out.write(piece)
                done += len(piece)
                show(file.rfilename, done, file.size or done)


@contextmanager
def hub_errors(repository: Repository) -> Iterator[None]:
    """Every way in which the hub can fail, as one line with what to do next."""
    from huggingface_hub import errors

    offline = f"{repository} was not downloaded before, and the hub cannot be reached"
    try:
        yield
    except errors.GatedRepoError:
        raise UserError(
            f"{repository} is closed: accept its licence on its page, and set HF_TOKEN to a token of yours"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{repository}: neither a path here nor a repository of the hub that all may see; mend it, or set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(
            f"{repository}: the hub has no such revision; name another after the @, or none"
        ) from None
    except errors.OfflineModeIsEnabled:
        raise UserError(
            f"{offline} (HF_HUB_OFFLINE=1): unset it, or give a folder on this machine"
        ) from None
    except (httpx.HTTPError, errors.HfHubHTTPError, errors.LocalEntryNotFoundError) as error:
        why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise UserError(
            f"{offline} ({why}): connect, and give the same command again; what was downloaded is kept. Or give a folder on "
            "this machine"
        ) from None


def _home() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "selfreward_lite"


def _read_ledger() -> list[dict[str, Any]]:
    path = _home() / LEDGER
    if not path.exists():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return [
            entry
            for entry in entries
            if entry["kind"] and entry["id"] and entry["commit"] and entry["folder"]
        ]
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} is damaged; delete it, and what it listed is looked at anew"
        ) from None


def _write_ledger(entries: list[dict[str, Any]]) -> None:
    path = _home() / LEDGER
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(entries, indent=1), encoding="utf-8")
    unfinished.rename(path)
