"""Open test sets: where each file is, how it is fetched and checked, and its prompts.

A task set asks the actor for answers that a program can score. A ranked set holds pairs of answers
that people put in order; it measures the judge. Every file is pinned: its commit, size and sha256.
Files are in $HF_HOME/selfreward_lite/task-sets, or in a folder that the user names.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx

from selfreward_lite.data import download, hub
from selfreward_lite.data.data_files import read_rows
from selfreward_lite.data.download import Show, describe_error
from selfreward_lite.data.rows import find_text_fault
from selfreward_lite.system import proxies
from selfreward_lite.system.errors import DataError, UserError
from selfreward_lite.system.files import check_disk, copy_file, hash_file

TaskName = Literal["ifeval", "ifbench", "gsm8k"]
FACT = "tasks"  # the fact in a store that says how the answers in it were asked for
RAW = "https://raw.githubusercontent.com"
# Licences under which anybody may use and pass on the data; the last two ask for attribution.
OPEN = ("MIT", "Apache-2.0", "CC-BY-4.0", "ODC-BY-1.0")
# Sets that are asked for often and are not offered, and why.
NOT_OFFERED = {
    "alpaca_eval": "its licence, CC-BY-NC-4.0, does not allow every use, and its judge is paid",
    "judgebench": "its repository has no licence file",
}


@dataclass(frozen=True)
class SetFile:
    """One file of a set: its path in the folder of sets, its address, sha256 and size in bytes."""

    path: str
    url: str
    sha256: str
    size: int


@dataclass(frozen=True)
class TestSet:
    """A test set. `prompts` counts those that are asked: of a task set, all that can be scored."""

    __test__ = False  # no class of tests, for pytest
    name: str
    title: str
    licence: str
    files: tuple[SetFile, ...]
    prompts: int = 0

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def _one(path: str, repository: str, commit: str, place: str, sha256: str, size: int) -> SetFile:
    return SetFile(path, f"{RAW}/{repository}/{commit}/{place}", sha256, size)


def _llmbar(name: str, place: str, sha256: str, size: int) -> SetFile:
    commit, place = "900616bff90b6c6c8e1681f7d079250637c55992", f"Dataset/LLMBar/{place}"
    return _one(
        f"llmbar/{name}.json",
        "princeton-nlp/LLMBar",
        commit,
        f"{place}/dataset.json",
        sha256,
        size,
    )


_TABLE = (
    TestSet(
        "ifeval",
        "IFEval",
        "CC-BY-4.0",  # of the data; the code beside it is Apache-2.0
        (
            _one(
                "ifeval.jsonl",
                "google-research/google-research",
                "19638399cc9e03623c5b9087a1d6fa8813974ce9",
                "instruction_following_eval/data/input_data.jsonl",
                "67ffeee0fcb87c317c5b08a2de85557b4a7e96ada6178aa645b4954fe4b53d49",
                207_111,
            ),
        ),
        475,
    ),
    TestSet(
        "ifbench",
        "IFBench",
        "ODC-BY-1.0",  # of the data; the code beside it is Apache-2.0
        (
            _one(
                "ifbench.jsonl",
                "allenai/IFBench",
                "db69a6f05689830b0068b8f1529ebcfd2f3b164c",
                "data/IFBench_test.jsonl",
                "a2bf7b8e7ed11d39c65b4ec781da8b99663ed0121f97033d70fcecb61f8a9d85",
                421_502,
            ),
        ),
        267,
    ),
    TestSet(
        "gsm8k",
        "GSM8K",
        "MIT",
        (
            _one(
                "gsm8k-test.jsonl",
                "openai/grade-school-math",
                "3101c7d5072418e28b9008a6636bde82a006892c",
                "grade_school_math/data/test.jsonl",
                "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
                749_738,
            ),
        ),
        1319,
    ),
    TestSet(
        "llmbar",
        "LLMBar",
        "MIT",
        (
            _llmbar(
                "Natural",
                "Natural",
                "f7127b7aa78104cb8e03a2b1b3ac0077e95b125714dd441a8ee63666145a3375",
                91_269,
            ),
            _llmbar(
                "GPTInst",
                "Adversarial/GPTInst",
                "1002425f73c2cf54b6e6de99bce3f6c60fa2a17d13194772e37d7481c1351d42",
                211_768,
            ),
            _llmbar(
                "Neighbor",
                "Adversarial/Neighbor",
                "6712c7eda6342602e0bc7c06c282fa95e2110d4e741a284026a62d937f9780a0",
                131_988,
            ),
            _llmbar(
                "Manual",
                "Adversarial/Manual",
                "0d9598769a39cdbbd265778c37e49939d41d5f76dcfb17bd75dcfa07516d3837",
                79_050,
            ),
            _llmbar(
                "GPTOut",
                "Adversarial/GPTOut",
                "1ff56e520d7607750a9866a3be0f5b850392ca4477a1f69d80f32bd3e310f561",
                32_640,
            ),
        ),
    ),
    TestSet(
        "pandalm",
        "PandaLM",
        "Apache-2.0",
        (
            _one(
                "pandalm.json",
                "WeOpenML/PandaLM",
                "3871806e72b4832f815ecafd24d3503c73403f48",
                "data/testset-v1.json",
                "cc154f9067c7382d7ea86f8f246511a5e1ac87e1fddd845c5938d789505b07a4",
                937_899,
            ),
        ),
    ),
    TestSet(
        "oasst1",
        "OASST1, English validation part",
        "Apache-2.0",
        (
            _one(
                "oasst1-en-validation.jsonl",
                "TurkuNLP/oasst-fi",
                "45e9c4600eacf5844887e321ba3952befe9727dc",
                "original-data/en-validation.jsonl",
                "b92db3f1db324f5aa3c5d75ed65a451b54063de1de7370506233c9917043bd66",
                3_373_178,
            ),
        ),
    ),
)
SETS = {one.name: one for one in _TABLE}
ADVERSARIAL = ("GPTInst", "Neighbor", "Manual", "GPTOut")  # parts of LLMBar made to mislead
TASK_SETS: tuple[TaskName, ...] = ("ifeval", "ifbench", "gsm8k")


# -- files -----------------------------------------------------------------------------------------


def find_set(name: str) -> TestSet:
    """Return the set of a name. Raises UserError where the table has none."""
    if name in SETS:
        return SETS[name]
    why = f" ({NOT_OFFERED[name]})" if name in NOT_OFFERED else ""
    raise UserError(f"there is no set {name!r} here{why}; choose of {', '.join(SETS)}")


def home() -> Path:
    """The folder that holds the sets that were fetched."""
    return hub.home() / "task-sets"


def find_file_fault(file: SetFile, path: Path) -> str | None:
    """Return how a file differs from the one in the table, None if it does not."""
    size = path.stat().st_size
    if size < file.size:
        return f"is cut: {size} of {file.size} bytes"
    if size > file.size or hash_file(path) != file.sha256:
        return "is another file than the pinned one: its sha256 differs"
    return None


def fetch_set(name: str, show: Show, source: Path | None = None) -> Path:
    """Return the folder of sets, with all files of one set; downloads what is missing.

    With `source`, a folder that holds the files, they are copied from there. An interrupted
    download resumes. Raises UserError if a file cannot be downloaded, does not fit the disk, or is
    not the pinned one.
    """
    found, folder = find_set(name), home()
    if source is not None:
        find_paths(name, source)
    with hub.lock(folder / name, f"another command is downloading {name}"):
        for file in found.files:
            path = folder / file.path
            if path.exists() and find_file_fault(file, path) is None:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            check_disk(
                folder, {"download": file.size}, name, "free space, or set HF_HOME elsewhere"
            )
            if source is None:
                _fetch_file(found, file, path, show)
            else:
                copy_file(source / file.path, path)
    return folder


def find_paths(name: str, folder: Path | None = None) -> list[Path]:
    """Return the checked files of a set, in `folder` (None: where `fetch_set` puts them).

    Raises UserError for a file that is missing, cut or another one.
    """
    found, place = find_set(name), folder or home()
    for file in found.files:
        path = place / file.path
        if not path.is_file():
            where = f"give the folder that holds {file.path} as --from"
            raise UserError(
                f"{found.title}: no {path}; fetch it with `python -m selfreward_lite evaluate "
                f"fetch {name}` ({found.size / 1e6:.1f} MB, {found.licence}), or {where}"
            )
        if fault := find_file_fault(file, path):
            raise UserError(
                f"{path} {fault}; fetch it again with `python -m selfreward_lite evaluate fetch "
                f"{name}`, or take it from {file.url}"
            )
    return [place / file.path for file in found.files]


def _fetch_file(found: TestSet, file: SetFile, path: Path, show: Show) -> None:
    part = path.with_name(f"{path.name}.part")
    with _explain_errors(found, file):

        @contextmanager
        def ask(headers: dict[str, str]) -> Iterator[httpx.Response]:
            with httpx.stream(
                "GET", file.url, headers=headers, follow_redirects=True, timeout=download.SILENCE
            ) as response:
                response.raise_for_status()
                yield response

        download.receive(ask, part, file.path, file.size, show)
    if fault := find_file_fault(file, part):
        part.unlink()
        raise UserError(f"what {file.url} sent {fault}; run the same command again")
    part.rename(path)


@contextmanager
def _explain_errors(found: TestSet, file: SetFile) -> Iterator[None]:
    """Turn errors of a download into one line with what to do next."""
    from huggingface_hub import constants

    otherwise = f"or put {file.path} into a folder and give it as --from"
    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"{found.title} is not on this machine, and HF_HUB_OFFLINE=1: unset it, {otherwise}"
        )
    if fault := proxies.find_request_fault():
        raise UserError(f"{file.url} cannot be downloaded: {fault}, {otherwise}")
    try:
        yield
    except httpx.HTTPError as error:
        raise UserError(
            f"{file.url} cannot be downloaded ({describe_error(error)}): connect, and run the same "
            f"command again, which goes on where it stopped; {otherwise}"
        ) from None


# -- prompts of the task sets ----------------------------------------------------------------------


@dataclass(frozen=True)
class Instruction:
    """An instruction that a program can check: its kind, and the values it is filled with."""

    kind: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """A prompt of a task set, with what scoring it needs: instructions, or the right number."""

    set: TaskName
    key: str
    prompt: str
    instructions: tuple[Instruction, ...] = ()
    answer: str = ""


def read_tasks(name: TaskName, folder: Path | None = None) -> list[Task]:
    """Return the prompts of a task set in the order of its file; raises as `find_paths` does."""
    (path,) = find_paths(name, folder)
    return parse_tasks(name, path)


def parse_tasks(name: TaskName, path: Path) -> list[Task]:
    """Return the prompts in a file of a set's schema. Raises DataError for a bad row."""
    tasks = []
    for number, (place, row) in enumerate(read_rows(path, skip_bad=False).rows):
        try:
            one = _parse_problem(number, row) if name == "gsm8k" else _parse_prompt(name, row)
        except (KeyError, ValueError, TypeError) as error:
            reason = f"no field {error}" if isinstance(error, KeyError) else error
            title = SETS[name].title
            raise DataError(f"{place}: {reason}; it is no file of {title}") from None
        tasks.append(one)
    return tasks


def _parse_prompt(name: TaskName, row: Mapping[str, Any]) -> Task:
    """A row of IFEval or IFBench; values that are null are left out, as their authors do."""
    kinds, values = row["instruction_id_list"], row["kwargs"]
    if not kinds or len(kinds) != len(values):
        raise ValueError(f"{len(kinds)} instructions and {len(values)} sets of values")
    instructions = tuple(
        Instruction(kind, {key: value for key, value in one.items() if value is not None})
        for kind, one in zip(kinds, values, strict=True)
    )
    return Task(name, str(row["key"]), _check_text(row["prompt"]), instructions)


def _parse_problem(number: int, row: Mapping[str, Any]) -> Task:
    """A row of GSM8K, which has no keys: the number of the row is its key."""
    _, mark, answer = _check_text(row["answer"]).rpartition("####")
    if not mark:
        raise ValueError("no #### before the answer")
    return Task("gsm8k", str(number), _check_text(row["question"]), answer=answer.strip())


def _check_text(value: Any) -> str:
    if fault := find_text_fault(value):
        raise ValueError(f"a text {fault}")
    return str(value)


# -- pairs of the ranked sets ----------------------------------------------------------------------


@dataclass(frozen=True)
class RankedPair:
    """Two answers to a prompt, of which people (or the way they were made) say which is better."""

    set: str
    part: str
    prompt: str
    better: str
    worse: str


def read_pairs(name: str, folder: Path | None = None) -> tuple[list[RankedPair], Counter[str]]:
    """Return the decided pairs of "llmbar" or "pandalm", and what was left out and why.

    PandaLM's pairs are decided by the majority of its three annotators. OASST1 is read by `ranked`,
    in its own schema. Raises as `find_paths` does, and DataError for a bad row.
    """
    parse = {"llmbar": _parse_llmbar, "pandalm": _parse_pandalm}[name]
    pairs, drops = list[RankedPair](), Counter[str]()
    for path in find_paths(name, folder):
        rows: Sequence[Mapping[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        for number, row in enumerate(rows):
            try:
                pair = parse(path.stem, row)
            except (KeyError, ValueError) as error:
                reason = f"no field {error}" if isinstance(error, KeyError) else error
                raise DataError(f"{path}, row {number}: {reason}") from None
            if pair is None:
                drops["pairs that no majority decided"] += 1
            elif pair.better == pair.worse:
                drops["pairs of the same answer twice"] += 1
            else:
                pairs.append(pair)
    return pairs, drops


def _parse_llmbar(part: str, row: Mapping[str, Any]) -> RankedPair:
    first, second = (_check_text(row[name]) for name in ("output_1", "output_2"))
    better, worse = (first, second) if row["label"] == 1 else (second, first)
    return RankedPair("llmbar", part, _check_text(row["input"]), better, worse)


def _parse_pandalm(part: str, row: Mapping[str, Any]) -> RankedPair | None:
    """A pair of PandaLM: each annotator says 1, 2, or 0 for a tie."""
    votes = [row[f"annotator{number}"] for number in (1, 2, 3)]
    answers = {number: _read_answer(row[f"response{number}"]) for number in (1, 2)}
    prompt = "\n\n".join(filter(None, (_check_text(row["instruction"]), row["input"])))
    for winner in (1, 2):
        if votes.count(winner) >= 2:
            return RankedPair("pandalm", part, prompt, answers[winner], answers[3 - winner])
    return None


def _read_answer(value: Any) -> str:
    """An answer; where it was the word True, PandaLM's file has the JSON value true."""
    return str(value) if isinstance(value, bool) else _check_text(value)
