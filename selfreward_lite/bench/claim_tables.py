"""The paper table as JSON, Markdown and plots; all of it follows from the rows."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from selfreward_lite.bench.claims import (
    CLAIMS,
    MORE_POSITIVE,
    MORE_STEPS,
    MR,
    NOTES,
    POSITIVE,
    QUESTIONS,
    SR,
    SR_LC,
    judge_claim,
)
from selfreward_lite.bench.paper_table import ITERATIONS
from selfreward_lite.bench.seeds import Means, ModelRow, average, average_values
from selfreward_lite.data.records import BASE
from selfreward_lite.method.statistics import format_with_error, nan_to_none
from selfreward_lite.report.plots import Panels
from selfreward_lite.report.summary import Table

# Columns about the training data, and how long it was trained on: the mean over all iterations.
OF_DATA = {
    "pair_yield": "prompts with a pair",
    "pair_accuracy": "pairs: chosen is better",
    "tie_rate": "ties",
    "meta_accuracy": "meta-judge: right",
    "first_share": "meta-judge: for the first shown",
    "training_steps": "training steps",
}
COLUMNS = {  # with their headings
    "win_rate": "win rate against M0",
    "length_controlled_win_rate": "at equal length",
    "exact_score": "exact score",
    "answer_right": "answers right",
    "length": "characters",
    "judge_pair_accuracy": "judge: pairs right",
    "longer_pair_accuracy": "pick the longer: pairs right",
    **OF_DATA,
}

# The plots: heading, column, arms.
PANELS = (
    (
        "win rate against M0",
        "win_rate",
        (SR_LC, MORE_STEPS, MR, "Meta-Rewarding, no EFT", POSITIVE, MORE_POSITIVE),
    ),
    (
        "judge: agreement with the ranks",
        "judge_pair_accuracy",
        (SR_LC, MORE_STEPS, MR, "Meta-Rewarding, no EFT"),
    ),
    (
        "characters, judge biased against brevity",
        "length",
        (
            "biased: Self-Rewarding",
            "biased: Self-Rewarding + length control",
            "biased: Meta-Rewarding, no length control",
            "biased: Meta-Rewarding",
        ),
    ),
)


class PaperTable:
    """The rows of an experiment, to six digits, and what follows from them."""

    def __init__(self, rows: Sequence[ModelRow]) -> None:
        self.rows: list[ModelRow] = []
        for row in rows:
            values = row.values.items()
            known = {name: round(value, 6) for name, value in values if not math.isnan(value)}
            self.rows.append(replace(row, values=known))
        self.arms = average_arms(self.rows)
        self.claims = [judge_claim(one, self.rows) for one in (*CLAIMS, *QUESTIONS)]

    @property
    def seconds_of_an_arm(self) -> dict[str, float]:
        """Seconds of all iterations of an arm: the median and the most over arms and seeds."""
        spent: dict[tuple[str, int], float] = defaultdict(float)
        for row in self.rows:
            if row.iteration > 0:
                spent[row.arm, row.seed] += row.values["seconds"]
        if not spent:
            return {}
        return {"median": round(median(spent.values()), 1), "most": round(max(spent.values()), 1)}

    def to_json(self) -> dict[str, Any]:
        """The document that is written; it is read back from its rows alone."""
        return {
            "seeds": sorted({row.seed for row in self.rows}),
            "table": {
                arm: {name: [*map(_short, pair)] for name, pair in means.items()}
                for arm, means in self.arms.items()
            },
            "notes": list(NOTES),
            "seconds_of_an_arm": self.seconds_of_an_arm,
            "claims": [
                {
                    "name": judged.claim.name,
                    "source": judged.claim.source,
                    "words": judged.claim.text,
                    "verdict": judged.verdict,
                    "differences": [
                        {
                            "words": one.text,
                            "mean": _short(one.mean),
                            "low": _short(one.low),
                            "high": _short(one.high),
                            "seeds": one.seeds,
                            "verdict": one.verdict,
                        }
                        for one in judged.found
                    ],
                }
                for judged in self.claims
            ],
            "rows": [[row.arm, row.seed, row.iteration, dict(row.values)] for row in self.rows],
        }

    def build_arm_table(self) -> Table:
        """The figures of each arm, without columns that no arm has."""
        present = set().union(*self.arms.values())
        columns = {name: heading for name, heading in COLUMNS.items() if name in present}
        rows = [
            [arm, *(format_with_error(means.get(name)) for name in columns)]
            for arm, means in self.arms.items()
        ]
        return Table(["", *columns.values()], rows)

    def to_markdown(self) -> str:
        """The table and the claims, as docs/results.md has them."""
        head = ["", "claim", "here", "differences: mean (95 % interval over seeds)"]
        rows = [
            [one.claim.name, one.claim.text, one.verdict, "; ".join(map(str, one.found))]
            for one in self.claims
        ]
        tables = (self.build_arm_table(), Table(head, rows))
        return "\n\n".join([*map(Table.to_markdown, tables), *NOTES]) + "\n"

    def panels(self) -> Panels:
        """The lines of the plots, by heading and arm."""
        known = average_models(self.rows)
        found: Panels = defaultdict(dict)
        for heading, column, arms in PANELS:
            for arm in filter(known.get, arms):
                found[heading][arm] = [
                    (number, *means[column])
                    for number, means in known[arm].items()
                    if column in means
                ]
        return found


def average_arms(rows: Sequence[ModelRow]) -> dict[str, Means]:
    """Each arm's last model, and its data over all iterations; before them, M0 alone."""
    found: dict[str, Means] = {}
    for arm, by_iteration in average_models(rows).items():
        if arm == SR:
            found["M0 only"] = by_iteration[0]
        last = max(by_iteration)
        there = {row.seed for row in rows if (row.arm, row.iteration) == (arm, last)}
        is_complete = last == ITERATIONS and there == {row.seed for row in rows}
        title = arm if is_complete else f"{arm} (M{last}, {len(there)} seeds)"
        data = []
        for seed in there:
            values = [row.values for row in rows if (row.arm, row.seed) == (arm, seed)]
            means = average_values(values, OF_DATA)
            data.append({name: mean for name, (mean, _) in means.items()})
        means = by_iteration[last] | average_values(data, OF_DATA)
        found[title] = {name: (round(a, 6), round(b, 6)) for name, (a, b) in means.items()}
    return found


def average_models(rows: Sequence[ModelRow]) -> dict[str, dict[int, Means]]:
    """The means of M0 and later models, by arm and iteration."""
    return average([row for row in rows if row.iteration != BASE], COLUMNS)


def _short(value: float) -> float | None:
    return nan_to_none(round(value, 6))
