"""pip in a child: how far a build is, and the line that says why it failed."""

import sys

import pytest

from selfreward_lite.system import pip

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
OFFLINE = """WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(
'<HTTPSConnection>: Failed to establish a new connection: [Errno -2] Name or service not known')'
ERROR: Could not find a version that satisfies the requirement llama-cpp-python==0.3.36
ERROR: No matching distribution found for llama-cpp-python==0.3.36
"""


@pytest.fixture
def acts(tmp_path, monkeypatch):
    """pip, played by a program that prints a text and ends with a code."""
    monkeypatch.setattr(pip.tempfile, "gettempdir", lambda: str(tmp_path))

    def act(text: str, code: int) -> list[str]:
        (tmp_path / "text").write_text(text)
        (tmp_path / "python").write_text(
            f'#!/bin/sh\necho "$@" > {tmp_path}/asked\ncat {tmp_path}/text\nexit {code}\n'
        )
        (tmp_path / "python").chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
        said: list[str] = []
        pip.run_pip("wheel", "llama-cpp-python", say=said.append, CMAKE_ARGS="-DX=1")
        return said

    return act


def test_the_cause_is_one_line_with_the_place_of_the_log(acts, tmp_path):
    with pytest.raises(pip.Failed) as failed:
        acts(FAILURE, 1)
    assert str(failed.value) == (
        "pip wheel failed: CMake Error at vendor/llama.cpp/ggml/src/ggml-cuda/CMakeLists.txt:178 "
        f"(target_link_libraries): (full log: {tmp_path / pip.LOG})"
    )
    assert (tmp_path / pip.LOG).read_text() == FAILURE
    assert (tmp_path / "asked").read_text().startswith("-m pip wheel llama-cpp-python")


def test_a_build_says_how_far_it_is_in_at_most_twenty_lines(acts):
    lines = [f"  [{done}/339] Building CUDA object {done}.cu.o" for done in range(1, 340)]
    said = acts("\n".join(lines), 0)
    assert len(said) == pip.PARTS
    assert said[0] == "compiled 17 of 339 files"
    assert said[-1] == "compiled 339 of 339 files"


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (
            "nvcc fatal   : Unsupported gpu architecture 'compute_120'\nninja: build stopped",
            "nvcc fatal   : Unsupported gpu architecture 'compute_120'",
        ),
        ("a.h:1: error: #error -- unsupported GNU version!\nx", "unsupported GNU version!"),
        ("c++: fatal error: Killed signal terminated program cc1plus", "Killed signal"),
        ("/usr/bin/ld: cannot find -lcublas: No such file", "cannot find -lcublas"),
        ("OSError: [Errno 28] No space left on device", "No space left"),
        (OFFLINE, "Name or service not known"),
        ("ERROR: No matching distribution found for x==1", "No matching distribution"),
    ],
)
def test_causes_of_every_kind_are_found(text, cause):
    assert cause in (pip.find_cause(text.splitlines()) or "")


def test_without_a_known_cause_it_is_the_last_line(acts):
    with pytest.raises(pip.Failed, match="pip wheel failed: so it ends"):
        acts("error: subprocess-exited-with-error\nso it ends\n", 1)
    with pytest.raises(pip.Failed, match="it printed nothing"):
        acts("", 1)


def test_the_log_keeps_every_attempt_and_a_cause_is_of_the_last(acts):
    for text in (FAILURE, "another reason\n"):
        with pytest.raises(pip.Failed) as failed:
            acts(text, 1)
    assert "another reason" in str(failed.value)
    assert pip.find_log().read_text() == FAILURE + "another reason\n"
