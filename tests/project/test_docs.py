"""Documents: generated pages are up to date, links and paths lead somewhere."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/log").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
PATH = re.compile(r"`((?:selfreward_lite|tests|docs|notebooks|\.ci)/[\w./-]+)`")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def prose(page: Path) -> str:
    """The text of a page without its code blocks."""
    return CODE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading).lower() for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


def test_generated_pages_are_up_to_date():
    ended = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], capture_output=True, text=True, cwd=ROOT
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for link in LINK.findall(prose(page)):
        if "://" in link or link.startswith("mailto:"):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), link
        assert not anchor or anchor in anchors(path), link


@pytest.mark.parametrize("page", [one for one in PAGES if one.parent.name != "log"], ids=name)
def test_named_paths_exist(page):
    for path in PATH.findall(prose(page)):
        assert (ROOT / path).exists(), path


def test_every_finding_of_the_gpu_path_has_tests_that_exist():
    """By file and name; a name without a file is in the file of the name before it."""
    page = (ROOT / "docs" / "log" / "card.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (F\d+b?) (.*)$", page, re.MULTILINE)
    tested = set()
    for finding, row in rows:
        path, tests = "", re.findall(r"`(tests/[\w/]+\.py)?::(\w+)`", row)
        tested.update([finding] if tests else [])
        for file, test in tests:
            path = file or path
            assert f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{test}"
    assert tested == {*(f"F{number}" for number in range(1, 28)), "F9b"}


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 200


def test_the_command_of_the_tests_stands_on_a_line_of_its_own():
    """`.ci/run` takes it from there, so that what a newcomer types is what is tested."""
    lines = README.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if "pytest" in line] == [
        "pip install -r requirements.txt && python -m pytest"
    ]


def test_rented_machines_need_only_the_readmes_commands():
    text = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    (sky,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (slurm,) = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    task = yaml.safe_load(sky)
    assert task.keys() == {"workdir", "resources", "file_mounts", "setup", "run"}
    commands = re.findall(
        r"^(?:pip install|python -m selfreward_lite) \S+",
        "\n".join((task["setup"], task["run"], slurm)),
        re.MULTILINE,
    )
    assert len(commands) == 5
    readme = README.read_text(encoding="utf-8")
    assert [one for one in commands if one not in readme] == []
    assert slurm.startswith("#!/bin/bash\n")
    assert len(slurm.splitlines()) == 5
