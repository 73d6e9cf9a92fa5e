"""`doctor --base` and a fake hub: what would be refused, from small files and headers alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_hub import Hub, hub
from repository import ROOT
from safetensors.numpy import load_file, save_file

from selfreward_lite import config
from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.run import bases
from selfreward_lite.run.bases import choose_bases, examine_base
from selfreward_lite.system.errors import UserError

MODEL = "maker/model"


def show(*_: object) -> None:
    """Ignore the progress of a download."""


@pytest.fixture
def there() -> Iterator[Hub]:
    with hub() as found:
        found.files = {(MODEL, path.name): path.read_bytes() for path in TINY_MODEL.iterdir()}
        yield found


def examine(there: Hub, home: Path, *names: str) -> tuple[subprocess.CompletedProcess[str], list]:
    """What `doctor --base` printed, and its document."""
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_ENDPOINT": there.address, "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "selfreward_lite", "doctor", "--base", *names]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    lines = ended.stdout.splitlines()
    return ended, json.loads(lines[-1]) if lines else []


def change_weights(there: Hub, folder: Path, **changed: np.ndarray | None) -> None:
    """Replace tensors of the model on the hub, or remove them."""
    (folder / "old").write_bytes(there.files[MODEL, "model.safetensors"])
    tensors = {**load_file(folder / "old"), **changed}
    save_file({name: one for name, one in tensors.items() if one is not None}, folder / "new")
    there.files[MODEL, "model.safetensors"] = (folder / "new").read_bytes()


def test_a_base_is_checked_without_its_weights(there: Hub, tmp_path: Path) -> None:
    ended, (found,) = examine(there, tmp_path / "home", MODEL)
    assert ended.returncode == 0, ended.stderr
    assert (found["what"], found["state"]) == (MODEL, "good")
    assert (
        "LlamaForCausalLM, 0.00 billion weights, vocabulary 542, turns end with <|eot_id|>"
        in (found["words"])
    )
    here = {path.name for path in (tmp_path / "home").rglob("*") if path.is_file()}
    assert "config.json" in here
    assert "model.safetensors" not in here


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        (
            "stray.weight",
            np.zeros(3, np.float16),
            "tensor stray.weight is not part of such a model",
        ),
        ("model.norm.weight", None, "1 tensors are missing, first model.norm.weight"),
        ("model.norm.weight", np.zeros(3, np.float16), "model.norm.weight has shape (3,), config"),
    ],
)
@pytest.mark.slow
def test_tensors_are_checked_by_their_headers(
    there: Hub, tmp_path: Path, name: str, tensor: np.ndarray | None, words: str
) -> None:
    change_weights(there, tmp_path, **{name: tensor})
    ended, (found,) = examine(there, tmp_path / "home", MODEL)
    assert ended.returncode == 2
    assert found["state"] == "bad"
    assert words in found["words"]
    assert f"a run would refuse {MODEL}" in ended.stderr


@pytest.mark.slow
def test_all_that_is_wrong_is_said_of_each_base(there: Hub, tmp_path: Path) -> None:
    wrong = json.dumps({"architectures": ["MixtralForCausalLM"]}).encode()
    there.files |= {("maker/wrong", "config.json"): wrong}
    there.files |= {("maker/pickle", path.name): path.read_bytes() for path in TINY_MODEL.iterdir()}
    del there.files["maker/pickle", "model.safetensors"]
    there.files["maker/broken", "config.json"] = there.files[MODEL, "config.json"]
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        there.files["maker/broken", name] = there.files[MODEL, name]
    there.files["maker/broken", "model.safetensors"] = b"nonsense" * 9
    names = ["maker/wrong", "maker/pickle", "maker/broken", "maker/none", MODEL]
    ended, found = examine(there, tmp_path / "home", *names)
    assert [one["state"] for one in found] == ["bad"] * 4 + ["good"]
    for one, words in zip(
        found,
        [
            "MixtralForCausalLM is no family that is supported",
            "has no model.safetensors: its weights are in another form",
            "model.safetensors holds no weights",
            "neither a path here nor a public repository of the hub",
            "can be used",
        ],
        strict=True,
    ):
        assert words in one["words"]
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_weights_in_parts_are_found_by_their_index(there: Hub, tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(there.files.pop((MODEL, "model.safetensors")))
    tensors, weight_map = load_file(tmp_path / "old"), {}
    for number, names in enumerate((sorted(tensors)[:9], sorted(tensors)[9:])):
        save_file({name: tensors[name] for name in names}, tmp_path / "part")
        there.files[MODEL, f"model-{number}.safetensors"] = (tmp_path / "part").read_bytes()
        weight_map |= dict.fromkeys(names, f"model-{number}.safetensors")
    index = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    there.files[MODEL, "model.safetensors.index.json"] = index
    ended, (found,) = examine(there, tmp_path / "home", MODEL)
    assert ended.returncode == 0, ended.stderr
    del there.files[MODEL, "model-1.safetensors"]
    _, (found,) = examine(there, tmp_path / "home", MODEL)
    assert "has no model-1.safetensors" in found["words"]


def test_by_default_the_bases_of_all_presets_are_checked() -> None:
    found = choose_bases([])
    wanted = {config.load(name).model.base for name in config.presets()}
    assert set(found) == wanted - {"tiny", "smollm2"}
    assert all("/" in base for base in found)


def test_a_name_is_a_preset_or_a_base() -> None:
    found = choose_bases(["tiny", MODEL])
    assert set(found) == {"tiny", MODEL}
    assert found[MODEL].preset == bases.OTHERS
    assert found[MODEL].model.base == MODEL


def test_a_base_on_this_machine_is_checked_whole() -> None:
    settings = config.load("tiny")
    assert examine_base("tiny", settings, show).state == "good"
    file = f"{MODEL}/small.Q8_0.gguf"
    found = examine_base(file, settings.with_values("model", base=file), show)
    assert (found.state, "after its download" in found.words) == ("note", True)
    part = f"{MODEL}/small-00001-of-00002.gguf"
    assert "one part of a split GGUF" in examine_base(part, settings, show).words


def test_names_without_the_option_are_refused() -> None:
    from selfreward_lite.cli.main import check_machine

    with pytest.raises(UserError, match="names are for `doctor --base`"):
        check_machine([MODEL])
