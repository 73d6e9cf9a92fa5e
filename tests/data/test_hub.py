"""Downloads from a fake hub, each in a new process: huggingface_hub reads its settings once."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_hub import Hub, hub

from selfreward_lite.data.hub import CITED, Repository, parse_repository

pytestmark = pytest.mark.slow  # a fake hub and real commands, half a minute
MODEL = "maker/model"
SAYS = """
import json, sys
import httpx
from selfreward_lite.data import download, hub
from selfreward_lite.system.errors import UserError
from selfreward_lite.data.hub import fetch, parse_repository
hub.PATIENCE, download.PAUSE, download.SILENCE = 0.1, 0.0, httpx.Timeout(2.0)
said = []
try:
    where, at = fetch(parse_repository(sys.argv[1]), sys.argv[2], lambda *file: said.append(file))
    print(json.dumps({"folder": str(where), "at": str(at), "said": said}))
except UserError as error:
    print(json.dumps({"error": str(error), "said": said}))
"""


@pytest.fixture
def there():
    with hub() as found:
        found.files = {
            (MODEL, "config.json"): b'{"hidden_size": 8}',
            (MODEL, "model.safetensors"): bytes(range(256)) * 8000,
            (MODEL, "original/consolidated.00.pth"): b"pickle",
            (MODEL, "training_args.bin"): b"pickle",
            (MODEL, "README.md"): b"words",
        }
        yield found


def asked(
    there: Hub | None, home: Path, name: str = MODEL, kind: str = "model", **extra: str
) -> dict:
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **extra}
    environment.pop("HF_HUB_OFFLINE", None) if "HF_HUB_OFFLINE" not in extra else None
    environment["HF_ENDPOINT"] = there.address if there else "http://127.0.0.1:9"
    ended = subprocess.run(
        [sys.executable, "-c", SAYS, name, kind], capture_output=True, text=True, env=environment
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def files(folder: str) -> set[str]:
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def test_a_name_is_a_repository_and_a_path_is_not(tmp_path, monkeypatch):
    assert parse_repository("owner/name@v1.0") == Repository("owner/name", "v1.0")
    assert str(Repository("owner/name", "v1")) == "owner/name@v1"
    for text in (
        "tiny",
        "/abs/olute",
        "./here/there",
        "~/models/x",
        "a/b/c",
        "a b/c",
        "",
        "owner/",
    ):
        assert parse_repository(text) is None, text
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert parse_repository("owner/name") is None, "a folder that is there comes first"


def test_a_model_is_fetched_once_and_then_taken_from_disk(there, tmp_path):
    first = asked(there, tmp_path)
    assert files(first["folder"]) == {"config.json", "model.safetensors"}, (
        "no pickle, no second copy of the weights"
    )
    assert first["at"] == f"{MODEL}@{'a' * 40}"
    assert first["said"][-1] == ["model.safetensors", 2_048_000, 2_048_000]
    there.asked.clear()
    again = asked(there, tmp_path)
    assert (again["folder"], again["said"]) == (first["folder"], [])
    assert not there.asked, "nothing is asked of the hub"
    assert asked(None, tmp_path, HF_HUB_OFFLINE="1")["folder"] == first["folder"]
    assert asked(None, tmp_path, name=f"{MODEL}@{'a' * 40}")["folder"] == first["folder"]


def test_a_branch_that_moves_on_is_not_followed(there, tmp_path):
    first = asked(there, tmp_path)
    there.commit = "c" * 40
    there.files[MODEL, "model.safetensors"] = b"other weights"
    assert asked(there, tmp_path)["at"] == first["at"]
    newer = asked(there, tmp_path, name=f"{MODEL}@{'c' * 40}")
    assert newer["folder"] != first["folder"]
    assert (Path(newer["folder"]) / "model.safetensors").read_bytes() == b"other weights"


def test_an_interrupted_download_goes_on_where_it_stopped(there, tmp_path):
    there.files[MODEL, "model.safetensors"] = bytes(range(256)) * 100_000
    there.left = 15_000_000
    failed = asked(there, tmp_path)
    assert "run the same command again; what was downloaded is kept" in failed["error"]
    assert len(failed["error"].splitlines()) == 1
    there.left = None
    there.asked.clear()
    found = asked(there, tmp_path)
    assert (Path(found["folder"]) / "model.safetensors").read_bytes() == there.files[
        MODEL, "model.safetensors"
    ]
    ranges = [asked_range for method, path, asked_range in there.asked if path.startswith("/store")]
    assert len(ranges) == 1
    assert int(ranges[0].removeprefix("bytes=").rstrip("-")) >= 14_000_000, ranges
    assert found["said"][0][1] > 14_000_000


def test_a_line_that_breaks_now_and_then_is_resumed(there, tmp_path):
    there.files[MODEL, "model.safetensors"] = bytes(range(256)) * 20_000
    there.breaks = [2_000_000, 1_500_000]
    found = asked(there, tmp_path)
    assert (Path(found["folder"]) / "model.safetensors").read_bytes() == there.files[
        MODEL, "model.safetensors"
    ]
    assert len([path for _, path, _ in there.asked if path.startswith("/store")]) == 3


@pytest.mark.slow
def test_a_line_that_falls_silent_is_a_line_that_broke(there, tmp_path):
    there.files[MODEL, "model.safetensors"] = bytes(range(256)) * 20_000
    there.silent = 1
    found = asked(there, tmp_path)
    assert (Path(found["folder"]) / "model.safetensors").read_bytes() == there.files[
        MODEL, "model.safetensors"
    ]
    ranges = [asked_range for _, path, asked_range in there.asked if path.startswith("/store")]
    assert len(ranges) == 2
    assert int(ranges[1].removeprefix("bytes=").rstrip("-")) > 1_000_000


@pytest.mark.slow
def test_a_busy_hub_is_asked_again_and_not_for_ever(there, tmp_path):
    there.refusals = [503, 429, 500, 502]
    assert "folder" in asked(there, tmp_path)
    there.refusals = [503] * 50
    failed = asked(there, tmp_path / "other")
    assert "503" in failed["error"]
    assert "run the same command again; what was downloaded is kept" in failed["error"]
    assert len(there.refusals) == 45
    began = time.monotonic()
    there.refusals, there.wait = [429], 2
    assert "folder" in asked(there, tmp_path / "third")
    assert time.monotonic() - began > 2, "as long as it asks for"
    there.refusals = [410]
    assert "410" in asked(there, tmp_path / "other")["error"]
    assert not there.refusals, "what is gone is not asked for again"


def test_the_token_is_for_the_hub_and_not_for_where_it_sends_us(there, tmp_path):
    asked(there, tmp_path, HF_TOKEN="hf_secretsecretsecret")
    files_asked = [
        shown
        for shown, (_, path, _) in zip(there.tokens, there.asked, strict=True)
        if "resolve" in path
    ]
    shown = {
        name: {token for server, token in files_asked if server == name}
        for name in ("hub", "store")
    }
    assert shown == {"hub": {"Bearer hf_secretsecretsecret"}, "store": {None}}


def test_two_commands_do_not_write_the_same_download(there, tmp_path):
    from filelock import FileLock

    folder = Path(asked(there, tmp_path)["folder"])
    (tmp_path / "selfreward_lite" / "downloads.json").unlink()
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        refused = asked(there, tmp_path)
    assert (
        refused["error"]
        == f"another command is downloading {MODEL}; wait until it is done, and run the same "
        "command again"
    )
    there.asked.clear()
    assert asked(there, tmp_path)["folder"] == str(folder)
    assert not [path for _, path, _ in there.asked if "resolve" in path], (
        "what lies there is right, and is kept"
    )


def test_what_the_hubs_own_cache_holds_is_not_fetched_again(there, tmp_path):
    code = (
        "from huggingface_hub import hf_hub_download as get; "
        f"[get({MODEL!r}, name, revision='main') for name in ('config.json', 'model.safetensors')]"
    )
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path),
        "HF_ENDPOINT": there.address,
        "HF_HUB_DISABLE_XET": "1",
    }
    environment.pop("HF_HUB_OFFLINE", None)
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment)
    there.asked.clear()
    found = asked(there, tmp_path)
    assert not [path for _, path, _ in there.asked if "resolve" in path]
    weights = Path(found["folder"]) / "model.safetensors"
    assert weights.read_bytes() == there.files[MODEL, "model.safetensors"]
    assert weights.is_symlink()
    cached = weights.resolve()
    for what in ("damaged", "gone"):  # that copy is, so that the file is fetched
        (tmp_path / "selfreward_lite" / "downloads.json").unlink()
        cached.write_bytes(b"x" * cached.stat().st_size) if what == "damaged" else cached.unlink()
        assert asked(there, tmp_path)["folder"] == found["folder"]
        assert weights.read_bytes() == there.files[MODEL, "model.safetensors"]
        assert not weights.is_symlink()
        weights.unlink()
        weights.symlink_to(cached)


def test_a_file_that_changed_afterwards_is_refused(there, tmp_path):
    found = asked(there, tmp_path)
    weights = Path(found["folder"]) / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[1000] ^= 1
    weights.resolve().write_bytes(data)
    assert "is not what was downloaded (its sha256 has changed)" in asked(there, tmp_path)["error"]


def test_a_file_unlike_its_announcement_is_refused_and_removed(there, tmp_path):
    there.announced[MODEL, "model.safetensors"] = "d" * 64
    assert "is not what maker/model announces (sha256)" in asked(there, tmp_path)["error"]
    del there.announced[MODEL, "model.safetensors"]
    assert "folder" in asked(there, tmp_path)


def test_a_small_file_is_compared_with_its_git_hash(there, tmp_path):
    there.announced[MODEL, "config.json"] = "d" * 40
    assert "is not what maker/model announces (git's hash)" in asked(there, tmp_path)["error"]
    del there.announced[MODEL, "config.json"]
    assert "folder" in asked(there, tmp_path)


def test_oasst1_is_compared_with_the_cited_digests(there, tmp_path):
    name = "OpenAssistant/oasst1"
    for path in CITED[name]:
        there.files[name, path] = b"rows of somebody else"
    assert (
        f"is not what {name} announces (sha256)"
        in asked(there, tmp_path, name=name, kind="dataset")["error"]
    )
    assert all(len(digest) == 64 for digest in CITED[name].values())


def test_of_a_data_set_one_kind_of_table_is_taken(there, tmp_path):
    name = "maker/rows"
    for path in (
        "data/train-00000-of-00001.parquet",
        "train.jsonl",
        "dataset_infos.json",
        "more/rows.ndjson.gz",
        ".cache/rows.jsonl",
        "rows.json",
    ):
        there.files[name, path] = path.encode()
    assert files(asked(there, tmp_path, name=name, kind="dataset")["folder"]) == {
        "data/train-00000-of-00001.parquet"
    }
    del there.files[name, "data/train-00000-of-00001.parquet"]
    there.commit = "e" * 40
    lines = {"train.jsonl", "more/rows.ndjson.gz"}
    found = files(asked(there, tmp_path / "2", name=name, kind="dataset")["folder"])
    assert found == lines
    for path in lines:
        del there.files[name, path]
    there.commit = "f" * 40
    assert files(asked(there, tmp_path / "3", name=name, kind="dataset")["folder"]) == {"rows.json"}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nobody/nothing", "neither a path here nor a public repository of the hub"),
        (f"{MODEL}@other", "no such revision"),
        ("closed/model", "accept its license on its page, and set HF_TOKEN"),
        ("maker/empty", "holds no file that can be used"),
    ],
)
def test_what_the_hub_has_not_is_one_line(there, tmp_path, name, says):
    there.files["closed/model", "config.json"] = b"{}"
    there.files["maker/empty", "README.md"] = b""
    there.closed.add("closed/model")
    found = asked(there, tmp_path, name=name, HF_TOKEN="hf_secretsecretsecret")
    assert says in found["error"]
    assert len(found["error"].splitlines()) == 1
    assert "hf_secret" not in found["error"]


def test_without_a_network_the_advice_is_a_folder(tmp_path):
    unplugged = asked(None, tmp_path)
    assert "give a folder on this machine" in unplugged["error"]
    off = asked(None, tmp_path, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE=1" in off["error"]


def test_a_disk_too_small_is_refused_before_the_download(there, tmp_path):
    code = SAYS.replace(
        "said = []",
        "import shutil; from types import SimpleNamespace\n"
        "shutil.disk_usage = lambda _: SimpleNamespace(free=1_000_000, total=10**9)\nsaid = []",
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": there.address}
    environment.pop("HF_HUB_OFFLINE", None)
    ended = subprocess.run(
        [sys.executable, "-c", code, MODEL, "model"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert "has 1.0 MB free and maker/model needs" in json.loads(ended.stdout)["error"]
    assert not [path for method, path, _ in there.asked if "resolve" in path]


def test_the_token_is_nowhere_on_disk(there, tmp_path):
    asked(there, tmp_path, HF_TOKEN="hf_secretsecretsecret")
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert b"hf_secret" not in path.read_bytes()


def test_a_damaged_list_is_said(there, tmp_path):
    asked(there, tmp_path)
    (tmp_path / "selfreward_lite" / "downloads.json").write_text("{")
    assert "is damaged; delete it" in asked(there, tmp_path)["error"]


def test_one_file_of_a_repository_is_fetched_alone(there, tmp_path):
    name = "maker/ggufs"
    for path in ("a.Q4_K_M.gguf", "a.Q8_0.gguf", "config.json"):
        there.files[name, path] = path.encode()
    found = asked(there, tmp_path, name=f"{name}/a.Q4_K_M.gguf")
    assert files(found["folder"]) == {"a.Q4_K_M.gguf"}
    assert found["at"] == f"{name}/a.Q4_K_M.gguf@{'a' * 40}"
    assert files(asked(there, tmp_path, name=f"{name}/a.Q8_0.gguf")["folder"]) == {"a.Q8_0.gguf"}, (
        "each alone"
    )
    assert "holds no file" in asked(there, tmp_path, name=f"{name}/b.gguf")["error"]


@pytest.mark.slow
def test_a_run_is_begun_from_the_hub_and_resumed_offline(there, tmp_path):
    from selfreward_lite.data.tiny import TINY_MODEL

    for path in TINY_MODEL.iterdir():
        there.files["maker/tiny", path.name] = path.read_bytes()
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": there.address}
    environment.pop("HF_HUB_OFFLINE", None)
    sizes = (
        "seed_stage.train_examples=40",
        "seed_stage.eval_prompts=10",
        "evaluation.prompts=10",
        "model.base=maker/tiny",
    )
    command = [sys.executable, "-m", "selfreward_lite", "run", "--runs-dir", str(tmp_path / "runs")]
    settings = [part for setting in sizes for part in ("--set", setting)]
    first = [*command, *settings, "--iterations", "0", "--gates", "report"]
    begun = subprocess.run(first, capture_output=True, text=True, env=environment)
    assert begun.returncode == 0, begun.stderr
    assert f"maker/tiny@{'a' * 40} in nf4" in begun.stderr
    assert "model.safetensors: 1.7 MB downloaded" in begun.stderr
    there.asked.clear()
    there.commit = "c" * 40  # the branch moves on, and the network goes
    again = subprocess.run(
        command, capture_output=True, text=True, env={**environment, "HF_HUB_OFFLINE": "1"}
    )
    assert again.returncode == 0, again.stderr
    assert "is finished: M0" in again.stderr
    assert not there.asked


def test_a_base_of_unknown_shape_is_planned_by_its_config(there, tmp_path):
    from selfreward_lite.data.tiny import TINY_MODEL

    there.files = {("maker/other", path.name): path.read_bytes() for path in TINY_MODEL.iterdir()}
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": there.address}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [
        sys.executable,
        "-m",
        "selfreward_lite",
        "plan",
        "--set",
        "model.base=maker/other",
        "--runs-dir",
        str(tmp_path),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert {path.rsplit("/", 1)[-1] for _, path, _ in there.asked if "resolve" in path} == {
        "config.json"
    }
    assert not (tmp_path / "home" / "selfreward_lite").exists(), "nothing counts as downloaded"
