"""Ruff and mypy find nothing; nothing unsafe, no forbidden words."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        pytest.param(["mypy"], marks=pytest.mark.slow),  # a minute without its cache
    ],
    ids=" ".join,
)
def test_checkers_find_nothing(command):
    ended = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, cwd=ROOT
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_no_pickle_no_remote_code_no_share():
    for path in (ROOT / "selfreward_lite").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for banned in ("import pickle", "trust_remote_code", "share=True", "torch.load("):
            assert banned not in text, f"{path.name}: {banned}"


# Words that a newcomer stumbles over; docs/CONTRIBUTING.md asks for plain English.
FORBIDDEN = re.compile(
    r"\b(mend(s|ed|ing)?|gone on with|held against|laid over|whoever|tripwires|beforehand)\b",
    re.IGNORECASE,
)
TEXTS = {
    path
    for pattern in (
        "selfreward_lite/**/*.*",
        "notebooks/*.ipynb",
        "docs/*.md",
        "*.md",
        "*.py",
        "*.txt",
        "*.toml",
    )
    for path in ROOT.glob(pattern)
    if path.suffix in {".py", ".md", ".toml", ".txt", ".html", ".ipynb"}
    and "__pycache__" not in path.parts
}


def test_no_forbidden_words():
    assert len(TEXTS) > 100
    found = {
        str(path.relative_to(ROOT)): [match[0] for match in FORBIDDEN.finditer(text)]
        for path in sorted(TEXTS)
        if FORBIDDEN.search(text := path.read_text(encoding="utf-8"))
    }
    assert not found
