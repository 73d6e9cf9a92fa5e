"""pyproject.toml and the requirements files name the same packages."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements(text: str) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("-r")]


def test_requirements_agree_with_pyproject():
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    run_time, tests = text.split("\n# tests\n")
    assert requirements(run_time) == PROJECT["dependencies"]
    assert requirements(tests) == PROJECT["optional-dependencies"]["dev"]


def test_gpu_requirements_agree_with_pyproject():
    text = (ROOT / "requirements-gpu.txt").read_text(encoding="utf-8")
    assert "-r requirements.txt" in text.splitlines()
    assert requirements(text) == PROJECT["optional-dependencies"]["gpu"]
