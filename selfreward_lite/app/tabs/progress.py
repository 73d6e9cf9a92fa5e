"""The progress tab: what each model was measured to be, how it was trained, how its judge behaves.

Plots are Gradio's own, so that they follow the page's light and dark.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import pandas as pd

from selfreward_lite.app.escape import escape_markdown
from selfreward_lite.app.library import TINY, RunLibrary
from selfreward_lite.app.news import describe_news
from selfreward_lite.app.widgets import NEWS, QUIET, Header, Updates, text_table, warn
from selfreward_lite.data.store import Store
from selfreward_lite.report import early_warnings, passport, plots, summary
from selfreward_lite.report.constraints import build_constraint_table
from selfreward_lite.report.passport import PassportReport
from selfreward_lite.report.plots import PANELS, Series
from selfreward_lite.report.tasks import TaskReport, load_reports
from selfreward_lite.system.errors import SelfRewardError

NOTHING = (
    "Nothing is measured yet. **Start a run on the Run tab**: this page fills as its models are "
    "measured."
)
EXAMPLES = 12  # held-out prompts with the answers of two models
HEIGHT = 250  # pixels of a plot


class RunResults(NamedTuple):
    """Everything that the tab shows of a run."""

    series: dict[str, Series]  # by the keys of PANELS
    curves: dict[str, Series]  # of training, by name
    tables: tuple[summary.Table, ...]  # measurements, examples, early warnings, gates
    constraints: summary.Table  # which each model keeps; no rows without any
    advice: list[str]
    tasks: list[TaskReport]  # open task sets, the newest answers last; empty if none were asked
    passports: list[PassportReport]  # judges on ranked pairs, as `tasks`


@lru_cache(maxsize=8)
def load_results(folder: Path, news: str) -> RunResults:
    """Return a run's results, computed once for all browsers until its `news` change."""
    with Store.read(folder) as store:
        document = summary.summarize_run(store)
        signs = early_warnings.early_warnings(store)
        return RunResults(
            plots.load_series(store, document),
            plots.training_curves(store),
            (
                summary.build_measurement_table(store, document),
                summary.build_example_table(store, EXAMPLES),
                early_warnings.build_sign_table(signs),
                summary.build_gate_table(store),
            ),
            build_constraint_table(store),
            early_warnings.list_advice(signs),
            load_reports(store),
            passport.load_reports(store),
        )


def find_results(library: RunLibrary, run: str | None) -> RunResults | str:
    """Return the results of the chosen run; or why there are none, as Markdown."""
    # Its news are read here: a caller who sent other ones would have all computed each time.
    if not run or run == TINY:
        return NOTHING
    try:
        results = load_results(library.folder(run), describe_news(library, run))
    except SelfRewardError as error:
        return warn(error)
    return results if any(results.series.values()) else NOTHING


def write_words(title: str, found: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Return a title and what was found as Markdown: how it was asked, and lines of words."""
    lines = [f"#### {title}"]
    for about, words in found:
        lines += [escape_markdown(about), ""]
        lines += [f"- {escape_markdown(line)}" for line in words]
        lines.append("")
    return "\n".join(lines)


class ProgressTab:
    """The parts of the tab, and when they change."""

    def __init__(self, library: RunLibrary, header: Header) -> None:
        self.library, self.known = library, gr.State(None)
        self.empty = gr.Markdown(NOTHING)
        self.plots: dict[str, Any] = {}
        self.frames: dict[str, gr.Column] = {}  # around each plot, shown once there is a point
        with gr.Column(visible=False) as self.body:
            with gr.Row():
                for key, panel in PANELS.items():
                    with gr.Column(min_width=400) as self.frames[key]:
                        kind = gr.ScatterPlot if panel.scatter else gr.LinePlot
                        self.plots[key] = kind(
                            x=panel.x,
                            y=panel.y,
                            color=panel.color,
                            color_title=" ",
                            title=panel.title,
                            height=HEIGHT,
                            tooltip="all",
                            y_lim=[0.0, panel.top],
                            x_title=panel.x if panel.x in ("characters", "score") else " ",
                            y_title=" ",
                        )
                        gr.Markdown(panel.note, elem_classes="fine")
                with gr.Column(min_width=400) as self.curves:
                    self.training = gr.LinePlot(
                        x="step",
                        y="value",
                        color="model",
                        color_title=" ",
                        title="training",
                        height=HEIGHT,
                        y_title=" ",
                    )
                    self.curve = gr.Radio(
                        list(plots.CURVES.values()),
                        value="loss",
                        label="Curve",
                        show_label=False,
                        container=False,
                    )
            with gr.Column(visible=False) as self.constraints:
                self.kept = text_table(
                    None, "", "Share of held-out answers that keep each constraint", height=420
                )
            with gr.Column(visible=False) as self.tasks:
                self.task_words = gr.Markdown()
                self.task_scores = text_table(
                    None, "", "Open task sets, scored by a program", height=420, elem_id="tasks"
                )
            with gr.Column(visible=False) as self.passports:
                self.passport_words = gr.Markdown()
                self.passport_figures = text_table(
                    None, "", "Judges on ranked pairs, the newest", height=420, elem_id="passport"
                )
            measured = text_table(
                None, "", "All measurements, with standard errors", height=420, elem_id="measured"
            )
            examples = text_table(
                None,
                "32 34 34",
                "Before and after: prompts that M0 and the newest model answer differently",
            )
            self.advice = gr.Markdown()
            signs = text_table(
                None, "", "Early warnings: where self-rewarding is known to go wrong", height=420
            )
            gates = text_table(None, "9 16 11 64", "Gates", height=320)
        self.tables = [measured, examples, signs, gates]
        outputs = [self.known, self.empty, self.body, *self.plots.values()]
        outputs += [*self.frames.values(), self.curves, self.training, self.advice, *self.tables]
        outputs += [self.constraints, self.kept, self.tasks, self.task_words, self.task_scores]
        outputs += [self.passports, self.passport_words, self.passport_figures]
        chosen = [header.run, header.news, self.curve]
        gr.on(header.changes, self.refresh, [*chosen, self.known], outputs, **NEWS)
        self.curve.change(self.show_curve, [header.run, self.curve], self.training, **QUIET)

    def refresh(self, run: str | None, news: str, curve: str, known: str | None) -> Updates:
        if news == known:
            return gr.skip()
        results = find_results(self.library, run)
        if isinstance(results, str):
            return {
                self.known: news,
                self.empty: gr.update(value=results, visible=True),
                self.body: gr.update(visible=False),
            }
        updates: Updates = {
            self.known: news,
            self.empty: gr.update(visible=False),
            self.body: gr.update(visible=True),
        }
        for key, plot in self.plots.items():
            panel = PANELS[key]
            columns = [*filter(None, (panel.x, panel.y, panel.color))]
            frame = pd.DataFrame(results.series[key], columns=columns)
            # On an axis, scores are categories and not numbers.
            updates[plot] = frame.astype({"score": str}) if panel.x == "score" else frame
            updates[self.frames[key]] = gr.update(visible=bool(results.series[key]))
        updates[self.curves] = gr.update(visible=any(results.curves.values()))
        for part, table in zip(self.tables, results.tables, strict=True):
            updates[part] = {"headers": table.head, "data": table.rows}
        head, rows = results.constraints
        updates[self.constraints] = gr.update(visible=bool(rows))
        updates[self.kept] = {"headers": head, "data": rows}
        advice = "\n".join(f"- ⚠ {escape_markdown(line)}" for line in results.advice)
        updates[self.advice] = advice or "No early warnings for the newest model."
        updates[self.tasks] = gr.update(visible=bool(results.tasks))
        if results.tasks:
            updates[self.task_words] = write_words(
                "Open task sets",
                ((one.about, (*one.words, *one.notes)) for one in results.tasks),
            )
            head, rows = results.tasks[-1].scores
            updates[self.task_scores] = {"headers": head, "data": rows}
        updates[self.passports] = gr.update(visible=bool(results.passports))
        if results.passports:
            updates[self.passport_words] = write_words(
                "Judges on ranked pairs", ((one.about, one.words) for one in results.passports)
            )
            head, rows = results.passports[-1].figures
            updates[self.passport_figures] = {"headers": head, "data": rows}
        return updates | {self.training: self.show_curve(run, curve)}

    def show_curve(self, run: str | None, curve: str) -> pd.DataFrame:
        """Return one training curve of all models, with its columns even without a point."""
        results = find_results(self.library, run)
        points = None if isinstance(results, str) else results.curves.get(curve)
        return pd.DataFrame(points, columns=["step", "value", "model"])
