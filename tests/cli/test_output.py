"""Output: bars on a terminal, lines in a pipe, tables without markup, JSON on stdout."""

import io
import json
from collections import Counter

from rich.console import Console

from selfreward_lite.cli import output
from selfreward_lite.cli.output import Display
from selfreward_lite.run.ask import Progress
from selfreward_lite.system.machine import Finding


def shown(terminal: bool) -> str:
    out = io.StringIO()
    with Display(Console(file=out, force_terminal=terminal, width=100, color_system=None)) as watch:
        for done in range(11):
            drops = Counter({"equal to another": done})
            at = Progress(
                1, "responses", 10, done, tokens=100 * done, seconds=done / 2, drops=drops
            )
            watch(at)
            watch(Progress(1, "battles", 5, done=1))
    return out.getvalue()


def test_a_finished_stage_stays_as_one_line():
    for terminal in (True, False):
        text = shown(terminal)
        assert text.count("M1 responses: 10/10 in 5.0 s") == 1
        assert "200 tokens/s  dropped: 10 equal to another" in text


def test_a_terminal_shows_bars_with_complete_numbers():
    text = shown(terminal=True)
    assert "M1 battles" in text
    assert "1/5" in text
    assert "…" not in text
    assert "M1 battles" not in shown(terminal=False), "a pipe does not get every step"


def test_tables_show_brackets_as_they_are(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(output, "console", Console(file=out, width=60))
    output.print_table(["[red]head", "b"], [["[/x] :smile:", "1"], [], ["c", "2"]], "[bold]title")
    for text in ("[red]head", "[/x] :smile:", "[bold]title"):
        assert text in out.getvalue()
    lines = out.getvalue().splitlines()
    assert sum(set(line) <= set("├┼┤─") for line in lines) == 1, "the empty row is a line"
    output.print_table(["a"], [])
    assert out.getvalue().splitlines() == lines, "a table without rows is not printed"


def test_findings_say_their_state_without_colors_too(monkeypatch, capsys):
    out = io.StringIO()
    monkeypatch.setattr(output, "console", Console(file=out, width=60, color_system=None))
    found = [
        Finding("GPU", "note", "one is here and its driver is not", "apt install …"),
        Finding("torch", "bad", "sees no GPU"),
    ]
    assert output.print_findings(found) == ["torch"]
    first, last = out.getvalue().splitlines()
    assert first.split()[:3] == ["GPU", "note", "one"]
    assert last.split() == ["torch", "bad", "sees", "no", "GPU"]
    assert [one["state"] for one in json.loads(capsys.readouterr().out)] == ["note", "bad"]


def test_documents_are_one_line_of_json(capsys):
    output.emit({"a": [1, None], "text": "two\nlines"})
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert json.loads(line) == {"a": [1, None], "text": "two\nlines"}
