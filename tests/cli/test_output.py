"""What a terminal and a pipe show of a stage: a bar while it works, one line that stays when it has ended."""

import io
from collections import Counter

from rich.console import Console

from selfreward_lite.cli.output import Display
from selfreward_lite.run.ask import Progress


def shown(terminal: bool) -> str:
    out = io.StringIO()
    with Display(Console(file=out, force_terminal=terminal, width=100, color_system=None)) as watch:
        for done in range(11):
            drops = Counter({"equal to another": done})
            watch(
                Progress(
                    1,
                    "responses",
                    10,
                    done=done,
                    tokens=100 * done,
                    seconds=0.5 * done,
                    drops=drops,
                )
            )
            watch(Progress(1, "battles", 5, done=1))
    return out.getvalue()


def test_a_finished_stage_stays_as_one_line_with_rate_and_drops():
    for terminal in (True, False):
        text = shown(terminal)
        assert text.count("M1 responses: 10/10 in 5.0 s") == 1
        assert "200 tokens/s  dropped: 10 equal to another" in text


def test_a_terminal_shows_bars_whose_numbers_are_whole():
    text = shown(terminal=True)
    assert "M1 battles" in text
    assert "1/5" in text
    assert "…" not in text
    assert "M1 battles" not in shown(terminal=False), "a pipe is not told every step"
