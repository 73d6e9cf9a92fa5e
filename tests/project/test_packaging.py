"""pyproject.toml and the requirements files name the same packages."""

import re
import tomllib
from pathlib import Path

import llama_server

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements(text: str) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("-r")]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_requirements_agree_with_pyproject():
    run_time, tests = read("requirements.txt").split("\n# tests\n")
    assert "-r requirements-common.txt" in run_time.splitlines()
    common = requirements(read("requirements-common.txt"))
    assert [*common, *requirements(run_time)] == PROJECT["dependencies"]
    assert requirements(tests) == PROJECT["optional-dependencies"]["dev"]


def test_gpu_requirements_agree_with_pyproject():
    text = read("requirements-gpu.txt")
    assert "-r requirements-common.txt" in text.splitlines()
    assert requirements(text) == PROJECT["optional-dependencies"]["gpu"]


def test_pip_never_compiles_llama_cpp_for_the_cpu_on_a_gpu_machine():
    """`python -m selfreward_lite llama` installs it there; pip's own build would be thrown away."""
    for name in ("requirements-common.txt", "requirements-gpu.txt"):
        assert "llama" not in "\n".join(requirements(read(name))), name
    assert [line for line in requirements(read("requirements.txt")) if "llama" in line]


def test_users_and_the_tests_of_unsloth_have_one_version():
    pins = [line for line in requirements(read("requirements-gpu.txt")) if "unsloth" in line]
    assert len(pins) == 2
    assert "pip install --no-deps $(grep ^unsloth requirements-gpu.txt)" in read(".ci/run")
    for name in ("docs/your-gpu.md", "tests/training/test_unsloth.py"):
        named = set(re.findall(r"unsloth\w*(?:==| )(20\d\d\.\d+\.\d+)", read(name)))
        assert named, name
        assert named <= {pin.split("==")[1] for pin in pins}, name


def test_the_source_of_llama_server_is_that_of_the_pinned_engine():
    """Its sha256 is part of the tests that compile it, so a new pin needs a new one."""
    assert llama_server.find_pin() in llama_server.SHA256
