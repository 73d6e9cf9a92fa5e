"""Child processes: what they print that is no message, how they end, what they may import."""

import os
import sys
from pathlib import Path

from selfreward_lite.system import processes
from selfreward_lite.system.processes import DEATH, JsonProcess
from selfreward_lite.training import worker

CHILD = """
import json, sys
print("Welcome to a library")
print(json.dumps(["no", "object"]))
print(json.dumps({"answer": 1}))
sys.stdout.write('{"answer": 2')
"""


def child_of(tmp_path: Path, code: str) -> JsonProcess:
    (tmp_path / "chatty.py").write_text(code)
    return JsonProcess("chatty", env={**os.environ, "PYTHONPATH": str(tmp_path)})


def test_lines_that_are_no_messages_neither_end_nor_hang_it(tmp_path):
    child = child_of(tmp_path, CHILD)
    assert child.messages.get(timeout=30) == {"answer": 1}
    assert child.messages.get(timeout=30) == {DEATH: True}
    assert child.reap() == 0
    assert "Welcome to a library" in child.lines
    assert '{"answer": 2' in child.lines, "a message that a death cut off"


def test_a_file_of_the_current_folder_hides_nothing_from_a_child(tmp_path):
    (tmp_path / "pydantic.py").write_text("raise SystemExit('hidden')")
    child = ("selfreward_lite.training.worker", worker.BARE)  # it ends when its input does
    env = processes.child_environment()
    ended = processes.run_module(*child, cwd=tmp_path, env=env)
    assert (ended.returncode, ended.stderr) == (0, "")
    del env["PYTHONSAFEPATH"]
    ended = processes.run_module(*child, cwd=tmp_path, env=env)
    assert ended.stderr == "hidden\n", "the file would hide it otherwise"


def test_only_a_checkout_is_put_before_the_standard_library(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    root = str(Path(processes.__file__).parents[2])
    assert processes.child_environment()["PYTHONPATH"] == root
    installed = tmp_path / "site-packages" / "selfreward_lite" / "system" / "processes.py"
    monkeypatch.setattr(processes, "__file__", str(installed))
    assert "PYTHONPATH" not in processes.child_environment()


def test_a_module_that_ran_is_read_as_utf_8():
    ended = processes.run_module("this", env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "1"})
    assert ended.returncode == 0
    assert sys.executable in ended.args
