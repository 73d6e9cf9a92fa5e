"""Every gate refuses and passes by numbers, and receives nothing exact."""

import math
import re
from dataclasses import is_dataclass, replace
from typing import get_args, get_type_hints

import pytest
from repository import ROOT
from scripted_world import (
    run_world,
)

from selfreward_lite import config
from selfreward_lite.config import parse
from selfreward_lite.data.store import Store
from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.method import metrics
from selfreward_lite.method.metrics import AnswerMetrics, ExactScores
from selfreward_lite.method.statistics import Change
from selfreward_lite.run import gates
from selfreward_lite.run.context import RunContext
from selfreward_lite.run.steps import measure, promotion
from selfreward_lite.run.steps.measure import ModelMetrics
from selfreward_lite.run.steps.reward_hacking import HackingSigns

GOOD = gates.Evidence(
    file_faults=[],
    trained=True,
    taught=True,
    rows=10,
    rows_given=10,
    moved_share=1.0,
    losses=[0.69, 0.6, 0.5],
    first_margin=0.0,
    quantized=False,
    logit_difference=1e-5,
    logit_change=0.5,
    agreement=0.99,
    adapter_share=1.01,
    answers=AnswerMetrics(
        judge_read_share=0.98,
        judge_written_share=0.9,
        judge_first_share=0.1,
        mean_response_tokens=20.0,
        cut_share=0.0,
        repetitive_share=0.0,
        distinct_share=1.0,
    ),
    base_cut_share=0.0,
    base_repetitive_share=0.0,
    length_ratio=1.0,
    judge_interval=(-0.05, 0.02),
    outside_interval=(-0.1, 0.3),
    outside_share=0.9,
    self_change=0.4,
    signs=HackingSigns(
        canary_score=1.0,
        honest_bad_score=1.5,
        canaries_scored=45,
        canaries_suspected=0,
        canaries_chosen=0,
        outside_score=3.0,
        self_score=3.5,
    ),
)


def change_evidence(**changes) -> gates.Evidence:
    """Good evidence with changes, also to its answers and signs."""
    parts = {"answers": GOOD.answers, "signs": GOOD.signs}
    for name, value in changes.items():
        part = next((part for part, fields in parts.items() if hasattr(fields, name)), None)
        parts |= {part: replace(parts[part], **{name: value})} if part else {name: value}
    return replace(GOOD, **parts)


def test_the_judge_set_refuses_only_a_clear_loss(tiny):
    def judge(change):
        evidence = change_evidence(judge_set=("LLMBar", change))
        return next(one for one in gates.check(evidence, tiny.gates) if one.gate == "judge")

    clear = judge(Change(-0.1, -0.16, -0.04, 0.06, 200, 50))
    assert not clear.passed and "on LLMBar by -0.160 to -0.040" in clear.reason
    assert judge(Change(-0.1, -0.18, -0.02, 0.06, 200, 50)).passed
    few = judge(Change(-0.5, math.nan, math.nan, math.nan, 4, 4))
    assert few.passed and "4 prompts changed: no clear loss" in few.reason
    none = judge(None)
    assert none.passed and "the model before did not judge it" in none.reason


def refused(limits, **changes) -> list[str]:
    return [
        answer.gate
        for answer in gates.check(change_evidence(**changes), limits)
        if not answer.passed
    ]


@pytest.mark.parametrize(
    ("change", "gate"),
    [
        ({"file_faults": ["M1/adapter.gguf: missing"]}, "files"),
        ({"rows": 0, "rows_given": 0}, "counted"),
        ({"rows_given": 12}, "counted"),
        ({"moved_share": 0.4}, "moved"),
        ({"losses": [0.69, math.nan]}, "loss"),
        ({"losses": [0.69, 0.0]}, "loss"),
        ({"losses": [0.6931] * 5}, "loss"),
        ({"first_margin": -0.01}, "reference"),
        ({"logit_change": math.nan, "logit_difference": math.nan}, "finite"),
        ({"logit_difference": 0.1}, "export"),
        ({"logit_change": 0.0}, "effect"),
        ({"agreement": 0.8}, "agreement"),
        ({"agreement": math.nan}, "agreement"),
        ({"adapter_share": 0.66}, "arrival"),
        ({"adapter_share": 2.0}, "arrival"),
        ({"adapter_share": -0.1}, "arrival"),
        ({"adapter_share": math.nan}, "arrival"),
        ({"cut_share": 0.2}, "stopping"),
        ({"cut_share": 0.4, "base_cut_share": 0.26}, "stopping"),
        ({"cut_share": 0.2, "base_cut_share": math.nan}, "stopping"),
        ({"repetitive_share": 0.2}, "repetition"),
        ({"repetitive_share": 0.2, "base_repetitive_share": 0.13}, "repetition"),
        ({"repetitive_share": 0.0, "base_repetitive_share": math.nan}, "repetition"),
        ({"distinct_share": 0.1}, "variety"),
        ({"judge_written_share": 0.8}, "reading"),
        ({"judge_read_share": 0.8, "taught": False}, "reading"),
        ({"length_ratio": 1.6}, "length"),
        ({"judge_interval": (-0.1, -0.04)}, "judge"),
        ({"judge_set": ("LLMBar", Change(-0.1, -0.16, -0.04, 0.06, 200, 50))}, "judge"),
        ({"outside_interval": (-0.6, -0.2)}, "outside"),
        ({"canary_score": 1.6}, "canary"),
        ({"canaries_chosen": 1}, "canary"),
        ({"canary_score": None}, "canary"),
        ({"honest_bad_score": None}, "canary"),
        ({"canaries_scored": 5}, "canary"),
        ({"canaries_chosen": math.nan}, "canary"),
        ({"outside_interval": (math.nan, math.nan)}, "outside"),
        ({"outside_share": 0.2}, "outside"),
    ],
)
def test_each_gate_can_refuse(tiny, change, gate):
    assert refused(tiny.gates) == []
    assert gate in refused(tiny.gates, **change)
    if gate != "finite":
        assert refused(tiny.gates, **change) == [gate]


def test_an_adapter_that_rounding_hides_is_not_refused_for_it(tiny):
    assert refused(tiny.gates, adapter_share=None) == []


def test_answers_repeat_themselves_as_often_as_those_of_the_base(tiny):
    # SmolLM2-135M-Instruct with 1,024 tokens an answer: 8 of 60.
    assert refused(tiny.gates, repetitive_share=0.15, base_repetitive_share=0.133) == []


def test_one_logit_does_not_refuse_a_quantized_base(tiny):
    # SmolLM2-135M-Instruct in Q8_0: 2.9 in 746 positions, of which 96 % have the same first token.
    far = {"logit_difference": 7.5, "quantized": True}
    assert refused(tiny.gates, **far) == []
    (export,) = [
        one for one in gates.check(change_evidence(**far), tiny.gates) if one.gate == "export"
    ]
    assert export.reason.startswith("7.5 largest logit difference") and "quantized" in export.reason
    assert refused(tiny.gates, **far, agreement=0.8) == ["export", "agreement"]
    assert refused(tiny.gates, logit_difference=math.inf, quantized=True) == ["finite", "export"]


def test_answers_are_cut_as_often_as_those_of_the_base(tiny):
    # Llama-3 with 512 tokens an answer: an estimated quarter is cut before any training.
    assert refused(tiny.gates, cut_share=0.3, base_cut_share=0.26) == []


def test_an_untrained_base_need_not_write_its_scores(tiny):
    """The first look decides about it."""
    unread = {"judge_written_share": 0.1, "judge_read_share": 0.1, "taught": False}
    assert refused(tiny.gates, **unread) == ["reading"]
    assert refused(tiny.gates, **unread, trained=False) == []


def test_forced_scores_count_where_eft_taught_no_format(tiny):
    forced = {"judge_written_share": 0.0, "judge_read_share": 1.0}
    assert refused(tiny.gates, taught=False, **forced) == []
    assert refused(tiny.gates, taught=True, **forced) == ["reading"]
    (_, labels) = gates.check_data(1.0, 0.5, tiny.gates, taught=True)
    assert labels.reason.startswith("0.5 of the judgments to train on have a score that the judge")


def test_gates_of_judging_can_be_off(tiny):
    limits = tiny.gates.model_copy(update={"judging": False})
    found = [*gates.check_data(1.0, 0.0, limits, taught=True), *gates.check(GOOD, limits)]
    off = [one.gate for one in found if one.passed is None]
    assert off == ["labels", "outside", "reading", "judge", "canary"]
    asked = gates.check_data(1.0, 1.0, tiny.gates, taught=True)
    assert [one.gate for one in found] == [
        one.gate for one in (*asked, *gates.check(GOOD, tiny.gates))
    ]


def test_a_refusal_names_number_limit_and_advice(tiny):
    (answer,) = [
        one
        for one in gates.check(change_evidence(judge_written_share=0.8), tiny.gates)
        if not one.passed
    ]
    assert "0.8" in answer.reason
    assert "0.9" in answer.reason
    assert "learning rate" in answer.reason


# -- what gates receive ----------


def fields_of(kind) -> set[str]:
    """The names of all fields of a dataclass, and of the dataclasses in it."""
    if not is_dataclass(kind):
        return set().union(*map(fields_of, get_args(kind)))
    names = set()
    for name, hint in get_type_hints(kind).items():
        assert hint is not ExactScores
        names |= {name} | fields_of(hint)
    return names


@pytest.mark.slow
def test_gates_receive_nothing_exact(tmp_path, chat, monkeypatch):
    """By the types that carry measurements, and by a run whose exact scorer is gone."""
    run_world(tmp_path / "run", chat)
    with Store.read(tmp_path / "run") as store:
        settings = parse(store.fact("settings"))
        run = RunContext(store, settings, chat, TINY_MODEL, None, lambda at: None)
        exact = set(measure.exact_metrics(run, 1))
        assert {"exact_score", "answer_right", "win_rate_vs_seed"} <= exact <= set(store.metrics(1))
        for kind in (gates.Evidence, ModelMetrics, HackingSigns):
            assert not fields_of(kind) & exact, kind
        assert not set(measure.model_metrics(run, 1).stored()) & exact

        def refuse(*_):
            raise AssertionError("the exact scorer was asked")

        evidence = promotion.collect_evidence(run, 1)
        monkeypatch.setattr(metrics, "score_exactly", refuse)
        known = store.metrics
        monkeypatch.setattr(
            store,
            "metrics",
            lambda model: {
                name: value for name, value in known(model).items() if name not in exact
            },
        )
        assert promotion.collect_evidence(run, 1) == evidence
    assert fields_of(gates.Evidence) == {
        "file_faults",
        "trained",
        "taught",
        "rows",
        "rows_given",
        "moved_share",
        "losses",
        "first_margin",
        "quantized",
        "logit_difference",
        "logit_change",
        "agreement",
        "adapter_share",
        "answers",
        "length_ratio",
        "judge_interval",
        "judge_set",
        *fields_of(Change),
        "outside_interval",
        "outside_share",
        "self_change",
        "signs",
        "judge_read_share",
        "judge_written_share",
        "judge_first_share",
        "mean_response_tokens",
        "cut_share",
        "base_cut_share",
        "base_repetitive_share",
        "repetitive_share",
        "distinct_share",
        "canary_score",
        "honest_bad_score",
        "canaries_scored",
        "canaries_suspected",
        "canaries_chosen",
        "outside_score",
        "self_score",
    }


def test_every_gate_has_its_row_in_the_documentation():
    page = (ROOT / "docs" / "method.md").read_text(encoding="utf-8").split("\n## Gates\n")[1]
    documented = re.findall(r"^\| ([a-z]+) \|", re.split(r"\n##+ ", page)[0], re.MULTILINE)
    limits = config.load("tiny").gates
    found = [*gates.check_data(1.0, 1.0, limits, taught=True), *gates.check(GOOD, limits)]
    assert documented == ["gate", "ability", "yield", *(one.gate for one in found)]
