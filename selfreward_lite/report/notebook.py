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

from selfreward_lite.data.records import Prompt, Response, ResponsePair
from selfreward_lite.data.store import Store
from selfreward_lite.report import summary
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


def show(*things: pd.DataFrame | Figure) -> None:
    """Show tables and figures under the cell, in order; a table without rows is left out."""
    from IPython.display import Image, display

    for one in things:
        if isinstance(one, pd.DataFrame):
            if len(one):
                display(one)
        else:
            picture = io.BytesIO()
            one.savefig(picture, format="png", dpi=80)
            display(Image(picture.getvalue()))


def models(store: Store) -> pd.DataFrame:
    """Return counts and measurements: a row a measurement, a column a model."""
    return _frame(summary.build_run_table(summary.summarize_run(store)["iterations"]))


def gates(store: Store) -> pd.DataFrame:
    """Return what every gate decided about every model."""
    return _frame(summary.build_gate_table(store))


def seed(store: Store) -> pd.DataFrame:
    """Return the sizes of the seed data beside those of arXiv 2401.10020."""
    return _frame(summary.build_seed_table(store))


def memory(store: Store) -> pd.DataFrame:
    """Return predicted and peak GPU memory; empty without a GPU."""
    return _frame(summary.build_memory_table(store))


def stages(store: Store) -> pd.DataFrame:
    """Return every stage: items done, seconds, what was dropped and why."""
    return _frame(summary.build_stage_table(store))


def examples(store: Store, count: int = 10) -> pd.DataFrame:
    """Return the first held-out prompts that M0 and the newest model answer differently."""
    return _frame(summary.build_example_table(store, count))


def pairs(store: Store, iteration: int, count: int = 10) -> pd.DataFrame:
    """Return response pairs that an iteration trained on, with their scores."""
    prompts = {one.id: one.text for one in store.records(Prompt, iteration=iteration)}
    responses = {one.id: one.text for one in store.records(Response, iteration=iteration)}
    found = store.records(ResponsePair, iteration=iteration)[:count]
    return _shown(
        pd.DataFrame(
            [
                {
                    "prompt": prompts[one.prompt_id],
                    "chosen": responses[one.chosen_id],
                    "score": round(one.chosen_score, 2),
                    "rejected": responses[one.rejected_id],
                    "its score": round(one.rejected_score, 2),
                }
                for one in found
            ]
        )
    )


def judgments(store: Store, iteration: int, count: int = 5) -> pd.DataFrame:
    """Return judgments that an iteration trained on, with their scores (None: unread)."""
    responses = {one.id: one.text for one in store.records(Response, iteration=iteration)}
    return _shown(
        pd.DataFrame(
            [
                {"response": responses[one.response_id], "judgment": one.text, "score": one.score}
                for one in summary.load_training_judgments(store, iteration)[:count]
            ]
        )
    )


def _frame(table: summary.Table) -> pd.DataFrame:
    return _shown(pd.DataFrame(table.rows, columns=table.head))


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """The table, with pandas set to show complete texts, and dollar signs as dollar signs."""
    pd.set_option(
        "display.max_colwidth", None, "display.max_rows", 200, "display.html.use_mathjax", False
    )
    return table
