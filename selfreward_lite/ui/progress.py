"""The tab that shows whether a run gets better: what each model was measured to be, how it was trained, what its judge does.

Knows: gradio's plots, which follow the page's light and dark. Does not know: where numbers come from (`series`, `report`).
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from selfreward_lite import report, series
from selfreward_lite.errors import SelfRewardError
from selfreward_lite.store import Store
from selfreward_lite.talk import TINY, House
from selfreward_lite.ui.shell import NEWS, QUIET, Shell, table

NOTHING = "Nothing is measured yet. **Begin a run on the Run tab**: this page fills as its models are measured."
BOTH_ANSWERS, HEIGHT = 12, 250  # rows; pixels
# Where each panel ends above: from a fixed zero on, a small change looks small.
LIMITS = {
    "win rate against M0": 1.0, "points, 0 to 5": 5.0, "judge: agreement with human rankings": 1.0, "tokens of a response": None,
    "shares of what was trained on": 1.0,
}
SEVERAL = ("points, 0 to 5", "shares of what was trained on")  # panels with more than one series
# Of each panel: what it is for, in words a newcomer reads once.
NOTES = {
    "win rate against M0": "Share of held-out prompts on which a model's answer beats M0's; a tie is half. ½ is no better.",
    "points, 0 to 5": "Of answers to held-out prompts: what the model gives itself, what M0, frozen, gives it, and, in the tiny "
                      "world, the truth.",
    "judge: agreement with human rankings": "Share of ranked pairs that the model, as judge, puts in the people's order.",
    "tokens of a response": "Judges like long answers: if this climbs with the scores, length is what was learnt.",
    "shares of what was trained on":
        "Prompts that gave a pair; pairs of responses that scored the same; judgments that could not be read.",
}


@lru_cache(maxsize=8)
def gathered(folder: Path, news: str) -> dict[str, Any]:
    """Return everything that the tab shows of a run, computed once for all browsers; `news` changes when the run does."""
    with Store.read(folder) as store:
        newest = store.newest() or 0
        latest = max((t for t in range(1, newest + 2) if store.is_done(t, "judgments")), default=0)
        return {
            "worth": series.worth(store), "training": series.training(store), "scores": series.scores(store),
            "lengths": series.lengths(store, latest) if latest else [], "latest": latest, "gaps": series.gaps(store),
            "biases": series.biases(store), "table": measured(store), "gates": gates(store), "newest": newest,
            "answers": [[one.prompt, one.before, one.after] for one in report.before_after(store, BOTH_ANSWERS)],
        }


def measured(store: Store) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of what every model was measured to be, with standard errors."""
    summary = report.summary(store)
    columns = [("base", summary["base"])] if summary["base"] else []
    columns += [(f"M{row['iteration']}", row) for row in summary["iterations"]]
    names = [name for name in (*report.MEASURED, "pair_yield", "tie_rate", "unread_rate", "response_pairs", "judgment_pairs")
             if not name.endswith("_error") and any(row.get(name) is not None for _, row in columns)]
    rows = [[name.replace("_", " "), *(_cell(row, name) for _, row in columns)] for name in names]
    return ["", *(name for name, _ in columns)], rows


def gates(store: Store) -> list[list[str]]:
    """Return what every gate said of every model."""
    iterations = sorted({iteration for iteration, *_ in store.stages()})
    return [
        [f"M{iteration}", gate.replace("_", " "), "passed" if passed else "refused", reason]
        for iteration in iterations for gate, (passed, reason) in store.gates(iteration).items()
    ]


def _cell(row: dict[str, Any], name: str) -> str:
    value, error = row.get(name), row.get(f"{name}_error")
    if value is None:
        return "–"
    return f"{value:.3f} ± {error:.3f}" if error else f"{value:,.3f}".rstrip("0").rstrip(".")


def frame(rows: series.Rows, columns: tuple[str, ...]) -> pd.DataFrame:
    """Return rows as the table that a plot wants; with its columns even where there is no row."""
    return pd.DataFrame(rows, columns=list(columns))


# -- how it is laid out -----------------------------------------------------------------------------------------------------


def tab(house: House, shell: Shell) -> None:
    """Lay the tab out."""
    empty = gr.Markdown(NOTHING)
    with gr.Column(visible=False) as body:
        panels, notes = {}, list(NOTES.items())
        with gr.Row():
            for title, note in notes[:2]:
                panels[title] = _plot(title, note, "model", "value", "what" if title in SEVERAL else None, most=LIMITS[title])
        with gr.Row():
            for title, note in notes[2:4]:
                panels[title] = _plot(title, note, "model", "value", None, most=LIMITS[title])
        with gr.Row():
            title, note = notes[4]
            panels[title] = _plot(title, note, "model", "value", "what", most=LIMITS[title])
            spread = _plot(
                "scores given to what was trained on", "Share of judgments, by score, rounded. Where nearly all are fives, the "
                "judge no longer tells answers apart.", "score", "share", "judge",
            )
        with gr.Row():
            dots = _plot(
                "length against score", "Responses that the newest pairs were made of: characters, and the mean of their "
                "judgments.", "characters", "score", None, scatter=True, most=5.0,
            )
            gap = _plot(
                "mean score of chosen and rejected", "Of the pairs that a model was trained on. As they draw together, less is "
                "left to learn.", "model", "score", "which", most=5.0,
            )
        with gr.Row():
            lean = _plot(
                "what the meta-judge prefers", "Share of decided battles. For what is shown first, ½ is unbiased; for the higher "
                "score, the more the better the two judges agree.", "judge", "value", "what", most=1.0,
            )
            with gr.Column(min_width=320):
                trained = gr.LinePlot(x="step", y="value", color="model", title="training", height=HEIGHT, y_title=" ")
                curve = gr.Radio(list(series.CURVES.values()), value="loss", show_label=False, container=False)
        rows = table(None, "", "Every measurement, with its standard error", height=420, elem_id="measured")
        answers = table(
            None, "32 34 34", "Before and after: the first held-out prompts that M0 and the newest model answer differently",
            elem_id="before-after",
        )
        passed = table(["model", "gate", "", "reason"], "9 16 11 64", "Gates", height=320)
    plots = [*panels.values(), spread, dots, gap, lean, trained]
    known = gr.State(None)
    outputs = [known, empty, body, *plots, rows, answers, passed]

    def look(run: str | None, news: str, curve: str, known: str) -> tuple[Any, ...]:
        if news == known:
            return tuple(gr.skip() for _ in outputs)
        found = _found(house, run, news)
        if not found or not (found["worth"] or found["scores"]):
            return news, gr.update(visible=True), gr.update(visible=False), *(gr.skip() for _ in outputs[3:])
        worth = [frame(found["worth"].get(title, []), ("model", "value", "what")) for title in panels]
        head, cells = found["table"]
        return (
            news, gr.update(visible=False), gr.update(visible=True), *worth,
            frame(found["scores"], ("score", "share", "judge")).astype({"score": str}),
            frame(found["lengths"], ("characters", "score")), frame(found["gaps"], ("model", "score", "which")),
            frame(found["biases"], ("judge", "value", "what")), frame(found["training"][curve], ("step", "value", "model")),
            {"headers": head, "data": cells},
            {"headers": ["prompt", "M0", f"M{found['newest']}"], "data": found["answers"]}, found["gates"],
        )

    gr.on([shell.run.change, shell.pulse.change], look, [shell.run, shell.pulse, curve, known], outputs, **NEWS)
    curve.change(
        lambda run, news, curve: frame((_found(house, run, news) or {"training": {}})["training"].get(curve, []),
                                       ("step", "value", "model")),
        [shell.run, shell.pulse, curve], trained, **QUIET,
    )


def _found(house: House, run: str | None, news: str) -> dict[str, Any] | None:
    if not run or run == TINY:
        return None
    try:
        return gathered(house.runs_dir / run, news)
    except SelfRewardError:
        return None  # only just begun: the Run tab says how far it is


def _plot(
    title: str, note: str, x: str, y: str, color: str | None, *, scatter: bool = False, most: float | None = None
) -> gr.LinePlot | gr.ScatterPlot:
    """A plot with what it is for under it."""
    with gr.Column(min_width=320):
        names = {"x_title": x if x in ("characters", "score") else " ", "y_title": " "}
        kind = gr.ScatterPlot if scatter else gr.LinePlot
        plot = kind(
            x=x, y=y, color=color, color_title=" ", title=title, height=HEIGHT, tooltip="all", y_lim=[0.0, most], **names
        )
        gr.Markdown(note, elem_classes="fine")
    return plot
