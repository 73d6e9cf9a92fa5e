"""Shared by the notebooks: run a command in a cell, show a run as tables and figures.

A table shows a model's text as text: it is escaped, and no formula is made of it.
"""

from __future__ import annotations

import io
import json
import signal
import subprocess
import tempfile
from typing import TYPE_CHECKING, Any

import pandas as pd

from selfreward_lite.data.records import Judgment, Prompt, Response, ResponsePair
from selfreward_lite.data.store import Store
from selfreward_lite.report import passport, tasks
from selfreward_lite.report.summary import Table, load_training_judgments
from selfreward_lite.system.processes import child_environment, start_module

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 120  # characters a line, since a cell has no terminal width
# Set by notebook kernels; with them a progress bar would be drawn again on every line.
TERMINAL = ("FORCE_COLOR", "CLICOLOR_FORCE")


class Stopped(Exception):
    """A command failed: "Run all" ends here. Shown as one line, below the output of the command."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


def command(*arguments: str) -> Any:
    """Run a command of the project, show its output live, and return the JSON document at its end.

    Raises Stopped if it fails. Interrupting the cell interrupts the command, which keeps its work.
    """
    environment = child_environment() | {"COLUMNS": str(COLUMNS), "PYTHONUNBUFFERED": "1"}
    environment = {name: value for name, value in environment.items() if name not in TERMINAL}
    with tempfile.TemporaryFile("w+") as answer:
        with start_module(
            "selfreward_lite", *arguments, stdout=answer, stderr=subprocess.PIPE, env=environment
        ) as process:
            assert process.stderr is not None
            try:
                for line in process.stderr:
                    print(line, end="", flush=True)
            except KeyboardInterrupt:
                process.send_signal(signal.SIGINT)
                print(process.stderr.read(), end="", flush=True)
                raise
        if process.returncode:
            raise Stopped(
                f"`{arguments[0]}` ended with exit code {process.returncode}; see above what to do"
            )
        answer.seek(0)
        documents = answer.read().splitlines()
    return json.loads(documents[-1]) if documents else None


def show(*things: Table | Figure) -> None:
    """Show tables and figures under the cell, in order.

    A table without rows is left out, and so is a figure without panels.

    Texts are shown completely, and dollar signs as dollar signs.
    """
    from IPython.display import Image, display

    pd.set_option(
        "display.max_colwidth", None, "display.max_rows", 200, "display.html.use_mathjax", False
    )
    for one in things:
        if isinstance(one, Table):
            if one.rows:
                display(pd.DataFrame(one.rows, columns=one.head))
        elif one.axes:
            picture = io.BytesIO()
            one.savefig(picture, format="png", dpi=80)
            display(Image(picture.getvalue()))


def show_reports(store: Store) -> None:
    """Show how models do on open task sets and as judges, if that was asked: words, then tables.

    A table without rows is left out, as in `show`.
    """
    for card in tasks.load_reports(store):
        print("\n".join((card.about, *card.words, *card.notes)))
        show(card.scores, card.verdicts)
    for judges in passport.load_reports(store):
        print("\n".join((judges.about, *judges.words)))
        show(judges.figures, judges.changes)


def build_pair_table(store: Store, iteration: int, count: int = 10) -> Table:
    """Return response pairs that an iteration trained on, with their scores."""
    prompts = {one.id: one.text for one in store.records(Prompt, iteration=iteration)}
    responses = {one.id: one.text for one in store.records(Response, iteration=iteration)}
    rows = [
        [
            prompts[one.prompt_id],
            responses[one.chosen_id],
            f"{one.chosen_score:.2f}",
            responses[one.rejected_id],
            f"{one.rejected_score:.2f}",
        ]
        for one in store.records(ResponsePair, iteration=iteration)[:count]
    ]
    return Table(["prompt", "chosen", "score", "rejected", "its score"], rows)


def build_judgment_table(store: Store, iteration: int, count: int = 5) -> Table:
    """Return judgments that an iteration trained on, with their scores."""
    responses = {one.id: one.text for one in store.records(Response, iteration=iteration)}
    rows = [
        [responses[one.response_id], one.text, _format_score(one)]
        for one in load_training_judgments(store, iteration)[:count]
    ]
    return Table(["response", "judgment", "score (forced: not written by the judge)"], rows)


def _format_score(judgment: Judgment) -> str:
    if judgment.score is None:
        return "unread"
    return f"{judgment.score:g}{' (forced)' if judgment.source == 'forced' else ''}"
