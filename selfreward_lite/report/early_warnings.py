"""Early warnings: measurements of each model that show known failures of self-rewarding.

Gates stop a run; these signs only show where it is heading. The source of a limit is written next
to it (SR: arXiv 2401.10020, MR: arXiv 2407.19594); one without a source is this project's choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from selfreward_lite.data import queries
from selfreward_lite.data.records import ModelId, Response
from selfreward_lite.data.store import Store
from selfreward_lite.method.judgments import TOP_SCORE
from selfreward_lite.method.metrics import correlation
from selfreward_lite.method.statistics import mean_or_none
from selfreward_lite.report import plots, summary

NONE, ANY = float("-inf"), float("inf")


@dataclass(frozen=True)
class Sign:
    """A measurement, the range it should lie in, and what a value outside means."""

    name: str
    low: float
    high: float
    means: str
    above: bool = False  # the low limit itself lies outside

    def warns(self, value: float) -> bool:
        """Whether a value lies outside the range; NaN does."""
        return not self.low <= value <= self.high or (self.above and value == self.low)

    @property
    def limits(self) -> str:
        """The range as text.

        >>> Sign("x", 0.5, float("inf"), "").limits, Sign("x", 0.3, 0.7, "").limits
        ('at least 0.5', '0.3 to 0.7')
        """
        if self.high == ANY:
            return f"{'above' if self.above else 'at least'} {self.low:g}"
        return f"at most {self.high:g}" if self.low == NONE else f"{self.low:g} to {self.high:g}"


SIGNS = (
    Sign(
        "mean score given",
        NONE,
        4.7,
        "the judge is saturated (MR: 4.1 rose above 4.7 in two iterations): raise the rubric's "
        "bar, or judge.score=expected",
    ),
    Sign(
        "share of top scores",
        NONE,
        0.5,
        "the judge no longer tells good from best: judge.score=expected, or fewer iterations",
    ),
    Sign(
        "tie rate",
        NONE,
        0.5,
        "most pairs of responses score the same: raise judge.count, or judge.score=expected",
    ),
    Sign(
        "length ratio",
        NONE,
        1.25,
        "answers grow by more than a quarter in one iteration (SR: by 40 to 60 %): raise the "
        "schedule's rho",
    ),
    Sign("share that repeats itself", NONE, 0.02, "answers begin to loop: raise dpo.anchor"),
    Sign("share that ends by itself", 0.95, ANY, "the model unlearns to stop: raise dpo.anchor"),
    Sign(
        "share of judgments read",
        0.95,
        ANY,
        "the judge loses its format: train on judgment pairs, or raise dpo.anchor",
    ),
    Sign(
        "share of judgments forced",
        NONE,
        0.5,
        "the judge hardly writes scores itself, so most come from its probabilities: train it with "
        "EFT (seed_stage.eft), or on judgment pairs",
    ),
    Sign(
        "judge's pair accuracy less that of the longer answer",
        0.0,
        ANY,
        "picking the longer answer agrees with people at least as often as this judge, so its "
        "labels are worth no more: a larger base, or more EFT examples",
        above=True,
    ),
    Sign(
        "meta-judge: shown first",
        0.3,
        0.7,
        "the meta-judge decides by position (MR: 0.44 rose to 0.68): stop judgment pairs",
    ),
    Sign(
        "meta-judge: higher score",
        NONE,
        0.8,
        "the meta-judge only repeats the scores (MR: 0.63 rose to 0.98): stop judgment pairs",
    ),
    Sign(
        "rank agreement with the judge before",
        0.3,
        ANY,
        "this judge and the one before rank the same answers differently: its "
        "labels are noise (arXiv 2410.12735): lower the learning rate",
    ),
    Sign(
        "log-probability of chosen, change",
        0.0,
        ANY,
        "what was chosen became less likely, not only what was rejected: raise dpo.anchor",
    ),
    Sign(
        "log-probability of rejected, change",
        NONE,
        0.0,
        "what was rejected became more likely: lower the learning rate",
    ),
    Sign(
        "hostile responses, points above honest bad ones",
        NONE,
        0.0,
        "hostile responses can talk the judge into a better score: more EFT examples",
    ),
)


@dataclass(frozen=True)
class Reading:
    """A sign of one model with its value."""

    model: str
    sign: Sign
    value: float

    @property
    def warns(self) -> bool:
        return self.sign.warns(self.value)


def early_warnings(store: Store) -> list[Reading]:
    """Return the signs that have data, of every measured model, M0 first, in the order of SIGNS."""
    found = []
    for iteration in store.models():
        if store.is_done(iteration, "evaluation"):
            values = _measure_signs(store, iteration)
            found += [
                Reading(ModelId(iteration).name, sign, value)
                for sign in SIGNS
                if (value := values.get(sign.name)) is not None
            ]
    return found


def build_sign_table(readings: Sequence[Reading]) -> summary.Table:
    """Return a table with a column a model; a value that warns starts with ⚠."""
    models = list(dict.fromkeys(one.model for one in readings))
    shown = {
        (one.sign, one.model): f"{'⚠ ' if one.warns else ''}{one.value:.2f}" for one in readings
    }
    rows = [
        [sign.name, sign.limits, *(shown.get((sign, model), "–") for model in models)]
        for sign in SIGNS
        if any((sign, model) in shown for model in models)
    ]
    return summary.Table(["sign", "should be", *models], rows)


def list_advice(readings: Sequence[Reading]) -> list[str]:
    """Return what each sign means that warns of the newest model."""
    return [
        f"{one.model}, {one.sign.name}: {one.sign.means}"
        for one in readings
        if one.warns and one.model == readings[-1].model
    ]


def _measure_signs(store: Store, iteration: int) -> summary.ModelFigures:
    """The value of every sign of M(t), None without data."""
    metrics = summary.load_metrics(store, iteration)
    values = {
        "share that repeats itself": metrics.get("repetitive_share"),
        "share that ends by itself": _subtract(1.0, metrics.get("cut_share")),
        "share of judgments read": metrics.get("judge_read_share"),
        "share of judgments forced": metrics.get("judge_forced_share"),
        "judge's pair accuracy less that of the longer answer": _subtract(
            metrics.get("judge_pair_accuracy"), metrics.get("longer_pair_accuracy")
        ),
        "hostile responses, points above honest bad ones": _subtract(
            metrics.get("canary_score"), metrics.get("honest_bad_score")
        ),
    }
    return values | _measure_training_signs(store, iteration) if iteration else values


def _measure_training_signs(store: Store, iteration: int) -> summary.ModelFigures:
    """Signs in what M(t) was trained on, and in what the training changed."""
    judgments = summary.load_training_judgments(store, iteration)
    scores = [one.score for one in judgments if one.score is not None]
    lengths = [_mean_length(store, model) for model in (iteration - 1, iteration)]
    biases = {
        row["what"]: row["value"]
        for row in plots.meta_judge_bias(store)
        if row["judge"] == ModelId(iteration - 1).name
    }
    return {
        "mean score given": mean_or_none(scores),
        "share of top scores": mean_or_none([one >= TOP_SCORE for one in scores]),
        "tie rate": summary.measure_tie_rate(store, iteration, judgments),
        "length ratio": lengths[1] / lengths[0] if lengths[0] else None,
        "meta-judge: shown first": biases.get("shown first"),
        "meta-judge: higher score": biases.get("higher score"),
        "rank agreement with the judge before": rank_agreement(store, iteration),
        "log-probability of chosen, change": _late_change(store, iteration, "rewards/chosen"),
        "log-probability of rejected, change": _late_change(store, iteration, "rewards/rejected"),
    }


def rank_agreement(store: Store, iteration: int) -> float | None:
    """Return the mean Kendall tau-b between scores of M(t) and M(t−1) for the same ranked answers.

    The mean is over prompts; those to which one model gives equal scores only are left out. None
    without any other prompt.
    """
    now, before = (queries.average_ranked_scores(store, t) for t in (iteration, iteration - 1))
    found = []
    for prompt, scores in now.items():
        both = [
            (score, before[prompt][name])
            for name, score in scores.items()
            if name in before.get(prompt, {})
        ]
        if both and (correlated := correlation(*zip(*both, strict=True))):
            found.append(correlated[1])
    return mean_or_none(found)


def _subtract(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def _mean_length(store: Store, model: int) -> float:
    return mean_or_none([len(one.text) for one in store.made_by(Response, model)]) or 0.0


def _late_change(store: Store, iteration: int, name: str) -> float | None:
    """The mean change (nats) in the last quarter of a training; a DPO reward is beta times that."""
    values = [
        value
        for _, logged, value in store.training(iteration)
        if logged == name and value is not None
    ]
    late = values[-max(1, len(values) // 4) :]
    return fmean(late) / store.settings().dpo.beta if late else None
