"""Ruff and mypy find nothing; no path or name leaks in; the README's tree is the real one."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", [["ruff", "check", "."], ["mypy"]])
def test_checkers_find_nothing(command):
    ended = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, cwd=ROOT
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_every_path_in_the_readme_exists():
    for name in re.findall(r"`((?:selfreward_lite|tests|\.ci)/[\w./]+)`", README):
        assert (ROOT / name).exists(), name


def test_no_pickle_no_remote_code_no_share():
    for path in (ROOT / "selfreward_lite").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for banned in ("import pickle", "trust_remote_code", "share=True", "torch.load("):
            assert banned not in text, f"{path.name}: {banned}"
