"""The claims of the two papers that the tiny world can test, and this project's own questions.

A claim is a set of differences between two measurements, taken seed by seed. It is held if the 95 %
interval of every difference is above zero, and in part if that is so of some and the others show
nothing. A judge's metric that is compared with 1 on every seed cannot rise: it does not count,
unless it falls.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from selfreward_lite.bench.paper_table import ITERATIONS
from selfreward_lite.bench.seeds import ModelRow
from selfreward_lite.data.records import BASE, ModelId
from selfreward_lite.method.statistics import t_interval

SR, SR_LC, MR = "Self-Rewarding", "Self-Rewarding + length control", "Meta-Rewarding"
MORE_STEPS = f"{SR_LC}, 1.5 epochs"  # nearly as many training steps as Meta-Rewarding
POSITIVE = "positive examples only"
MORE_POSITIVE = f"{POSITIVE}, 7 epochs"  # as many as MORE_STEPS
# Of a difference, the worst first; a claim may also be held in part, or where testable here.
Verdict = Literal[
    "not measured",
    "not held: the opposite",
    "not held: no difference seen",
    "held",
    "not testable here",
]
Model = tuple[str, int]  # an arm and an iteration


@dataclass(frozen=True)
class Difference:
    """A column of `more` minus that of `less` (None: minus ½), claimed to be above zero."""

    text: str
    column: str
    more: Model
    less: Model | None = None


@dataclass(frozen=True)
class Claim:
    """A claim, its source, and the differences that must all be above zero."""

    name: str
    source: str
    text: str
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class Found:
    """A measured difference: mean and 95 % interval over the seeds that have it, of `all_seeds`.

    `has_room`: on some seed it could have been above zero.
    """

    text: str
    mean: float
    low: float
    high: float
    seeds: int
    all_seeds: int
    has_room: bool

    @property
    def verdict(self) -> Verdict:
        """What this difference says of its claim."""
        # The seeds that have it are no fair sample of all.
        if math.isnan(self.low) or self.seeds < self.all_seeds:
            return "not measured"
        if self.low > 0 or self.high < 0:
            return "held" if self.low > 0 else "not held: the opposite"
        return "not held: no difference seen" if self.has_room else "not testable here"

    def __str__(self) -> str:
        numbers = (round(one, 6) for one in (self.mean, self.low, self.high))  # as in the JSON
        mean, low, high = ("–" if math.isnan(one) else f"{one:+.3f}" for one in numbers)
        more = {"not testable here": ", no room to rise", "not measured": f", seeds: {self.seeds}"}
        return f"{self.text}: {mean} ({low} to {high}{more.get(self.verdict, '')})"


@dataclass(frozen=True)
class JudgedClaim:
    """A claim and its differences as measured."""

    claim: Claim
    found: list[Found]

    @property
    def verdict(self) -> Verdict | Literal["held in part", "held where testable here"]:
        """The verdict of the worst difference, or in part."""
        verdicts = {one.verdict for one in self.found}
        worst = min(verdicts, key=get_args(Verdict).index)
        if worst == "not held: no difference seen" and "held" in verdicts:
            return "held in part"
        if worst == "held" and "not testable here" in verdicts:
            return "held where testable here"
        return worst


def judge_claim(claim: Claim, rows: Sequence[ModelRow]) -> JudgedClaim:
    """The claim with its differences, measured seed by seed."""
    return JudgedClaim(claim, [_measure(one, rows) for one in claim.differences])


def _measure(one: Difference, rows: Sequence[ModelRow]) -> Found:
    found = {(row.seed, row.arm, row.iteration): row.values.get(one.column) for row in rows}
    seeds = {row.seed for row in rows}
    values, has_room = [], False
    for seed in seeds:
        more = found.get((seed, *one.more))
        less = found.get((seed, *one.less)) if one.less else 0.5
        if more is not None and less is not None:
            values.append(more - less)
            has_room |= less < 1 or not one.column.startswith("judge_")
    return Found(one.text, *t_interval(values), len(values), len(seeds), has_room)


def _claim(name: str, source: str, text: str, *differences: Difference) -> Claim:
    return Claim(name, source, text, differences)


def _between(
    column: str, more: str, less: str, text: str = "", iteration: int = ITERATIONS
) -> Difference:
    """The same model of two arms, by default the last."""
    text = text or f"{column.replace('_', ' ')}: {more} less {less}"
    return Difference(text, column, (more, iteration), (less, iteration))


def _over(column: str, arm: str, after: int, before: int) -> Difference:
    """Two models of one arm."""
    names = ["the base" if number == BASE else ModelId(number).name for number in (after, before)]
    text = f"{column.replace('_', ' ')}, {arm}: {names[0]} less {names[1]}"
    return Difference(text, column, (arm, after), (arm, before))


JUDGE = ("pair_accuracy", "five_best", "exact_match", "spearman", "kendall")
SR_PAPER, MR_PAPER = "arXiv 2401.10020", "arXiv 2407.19594"
CLAIMS = (
    _claim(
        "C6",
        SR_PAPER,
        "EFT (here with decoys) improves all five metrics of the judge",
        *(_over(f"judge_{one}", SR, 0, BASE) for one in JUDGE),
    ),
    _claim(
        "C7",
        SR_PAPER,
        "one round improves the answers and the judge of the next round",
        Difference(f"win rate, {SR}: M1 against M0, less ½", "win_rate", (SR, 1)),
        _over("judge_pair_accuracy", SR, 1, 0),
    ),
    _claim(
        "C8",
        SR_PAPER,
        "each iteration beats the one before",
        *(
            Difference(
                f"win rate, {SR}: M{number} against M{number - 1}, less ½",
                "win_rate_vs_previous",
                (SR, number),
            )
            for number in range(1, ITERATIONS + 1)
        ),
    ),
    _claim(
        "C9",
        SR_PAPER,
        "preference pairs beat positive examples only",
        _between("win_rate", SR, POSITIVE),
    ),
    _claim(
        "C10",
        SR_PAPER,
        "the gain of an iteration shrinks (saturation)",
        Difference(
            f"win rate against the model before, {SR}: M1 less M{ITERATIONS}",
            "win_rate_vs_previous",
            (SR, 1),
            (SR, ITERATIONS),
        ),
    ),
    _claim(
        "C15",
        MR_PAPER,
        "Meta-Rewarding beats Self-Rewarding with length control, which beats its seed",
        _between("win_rate", MR, SR_LC),
        Difference(
            f"win rate, {SR_LC}: M{ITERATIONS} against M0, less ½", "win_rate", (SR_LC, ITERATIONS)
        ),
    ),
    _claim(
        "C16",
        MR_PAPER,
        "harder prompts improve too (tasks of the most letters)",
        _over("hard_score", MR, ITERATIONS, 0),
    ),
    _claim(
        "C17",
        MR_PAPER,
        "length control keeps answers short where the judge is biased against brevity",
        _between("length", "biased: Self-Rewarding", "biased: Self-Rewarding + length control"),
        _between("length", "biased: Meta-Rewarding, no length control", "biased: Meta-Rewarding"),
    ),
    _claim(
        "C18",
        MR_PAPER,
        "the judge agrees more with the ranks (the paper: with people) "
        "after the iterations that train it",
        _over("judge_pair_accuracy", MR, 2, 0),
    ),
    _claim(
        "C19",
        MR_PAPER,
        "judging gains more where judgments are trained on",
        *(
            _between(
                "judge_pair_accuracy",
                MR,
                SR_LC,
                f"judge pair accuracy, M{number}: {MR} less {SR_LC}",
                number,
            )
            for number in range(1, ITERATIONS + 1)
        ),
    ),
    _claim(
        "C20",
        MR_PAPER,
        "small differences tie on a scale of five; expected scores tie less",
        _between(
            "tie_rate",
            MR,
            "Meta-Rewarding, expected score",
            f"ties in the data of M{ITERATIONS}: {MR} less Meta-Rewarding, expected score",
        ),
    ),
)

# No paper claims these; a user wants to know them before choosing a setting.
QUESTIONS = (
    _claim(
        "Q0",
        "",
        "the meta-judge finds the better of two judgments",
        Difference("battles decided rightly, first iteration, less ½", "meta_accuracy", (MR, 1)),
        Difference("battles decided rightly, second iteration, less ½", "meta_accuracy", (MR, 2)),
    ),
    _claim(
        "Q1",
        "arXiv 2503.03064",
        "on pairs that the sampled mean ties, the expected score finds the better one",
        Difference("accuracy on tied pairs, first iteration, less ½", "tie_accuracy", (SR, 1)),
    ),
    _claim(
        "Q2",
        "",
        "expected scores make a better model than sampled ones",
        _between("win_rate", "Meta-Rewarding, expected score", MR),
    ),
    _claim(
        "Q3",
        "",
        "the SFT anchor makes a better model",
        _between("win_rate", MR, "Meta-Rewarding, no SFT anchor"),
    ),
    _claim(
        "Q4",
        "",
        "judgment pairs in the first iterations only are better than in all of them",
        _between("win_rate", MR, "Meta-Rewarding, judgment pairs always"),
    ),
    _claim(
        "Q5", "", "EFT makes a better model", _between("win_rate", MR, "Meta-Rewarding, no EFT")
    ),
    _claim(
        "Q6",
        "",
        "length control makes a better model where the judge is biased against brevity",
        _between(
            "exact_score", "biased: Meta-Rewarding", "biased: Meta-Rewarding, no length control"
        ),
    ),
    _claim(
        "Q7",
        "",
        "Meta-Rewarding beats Self-Rewarding + length control of nearly as many steps",
        _between("win_rate", MR, MORE_STEPS),
    ),
    _claim(
        "Q8",
        "",
        "in the biased world Meta-Rewarding beats Self-Rewarding + length control "
        "of nearly as many steps",
        _between("win_rate", "biased: Meta-Rewarding", f"biased: {MORE_STEPS}"),
    ),
    _claim(
        "Q9",
        "",
        "the expected score finds the better one of tied pairs in the later iterations too",
        Difference("accuracy on tied pairs, second iteration, less ½", "tie_accuracy", (SR, 2)),
        Difference("accuracy on tied pairs, third iteration, less ½", "tie_accuracy", (SR, 3)),
    ),
    _claim(
        "Q10",
        "",
        "preference pairs beat positive examples that are trained on for as many steps",
        _between("win_rate", MORE_STEPS, MORE_POSITIVE),
    ),
    _claim(
        "Q11",
        "",
        "judgment pairs make a better judge than nearly as many steps without them",
        _between("judge_pair_accuracy", MR, MORE_STEPS),
    ),
    _claim(
        "Q12",
        "",
        "in the biased world they make better pairs for M3 to learn from",
        _between("pair_accuracy", "biased: Meta-Rewarding", f"biased: {MORE_STEPS}"),
    ),
)

# Shown below every table: what the loop was given (C21), and what the tiny world cannot test.
NOTES = (
    "C21: only the loop is without human labels. Every judge above, except in the arm without "
    "EFT, learned from judgments that agree with ranks: people's in the papers, the exact "
    "scorer's here. In the biased world most of those judgments were turned against brevity.",
    "Not testable here: win rates against GPT-4 Turbo on AlpacaEval 2 (C8, C15) and on "
    "Arena-Hard (C16), which need a paid judge (`evaluate --export alpaca_eval` writes what it "
    "reads); agreement with people and with a strong judge (C18), which the ranks of the tiny "
    "world replace.",
)
