"""What a run refuses before its first step, and what its settings mean in another folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_hub import Hub, hub

from selfreward_lite import config
from selfreward_lite.data import hub as downloads
from selfreward_lite.data.records import Outcome
from selfreward_lite.data.store import Store
from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.models import parity
from selfreward_lite.models.gguf_folder import find_base
from selfreward_lite.run import prepare
from selfreward_lite.run.prepare import load_or_create_settings
from selfreward_lite.system.errors import ConfigError, EngineError, UserError
from selfreward_lite.system.files import hash_folder, write_manifest

MODEL = "maker/model"
COMMIT = "a" * 40
HEADER = "bytes=0-100000"  # what is asked of weights before they are downloaded
# huggingface_hub reads its settings once, so this is another process: a request a line.
CHILD = """
import json, os, sys
from pathlib import Path
from selfreward_lite.data import hub
from selfreward_lite.data.store import Store
from selfreward_lite.run.prepare import load_or_create_settings
from selfreward_lite.system.errors import SelfRewardError
for line in sys.stdin:
    place, wanted = json.loads(line)
    hub.home = lambda: Path(place) / "home"
    os.chdir(place)
    try:
        with Store.write(Path("runs/mine")) as store:
            answer = load_or_create_settings(store, wanted, "tiny").model_dump(mode="json")
    except SelfRewardError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture(scope="module")
def child() -> Iterator[tuple[Hub, subprocess.Popen[str]]]:
    with hub() as there:
        environment = {**os.environ, "HF_ENDPOINT": there.address, "HF_HUB_DISABLE_XET": "1"}
        environment.pop("HF_HUB_OFFLINE")
        command = [sys.executable, "-c", CHILD]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, env=environment, **pipes) as process:
            yield there, process
            process.stdin.close()


@pytest.fixture
def there(child: Any) -> Hub:
    """A hub that holds the tiny model, of which nothing has been asked."""
    found: Hub = child[0]
    found.files = {(MODEL, path.name): path.read_bytes() for path in TINY_MODEL.iterdir()}
    found.asked.clear()
    return found


@pytest.fixture
def start(child: Any, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Start a run in a folder and return its settings, or the error."""

    def ask(**wanted: str) -> dict[str, Any]:
        settings = {name.replace("__", "."): value for name, value in wanted.items()}
        process = child[1]
        process.stdin.write(json.dumps([str(tmp_path), settings]) + "\n")
        process.stdin.flush()
        answer: dict[str, Any] = json.loads(process.stdout.readline())
        return answer

    return ask


def fetched(there: Hub) -> list[str]:
    """The files that were downloaded from the hub, in order."""
    names = [
        path.rsplit("/", 1)[-1]
        for _, path, part in there.asked
        if "resolve" in path and part != HEADER
    ]
    return list(dict.fromkeys(names))


def change(there: Hub, file: str, **values: Any) -> None:
    data = json.loads(there.files[MODEL, file])
    there.files[MODEL, file] = json.dumps(data | values).encode()


NO_ASKING = "{% for m in messages %}{{ m['content'] }}<|eot_id|>{% endfor %}"
REFUSED: dict[str, Callable[[Hub], None]] = {
    "GPT2LMHeadModel is no family that is supported": lambda there: change(
        there, "config.json", architectures=["GPT2LMHeadModel"]
    ),
    "rope scaling 'yarn'": lambda there: change(
        there, "config.json", rope_parameters={"rope_type": "yarn", "factor": 4.0}
    ),
    "holds 4-bit weights; set model.quantisation=nf4": lambda there: change(
        there,
        "config.json",
        quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}
        | {"bnb_4bit_quant_type": "nf4"},
    ),
    "nothing that asks the assistant to speak": lambda there: there.files.update(
        {(MODEL, "chat_template.jinja"): NO_ASKING.encode()}
    ),
    "tokenizer.json": lambda there: there.files.pop((MODEL, "tokenizer.json")),
    "its files are not those of a chat model": lambda there: change(
        there, "tokenizer.json", added_tokens=[{}]
    ),
}


@pytest.mark.parametrize("words", REFUSED)
def test_a_base_is_refused_by_its_small_files(
    words: str, there: Hub, start: Any, tmp_path: Path
) -> None:
    REFUSED[words](there)
    error = start(model__base=MODEL, model__quantisation="none")["error"]
    assert words in error
    assert "\n" not in error
    assert "config.json" in fetched(there)
    assert {Path(name).suffix for name in fetched(there)} <= {".json", ".jinja"}
    with Store.read(tmp_path / "runs" / "mine") as store:
        assert store.fact("settings") is None, "other settings may follow"
    assert [path.name for path in (tmp_path / "runs" / "mine").iterdir() if path.is_dir()] == []


def test_prompts_are_refused_before_weights(there: Hub, start: Any, tmp_path: Path) -> None:
    (tmp_path / "few.jsonl").write_text('{"prompt": "Sort the letters c a b."}\n')
    error = start(model__base=MODEL, prompts__file="few.jsonl")["error"]
    assert "few.jsonl holds 1 prompt: too few" in error
    assert "model.safetensors" not in fetched(there)


def test_skipped_rows_are_said_where_prompts_are_too_few(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(
        '{"prompt": "Sort c a b."}\n{"prompt": ""}\n{"question": "?", "choices": "a"}\n'
    )
    wanted = {"prompts.file": str(file), "prompts.count": "6", "iterations": "2"}
    with (
        Store.write(tmp_path / "run") as store,
        pytest.raises(
            ConfigError,
            match=r"holds 1 prompt \(skipped: 1 × field 'prompt' is empty; 1 × field 'choices' .*"
            r"\): too few for 2 ",
        ),
    ):
        load_or_create_settings(store, {**wanted, "skip_bad": "true"}, "tiny")


def test_repeated_prompts_are_counted_before_the_start(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    texts = ["Sort c a b.", "Swap h u o.", " sort  C A B."] * 4
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    wanted = {"prompts.file": str(file), "prompts.count": "6", "iterations": "2"}
    with Store.write(tmp_path / "run") as store:
        with pytest.raises(
            ConfigError,
            match=r"mine\.jsonl holds 2 prompts \(10 more repeat one of them\): too few for 2 "
            r"iterations of 6; set prompts\.count=1, or --iterations 1$",
        ):
            load_or_create_settings(store, wanted, "tiny")
        assert store.fact("settings") is None, "other settings may follow"
        found = load_or_create_settings(store, {**wanted, "prompts.count": "1"}, "tiny")
        assert found.prompts.count == 1


@pytest.mark.parametrize(
    ("prompts", "iterations", "count", "says"),
    [
        (1, 3, 1, "holds 1 prompt: too few for 3 iterations of 1; give at least 3 prompts, or --"),
        (2, 3, 5, "holds 2 prompts: too few for 3 iterations of 5; give at least 11 prompts, or"),
        (7, 3, 5, "holds 7 prompts: too few for 3 iterations of 5; set prompts.count=2, or --iter"),
        (4, 4, 2, "holds 4 prompts: too few for 4 iterations of 2; set prompts.count=1, or --iter"),
    ],
)
def test_each_advice_on_too_few_prompts_works(
    tmp_path: Path, prompts: int, iterations: int, count: int, says: str
) -> None:
    file = tmp_path / "mine.jsonl"

    def start(prompts: int, iterations: int, count: int) -> None:
        lines = (json.dumps({"prompt": f"Say number {one}."}) + "\n" for one in range(prompts))
        file.write_text("".join(lines))
        asked = {"prompts.count": f"{count}", "iterations": f"{iterations}"}
        settings = config.load("tiny", {"prompts.file": str(file), **asked})
        prepare._check_prompts(settings)

    with pytest.raises(ConfigError) as caught:
        start(prompts, iterations, count)
    assert says in str(caught.value)
    *_, first, last = re.findall(r"\d+", str(caught.value))
    start(prompts, int(last), count)
    if "give at least" in says:
        start(int(first), iterations, count)
    else:
        start(prompts, iterations, int(first))


def test_weights_come_last_and_once(there: Hub, start: Any, tmp_path: Path) -> None:
    found = start(model__base=MODEL)
    assert found["model"]["base"] == f"{MODEL}@{COMMIT}"
    assert fetched(there)[-1] == "model.safetensors"
    paths = [
        path
        for _, path, part in there.asked
        if "/resolve/" in path and "/store" not in path and part != HEADER
    ]
    assert len(paths) == len(set(paths))
    there.asked.clear()
    assert start(model__base=MODEL) == found
    assert not there.asked


def test_a_folder_of_a_repositorys_name_comes_first(there: Hub, start: Any, tmp_path: Path) -> None:
    (tmp_path / "maker").mkdir()
    (tmp_path / "maker" / "model").symlink_to(TINY_MODEL)
    assert start(model__base=MODEL)["model"]["base"] == str(tmp_path / MODEL)
    assert not there.asked


def test_a_gguf_on_the_hub_is_a_base(
    there: Hub, start: Any, made: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    there.files[MODEL, "small.f32.gguf"] = (made / "base.gguf").read_bytes()
    found = start(model__base=f"{MODEL}/small.f32.gguf")
    base = found["model"]["base"]
    assert base == f"{MODEL}/small.f32.gguf@{COMMIT}"
    assert fetched(there) == ["small.f32.gguf"]
    monkeypatch.setattr(downloads, "home", lambda: tmp_path / "home")
    folder = find_base(base)
    assert folder.parent == tmp_path / "home" / "unpacked"
    assert parity.conversation_ids(folder, made / "base.gguf")


def test_a_part_of_a_gguf_is_not_downloaded(there: Hub, start: Any) -> None:
    for name in ("base", "gguf_file"):
        error = start(**{f"model__{name}": f"{MODEL}/small-00001-of-00002.gguf"})["error"]
        assert "one part of a split GGUF; join the parts with" in error
    assert not there.asked


def test_a_repository_of_ggufs_asks_for_one(there: Hub, start: Any) -> None:
    there.files = {(MODEL, "small.Q4_K_M.gguf"): b"", (MODEL, "README.md"): b""}
    error = start(model__base=MODEL)["error"]
    assert f"name one of its GGUF files, as {MODEL}/small.Q4_K_M.gguf" in error


def test_a_damaged_base_is_named(made: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(downloads, "home", lambda: tmp_path / "home")
    data = (made / "base.gguf").read_bytes()
    monkeypatch.chdir(tmp_path)
    for end in (0, 100, len(data) // 2, len(data) - 64):
        Path("mine.gguf").write_bytes(data[:end])
        with Store.write(tmp_path / "run") as store:
            with pytest.raises(ConfigError, match="no GGUF that can be read") as caught:
                load_or_create_settings(store, {"model.base": "mine.gguf"}, "tiny")
            assert store.fact("settings") is None
        assert str(tmp_path / "mine.gguf") in str(caught.value)
    with Store.write(tmp_path / "run") as store, pytest.raises(UserError, match="fix model.base"):
        load_or_create_settings(store, {"model.base": "none.gguf"}, "tiny")


def test_a_damaged_gguf_file_is_named(made: Path, tmp_path: Path) -> None:
    """As the user's own file, not as the base.gguf of the run."""
    data, out = (made / "base.gguf").read_bytes(), tmp_path / "run" / "base.gguf"
    file = tmp_path / "mine.gguf"
    for end in (0, 100, len(data) // 2, len(data) - 64):
        file.write_bytes(data[:end])
        with pytest.raises(EngineError) as caught:
            parity.adopt_base(made / "model", file, out)
        assert str(file) in str(caught.value)
        assert str(out) not in str(caught.value)
        assert not out.exists()
        refuse_gguf_file(tmp_path / "new", file, "no GGUF that can be read")
    refuse_gguf_file(tmp_path / "new", tmp_path / "none.gguf", "fix model.gguf_file")


def refuse_gguf_file(run: Path, file: Path, reason: str) -> None:
    """A new run does not take the file, so that another can still be named."""
    with Store.write(run) as store:
        with pytest.raises((ConfigError, UserError), match=reason) as caught:
            load_or_create_settings(store, {"model.gguf_file": str(file)}, "tiny")
        assert str(file) in str(caught.value)
        assert store.fact("settings") is None


@pytest.fixture
def files(made: Path, tmp_path: Path, monkeypatch: Any) -> dict[str, str]:
    """Settings that name files of the working folder, each by a relative path."""
    place = tmp_path / "work"
    (place / "owner").mkdir(parents=True)
    (place / "owner" / "name").symlink_to(TINY_MODEL)
    (place / "rows").mkdir()
    shutil.copy(made / "base.gguf", place / "mine.gguf")
    (place / "asks.jsonl").write_text("".join(f'{{"prompt": "Sort {n}."}}\n' for n in range(9)))
    monkeypatch.chdir(place)
    return {
        "model.base": "owner/name",
        "model.gguf_file": "./mine.gguf",
        "seed_stage.ranked": "rows",
        "prompts.file": "asks.jsonl",
        "prompts.count": "3",
    }


def start_run(run: Path, wanted: dict[str, str]) -> dict[str, str]:
    """Start or resume a run; returns what its stored settings name."""
    with Store.write(run) as store:
        load_or_create_settings(store, wanted, None)
        found = store.fact("settings")
        if not store.has_items():
            store.begin_stage(0, "ranked", 1)
            store.commit(0, "ranked", "all", Outcome(records=[]))
            store.end_stage(0, "ranked")
    named = [name.split(".") for name in wanted]
    return {f"{section}.{name}": found[section][name] for section, name in named}


def test_relative_paths_become_absolute(files: Any, tmp_path: Path, monkeypatch: Any) -> None:
    place = tmp_path / "work"
    expected = {
        "model.base": str(place / "owner" / "name"),
        "model.gguf_file": str(place / "mine.gguf"),
        "seed_stage.ranked": str(place / "rows"),
        "prompts.file": str(place / "asks.jsonl"),
        "prompts.count": 3,
    }
    assert start_run(tmp_path / "run", files) == expected
    monkeypatch.chdir(tmp_path)
    assert start_run(tmp_path / "run", {}) == {}, "from another folder"
    assert start_run(tmp_path / "run", {"prompts.file": "asks.jsonl"}) == {
        "prompts.file": expected["prompts.file"]
    }, "named as at the start"
    (tmp_path / "asks.jsonl").write_text('{"prompt": "Another."}\n')
    with pytest.raises(ConfigError, match=r"started with other settings \(prompts\)"):
        start_run(tmp_path / "run", {"prompts.file": "asks.jsonl"})
    with pytest.raises(ConfigError, match=r"started with other settings \(model\)"):
        start_run(tmp_path / "run", {"model.base": "elsewhere"})


def test_the_home_folder_is_expanded(files: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "work"))
    monkeypatch.chdir(tmp_path)
    wanted = {"model.base": "~/owner/name", "prompts.file": "~/asks.jsonl", "prompts.count": "3"}
    found = start_run(tmp_path / "run", wanted)
    assert found["model.base"] == str(tmp_path / "work" / "owner" / "name")
    assert found["prompts.file"] == str(tmp_path / "work" / "asks.jsonl")
    assert start_run(tmp_path / "run", wanted) == found
    assert downloads.find_local("~/asks.jsonl", "dataset") == tmp_path / "work" / "asks.jsonl"


def test_a_run_with_relative_paths_is_resumed(files: Any, tmp_path: Path) -> None:
    """Earlier versions stored them as they were given."""
    start_run(tmp_path / "run", files)
    with Store.write(tmp_path / "run") as store:
        stored = store.fact("settings")
        stored["model"]["base"], stored["prompts"]["file"] = "owner/name", "asks.jsonl"
        store.state("settings", stored)
    assert start_run(tmp_path / "run", {"model.base": "owner/name"}) == {"model.base": "owner/name"}


def test_a_base_may_lie_elsewhere_if_it_is_the_same(files: Any, tmp_path: Path) -> None:
    start_run(tmp_path / "run", files)
    (tmp_path / "run" / "base").mkdir()
    write_manifest(tmp_path / "run" / "base", {"source": hash_folder(find_base("owner/name"))})
    moved = shutil.copytree("owner/name", tmp_path / "moved")
    shutil.rmtree("owner")
    assert start_run(tmp_path / "run", {"model.base": str(moved)}) == {"model.base": str(moved)}
    (moved / "generation_config.json").write_text("{}")
    other = shutil.copytree(moved, tmp_path / "other")
    with pytest.raises(ConfigError, match=r"started with other settings \(model\)"):
        start_run(tmp_path / "run", {"model.base": str(other)})


def test_a_base_that_cannot_be_closed_is_refused_at_the_start(tmp_path: Path, monkeypatch: Any):
    monkeypatch.setattr(prepare, "can_close", lambda chat: False)
    with Store.write(tmp_path / "run") as store:
        with pytest.raises(ConfigError, match="no judgment can be closed; use judge.close=drop"):
            load_or_create_settings(store, {}, "tiny")
        settings = load_or_create_settings(store, {"judge.close": "drop"}, "tiny")
    assert settings.judge.close == "drop"
