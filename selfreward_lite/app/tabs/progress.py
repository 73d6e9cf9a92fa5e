"""The tab that shows whether a run gets better: what each model was measured to be, how it was trained, what its judge does.

Knows: gradio's plots, which follow the page's light and dark. Does not know: where numbers come from (`series`, `report`).
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from selfreward_lite.app.escape import escape_markdown
from selfreward_lite.app.library import TINY, RunLibrary
from selfreward_lite.app.widgets import NEWS, QUIET, Header, text_table
from selfreward_lite.data.store import Store
from selfreward_lite.report import early_warnings, plots, summary
from selfreward_lite.report.plots import PANELS, Panel, Series
from selfreward_lite.system.errors import SelfRewardError

NOTHING = "Nothing is measured yet. **Begin a run on the Run tab**: this page fills as its models are measured."
BOTH_ANSWERS, HEIGHT = 12, 250  # rows; pixels


@lru_cache(maxsize=8)
def gathered(folder: Path, news: str) -> dict[str, Any]:
    """Return everything that the tab shows of a run, computed once for all browsers; `news` changes when the run does."""
    with Store.read(folder) as store:
        document = summary.summarize_run(store)
        signs = early_warnings.early_warnings(store)
        return {
            "series": plots.load_series(store, document),
            "training": plots.training_curves(store),
            "table": summary.build_measurement_table(store, document),
            "gates": summary.build_gate_table(store).rows,
            "signs": early_warnings.build_sign_table(signs),
            "advice": early_warnings.list_advice(signs),
            "answers": summary.build_example_table(store, BOTH_ANSWERS),
        }


def frame(rows: Series, columns: tuple[str, ...]) -> pd.DataFrame:
    """Return rows as the table that a plot wants; with its columns even where there is no row."""
    return pd.DataFrame(rows, columns=list(columns))


# -- how it is laid out -----------------------------------------------------------------------------------------------------


def tab(library: RunLibrary, header: Header) -> None:
    """Lay the tab out."""
    empty = gr.Markdown(NOTHING)
    with gr.Column(visible=False) as body:
        drawn, panels = [], list(PANELS.values())
        for start in range(0, len(panels), 2):
            with gr.Row():
                drawn += [_laid_out(panel) for panel in panels[start : start + 2]]
        curve = gr.Radio(
            list(plots.CURVES.values()), value="loss", show_label=False, container=False
        )
        trained = gr.LinePlot(
            x="step", y="value", color="model", title="training", height=HEIGHT, y_title=" "
        )
        rows = text_table(
            None, "", "Every measurement, with its standard error", height=420, elem_id="measured"
        )
        answers = text_table(
            None,
            "32 34 34",
            "Before and after: the first held-out prompts that M0 and the newest model answer differently",
            elem_id="before-after",
        )
        warned = gr.Markdown("", elem_id="advice")
        signs = text_table(
            None,
            "",
            "Early warnings: where self-rewarding is known to go wrong",
            height=420,
            elem_id="signs",
        )
        passed = text_table(["model", "gate", "", "reason"], "9 16 11 64", "Gates", height=320)
    known = gr.State(None)
    outputs = [known, empty, body, *drawn, trained, rows, answers, warned, signs, passed]

    def refresh(run: str | None, news: str, curve: str, known: str) -> tuple[Any, ...]:
        if news == known:
            return tuple(gr.skip() for _ in outputs)
        found = _found(library, run, news)
        if isinstance(found, str) or not any(found["series"].values()):
            why = found if isinstance(found, str) else NOTHING
            return (
                news,
                gr.update(value=why, visible=True),
                gr.update(visible=False),
                *(gr.skip() for _ in outputs[3:]),
            )
        return news, gr.update(visible=False), gr.update(visible=True), *shown(found, curve)

    def curved(run: str | None, news: str, curve: str) -> pd.DataFrame:
        found = _found(library, run, news)
        return frame(
            [] if isinstance(found, str) else found["training"][curve], ("step", "value", "model")
        )

    gr.on(
        header.changes,
        refresh,
        [header.run, header.news, curve, known],
        outputs,
        **NEWS,
    )
    curve.change(curved, [header.run, header.news, curve], trained, **QUIET)


def shown(found: dict[str, Any], curve: str) -> list[Any]:
    """Return what the plots and tables of the tab show, in their order."""
    cells = {
        key: frame(found["series"][key], tuple(filter(None, (panel.x, panel.y, panel.color))))
        for key, panel in PANELS.items()
    }
    cells["scores"] = cells["scores"].astype({"score": str})  # places on an axis, not numbers
    tables = [
        {"headers": head, "data": rows}
        for head, rows in (found["table"], found["answers"], found["signs"])
    ]
    return [
        *cells.values(),
        frame(found["training"][curve], ("step", "value", "model")),
        *tables[:2],
        "\n".join(f"- ⚠ {escape_markdown(words)}" for words in found["advice"])
        or "No early warning of the newest model.",
        tables[2],
        found["gates"],
    ]


def _laid_out(plot: Panel) -> gr.LinePlot | gr.ScatterPlot:
    """A plot with what it is for under it."""
    with gr.Column(min_width=320):
        kind = gr.ScatterPlot if plot.scatter else gr.LinePlot
        drawn = kind(
            x=plot.x,
            y=plot.y,
            color=plot.color,
            color_title=" ",
            title=plot.title,
            height=HEIGHT,
            tooltip="all",
            y_lim=[0.0, plot.top],
            x_title=plot.x if plot.x in ("characters", "score") else " ",
            y_title=" ",
        )
        gr.Markdown(plot.note, elem_classes="fine")
    return drawn


def _found(library: RunLibrary, run: str | None, news: str) -> dict[str, Any] | str:
    """What the tab shows of a run, or why there is nothing to show."""
    if not run or run == TINY:
        return NOTHING
    try:
        return gathered(library.folder(run), news)
    except SelfRewardError as error:
        return f"⚠ {escape_markdown(str(error))}"
