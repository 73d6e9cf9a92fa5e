"""Early warnings: signs, after each iteration, that self-rewarding goes the way it is known to go wrong.

Knows: which measurements are signs, from where on they warn, and why. Does not know: gates (those stop a run; a sign says where
one is heading), pages. Pure: reads a store. What a limit rests on is written beside it (SR: arXiv 2401.10020, MR: arXiv
2407.19594); one without a source is a proposal of this project.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from selfreward_lite.config.settings import parse
from selfreward_lite.data.records import ModelId, Response
from selfreward_lite.data.store import Store
from selfreward_lite.method.judgments import TOP_SCORE
from selfreward_lite.method.metrics import correlation
from selfreward_lite.report import plots, summary


@dataclass(frozen=True)
class Sign:
    """What is watched: where the value must lie, `low` to `high`, and what it means where it does not."""

    name: str
    low: float
    high: float
    means: str

    def warns(self, value: float) -> bool:
        """Whether a value lies outside; NaN does."""
        return not self.low <= value <= self.high

    @property
    def limits(self) -> str:
        """The limits in words.

        >>> Sign("x", 0.5, float("inf"), "").limits, Sign("x", 0.3, 0.7, "").limits
        ('at least 0.5', '0.3 to 0.7')
        """
        if self.high == float("inf"):
            return f"at least {self.low:g}"
        return (
            f"at most {self.high:g}"
            if self.low == float("-inf")
            else f"{self.low:g} to {self.high:g}"
        )


NONE, ANY = float("-inf"), float("inf")
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
        "the judge can be talked round: more EFT examples",
    ),
)


@dataclass(frozen=True)
class Reading:
    """A sign of one model: its value, and whether it warns."""

    model: str
    sign: Sign
    value: float

    @property
    def warns(self) -> bool:
        return self.sign.warns(self.value)


def early_warnings(store: Store) -> list[Reading]:
    """Return every sign of every model that is measured, M0 first, in the order of SIGNS; without those it has no data for."""
    newest = store.newest()
    found = []
    for iteration in range((-1 if newest is None else newest) + 2):
        if store.is_done(iteration, "evaluation"):
            values = _values(store, iteration)
            found += [
                Reading(ModelId(iteration).name, sign, values[sign.name])
                for sign in SIGNS
                if sign.name in values
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
    """Return, for each sign that warns of the newest model, what it means."""
    newest = readings[-1].model if readings else ""
    return [
        f"{one.model}, {one.sign.name}: {one.sign.means}"
        for one in readings
        if one.model == newest and one.warns
    ]


def _values(store: Store, iteration: int) -> dict[str, float]:
    known = store.metrics(iteration)
    values = {
        "share that repeats itself": known.get("repetitive_share"),
        "share that ends by itself": None
        if known.get("cut_share") is None
        else 1 - known["cut_share"],  # type: ignore[operator]
        "share of judgments read": known.get("judge_read_share"),
        **(_of_training(store, iteration) if iteration else {}),
    }
    canary, honest = known.get("canary_score"), known.get("honest_bad_score")
    if canary is not None and honest is not None:
        values["hostile responses, points above honest bad ones"] = canary - honest
    return {name: value for name, value in values.items() if value is not None}


def _of_training(store: Store, iteration: int) -> dict[str, float | None]:
    """Signs in what M(t) was trained on, and in what the training did."""
    given = summary.load_training_judgments(store, iteration)
    scores = [one.score for one in given if one.score is not None]
    lengths = [_mean_length(store, model) for model in (iteration - 1, iteration)]
    biases = {
        row["what"]: row["value"]
        for row in plots.meta_judge_bias(store)
        if row["judge"] == ModelId(iteration - 1).name
    }
    beta = parse(store.fact("settings")).dpo.beta
    return {
        "mean score given": fmean(scores) if scores else None,
        "share of top scores": fmean(score >= TOP_SCORE for score in scores) if scores else None,
        "tie rate": summary.measure_tie_rate(store, iteration, given),
        "length ratio": lengths[1] / lengths[0] if lengths[0] else None,
        "meta-judge: shown first": biases.get("shown first"),
        "meta-judge: higher score": biases.get("higher score"),
        "rank agreement with the judge before": rank_agreement(store, iteration),
        **{
            f"log-probability of {which}, change": _late(store, iteration, f"rewards/{which}", beta)
            for which in ("chosen", "rejected")
        },
    }


def rank_agreement(store: Store, iteration: int) -> float | None:
    """Return Kendall's tau-b between the scores that M(t) and M(t−1) give the same ranked answers, mean over prompts.

    Prompts on which one of them gives all answers the same score are left out; None where there is no other.
    """
    now, before = (_scores(store, model) for model in (iteration, iteration - 1))
    found = []
    for prompt, scores in now.items():
        both = [
            (score, before[prompt][name])
            for name, score in scores.items()
            if name in before.get(prompt, {})
        ]
        if both and (correlated := correlation(*zip(*both, strict=True))):
            found.append(correlated[1])
    return fmean(found) if found else None


def _scores(store: Store, model: int) -> Mapping[str, Mapping[str, float]]:
    """The mean scores that M<model> gave the ranked evaluation answers, by prompt and answer."""
    rows = store.select(
        "SELECT r.prompt_id, r.id, avg(j.score) FROM record_judgment j JOIN record_response r ON r.id = j.response_id "
        "WHERE j.iteration = ? AND j.model = ? AND r.model = 'human' GROUP BY r.id HAVING avg(j.score) IS NOT NULL",
        model,
        ModelId(model).name,
    )
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for prompt, answer, score in rows:
        found[prompt][answer] = round(score, 9)
    return found


def _mean_length(store: Store, model: int) -> float:
    answers = store.records(Response, iteration=model, model=ModelId(model).name)
    return fmean(len(one.text) for one in answers) if answers else 0.0


def _late(store: Store, iteration: int, name: str, beta: float) -> float | None:
    """The mean change in nats since the training began, over its last quarter: a DPO reward is beta times that."""
    values = [
        value
        for _, logged, value in store.training(iteration)
        if logged == name and value is not None
    ]
    late = values[-max(1, len(values) // 4) :]
    return fmean(late) / beta if late else None
