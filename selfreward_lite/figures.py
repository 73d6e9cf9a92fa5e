"""A run as pictures: what each model is worth, how it was trained, what the judge said, where the time went.

Knows: matplotlib, as objects, so that no window and no state is involved. Does not know: notebooks, pages; whoever asks for a
figure shows it. Reads the store through `report` and its own tables, and decides nothing.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from selfreward_lite import report, series
from selfreward_lite.store import Store

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.2, 3.0  # inches of one panel
LEAST = 0.01  # of the time: what took less has no bar


def worth(store: Store) -> Figure:
    """Return what every model was measured to be, M0 first, with standard errors where there are any."""
    panels = series.worth(store)
    figure, axes = _panels(max(1, len(panels)))
    for one, (title, rows) in zip(axes, panels.items(), strict=False):
        for name, points in _by(rows, "what").items():
            models, values, errors = zip(*((int(row["model"][1:]), row["value"], row["error"]) for row in points), strict=True)
            one.errorbar(models, values, yerr=errors, marker="o", capsize=3, label=name)
        models = sorted({int(row["model"][1:]) for row in rows})
        one.set_title(title)
        one.set_xticks(models, [f"M{model}" for model in models])
        if len(_by(rows, "what")) > 1:
            one.legend(fontsize="small")
    return figure


def training(store: Store) -> Figure:
    """Return the curves of every training: the loss, and of DPO the reward margin and the accuracy."""
    curves = series.training(store)
    figure, axes = _panels(len(curves))
    for one, (title, rows) in zip(axes, curves.items(), strict=True):
        for model, points in _by(rows, "model").items():
            one.plot([row["step"] for row in points], [row["value"] for row in points], label=model)
        one.set_title(title)
        one.set_xlabel("step")
        if rows:
            one.legend(fontsize="small")
    return figure


def scores(store: Store) -> Figure:
    """Return how the scores that were trained on are spread, iteration by iteration, unreadable judgments left out."""
    found = _by(series.scores(store), "judge")
    figure, axes = _panels(max(1, len(found)))
    for one, (judge, rows) in zip(axes, found.items(), strict=False):
        one.bar([row["score"] for row in rows], [row["share"] for row in rows])
        one.set_title(f"scores given by {judge}, {rows[0]['count']:,} judgments")
        one.set_xlabel("score, rounded")
    return figure


def seconds(store: Store) -> Figure:
    """Return where the time went, the longest stage on top."""
    every = report.seconds_by_stage(store)
    spent = {stage: took for stage, took in reversed(every.items()) if took >= LEAST * sum(every.values())}
    figure, (one,) = _panels(1, height=0.28 * max(4, len(spent)))
    one.barh(list(spent), [value / 60 for value in spent.values()])
    one.set_xlabel("minutes")
    return figure


def curves(panels: dict[str, dict[str, list[tuple[int, float, float]]]]) -> Figure:
    """Return lines over the models M0, M1, …: by panel and label, (model, value, error). A label has one colour everywhere."""
    figure, axes = _panels(len(panels), height=1.5 * HEIGHT)
    labels = dict.fromkeys(label for lines in panels.values() for label in lines)
    colours = {label: f"C{place}" for place, label in enumerate(labels)}
    for one, (title, lines) in zip(axes, panels.items(), strict=True):
        for label, points in lines.items():
            models, values, errors = zip(*points, strict=True)
            one.errorbar(models, values, yerr=errors, marker="o", capsize=3, label=label, color=colours[label])
        models = sorted({model for points in lines.values() for model, *_ in points})
        one.set_title(title)
        one.set_xticks(models, [f"M{model}" for model in models])
        one.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.08))
    return figure


def svg(figure: Figure) -> str:
    """Return a figure as SVG for a page: its text as text, the same at every call."""
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "selfreward_lite"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()[out.getvalue().index("<svg") :]


def _by(rows: series.Rows, name: str) -> dict[str, series.Rows]:
    """Rows by what they say of `name`, in the order in which that comes."""
    found: dict[str, series.Rows] = {}
    for row in rows:
        found.setdefault(row[name], []).append(row)
    return found


def _panels(count: int, height: float = HEIGHT) -> tuple[Figure, list[Axes]]:
    """An empty figure with so many panels, three in a row."""
    from matplotlib.figure import Figure

    columns = min(3, count)
    lines = -(-count // columns)
    figure = Figure(figsize=(WIDTH * columns, height * lines), layout="constrained")
    axes = [figure.add_subplot(lines, columns, place + 1) for place in range(count)]
    for one in axes:
        one.grid(alpha=0.3)
    return figure, axes
