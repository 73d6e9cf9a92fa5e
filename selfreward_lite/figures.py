"""A run as pictures: what each model is worth, how it was trained, what the judge said, where the time went.

Knows: matplotlib, as objects, so that no window and no state is involved. Does not know: notebooks, pages; whoever asks for a
figure shows it. Reads the store through `report` and its own tables, and decides nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from selfreward_lite import report
from selfreward_lite.store import Store

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.2, 3.0  # inches of one panel
# Of the panels of `worth`: what it is called, and the measurements in it; one that was not made in a run is left out.
PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("win rate against M0", ("win_rate_vs_seed",)),
    ("points, 0 to 5", ("exact_score", "self_score", "outside_score")),
    ("judge: agreement with human rankings", ("judge_pair_accuracy",)),
    ("tokens of a response", ("mean_response_tokens",)),
    ("shares of what was trained on", ("pair_yield", "tie_rate", "unread_rate")),
)
CURVES = {"loss": "loss", "rewards/margins": "reward margin", "rewards/accuracies": "share of pairs ranked as labelled"}
LEAST = 0.01  # of the time: what took less has no bar
SCORES = range(6)


def worth(store: Store) -> Figure:
    """Return what every model was measured to be, M0 first, with standard errors where there are any."""
    rows = report.summary(store)["iterations"]
    panels = [(title, kept) for title, names in PANELS if (kept := [name for name in names if _known(rows, name)])]
    figure, axes = _panels(max(1, len(panels)))
    for one, (title, names) in zip(axes, panels, strict=False):
        for name in names:
            points = [(row["iteration"], row[name], row.get(f"{name}_error") or 0.0) for row in rows if row[name] is not None]
            models, values, errors = zip(*points, strict=True)
            one.errorbar(models, values, yerr=errors, marker="o", capsize=3, label=name.replace("_", " "))
        one.set_title(title)
        one.set_xticks([row["iteration"] for row in rows], [f"M{row['iteration']}" for row in rows])
        if len(names) > 1:
            one.legend(fontsize="small")
    return figure


def training(store: Store) -> Figure:
    """Return the curves of every training: the loss, and of DPO the reward margin and the accuracy."""
    models = [model for model in range((store.newest() or 0) + 2) if store.training(model)]
    figure, axes = _panels(len(CURVES))
    for one, (name, title) in zip(axes, CURVES.items(), strict=True):
        for model in models:
            steps = [(step, value) for step, logged, value in store.training(model) if logged == name and value is not None]
            if steps:
                one.plot(*zip(*steps, strict=True), label=f"M{model}")
        one.set_title(title)
        one.set_xlabel("step")
        if one.get_legend_handles_labels()[1]:
            one.legend(fontsize="small")
    return figure


def scores(store: Store) -> Figure:
    """Return how the scores that were trained on are spread, iteration by iteration, unreadable judgments left out."""
    found = {
        iteration: Counter(round(one.score) for one in report.training_judgments(store, iteration) if one.score is not None)
        for iteration in range(1, (store.newest() or 0) + 2)
    }
    found = {iteration: counts for iteration, counts in found.items() if counts}
    figure, axes = _panels(max(1, len(found)))
    for one, (iteration, counts) in zip(axes, found.items(), strict=False):
        one.bar(list(SCORES), [counts[score] / counts.total() for score in SCORES])
        one.set_title(f"scores given by M{iteration - 1}, {counts.total():,} judgments")
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


def _known(rows: Sequence[dict[str, Any]], name: str) -> bool:
    return any(row.get(name) is not None for row in rows)


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
