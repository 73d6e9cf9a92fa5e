"""What the papers claim, as differences between rows of the table, and whether these results bear it out.

Knows: the claims of arXiv 2401.10020 and 2407.19594 that a small world can test, and what would bear each out. Does not know:
how rows are made (`papers`). A difference is taken seed by seed; a claim is held only where the 95 % interval of every
difference that it needs lies on the claimed side of zero, and in part where that is so of some and the others show nothing.
Where what a judge is held against is 1 on every seed, it cannot rise: such a difference says nothing of its claim, unless it
fell. Whatever comes out is reported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal

from selfreward_lite.bench.paper_table import ITERATIONS, Row
from selfreward_lite.data.records import BASE, ModelId
from selfreward_lite.method.statistics import (
    format_with_error,
    nan_to_none,
    standard_error,
    t_interval,
)

LAST = ITERATIONS
SR, SR_LC, MR = "Self-Rewarding", "Self-Rewarding + length control", "Meta-Rewarding"
MORE_STEPS = f"{SR_LC}, 1.5 epochs"  # nearly as many training steps as Meta-Rewarding
POSITIVE = "positive examples only"
MORE_POSITIVE = f"{POSITIVE}, 7 epochs"  # as many as those
Verdict = Literal[
    "held",
    "held in part",
    "held where testable here",
    "not held: no difference seen",
    "not held: the opposite",
    "not testable here",
    "not measured",
]


@dataclass(frozen=True)
class Place:
    """A column of an arm's model; where `arm` is None, the number `constant`."""

    column: str
    arm: str | None
    iteration: int = LAST
    constant: float = 0.0

    def of(self, rows: Mapping[tuple[str, int], Mapping[str, float]]) -> float | None:
        """Return the value in the rows of one seed, by arm and iteration; None where it was not measured."""
        return (
            self.constant
            if self.arm is None
            else rows.get((self.arm, self.iteration), {}).get(self.column)
        )


@dataclass(frozen=True)
class Difference:
    """`more` less `less`, which is claimed to be above zero."""

    words: str
    more: Place
    less: Place

    @property
    def limit(self) -> float:
        """What the column of both cannot pass."""
        return 1.0 if self.more.column.startswith("judge_") else math.inf


@dataclass(frozen=True)
class Claim:
    """A claim: where it stands, what it says, and the differences that must all be above zero for it to hold."""

    name: str
    source: str
    words: str
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class Found:
    """A difference as it was found: mean and 95 % interval over the seeds that have it, of those `wanted`; `room` says whether
    it could have been above zero on any seed."""

    words: str
    mean: float
    low: float
    high: float
    seeds: int
    wanted: int
    room: bool

    @property
    def verdict(self) -> Verdict:
        if (
            math.isnan(self.low) or self.seeds < self.wanted
        ):  # those that got there are no fair sample
            return "not measured"
        if self.low > 0 or self.high < 0:
            return "held" if self.low > 0 else "not held: the opposite"
        return "not held: no difference seen" if self.room else "not testable here"


def _between(
    column: str, more: str, less: str, words: str = "", iteration: int = LAST
) -> Difference:
    """The same model of two arms, by default the last."""
    words = words or f"{column.replace('_', ' ')}: {more} less {less}"
    return Difference(words, Place(column, more, iteration), Place(column, less, iteration))


def _over(column: str, arm: str, after: int, before: int) -> Difference:
    """Two models of one arm."""
    names = ["the base" if number == BASE else ModelId(number).name for number in (after, before)]
    words = f"{column.replace('_', ' ')}, {arm}: {names[0]} less {names[1]}"
    return Difference(words, Place(column, arm, after), Place(column, arm, before))


def _above_half(column: str, arm: str, iteration: int, words: str) -> Difference:
    return Difference(words, Place(column, arm, iteration), Place("", None, constant=0.5))


JUDGE = ("pair_accuracy", "five_best", "exact_match", "spearman", "kendall")
SR_PAPER, MR_PAPER = "arXiv 2401.10020", "arXiv 2407.19594"
CLAIMS = (
    Claim(
        "C6",
        SR_PAPER,
        "EFT (here with decoys) improves all five metrics of the judge",
        tuple(_over(f"judge_{one}", SR, 0, BASE) for one in JUDGE),
    ),
    Claim(
        "C7",
        SR_PAPER,
        "one round improves the answers and the judge of the next round",
        (
            _above_half("win_rate", SR, 1, f"win rate, {SR}: M1 against M0, less ½"),
            _over("judge_pair_accuracy", SR, 1, 0),
        ),
    ),
    Claim(
        "C8",
        SR_PAPER,
        "each iteration beats the one before",
        tuple(
            _above_half(
                "win_rate_vs_previous",
                SR,
                number,
                f"win rate, {SR}: M{number} against M{number - 1}, less ½",
            )
            for number in range(1, LAST + 1)
        ),
    ),
    Claim(
        "C9",
        SR_PAPER,
        "preference pairs beat positive examples only",
        (_between("win_rate", SR, POSITIVE),),
    ),
    Claim(
        "C10",
        SR_PAPER,
        "the gain of an iteration shrinks (saturation)",
        (
            Difference(
                f"win rate against the model before, {SR}: M1 less M{LAST}",
                Place("win_rate_vs_previous", SR, 1),
                Place("win_rate_vs_previous", SR),
            ),
        ),
    ),
    Claim(
        "C15",
        MR_PAPER,
        "Meta-Rewarding beats Self-Rewarding with length control, which beats its seed",
        (
            _between("win_rate", MR, SR_LC),
            _above_half("win_rate", SR_LC, LAST, f"win rate, {SR_LC}: M{LAST} against M0, less ½"),
        ),
    ),
    Claim(
        "C16",
        MR_PAPER,
        "harder prompts improve too (tasks of the most letters)",
        (_over("hard_score", MR, LAST, 0),),
    ),
    Claim(
        "C17",
        MR_PAPER,
        "length control keeps answers short where the judge is biased against brevity",
        (
            _between("length", "biased: Self-Rewarding", "biased: Self-Rewarding + length control"),
            _between(
                "length", "biased: Meta-Rewarding, no length control", "biased: Meta-Rewarding"
            ),
        ),
    ),
    Claim(
        "C18",
        MR_PAPER,
        "the judge agrees more with the ranks (the paper: with people) after the iterations that train it",
        (_over("judge_pair_accuracy", MR, 2, 0),),
    ),
    Claim(
        "C19",
        MR_PAPER,
        "judging gains more where judgments are trained on",
        tuple(
            _between(
                "judge_pair_accuracy",
                MR,
                SR_LC,
                f"judge pair accuracy, M{number}: {MR} less {SR_LC}",
                number,
            )
            for number in range(1, LAST + 1)
        ),
    ),
    Claim(
        "C20",
        MR_PAPER,
        "small differences tie on a scale of five; expected scores tie less",
        (
            _between(
                "tie_rate",
                MR,
                "Meta-Rewarding, expected score",
                f"ties in the data of M{LAST}: {MR} less Meta-Rewarding, expected score",
            ),
        ),
    ),
)

# What no paper claims of this, and a user wants to know before choosing a setting.
QUESTIONS = (
    Claim(
        "Q0",
        "",
        "the meta-judge finds the better of two judgments",
        (
            _above_half("meta_accuracy", MR, 1, "battles decided rightly, first iteration, less ½"),
            _above_half(
                "meta_accuracy", MR, 2, "battles decided rightly, second iteration, less ½"
            ),
        ),
    ),
    Claim(
        "Q1",
        "arXiv 2503.03064",
        "on pairs that the sampled mean ties, the expected score finds the better one",
        (_above_half("tie_accuracy", SR, 1, "accuracy on tied pairs, first iteration, less ½"),),
    ),
    Claim(
        "Q2",
        "",
        "expected scores make a better model than sampled ones",
        (_between("win_rate", "Meta-Rewarding, expected score", MR),),
    ),
    Claim(
        "Q3",
        "",
        "the SFT anchor makes a better model",
        (_between("win_rate", MR, "Meta-Rewarding, no SFT anchor"),),
    ),
    Claim(
        "Q4",
        "",
        "judgment pairs in the first iterations only are better than in all of them",
        (_between("win_rate", MR, "Meta-Rewarding, judgment pairs always"),),
    ),
    Claim(
        "Q5", "", "EFT makes a better model", (_between("win_rate", MR, "Meta-Rewarding, no EFT"),)
    ),
    Claim(
        "Q6",
        "",
        "length control makes a better model where the judge is biased against brevity",
        (
            _between(
                "exact_score", "biased: Meta-Rewarding", "biased: Meta-Rewarding, no length control"
            ),
        ),
    ),
    Claim(
        "Q7",
        "",
        "Meta-Rewarding beats Self-Rewarding + length control of nearly as many steps",
        (_between("win_rate", MR, MORE_STEPS),),
    ),
    Claim(
        "Q8",
        "",
        "in the biased world Meta-Rewarding beats Self-Rewarding + length control of nearly as many steps",
        (_between("win_rate", "biased: Meta-Rewarding", f"biased: {MORE_STEPS}"),),
    ),
    Claim(
        "Q9",
        "",
        "the expected score finds the better one of tied pairs in the later iterations too",
        (
            _above_half("tie_accuracy", SR, 2, "accuracy on tied pairs, second iteration, less ½"),
            _above_half("tie_accuracy", SR, 3, "accuracy on tied pairs, third iteration, less ½"),
        ),
    ),
    Claim(
        "Q10",
        "",
        "preference pairs beat positive examples that are trained on for as many steps",
        (_between("win_rate", MORE_STEPS, MORE_POSITIVE),),
    ),
    Claim(
        "Q11",
        "",
        "judgment pairs make a better judge than nearly as many steps without them",
        (_between("judge_pair_accuracy", MR, MORE_STEPS),),
    ),
    Claim(
        "Q12",
        "",
        "in the biased world they make better pairs for M3 to learn from",
        (_between("pair_accuracy", "biased: Meta-Rewarding", f"biased: {MORE_STEPS}"),),
    ),
)

# What stands wherever results are shown (method: C21), and what no run of the tiny world can say.
NOTES = (
    "C21: only the loop is without human labels. Every judge above, but for that of the arm without EFT, learnt from judgments "
    "that agree with ranks: people's in the papers, the exact scorer's here; in the biased world most of those judgments were "
    "turned against brevity.",
    "Not testable here: win rates against GPT-4 Turbo on AlpacaEval 2 (C8, C15) and on Arena-Hard (C16), which need a paid judge "
    "(`evaluate --export alpaca_eval` writes what it reads); agreement with people and with a strong judge (C18), for which the "
    "ranks of the tiny world stand.",
)


def judge(claim: Claim, rows: Sequence[Row]) -> tuple[Verdict, list[Found]]:
    """Return whether a claim is held, and each of its differences as it was found."""
    found = [_found(one, rows) for one in claim.differences]
    verdicts = [one.verdict for one in found]
    order: tuple[Verdict, ...] = (
        "not measured",
        "not held: the opposite",
        "not held: no difference seen",
        "held",
        "not testable here",
    )
    worst = min(verdicts, key=order.index)
    if worst == "not held: no difference seen" and "held" in verdicts:
        return "held in part", found
    return (
        "held where testable here" if worst == "held" and "not testable here" in verdicts else worst
    ), found


def _found(difference: Difference, rows: Sequence[Row]) -> Found:
    values, room = [], False
    for known in _by_seed(rows).values():
        more, less = difference.more.of(known), difference.less.of(known)
        if more is not None and less is not None:
            values.append(more - less)
            room |= less < difference.limit
    return Found(difference.words, *t_interval(values), len(values), len(_by_seed(rows)), room)


def _by_seed(rows: Sequence[Row]) -> dict[int, dict[tuple[str, int], Mapping[str, float]]]:
    found: dict[int, dict[tuple[str, int], Mapping[str, float]]] = {}
    for row in rows:
        found.setdefault(row.seed, {})[row.arm, row.iteration] = row.values
    return found


COLUMNS = {  # by what a table calls them
    "win_rate": "win rate against M0",
    "length_controlled_win_rate": "at equal length",
    "exact_score": "exact score",
    "answer_right": "answers right",
    "length": "characters",
    "judge_pair_accuracy": "judge: pairs right",
    "pair_yield": "prompts with a pair",
    "pair_accuracy": "pairs: chosen is better",
    "tie_rate": "ties",
    "meta_accuracy": "meta-judge: right",
    "first_share": "meta-judge: for the first shown",
    "training_steps": "training steps",
}

# Of what models were trained on, and for how long: the mean over all iterations that have it.
OF_DATA = (
    "pair_yield",
    "pair_accuracy",
    "tie_rate",
    "meta_accuracy",
    "first_share",
    "training_steps",
)
Means = dict[str, tuple[float, float]]


def averages(rows: Sequence[Row]) -> dict[str, dict[int, Means]]:
    """Return, by arm and iteration, each column's mean and standard error over seeds; M0 first, without the base."""
    found: dict[str, dict[int, Means]] = {}
    for arm, iteration in dict.fromkeys(
        (row.arm, row.iteration) for row in rows if row.iteration != BASE
    ):
        means: Means = {}
        for name in COLUMNS:
            values = [
                row.values.get(name) for row in rows if (row.arm, row.iteration) == (arm, iteration)
            ]
            if read := [value for value in values if value is not None]:
                means[name] = math.fsum(read) / len(read), standard_error(read)
        found.setdefault(arm, {})[iteration] = means
    return found


def table(rows: Sequence[Row]) -> dict[str, Means]:
    """Return the row of each arm: its last model, and its data over all iterations; before them, M0 alone."""
    found: dict[str, Means] = {}
    for arm, by_iteration in averages(rows).items():
        if arm == SR:
            found["M0 only"] = by_iteration[0]
        reached = max(by_iteration)
        there = {row.seed for row in rows if (row.arm, row.iteration) == (arm, reached)}
        whole = reached == LAST and there == {row.seed for row in rows}
        title = arm if whole else f"{arm} (M{reached}, {len(there)} seeds)"
        found[title] = dict(by_iteration[reached])
        for name in OF_DATA:
            seeds: dict[int, list[float]] = {}
            for row in rows:
                if row.arm == arm and row.seed in there and name in row.values:
                    seeds.setdefault(row.seed, []).append(row.values[name])
            if values := [math.fsum(one) / len(one) for one in seeds.values()]:
                found[title][name] = math.fsum(values) / len(values), standard_error(values)
    return found


# What the figure shows, and of which arms.
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


def panels(rows: Sequence[Row]) -> dict[str, dict[str, list[tuple[int, float, float]]]]:
    """Return the figure's lines: by panel and arm, (model, mean, standard error)."""
    known = averages(rows)
    found = {
        title: {
            arm: [
                (number, *means[column]) for number, means in known[arm].items() if column in means
            ]
            for arm in arms
            if arm in known
        }
        for title, column, arms in PANELS
    }
    return {title: lines for title, lines in found.items() if lines}


def document(rows: Sequence[Row]) -> dict[str, Any]:
    """Return everything as JSON: the table, each claim with its differences, and the rows that both come from, to six digits."""
    rows = [
        replace(
            one,
            values={
                name: round(value, 6) for name, value in one.values.items() if not math.isnan(value)
            },
        )
        for one in rows
    ]
    judged = [(one, *judge(one, rows)) for one in (*CLAIMS, *QUESTIONS)]
    return {
        "seeds": sorted({row.seed for row in rows}),
        "table": {
            arm: {name: [_short(value) for value in pair] for name, pair in means.items()}
            for arm, means in table(rows).items()
        },
        "notes": list(NOTES),
        "seconds_of_an_arm": _seconds(rows),
        "claims": [
            {
                "name": one.name,
                "source": one.source,
                "words": one.words,
                "verdict": verdict,
                "differences": [
                    {
                        "words": each.words,
                        "mean": _short(each.mean),
                        "low": _short(each.low),
                        "high": _short(each.high),
                        "seeds": each.seeds,
                        "verdict": each.verdict,
                    }
                    for each in found
                ],
            }
            for one, verdict, found in judged
        ],
        "rows": [[row.arm, row.seed, row.iteration, dict(row.values)] for row in rows],
    }


def _seconds(rows: Sequence[Row]) -> dict[str, float]:
    """What the stages of an arm's iterations took, its seed stage apart: the median over all arms and seeds, and the most."""
    spent: dict[tuple[str, int], float] = {}
    for row in rows:
        if row.iteration > 0:
            spent[row.arm, row.seed] = spent.get((row.arm, row.seed), 0.0) + row.values["seconds"]
    return (
        {"median": round(median(spent.values()), 1), "most": round(max(spent.values()), 1)}
        if spent
        else {}
    )


def markdown(document: Mapping[str, Any]) -> str:
    """Return table and claims as Markdown, as the README has them."""
    columns = [
        name for name in COLUMNS if any(name in means for means in document["table"].values())
    ]
    lines = [
        f"| | {' | '.join(COLUMNS[name] for name in columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for arm, means in document["table"].items():
        lines.append(
            f"| {arm} | {' | '.join(format_with_error(means.get(name)) for name in columns)} |"
        )
    lines += [
        "",
        "| | claim | here | differences: mean (95 % interval over seeds) |",
        "|---|---|---|---|",
    ]
    for one in document["claims"]:
        differences = "; ".join(format_difference(found) for found in one["differences"])
        lines.append(f"| {one['name']} | {one['words']} | {one['verdict']} | {differences} |")
    lines += [f"\n{note}" for note in document["notes"]]
    return "\n".join(lines) + "\n"


def format_difference(difference: Mapping[str, Any]) -> str:
    """Return a difference of the document in a line, with its 95 % interval; with its seeds where some of them lack it."""
    mean, low, high = (
        f"{value:+.3f}" if (value := difference[name]) is not None else "–"
        for name in ("mean", "low", "high")
    )
    lack = {
        "not testable here": ", no room to rise",
        "not measured": f", seeds: {difference['seeds']}",
    }
    return f"{difference['words']}: {mean} ({low} to {high}{lack.get(difference['verdict'], '')})"


def _short(value: float) -> float | None:
    return nan_to_none(round(value, 6))
