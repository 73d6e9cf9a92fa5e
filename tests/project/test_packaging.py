"""pyproject.toml and the requirements files name the same packages."""

import re
import tomllib
from pathlib import Path

import llama_server

from selfreward_lite.system import fixes

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements(text: str) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_requirements_agree_with_pyproject():
    run_time, tests = read("requirements.txt").split("\n# tests\n")
    assert requirements(run_time) == PROJECT["dependencies"]
    assert requirements(tests) == PROJECT["optional-dependencies"]["dev"]


def test_gpu_requirements_agree_with_pyproject():
    llama = [one for one in PROJECT["dependencies"] if one.startswith("llama-cpp-python==")]
    assert len(llama) == 1
    common = [one for one in PROJECT["dependencies"] if one not in llama]
    expected = [*common, *PROJECT["optional-dependencies"]["gpu"]]
    assert requirements(read("requirements-gpu.txt")) == expected


def test_pip_never_compiles_llama_cpp_for_the_cpu_on_a_gpu_machine():
    """`python -m selfreward_lite llama` installs it there; pip's own build would be thrown away."""
    assert "llama" not in "\n".join(requirements(read("requirements-gpu.txt")))
    assert [line for line in requirements(read("requirements.txt")) if "llama" in line]


def test_users_and_the_tests_of_unsloth_have_one_version():
    pins = [line for line in requirements(read("requirements-gpu.txt")) if "unsloth" in line]
    assert len(pins) == 2
    assert "pip install --no-deps $(grep ^unsloth requirements-gpu.txt)" in read(".ci/run")
    for name in ("docs/your-gpu.md", "tests/training/test_unsloth.py"):
        named = set(re.findall(r"unsloth\w*(?:==| )(20\d\d\.\d+\.\d+)", read(name)))
        assert named, name
        assert named <= {pin.split("==")[1] for pin in pins}, name


def test_the_torchao_that_doctor_names_is_the_pinned_one():
    pinned = [one for one in requirements(read("requirements-gpu.txt")) if "torchao" in one]
    assert [fixes.TORCHAO.split()[-1]] == pinned


def test_the_source_of_llama_server_is_that_of_the_pinned_engine():
    """Its sha256 is part of the tests that compile it, so a new pin needs a new one."""
    assert llama_server.find_pin() in llama_server.SHA256
