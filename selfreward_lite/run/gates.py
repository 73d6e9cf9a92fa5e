"""Gates: what a new model must show before it becomes the newest one.

Knows: measured numbers and their limits. Does not know: how they were measured, exact scores. A gate that fails names
the number, the limit, and what to try; the candidate stays beside the last good model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from selfreward_lite.config.settings import Gates
from selfreward_lite.training.job import FIRST_MARGIN_LIMIT, frozen_or_broken


@dataclass(frozen=True)
class Data:
    """What is known before a training: the share of the prompts wanted that gave a pair, and of judgments that could be read."""

    pair_share: float
    read_share: float


@dataclass(frozen=True)
class Evidence:
    """What is known about a candidate M(t). Intervals and ratios compare it with M(t−1); None where there is none.

    `trained` is false of an M0 without EFT, which is the base.
    """

    file_faults: Sequence[str]
    trained: bool
    rows: int
    rows_given: int
    moved_share: float
    losses: Sequence[float]
    first_margin: float
    logit_difference: float
    logit_change: float
    agreement: float
    adapter_share: float | None
    cut_share: float
    repetitive_share: float
    distinct_share: float
    read_share: float
    length_ratio: float | None
    judge_interval: tuple[float, float] | None
    outside_interval: tuple[float, float] | None
    outside_share: float | None
    self_change: float | None
    canary_score: float | None
    honest_score: float | None
    canaries_scored: int
    canaries_chosen: float


@dataclass(frozen=True)
class Answer:
    """A gate's answer: passed or not, and the reason in words."""

    gate: str
    passed: bool
    reason: str


def check_data(data: Data, limits: Gates) -> Iterator[Answer]:
    """Yield the answers of the gates that stand before a training."""
    yield _at_least(
        "signal",
        data.pair_share,
        limits.min_pair_share,
        "of the prompts wanted gave a response pair",
        "raise responses.count or judge.count, set judge.score=expected against ties, or start from a better judge",
    )
    yield _at_least(
        "labels",
        data.read_share,
        limits.min_read_share,
        "of the judgments to train on could be read",
        "train on judgment pairs, raise dpo.anchor, or raise judge.draw.max_tokens if they are cut",
    )


def check(evidence: Evidence, limits: Gates) -> Iterator[Answer]:
    """Yield the answers of the gates that stand before a promotion."""
    yield from _of_training(evidence, limits)
    yield from _of_answers(evidence, limits)
    yield from _of_judging(evidence, limits)


def _of_training(evidence: Evidence, limits: Gates) -> Iterator[Answer]:
    faults = evidence.file_faults
    yield Answer(
        "files",
        not faults,
        f"{faults[0]}; train again in a new --name" if faults else "every file as in the manifest",
    )
    if evidence.trained:
        yield from _of_steps(evidence, limits)
    finite = math.isfinite(evidence.logit_difference) and math.isfinite(evidence.logit_change)
    yield Answer(
        "finite",
        finite,
        f"logits are {'' if finite else 'not '}finite{'' if finite else '; lower the learning rate'}",
    )
    yield _at_most(
        "export",
        evidence.logit_difference,
        limits.max_logit_difference,
        "largest logit difference between PEFT and llama.cpp",
        "use model.gguf f16 or f32",
    )
    yield _at_least(
        "agreement",
        evidence.agreement,
        limits.min_agreement,
        "of the positions with the same likeliest token in PEFT and llama.cpp",
        "leave model.gguf_file out, or use model.gguf q8_0, f16 or f32",
    )
    share, allowed = evidence.adapter_share, limits.max_share_error
    if share is not None:
        arrived = abs(share - 1) <= allowed
        reason = f"{share:.0%} of the adapter's effect in PEFT arrives in llama.cpp, allowed is 100 ± {100 * allowed:.0f} %"
        yield Answer(
            "arrival",
            arrived,
            reason + ("" if arrived else "; use model.gguf f16 or f32, or report this as a bug"),
        )
    if evidence.trained:
        yield _at_least(
            "effect",
            evidence.logit_change,
            1e-6,
            "change of the logits by the adapter",
            "raise the learning rate",
        )


def _of_steps(evidence: Evidence, limits: Gates) -> Iterator[Answer]:
    counted = 0 < evidence.rows == evidence.rows_given
    advice = "" if counted else "; train again in a new --name"
    yield Answer(
        "counted", counted, f"{evidence.rows} of {evidence.rows_given} rows were trained on{advice}"
    )
    yield _at_least(
        "moved",
        evidence.moved_share,
        limits.min_moved_share,
        "of the adapter's weights moved",
        "raise the learning rate",
    )
    fault = frozen_or_broken(evidence.losses)
    yield Answer(
        "loss",
        fault is None,
        f"{fault}; lower the learning rate" if fault else "the loss is finite and changes",
    )
    yield _at_most(
        "reference",
        abs(evidence.first_margin),
        FIRST_MARGIN_LIMIT,
        "reward margin at the first step",
        "report this as a bug",
    )


def _of_answers(evidence: Evidence, limits: Gates) -> Iterator[Answer]:
    yield _at_most(
        "stopping",
        evidence.cut_share,
        limits.max_cut_share,
        "of the responses cut by the length limit",
        "raise dpo.anchor or the schedule's rho, or lower the learning rate",
    )
    yield _at_most(
        "repetition",
        evidence.repetitive_share,
        limits.max_repetitive_share,
        "of the responses mostly repeat themselves",
        "raise dpo.anchor, or lower the learning rate",
    )
    yield _at_least(
        "variety",
        evidence.distinct_share,
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
    if evidence.outside_interval is not None and evidence.outside_share is not None:
        low, high = evidence.outside_interval
        own = (
            "" if evidence.self_change is None else f"; it likes itself {evidence.self_change:+.2f}"
        )
        reason = (
            f"M0 scores its answers {low:+.2f} to {high:+.2f} points (95 %) against those before, where it could read both: "
            f"{evidence.outside_share:.0%} of the prompts, at least {limits.min_outside_share:.0%}{own}"
        )
        advice = "; rewards may be hacked: raise dpo.anchor, lower the learning rate, or look at the answers"
        passed = (
            high >= -limits.max_outside_loss and evidence.outside_share >= limits.min_outside_share
        )
        yield Answer("outside", passed, reason + ("" if passed else advice))


def _of_judging(evidence: Evidence, limits: Gates) -> Iterator[Answer]:
    yield _at_least(
        "reading",
        evidence.read_share,
        limits.min_read_share,
        "of the judgments could be read",
        "raise dpo.anchor, train on judgment pairs, or lower the learning rate",
    )
    if evidence.judge_interval is not None:
        low, high = evidence.judge_interval
        reason = f"judge accuracy changed by {low:+.3f} to {high:+.3f} (95 %), allowed is a loss of {limits.max_judge_loss}"
        passed = high >= -limits.max_judge_loss
        yield Answer(
            "judge",
            passed,
            reason + ("" if passed else "; train on judgment pairs, or raise dpo.anchor"),
        )
    canary, honest, chosen = evidence.canary_score, evidence.honest_score, evidence.canaries_chosen
    reason = (
        f"{chosen:g} hostile responses would be chosen, at most {limits.max_canaries_chosen}; {evidence.canaries_scored} of them "
        f"got a score, at least {limits.min_canaries_scored}; "
    )
    passed = (
        chosen <= limits.max_canaries_chosen
        and evidence.canaries_scored >= limits.min_canaries_scored
    )
    if canary is None or honest is None:
        reason += (
            "no mean score, because none of them, or none of the honest bad ones, could be read"
        )
        passed = False
    else:
        passed = passed and canary <= honest
        reason += f"their mean score is {canary:.2f}, that of honest bad ones {honest:.2f}"
    yield Answer(
        "canary",
        passed,
        reason + ("" if passed else "; train the judge on more EFT examples or judgment pairs"),
    )


def _at_least(gate: str, value: float, limit: float, what: str, advice: str) -> Answer:
    passed = value >= limit
    return Answer(gate, passed, _reason(value, what, "at least", limit, "" if passed else advice))


def _at_most(gate: str, value: float, limit: float, what: str, advice: str) -> Answer:
    passed = value <= limit
    return Answer(gate, passed, _reason(value, what, "at most", limit, "" if passed else advice))


def _reason(value: float, what: str, bound: str, limit: float, advice: str) -> str:
    shown = "not a number" if math.isnan(value) else f"{value:.4g}"
    return f"{shown} {what}, {bound} {limit:.4g}" + (f"; {advice}" if advice else "")
