"""The wheel: it holds its data files, and a run works from any folder."""

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE")
DATA_FILES = (
    *(f"config/presets/{name}.toml" for name in ("overnight", "paper", "small", "t4", "tiny")),
    *(f"method/prompts/{name}/judge.txt" for name in ("compact", "llama3", "short")),
    "method/canaries.jsonl",
    "method/decoys.jsonl",
    "report/page.html",
    "data/tiny/model/config.json",
    "data/tiny/model/model.safetensors",
    "data/tiny/model/tokenizer.json",
)
# A model that few examples make is not good, but all of the package makes it.
SMALL = (
    "prompts.count=24",
    "responses.count=3",
    "judge.count=3",
    "seed_stage.train_examples=60",
    "seed_stage.eval_prompts=20",
    "evaluation.prompts=20",
    "evaluation.canary_judgments=2",
    "evaluation.outside_prompts=10",
)


def call(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=cwd)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy, so that the checkout stays clean."""
    folder = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        shutil.copy(ROOT / name, folder)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "selfreward_lite", folder / "selfreward_lite", ignore=ignored)
    call(sys.executable, "-m", "build", "--wheel", "--no-isolation", cwd=folder)
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.mark.slow
def test_wheel_holds_every_file_of_the_package(wheel):
    call(sys.executable, "-m", "twine", "check", "--strict", wheel, cwd=wheel.parent)
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {f"selfreward_lite/{name}" for name in DATA_FILES} <= held
    package = ROOT / "selfreward_lite"
    files = {f"selfreward_lite/{path.relative_to(package)}" for path in package.rglob("*.*")}
    assert not {name for name in files - held if "__pycache__" not in name}


@pytest.mark.slow
def test_installed_package_runs_from_an_empty_folder(wheel, tmp_path):
    environment, empty = tmp_path / "environment", tmp_path / "empty"
    venv.create(environment, system_site_packages=True)
    paths = {"base": str(environment), "platbase": str(environment)}
    site_packages = Path(sysconfig.get_path("purelib", "venv", paths))
    # The packages of the test's own environment, which may be virtual too: nothing is downloaded.
    (site_packages / "tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python, script = environment / "bin" / "python", environment / "bin" / "selfreward-lite"
    call(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    empty.mkdir()
    code = "import selfreward_lite; print(selfreward_lite.__file__)"
    assert Path(call(python, "-c", code, cwd=empty).stdout.strip()).is_relative_to(environment)

    options = [word for setting in SMALL for word in ("--set", setting)]
    ended = call(script, "run", "--iterations", "1", "--gates", "report", *options, cwd=empty)
    rows = json.loads(ended.stdout.splitlines()[-1])["iterations"]
    assert [row["iteration"] for row in rows] == [0, 1]
    assert {path.name for path in empty.iterdir()} == {"runs"}
    assert (empty / "runs" / "tiny" / "M1" / "adapter.gguf").exists()
    call(script, "verify", cwd=empty)
    call(script, "report", "tiny", cwd=empty)
