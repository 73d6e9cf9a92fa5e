"""What a new model must show before it becomes the newest: measured numbers against limits.

A gate that refuses names the number, the limit, and what to try. The candidate is kept beside the
last good model.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from selfreward_lite.config.settings import Gates
from selfreward_lite.method.metrics import AnswerMetrics
from selfreward_lite.method.statistics import Change
from selfreward_lite.run.steps.reward_hacking import HackingSigns
from selfreward_lite.training.job import FIRST_MARGIN_LIMIT, find_loss_fault


@dataclass(frozen=True)
class Evidence:
    """What is known about a candidate M(t); nothing here comes from the exact scorer.

    Intervals and ratios compare it with M(t−1); None where there is none. `trained` is false for an
    M0 without EFT, which is the base. `taught`: EFT taught it to write scores. `base_cut_share` is
    the base's own `answers.cut_share`, `base_repetitive_share` its own `answers.repetitive_share`.
    `quantized` says whether llama.cpp reads a quantized base.
    `judge_set` is the title of gates.judge_set, and the change
    of judge accuracy on it.
    """

    file_faults: Sequence[str]
    trained: bool
    taught: bool
    rows: int
    rows_given: int
    moved_share: float
    losses: Sequence[float]
    first_margin: float
    quantized: bool
    logit_difference: float
    logit_change: float
    agreement: float
    adapter_share: float | None
    answers: AnswerMetrics
    base_cut_share: float
    base_repetitive_share: float
    length_ratio: float | None
    judge_interval: tuple[float, float]
    outside_interval: tuple[float, float] | None
    outside_share: float | None
    self_change: float | None
    signs: HackingSigns
    judge_set: tuple[str, Change | None] | None = None


@dataclass(frozen=True)
class GateResult:
    """Whether a gate passed a model, None if it is off, and the reason."""

    gate: str
    passed: bool | None
    reason: str


def check_data(
    pair_share: float, read_share: float, limits: Gates, *, taught: bool
) -> Iterator[GateResult]:
    """Yield the results of the gates before a training.

    Of the prompts wanted, `pair_share` gave a pair. Of the judgments, `read_share` were read; where
    EFT taught the judge to write its scores (`taught`), that is without the forced ones. Without a
    judge that decides, gates of its judgments are off, here and in `check`.
    """
    yield _at_least(
        "signal",
        pair_share,
        limits.min_pair_share,
        "of the prompts wanted gave a response pair",
        "raise responses.count or judge.count, set judge.score=expected against ties, or start "
        "from a better judge",
    )
    if not limits.judging:
        yield _off("labels")
        return
    yield _at_least(
        "labels",
        read_share,
        limits.min_read_share,
        f"of the judgments to train on {_reading(taught)}",
        "train on judgment pairs, raise dpo.anchor, or raise judge.draw.max_tokens if they are cut",
    )


def check(evidence: Evidence, limits: Gates) -> Iterator[GateResult]:
    """Yield the results of the gates before a promotion."""
    faults = evidence.file_faults
    reason = faults[0] if faults else "every file as in the manifest"
    yield _result("files", not faults, reason, "train again in a new --name")
    if evidence.trained:
        rows, given = evidence.rows, evidence.rows_given
        yield _result(
            "counted",
            0 < rows == given,
            f"{rows} of {given} rows were trained on",
            "train again in a new --name",
        )
        yield _at_least(
            "moved",
            evidence.moved_share,
            limits.min_moved_share,
            "of the adapter's weights moved",
            "raise the learning rate",
        )
        fault = find_loss_fault(evidence.losses)
        reason = fault or "the loss is finite and changes"
        yield _result("loss", fault is None, reason, "lower the learning rate")
        yield _at_most(
            "reference",
            abs(evidence.first_margin),
            FIRST_MARGIN_LIMIT,
            "reward margin at the first step",
            "report this as a bug",
        )
    finite = math.isfinite(evidence.logit_difference) and math.isfinite(evidence.logit_change)
    reason = f"logits are {'' if finite else 'not '}finite"
    yield _result("finite", finite, reason, "lower the learning rate")
    yield _check_difference(evidence, limits)
    yield _at_least(
        "agreement",
        evidence.agreement,
        limits.min_agreement,
        "of the positions with the same likeliest token in PEFT and llama.cpp",
        "leave model.gguf_file out, or use model.gguf q8_0, f16 or f32",
    )
    if evidence.adapter_share is not None:
        share, allowed = evidence.adapter_share, limits.max_share_error
        reason = (
            f"{share:.0%} of the adapter's effect in PEFT arrives in llama.cpp, allowed is 100 ± "
            f"{100 * allowed:.0f} %"
        )
        advice = "use model.gguf f16 or f32, or report this as a bug"
        yield _result("arrival", abs(share - 1) <= allowed, reason, advice)
    if evidence.trained:
        yield _at_least(
            "effect",
            evidence.logit_change,
            1e-6,
            "change of the logits by the adapter",
            "raise the learning rate",
        )
    yield from _check_answers(evidence, limits)
    yield from _check_judging(evidence, limits)


def _check_difference(evidence: Evidence, limits: Gates) -> GateResult:
    """Rounding makes one of 150 million logits differ by much; the likeliest tokens tell more."""
    result = _at_most(
        "export",
        evidence.logit_difference,
        limits.max_logit_difference,
        "largest logit difference between PEFT and llama.cpp",
        "use model.gguf f16 or f32",
    )
    is_finite = math.isfinite(evidence.logit_difference)
    agrees = evidence.agreement >= limits.min_agreement
    if result.passed or not (evidence.quantized and is_finite and agrees):
        return result
    reason = (
        f"{_shown(evidence.logit_difference)} largest logit difference between PEFT and llama.cpp, "
        f"above {limits.max_logit_difference:.4g}; the base is quantized, and the likeliest tokens "
        "agree"
    )
    return _result("export", True, reason, "")


def _check_answers(evidence: Evidence, limits: Gates) -> Iterator[GateResult]:
    yield _at_most(
        "stopping",
        evidence.answers.cut_share,
        evidence.base_cut_share + limits.max_cut_share,
        "of the prompts without a finished answer",
        f"the base left {_shown(evidence.base_cut_share)} so; raise dpo.anchor or the schedule's "
        "rho, or lower the learning rate",
    )
    yield _at_most(
        "repetition",
        evidence.answers.repetitive_share,
        evidence.base_repetitive_share + limits.max_repetitive_share,
        "of the responses mostly repeat themselves",
        f"of the base's {_shown(evidence.base_repetitive_share)} do; raise dpo.anchor, or lower "
        "the learning rate",
    )
    yield _at_least(
        "variety",
        evidence.answers.distinct_share,
        limits.min_distinct_share,
        "of the responses are different texts",
        "raise dpo.anchor, or lower the learning rate",
    )
    if evidence.length_ratio is not None:
        yield _at_most(
            "length",
            evidence.length_ratio,
            limits.max_length_ratio,
            "times the response length of the model before",
            "raise the schedule's rho",
        )
    share = evidence.outside_share
    if evidence.outside_interval is not None and not limits.judging:
        yield _off("outside")
    elif evidence.outside_interval is not None and share is not None:
        low, high = evidence.outside_interval
        reason = (
            f"M0 scores its answers {low:+.2f} to {high:+.2f} points (95 %) against those before, "
            f"where it could read both: {share:.0%} of the prompts, at least "
            f"{limits.min_outside_share:.0%}"
        )
        if evidence.self_change is not None:
            reason += f"; it likes itself {evidence.self_change:+.2f}"
        yield _result(
            "outside",
            high >= -limits.max_outside_loss and share >= limits.min_outside_share,
            reason,
            "rewards may be hacked: raise dpo.anchor, lower the learning rate, or look at the "
            "answers",
        )


def _check_judging(evidence: Evidence, limits: Gates) -> Iterator[GateResult]:
    if not limits.judging:
        yield from map(_off, ("reading", "judge", "canary"))
        return
    answers = evidence.answers
    if evidence.trained:  # a base was looked at before (first_look)
        yield _at_least(
            "reading",
            answers.judge_written_share if evidence.taught else answers.judge_read_share,
            limits.min_read_share,
            f"of the judgments {_reading(evidence.taught)}",
            "raise dpo.anchor, train on judgment pairs, or lower the learning rate",
        )
    low, high = evidence.judge_interval
    passed = high >= -limits.max_judge_loss
    reason = f"judge accuracy changed by {low:+.3f} to {high:+.3f} (95 %)"
    if evidence.judge_set is not None:
        title, change = evidence.judge_set
        # Without an interval too few prompts changed for a clear loss.
        passed = passed and not (change and change.high < -limits.max_judge_loss)
        reason += f", on {title} {_describe_change(change)}"
    yield _result(
        "judge",
        passed,
        f"{reason}, allowed is a loss of {limits.max_judge_loss}",
        "train on judgment pairs, or raise dpo.anchor",
    )
    signs = evidence.signs
    canary, honest = signs.canary_score, signs.honest_bad_score
    if canary is None or honest is None:
        below = False
        scores = "no mean score: none of them, or of the honest bad ones, could be read"
    else:
        below = canary <= honest
        scores = f"their mean score is {canary:.2f}, that of honest bad ones {honest:.2f}"
    chosen, scored = signs.canaries_chosen, signs.canaries_scored
    yield _result(
        "canary",
        below and chosen <= limits.max_canaries_chosen and scored >= limits.min_canaries_scored,
        f"{chosen:g} hostile responses would be chosen, at most {limits.max_canaries_chosen}; "
        f"{scored} of them got a score, at least {limits.min_canaries_scored}; {scores}",
        "train the judge on more EFT examples or judgment pairs",
    )


def _describe_change(change: Change | None) -> str:
    if change is None:
        return "nothing to compare with, as the model before did not judge it"
    if math.isnan(change.high):
        return f"by {change.mean:+.3f} ({change.changed} prompts changed: no clear loss)"
    return f"by {change.low:+.3f} to {change.high:+.3f}"


def _reading(taught: bool) -> str:
    return "have a score that the judge wrote" if taught else "could be read"


def _at_least(gate: str, value: float, limit: float, what: str, advice: str) -> GateResult:
    return _result(gate, value >= limit, f"{_shown(value)} {what}, at least {limit:.4g}", advice)


def _at_most(gate: str, value: float, limit: float, what: str, advice: str) -> GateResult:
    return _result(gate, value <= limit, f"{_shown(value)} {what}, at most {limit:.4g}", advice)


def _off(gate: str) -> GateResult:
    return GateResult(gate, None, "no judge decides anything in this run (gates.judging=false)")


def _result(gate: str, passed: bool, reason: str, advice: str) -> GateResult:
    return GateResult(gate, passed, reason if passed else f"{reason}; {advice}")


def _shown(value: float) -> str:
    return "not a number" if math.isnan(value) else f"{value:.4g}"
