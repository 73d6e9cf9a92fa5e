"""A run as series of points and as figures, for page, app and notebook.

A series is a list of rows in the order of the models. The app draws the series of PANELS itself;
page and notebooks show the matplotlib figures of `draw_*`, which need no window.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from selfreward_lite.data import queries
from selfreward_lite.data.records import ModelId
from selfreward_lite.data.store import Store
from selfreward_lite.report import summary
from selfreward_lite.report.summary import RunSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = list[dict[str, Any]]  # one row a point: column → text or number
# By title and label: (model, value, standard error).
Panels = dict[str, dict[str, list[tuple[int, float, float]]]]


@dataclass(frozen=True)
class Panel:
    """A plot: its title, a note on how to read it, and the columns of its series that are drawn.

    Values range from 0 to `top`. `measurements` are names in `summary.MEASURED` or of the data, if
    the series is one of measurements.
    """

    title: str
    note: str
    measurements: tuple[str, ...] = ()
    x: str = "model"
    y: str = "value"
    color: str | None = "what"
    top: float | None = None
    scatter: bool = False


PANELS = {
    "win_rate": Panel(
        "win rate against M0",
        "Share of held-out prompts on which a model's answer beats M0's; a tie is half. ½ is no "
        "better.",
        ("win_rate_vs_seed",),
        color=None,
        top=1.0,
    ),
    "points": Panel(
        "points, 0 to 5",
        "Of answers to held-out prompts: what the model gives itself, what M0, frozen, gives it, "
        "and the exact score, if a program can check the answers; also apart for the kinds of "
        "constraints that it was trained on and for those that training never showed.",
        (
            "exact_score",
            "exact_score_trained_kinds",
            "exact_score_unseen_kinds",
            "self_score",
            "outside_score",
        ),
        top=5.0,
    ),
    "agreement": Panel(
        "judge: agreement with human rankings",
        "Share of ranked pairs that the model, as judge, orders as people did; and that the rule "
        "“pick the longer answer”, which reads nothing, orders so.",
        ("judge_pair_accuracy", "longer_pair_accuracy"),
        top=1.0,
    ),
    "tokens": Panel(
        "tokens of a response",
        "Judges like long answers: if this climbs with the scores, the model learned length.",
        ("mean_response_tokens",),
        color=None,
    ),
    "shares": Panel(
        "shares of what was trained on",
        "Prompts that gave a pair; pairs of responses with the same score; judgments that could "
        "not be read; judgments, and battles, that were forced: the judge wrote nothing readable.",
        ("pair_yield", "tie_rate", "unread_rate", "forced_rate", "battle_forced_rate"),
        top=1.0,
    ),
    "scores": Panel(
        "scores given to what was trained on",
        "Share of judgments, by score, rounded. Where nearly all are fives, the judge no longer "
        "tells answers apart.",
        x="score",
        y="share",
        color="judge",
    ),
    "lengths": Panel(
        "length against score",
        "Responses that the newest pairs were made of: characters, and the mean of their "
        "judgments.",
        x="characters",
        y="score",
        color=None,
        top=5.0,
        scatter=True,
    ),
    "pairs": Panel(
        "mean score of chosen and rejected",
        "Of the pairs that a model was trained on. As they draw together, less is left to learn.",
        y="score",
        color="which",
        top=5.0,
    ),
    "meta_judge": Panel(
        "what the meta-judge prefers",
        "Share of decided battles. For what is shown first, ½ is unbiased; for the higher score, "
        "the more the better the two judges agree.",
        x="judge",
        top=1.0,
    ),
}
CURVES = {
    "loss": "loss",
    "rewards/margins": "reward margin",
    "rewards/accuracies": "share of pairs ranked as labelled",
}
LONGER = summary.title("longer_pair_accuracy")
MAX_POINTS = 1500  # in a scatter plot
WIDTH, HEIGHT = 4.2, 3.0  # inches of one panel
MIN_SHARE = 0.01  # of the time: stages that took less have no bar


def load_series(store: Store, document: RunSummary) -> dict[str, Series]:
    """Return the series of every panel by its key in PANELS; empty where nothing is measured."""
    judged = [t for t in store.models(1) if store.is_done(t, "judgments")]
    return {
        **{key: [] for key in PANELS},
        **measurement_series(document["iterations"]),
        "scores": score_shares(store),
        "lengths": lengths_and_scores(store, judged[-1]) if judged else [],
        "pairs": chosen_vs_rejected(store),
        "meta_judge": meta_judge_bias(store),
    }


def measurement_series(rows: Sequence[summary.ModelFigures]) -> dict[str, Series]:
    """Return, by panel, rows of model, what, value, error (0 if unknown); without empty panels."""
    found = {
        key: [
            {
                "model": ModelId(number).name,
                "what": summary.title(name),
                "value": row[name],
                "error": row.get(f"{name}_error") or 0.0,
            }
            for name in panel.measurements
            for number, row in enumerate(rows)
            if row.get(name) is not None
        ]
        for key, panel in PANELS.items()
    }
    return {key: series for key, series in found.items() if series}


def training_curves(store: Store) -> dict[str, Series]:
    """Return, by curve, what trainers reported: rows of model, step, value."""
    curves: dict[str, Series] = {title: [] for title in CURVES.values()}
    for model in store.models():
        for step, name, value in store.training(model):
            if name in CURVES and value is not None:
                point = {"model": ModelId(model).name, "step": step, "value": value}
                curves[CURVES[name]].append(point)
    return curves


def score_shares(store: Store) -> Series:
    """Return how the scores that were trained on are spread: rows of judge, score, share, count.

    Judgments that could not be read are left out.
    """
    found: Series = []
    for iteration in store.models(1):
        judgments = summary.load_training_judgments(store, iteration)
        given = [one.score for one in judgments if one.score is not None]
        counts, total = Counter(round(score) for score in given), len(given)
        found += [
            {
                "judge": ModelId(iteration - 1).name,
                "score": score,
                "share": counts[score] / total,
                "count": total,
            }
            for score in range(6)
            if given
        ]
    return found


def lengths_and_scores(store: Store, iteration: int) -> Series:
    """Return the first responses of an iteration: rows of characters, mean score."""
    return [
        {"characters": characters, "score": round(score, 3)}
        for characters, score in queries.read_lengths(store, iteration, MAX_POINTS)
        if score is not None
    ]


def chosen_vs_rejected(store: Store) -> Series:
    """Return means of pairs: rows of model (trained on them), which, score, characters."""
    return [
        {
            "model": ModelId(iteration).name,
            "which": which,
            "score": score,
            "characters": characters,
        }
        for iteration, which, score, characters in queries.average_pairs(store)
    ]


def meta_judge_bias(store: Store) -> Series:
    """Return what meta-judges prefer: rows of judge, what, value, count (arXiv 2407.19594, 4).

    The share of decided battles won by the judgment shown first, in all battles and in those of
    equal scores (½ is unbiased); and the share won by the higher score.
    """
    found: Series = []
    for iteration in store.models(1):
        battles = queries.read_decided_battles(store, iteration)
        kinds = {
            "shown first": [verdict > 0 for verdict, _ in battles],
            "shown first, equal scores": [verdict > 0 for verdict, lead in battles if lead == 0],
            "higher score": [verdict == lead for verdict, lead in battles if lead],
        }
        judge = ModelId(iteration - 1).name
        found += [
            {"judge": judge, "what": what, "value": fmean(won), "count": len(won)}
            for what, won in kinds.items()
            if won
        ]
    return found


# -- figures -------------------------------------------------------------------------------------


def draw_worth(store: Store, document: RunSummary | None = None) -> Figure:
    """Draw what every model was measured to be, M0 first, with standard errors where known."""
    panels = measurement_series((document or summary.summarize_run(store))["iterations"])
    return draw_curves(
        {
            PANELS[key].title: {
                name: [(int(row["model"][1:]), row["value"], row["error"]) for row in points]
                for name, points in _group_by(series, "what").items()
            }
            for key, series in panels.items()
        }
    )


def draw_training(store: Store) -> Figure:
    """Draw the curves of every training: the loss, and for DPO reward margin and accuracy."""
    curves = {title: series for title, series in training_curves(store).items() if series}
    figure, axes = _make_panels(len(curves))
    for one, (title, series) in zip(axes, curves.items(), strict=True):
        for model, points in _group_by(series, "model").items():
            one.plot([row["step"] for row in points], [row["value"] for row in points], label=model)
        one.set_title(title)
        one.set_xlabel("step")
        one.legend(fontsize="small")
    return figure


def draw_scores(store: Store) -> Figure:
    """Draw how the scores that were trained on are spread, a panel for each judge.

    A figure without panels if no judge gave any.
    """
    found = _group_by(score_shares(store), "judge")
    figure, axes = _make_panels(len(found))
    for one, (judge, rows) in zip(axes, found.items(), strict=True):
        one.bar([row["score"] for row in rows], [row["share"] for row in rows])
        one.set_title(f"scores given by {judge}, {rows[0]['count']:,} judgments")
        one.set_xlabel("score, rounded")
    return figure


def draw_seconds(store: Store) -> Figure:
    """Draw where the time went, the longest stage on top."""
    every = summary.sum_stage_seconds(store)
    total = sum(every.values())
    spent = {stage: took for stage, took in reversed(every.items()) if took >= MIN_SHARE * total}
    figure, (one,) = _make_panels(1, height=0.28 * max(4, len(spent)))
    one.barh(list(spent), [value / 60 for value in spent.values()])
    one.set_xlabel("minutes")
    return figure


def draw_curves(panels: Panels, height: float = HEIGHT) -> Figure:
    """Draw lines over M0, M1, … with error bars; the rule "pick the longer" as a thin level."""
    figure, axes = _make_panels(len(panels), height)
    labels = dict.fromkeys(label for lines in panels.values() for label in lines)
    colors = {label: f"C{place}" for place, label in enumerate(labels)}
    for one, (title, lines) in zip(axes, panels.items(), strict=True):
        for label, points in lines.items():
            models, values, errors = zip(*points, strict=True)
            if label == LONGER:  # the same for all models, which judge the same pairs
                one.axhline(fmean(values), linewidth=1, linestyle="--", color="gray", label=label)
                continue
            one.errorbar(
                models, values, errors, marker="o", capsize=3, label=label, color=colors[label]
            )
        ticks = sorted({model for points in lines.values() for model, *_ in points})
        one.set_title(title)
        one.set_xticks(ticks, [ModelId(model).name for model in ticks])
        if len(lines) > 1:
            one.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.08))
    return figure


def to_svg(figure: Figure) -> str:
    """Return a figure as SVG for a page: text stays text, and every call gives the same."""
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "selfreward_lite"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()[out.getvalue().index("<svg") :]


def _group_by(series: Series, column: str) -> dict[str, Series]:
    """Rows by their value in a column, in order of first appearance."""
    found: dict[str, Series] = {}
    for row in series:
        found.setdefault(row[column], []).append(row)
    return found


def _make_panels(count: int, height: float = HEIGHT) -> tuple[Figure, list[Axes]]:
    """An empty figure with `count` panels, three in a row."""
    from matplotlib.figure import Figure

    columns = min(3, max(1, count))
    lines = max(1, -(-count // columns))
    figure = Figure(figsize=(WIDTH * columns, height * lines), layout="constrained")
    axes = [figure.add_subplot(lines, columns, place + 1) for place in range(count)]
    for one in axes:
        one.grid(alpha=0.3)
    return figure, axes
