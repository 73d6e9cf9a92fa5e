"""The table of faults in docs/reliability.md: its tests exist, as many as it says."""

import re
import subprocess
import sys

import pytest
from repository import ROOT

ROW = re.compile(r"\| (?P<fault>[^|]+) \| (?P<tests>`[^|]+) \| (?P<count>[^|]+) \|")
PART = re.compile(r"`(?P<file>\w+/test_\w+\.py)`(?:: `(?P<names>[^`]+)`)?")


def read_rows() -> dict[str, tuple[list[tuple[str, str]], str]]:
    """The tests of each fault, as files with names; and how many they are, or other words."""
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    table = text.partition("## Every fault, how often")[2].partition("\n## ")[0]
    return {row["fault"]: (PART.findall(row["tests"]), row["count"]) for row in ROW.finditer(table)}


@pytest.mark.slow  # half a minute: all test files are imported
def test_every_row_of_the_table_counts_its_tests():
    rows = read_rows()
    assert len(rows) > 30
    files = sorted({f"tests/{file}" for parts, _ in rows.values() for file, _ in parts})
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "--collect-only", "-m", ""]
    ended = subprocess.run([*command, *files], capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stdout[-2000:]
    found = [line for line in ended.stdout.splitlines() if "::" in line]

    def count(file: str, names: str) -> int:
        of_file = [one.partition("::")[2] for one in found if one.startswith(f"tests/{file}::")]
        return sum(any(name in one for name in names.split(" or ")) for one in of_file)

    wrong = {}
    for fault, (parts, expected) in rows.items():
        counts = [count(*part) for part in parts]
        if not all(counts) or (expected.isdigit() and sum(counts) != int(expected)):
            wrong[fault] = (expected, counts)
    assert not wrong
