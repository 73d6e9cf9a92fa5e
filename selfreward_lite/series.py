"""A run as series of points: what plots show, whoever draws them.

Knows: which measurements belong in one picture, and counts that a database does better than Python. Does not know: plots. Every
function returns rows, as plain dicts, in the order of the models.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from selfreward_lite import report
from selfreward_lite.store import Store

Rows = list[dict[str, Any]]
# What is called what, and the measurements in it; one that was not made in a run is left out.
PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("win rate against M0", ("win_rate_vs_seed",)),
    ("points, 0 to 5", ("exact_score", "self_score", "outside_score")),
    ("judge: agreement with human rankings", ("judge_pair_accuracy",)),
    ("tokens of a response", ("mean_response_tokens",)),
    ("shares of what was trained on", ("pair_yield", "tie_rate", "unread_rate")),
)
CURVES = {"loss": "loss", "rewards/margins": "reward margin", "rewards/accuracies": "share of pairs ranked as labelled"}
DOTS = 1500  # responses of a scatter plot at most


def worth(store: Store) -> dict[str, Rows]:
    """Return, by panel, what every model was measured to be: rows of model, what, value, error (0 where there is none)."""
    rows = report.summary(store)["iterations"]
    found = {
        title: [
            {"model": f"M{row['iteration']}", "what": name.replace("_", " "), "value": row[name],
             "error": row.get(f"{name}_error") or 0.0}
            for name in names for row in rows if row.get(name) is not None
        ]
        for title, names in PANELS
    }
    return {title: rows for title, rows in found.items() if rows}


def training(store: Store) -> dict[str, Rows]:
    """Return, by curve, what trainers reported: rows of model, step, value."""
    models = [model for model in range((store.newest() or 0) + 2) if store.training(model)]
    return {
        title: [
            {"model": f"M{model}", "step": step, "value": value}
            for model in models for step, logged, value in store.training(model) if logged == name and value is not None
        ]
        for name, title in CURVES.items()
    }


def scores(store: Store) -> Rows:
    """Return how the scores that were trained on are spread, unread judgments left out: rows of judge, score, share, count."""
    found: Rows = []
    for iteration in range(1, (store.newest() or 0) + 2):
        given = [one.score for one in report.training_judgments(store, iteration) if one.score is not None]
        counts = Counter(round(score) for score in given)
        found += [
            {"judge": f"M{iteration - 1}", "score": score, "share": counts[score] / len(given), "count": len(given)}
            for score in range(6) if given
        ]
    return found


def lengths(store: Store, iteration: int) -> Rows:
    """Return responses of an iteration, the first ones, with their mean score: rows of characters, score."""
    rows = store.select(
        "SELECT length(r.text), (SELECT avg(j.score) FROM record_judgment j WHERE j.iteration = r.iteration AND "
        "j.response_id = r.id) AS score FROM record_response r WHERE r.iteration = ? AND r.model = ? AND r.id IN "
        f"(SELECT item FROM items WHERE iteration = r.iteration AND stage = 'judgments') ORDER BY r.rowid LIMIT {DOTS}",
        iteration, f"M{iteration - 1}",
    )
    return [{"characters": length, "score": round(score, 3)} for length, score in rows if score is not None]


def gaps(store: Store) -> Rows:
    """Return what was chosen and what was rejected, on average: rows of model (which was trained on them), which, score,
    characters."""
    rows = store.select(
        "SELECT iteration, avg(chosen_score), avg(rejected_score), avg(chosen_length), avg(rejected_length) "
        "FROM record_responsepair GROUP BY iteration ORDER BY iteration"
    )
    return [
        {"model": f"M{iteration}", "which": which, "score": score, "characters": length}
        for iteration, *means in rows
        for which, score, length in (("chosen", means[0], means[2]), ("rejected", means[1], means[3]))
    ]


def biases(store: Store) -> Rows:
    """Return what the meta-judge's decided verdicts lean to (arXiv 2407.19594, section 4): rows of meta-judge, what, value.

    The share for the judgment shown first, over all battles and over those of equal scores, where ½ is unbiased; and the share
    for the higher score.
    """
    found: Rows = []
    verdicts = (
        "SELECT b.verdict, f.score, s.score FROM record_battle b JOIN record_judgment f ON f.id = b.first_id "
        "JOIN record_judgment s ON s.id = b.second_id WHERE b.iteration = ? AND b.verdict != 0"
    )
    for (iteration,) in store.select("SELECT DISTINCT iteration FROM record_battle ORDER BY iteration"):
        decided = store.select(verdicts, iteration)
        read = [row for row in decided if None not in row]
        kinds = {
            "shown first": [row[0] > 0 for row in decided],
            "shown first, equal scores": [row[0] > 0 for row in read if row[1] == row[2]],
            "higher score": [row[0] * (row[1] - row[2]) > 0 for row in read if row[1] != row[2]],
        }
        found += [
            {"judge": f"M{iteration - 1}", "what": what, "value": sum(chosen) / len(chosen), "count": len(chosen)}
            for what, chosen in kinds.items() if chosen
        ]
    return found
