"""llama.cpp for the GPU: a kept wheel first, else compiled and kept; with a fake pip."""

import json
import subprocess
from pathlib import Path

import pytest
from machines import PINS, RTX, T4
from typer.testing import CliRunner

from selfreward_lite.cli import main
from selfreward_lite.system import doctor, llama_build
from selfreward_lite.system.errors import UserError

WHEEL = f"llama_cpp_python-{PINS['llama-cpp-python']}-py3-none-linux_x86_64.whl"
GOOD = doctor.Finding("llama.cpp", "good", "puts every layer on the GPU")
BAD = doctor.Finding("llama.cpp", "bad", "does not use the GPU", "by hand")

# As pip 23.2 writes it of a build that fails.
FAILURE = """Collecting llama-cpp-python==0.3.36
  Building wheel for llama-cpp-python (pyproject.toml): finished with status 'error'
  error: subprocess-exited-with-error
  × Building wheel for llama-cpp-python (pyproject.toml) did not run successfully.
      -- Configuring done
      CMake Error at vendor/llama.cpp/ggml/src/ggml-cuda/CMakeLists.txt:178 (target_link_libraries):
      *** CMake configuration failed
  note: This error originates from a subprocess, and is likely not a problem with pip.
  ERROR: Failed building wheel for llama-cpp-python
ERROR: Failed to build one or more wheels
"""


class Pip:
    """Replaces nvcc, which prints a version, and pip, which makes a wheel; `fails` names faults."""

    def __init__(self, monkeypatch, found: list[doctor.Finding], there=(T4,)) -> None:
        self.asked: list[list[str]] = []
        self.environments: list[dict] = []
        self.fails: set[str] = set()
        monkeypatch.setattr(subprocess, "run", self.run)
        monkeypatch.setattr(llama_build, "list_gpus", lambda: list(there))
        monkeypatch.setattr(doctor, "llama_finding", lambda wanted, cards: found.pop(0))

    def run(self, command, **named):
        if command[-1] == "--version":
            if "nvcc" in self.fails:
                raise FileNotFoundError
            return subprocess.CompletedProcess(
                command, 0, "Cuda compilation runtime, release 12.5, V12.5.82\n", ""
            )
        self.asked.append(command[3:-1])
        self.environments.append(named["env"])
        if command[3] in self.fails:
            named["stdout"].write(FAILURE)
            return subprocess.CompletedProcess(command, 1)
        if command[3] == "wheel":
            (Path(command[command.index("-w") + 1]) / WHEEL).write_text("compiled")
        return subprocess.CompletedProcess(command, 0)


def test_working_build_is_kept(monkeypatch, tmp_path):
    pip = Pip(monkeypatch, [GOOD])
    assert llama_build.install([tmp_path], print) == GOOD
    assert not pip.asked


def test_wheel_is_compiled_and_kept_in_the_last_folder(monkeypatch, tmp_path):
    pip, said = Pip(monkeypatch, [BAD, GOOD]), []
    assert llama_build.install([tmp_path / "readonly", tmp_path / "kept"], said.append) == GOOD
    assert [asked[0] for asked in pip.asked] == ["wheel", "install"]
    assert f"llama-cpp-python=={PINS['llama-cpp-python']}" in pip.asked[0]
    flags = pip.environments[0]["CMAKE_ARGS"]
    assert "-DGGML_CUDA=on" in flags
    assert "-DCMAKE_CUDA_ARCHITECTURES=75" in flags
    assert "-DGGML_NATIVE=off" in flags, "another machine's CPU may lack instructions"
    assert (tmp_path / "kept" / "sm75-cuda12" / WHEEL).read_text() == "compiled"
    assert not (tmp_path / "readonly").exists()
    assert "a quarter of an hour or more" in said[0]


def test_kept_wheel_is_installed(monkeypatch, tmp_path):
    folder = tmp_path / "kept" / "sm75-cuda12"
    folder.mkdir(parents=True)
    (folder / WHEEL).write_text("kept")
    pip = Pip(monkeypatch, [BAD, GOOD])
    assert llama_build.install([tmp_path / "other", tmp_path / "kept"], print) == GOOD
    assert pip.asked == [["install", "--force-reinstall", "--no-deps", str(folder / WHEEL)]]
    assert not (tmp_path / "other").exists()


def test_wheel_from_an_input_is_kept_too(monkeypatch, tmp_path):
    """From a flat folder, as pip uses, or a kept one; the last folder then has it too."""
    for number, place in enumerate(("", "sm75-cuda12")):
        folder, kept = tmp_path / f"input{number}" / place, tmp_path / f"kept{number}"
        folder.mkdir(parents=True)
        (folder / WHEEL).write_text("input")
        pip = Pip(monkeypatch, [BAD, GOOD])
        assert llama_build.install([tmp_path / f"input{number}", kept], print) == GOOD
        assert [asked[0] for asked in pip.asked] == ["install"]
        assert (kept / "sm75-cuda12" / WHEEL).read_text() == "input"


@pytest.mark.parametrize(
    "place",
    [f"sm89-cuda12/{WHEEL}", f"sm75-cuda13/{WHEEL}", "sm75-cuda12/llama_cpp_python-0.1.0-any.whl"],
)
def test_wheel_for_another_gpu_cuda_or_version_is_not(monkeypatch, tmp_path, place):
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_text("other")
    pip = Pip(monkeypatch, [BAD, GOOD])
    llama_build.install([tmp_path], print)
    assert [asked[0] for asked in pip.asked] == ["wheel", "install"]


def test_kept_wheel_that_does_not_work_is_replaced(monkeypatch, tmp_path):
    folder = tmp_path / "sm75-cuda12"
    folder.mkdir()
    (folder / WHEEL).write_text("broken")
    Pip(monkeypatch, [BAD, BAD, GOOD])
    said: list[str] = []
    assert llama_build.install([tmp_path], said.append) == GOOD
    assert (folder / WHEEL).read_text() == "compiled"
    assert any("does not work here" in line for line in said)


def test_wheel_that_does_not_work_is_not_kept(monkeypatch, tmp_path):
    Pip(monkeypatch, [BAD, BAD])
    assert llama_build.install([tmp_path], print) == BAD
    assert not list(tmp_path.rglob("*.whl"))


def test_without_a_gpu_the_cpu_build_is_installed(monkeypatch, tmp_path):
    pip = Pip(monkeypatch, [BAD, GOOD], there=())
    assert llama_build.install([tmp_path], print) == GOOD
    assert pip.asked == [["install", f"llama-cpp-python=={PINS['llama-cpp-python']}"]]
    assert not list(tmp_path.iterdir())


def test_failures_are_one_line(monkeypatch, tmp_path):
    pip = Pip(monkeypatch, [BAD, BAD], there=(RTX,))
    pip.fails = {"wheel"}
    with pytest.raises(
        UserError, match=r"pip wheel failed: CMake Error at .*:178 .*\(full log: .*-pip.log\)"
    ):
        llama_build.install([tmp_path], print)
    pip.fails = {"nvcc"}
    with pytest.raises(UserError, match="no CUDA compiler .nvcc. here"):
        llama_build.install([tmp_path], print)


def test_command_reports_the_result(monkeypatch, tmp_path):
    Pip(monkeypatch, [GOOD])
    done = CliRunner().invoke(main.app, ["llama", "--wheels", str(tmp_path)])
    assert json.loads(done.stdout.splitlines()[-1])["state"] == "good"
    Pip(monkeypatch, [BAD, BAD])
    failed = CliRunner().invoke(main.app, ["llama"])
    assert isinstance(failed.exception, UserError)
    assert "does not use the GPU; by hand: by hand" in str(failed.exception)
