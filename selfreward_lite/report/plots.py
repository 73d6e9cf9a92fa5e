"""A run as series of points: what plots show, whoever draws them.

Knows: which measurements belong in one picture, and counts that a database does better than Python. Does not know: plots. Every
function returns rows, as plain dicts, in the order of the models.
"""

# A run as pictures: what each model is worth, how it was trained, what the judge said, where the time went.
#
# Knows: matplotlib, as objects, so that no window and no state is involved. Does not know: notebooks, pages; whoever asks for a
# figure shows it. Reads the store through `report` and its own tables, and decides nothing.

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from selfreward_lite.data.records import ModelId
from selfreward_lite.data.store import Store
from selfreward_lite.report import summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = list[dict[str, Any]]

# What is called what, and the measurements in it; one that was not made in a run is left out.
PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("win rate against M0", ("win_rate_vs_seed",)),
    ("points, 0 to 5", ("exact_score", "self_score", "outside_score")),
    ("judge: agreement with human rankings", ("judge_pair_accuracy",)),
    ("tokens of a response", ("mean_response_tokens",)),
    ("shares of what was trained on", ("pair_yield", "tie_rate", "unread_rate")),
)
CURVES = {
    "loss": "loss",
    "rewards/margins": "reward margin",
    "rewards/accuracies": "share of pairs ranked as labelled",
}
DOTS = 1500  # responses of a scatter plot at most


def model_metrics(rows: Sequence[summary.Row]) -> dict[str, Rows]:
    """Return, by panel, what every model was measured to be: rows of model, what, value, error (0 where there is none)."""
    found = {
        title: [
            {
                "model": ModelId(number).name,
                "what": name.replace("_", " "),
                "value": row[name],
                "error": row.get(f"{name}_error") or 0.0,
            }
            for name in names
            for number, row in enumerate(rows)
            if row.get(name) is not None
        ]
        for title, names in PANELS
    }
    return {title: rows for title, rows in found.items() if rows}


def training_curves(store: Store) -> dict[str, Rows]:
    """Return, by curve, what trainers reported: rows of model, step, value."""
    models = [model for model in range((store.newest() or 0) + 2) if store.training(model)]
    return {
        title: [
            {"model": ModelId(model).name, "step": step, "value": value}
            for model in models
            for step, logged, value in store.training(model)
            if logged == name and value is not None
        ]
        for name, title in CURVES.items()
    }


def score_shares(store: Store) -> Rows:
    """Return how the scores that were trained on are spread, unread judgments left out: rows of judge, score, share, count."""
    found: Rows = []
    for iteration in range(1, (store.newest() or 0) + 2):
        given = [
            one.score
            for one in summary.load_training_judgments(store, iteration)
            if one.score is not None
        ]
        counts = Counter(round(score) for score in given)
        found += [
            {
                "judge": ModelId(iteration - 1).name,
                "score": score,
                "share": counts[score] / len(given),
                "count": len(given),
            }
            for score in range(6)
            if given
        ]
    return found


def lengths_and_scores(store: Store, iteration: int) -> Rows:
    """Return responses of an iteration, the first ones, with their mean score: rows of characters, score."""
    rows = store.select(
        "SELECT length(r.text), (SELECT avg(j.score) FROM record_judgment j WHERE j.iteration = r.iteration AND "
        "j.response_id = r.id) AS score FROM record_response r WHERE r.iteration = ? AND r.model = ? AND r.id IN "
        f"(SELECT item FROM items WHERE iteration = r.iteration AND stage = 'judgments') ORDER BY r.rowid LIMIT {DOTS}",
        iteration,
        ModelId(iteration - 1).name,
    )
    return [
        {"characters": length, "score": round(score, 3)}
        for length, score in rows
        if score is not None
    ]


def chosen_vs_rejected(store: Store) -> Rows:
    """Return what was chosen and what was rejected, on average: rows of model (which was trained on them), which, score,
    characters."""
    rows = store.select(
        "SELECT iteration, avg(chosen_score), avg(rejected_score), avg(chosen_length), avg(rejected_length) "
        "FROM record_responsepair GROUP BY iteration ORDER BY iteration"
    )
    return [
        {"model": ModelId(iteration).name, "which": which, "score": score, "characters": length}
        for iteration, *means in rows
        for which, score, length in (
            ("chosen", means[0], means[2]),
            ("rejected", means[1], means[3]),
        )
    ]


def meta_judge_bias(store: Store) -> Rows:
    """Return what the meta-judge's decided verdicts lean to (arXiv 2407.19594, section 4): rows of meta-judge, what, value.

    The share for the judgment shown first, over all battles and over those of equal scores, where ½ is unbiased; and the share
    for the higher score.
    """
    found: Rows = []
    verdicts = (
        "SELECT b.verdict, f.score, s.score FROM record_battle b JOIN record_judgment f ON f.id = b.first_id "
        "JOIN record_judgment s ON s.id = b.second_id WHERE b.iteration = ? AND b.verdict != 0"
    )
    for (iteration,) in store.select(
        "SELECT DISTINCT iteration FROM record_battle ORDER BY iteration"
    ):
        decided = store.select(verdicts, iteration)
        read = [row for row in decided if None not in row]
        kinds = {
            "shown first": [row[0] > 0 for row in decided],
            "shown first, equal scores": [row[0] > 0 for row in read if row[1] == row[2]],
            "higher score": [row[0] * (row[1] - row[2]) > 0 for row in read if row[1] != row[2]],
        }
        found += [
            {
                "judge": ModelId(iteration - 1).name,
                "what": what,
                "value": sum(chosen) / len(chosen),
                "count": len(chosen),
            }
            for what, chosen in kinds.items()
            if chosen
        ]
    return found


WIDTH, HEIGHT = 4.2, 3.0  # inches of one panel
LEAST = 0.01  # of the time: what took less has no bar


def draw_worth(store: Store, document: summary.RunSummary | None = None) -> Figure:
    """Return what every model was measured to be, M0 first, with standard errors where there are any."""
    panels = model_metrics((document or summary.summarize_run(store))["iterations"])
    figure, axes = _panels(max(1, len(panels)))
    for one, (title, rows) in zip(axes, panels.items(), strict=False):
        for name, points in _by(rows, "what").items():
            models, values, errors = zip(
                *((int(row["model"][1:]), row["value"], row["error"]) for row in points),
                strict=True,
            )
            one.errorbar(models, values, yerr=errors, marker="o", capsize=3, label=name)
        models = sorted({int(row["model"][1:]) for row in rows})
        one.set_title(title)
        one.set_xticks(models, [ModelId(model).name for model in models])
        if len(_by(rows, "what")) > 1:
            one.legend(fontsize="small")
    return figure


def draw_training(store: Store) -> Figure:
    """Return the curves of every training: the loss, and of DPO the reward margin and the accuracy."""
    curves = training_curves(store)
    figure, axes = _panels(len(curves))
    for one, (title, rows) in zip(axes, curves.items(), strict=True):
        for model, points in _by(rows, "model").items():
            one.plot([row["step"] for row in points], [row["value"] for row in points], label=model)
        one.set_title(title)
        one.set_xlabel("step")
        if rows:
            one.legend(fontsize="small")
    return figure


def draw_scores(store: Store) -> Figure:
    """Return how the scores that were trained on are spread, iteration by iteration, unreadable judgments left out."""
    found = _by(score_shares(store), "judge")
    figure, axes = _panels(max(1, len(found)))
    for one, (judge, rows) in zip(axes, found.items(), strict=False):
        one.bar([row["score"] for row in rows], [row["share"] for row in rows])
        one.set_title(f"scores given by {judge}, {rows[0]['count']:,} judgments")
        one.set_xlabel("score, rounded")
    return figure


def draw_seconds(store: Store) -> Figure:
    """Return where the time went, the longest stage on top."""
    every = summary.sum_stage_seconds(store)
    spent = {
        stage: took
        for stage, took in reversed(every.items())
        if took >= LEAST * sum(every.values())
    }
    figure, (one,) = _panels(1, height=0.28 * max(4, len(spent)))
    one.barh(list(spent), [value / 60 for value in spent.values()])
    one.set_xlabel("minutes")
    return figure


def draw_curves(panels: dict[str, dict[str, list[tuple[int, float, float]]]]) -> Figure:
    """Return lines over the models M0, M1, …: by panel and label, (model, value, error). A label has one colour everywhere."""
    figure, axes = _panels(len(panels), height=1.5 * HEIGHT)
    labels = dict.fromkeys(label for lines in panels.values() for label in lines)
    colours = {label: f"C{place}" for place, label in enumerate(labels)}
    for one, (title, lines) in zip(axes, panels.items(), strict=True):
        for label, points in lines.items():
            models, values, errors = zip(*points, strict=True)
            one.errorbar(
                models,
                values,
                yerr=errors,
                marker="o",
                capsize=3,
                label=label,
                color=colours[label],
            )
        models = sorted({model for points in lines.values() for model, *_ in points})
        one.set_title(title)
        one.set_xticks(models, [ModelId(model).name for model in models])
        one.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.08))
    return figure


def to_svg(figure: Figure) -> str:
    """Return a figure as SVG for a page: its text as text, the same at every call."""
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "selfreward_lite"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()[out.getvalue().index("<svg") :]


def _by(rows: Rows, name: str) -> dict[str, Rows]:
    """Rows by what they say of `name`, in the order in which that comes."""
    found: dict[str, Rows] = {}
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
