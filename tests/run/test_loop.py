"""The loop on a scripted runtime: a complete run, SIGKILL in every stage, settings."""

import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from repository import HELPERS, ROOT
from run_contents import read_contents, read_records
from scripted_run import SMALL, run
from scripted_runtime import scripted_runtime

from selfreward_lite import config
from selfreward_lite.data import tiny
from selfreward_lite.data.records import (
    Battle,
    Judgment,
    JudgmentPair,
    Prompt,
    Rating,
    Response,
    ResponsePair,
)
from selfreward_lite.data.store import Store
from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.method import canaries
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.report import summary
from selfreward_lite.run import loop, prepare, stages
from selfreward_lite.run.context import RunContext, RunReader
from selfreward_lite.run.steps import reward_hacking
from selfreward_lite.system.errors import ConfigError, GateStop, UserError


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run(folder)
    return folder


def test_a_run_has_everything_and_verifies(whole):
    with Store.read(whole) as store:
        assert store.newest() == 2
        assert store.faults() == []
        document = summary.summarize_run(store)
        assert [row["iteration"] for row in document["iterations"]] == [0, 1, 2]
        assert list(document["iterations"][0]) == [
            "iteration",
            "prompts",
            "responses",
            "judgments",
            "judgments_unread",
            "judgments_forced",
            "judgments_first",
            "battles",
            "battles_forced",
            "response_pairs",
            "judgment_pairs",
            "pair_yield",
            "tie_rate",
            "unread_rate",
            "forced_rate",
            "battle_forced_rate",
            "comparison_forced_rate",
            "exact_score",
            "exact_score_error",
            "exact_score_trained_kinds",
            "exact_score_trained_kinds_error",
            "exact_score_unseen_kinds",
            "exact_score_unseen_kinds_error",
            "answer_right",
            "answer_right_error",
            "win_rate_vs_seed",
            "win_rate_vs_seed_error",
            "judge_pair_accuracy",
            "judge_pair_accuracy_error",
            "longer_pair_accuracy",
            "longer_pair_accuracy_error",
            "judge_read_share",
            "judge_written_share",
            "judge_first_share",
            "judge_forced_share",
            "mean_response_tokens",
            "self_score",
            "outside_score",
            "canary_score",
            "honest_bad_score",
            "greedy_agreement",
            "seconds",
        ]
        rates = [(row["unread_rate"], row["forced_rate"]) for row in document["iterations"]]
        assert all(unread == 0 and 0 < forced < 0.2 for unread, forced in rates), "1 in 20 is mute"
        for iteration in (1, 2):
            row = document["iterations"][iteration]
            assert row["prompts"] == 8
            assert 0 < row["response_pairs"] <= 8
            assert 0 < row["judgment_pairs"] <= 8
            # every item was asked exactly its number of times: no more, no less
            responses = store.records(Response, iteration=iteration, model=f"M{iteration - 1}")
            per_response = Counter(
                one.response_id
                for one in store.records(Judgment, iteration=iteration, model=f"M{iteration - 1}")
            )
            assert all(per_response[one.id] == 3 for one in responses)


def test_every_pair_is_one_the_rules_allow(whole):
    with Store.read(whole) as store:
        responses = {one.id: one for one in store.records(Response)}
        judgments = {one.id: one for one in store.records(Judgment)}
        for pair in store.records(ResponsePair):
            chosen, rejected = responses[pair.chosen_id], responses[pair.rejected_id]
            assert chosen.prompt_id == rejected.prompt_id == pair.prompt_id
            assert chosen.finish == rejected.finish == "stop"
            assert chosen.text != rejected.text
            assert pair.chosen_score > pair.rejected_score
        for pair in store.records(JudgmentPair):
            chosen, rejected = judgments[pair.chosen_id], judgments[pair.rejected_id]
            assert chosen.response_id == rejected.response_id == pair.response_id
            assert None not in (chosen.score, rejected.score)
            assert pair.chosen_strength > pair.rejected_strength
        assert store.count(Battle) > 0
        assert store.count(Rating) > 0


def test_training_and_evaluation_prompts_never_overlap(whole):
    with Store.read(whole) as store:
        held_out = {one.text for one in store.records(Prompt, origin="held_out")}
        ranked = {one.text for one in store.records(Prompt, origin="ranked")}
        generated = {one.text for one in store.records(Prompt, origin="generated")}
        assert held_out
        assert not held_out & ranked
        assert not held_out & generated


def test_two_runs_are_equal_and_another_seed_is_not(whole, tmp_path):
    run(tmp_path / "again")
    assert read_contents(tmp_path / "again") == read_contents(whole)
    run(tmp_path / "other", seed="1")
    assert read_contents(tmp_path / "other") != read_contents(whole)


STAGES = [
    (0, "base_eval_responses"),
    (0, "base_eval_judgments"),
    (0, "eft_judgments"),
    (0, "training"),
    (0, "export"),
    (0, "eval_responses"),
    (0, "eval_judgments"),
    (1, "candidates"),
    (1, "responses"),
    (1, "judgments"),
    (1, "battles"),
    (1, "training"),
    (1, "export"),
    (1, "eval_judgments"),
    (2, "candidates"),
    (2, "judgments"),
    (2, "training"),
]


@pytest.mark.slow
def test_sigkill_in_every_stage_loses_nothing(whole, tmp_path):
    """One run, killed in every stage in turn, ends with the records of an undisturbed run."""
    folder, killed = tmp_path / "run", 0
    for iteration, stage in STAGES:
        script = [sys.executable, HELPERS / "scripted_run.py", folder, "0.02", "1.0"]
        child = subprocess.Popen(script, env={**os.environ, "PYTHONPATH": str(ROOT)})
        committed = _wait_until_inside(folder, iteration, stage, child)
        child.kill()
        assert child.wait() == -9, f"the run ended before {stage} was reached"
        killed += 1
        after = read_records(folder)
        for kind, records in committed.items():
            assert set(records) <= set(after[kind]), f"a committed {kind} was lost in {stage}"
    run(folder)
    assert read_contents(folder) == read_contents(whole)
    with Store.read(folder) as store:
        assert store.faults() == []
    print(f"\n{killed} kills, one in each of {len(STAGES)} stages; no committed record lost")


def _wait_until_inside(folder: Path, iteration: int, stage: str, child: subprocess.Popen) -> dict:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and child.poll() is None:
        if (folder / "run.sqlite").exists():
            try:
                with Store.read(folder) as store:
                    inside = [
                        row
                        for row in store.stages()
                        if row[:2] == (iteration, stage) and not row[5]
                    ]
                    if inside and (inside[0][2] > 0 or stage in ("training", "export")):
                        return read_records(folder)
            except UserError as error:
                assert "only just being made" in str(error)
        time.sleep(0.002)
    raise AssertionError(f"{stage} of iteration {iteration} was never seen")


# -- hostile responses of the seed stage ----------


@pytest.mark.parametrize("decoys", [2, 0])
def test_every_training_prompt_gets_its_decoys(tmp_path, decoys):
    run(tmp_path, iterations="0", **{"seed_stage.decoys": str(decoys)})
    with Store.read(tmp_path) as store:
        reader = RunReader(store, store.settings())
        asked = [one.prompt.id for one in reader.ranked().eft for _ in range(decoys)]
        made = store.records(Response, iteration=0, model=canaries.DECOY)
        assert [one.prompt_id for one in made] == asked
        texts = {one.text for one in made}
        assert len(texts) >= min(len(made), 39), "all decoys are taken in turn"


def test_canaries_answer_the_evaluation_prompts_in_turn(whole):
    with Store.read(whole) as store:
        prompts = [one.prompt.id for one in RunReader(store, store.settings()).ranked().evaluation]
        made = store.records(Response, iteration=0, model=canaries.CANARY)
        empty = store.drops(0, "canaries").get("empty", 0)
    assert [one.prompt_id for one in made] == [prompts[one.index % len(prompts)] for one in made]
    assert {one.prompt_id for one in made} == set(prompts)
    assert len(made) + empty == len(canaries.load_hostile_texts(canaries.CANARY))


# -- the table of stages ----------


def test_a_run_begins_its_stages_in_the_order_of_the_table(whole):
    """Hours that remain are those of the stages behind one in the table."""
    with Store.read(whole) as store:
        settings = config.parse(store.fact("settings"))
        begun = store.stages()
    for iteration in range(settings.iterations + 1):
        table = list(stages.list_stages(settings, iteration))
        names = [row.stage for row in begun if row.iteration == iteration]
        assert names == [name for name in table if name in names]
        left_out = "comparisons" if iteration else "prompts_file"
        assert set(table) - set(names) == {left_out}


def test_a_stage_outside_the_table_is_refused(tmp_path, chat):
    with Store.write(tmp_path) as store:
        settings = config.load("tiny")
        context = RunContext(store, settings, chat, TINY_MODEL, None, lambda at: None)
        with pytest.raises(LookupError, match=r"'polish' of iteration 1 is not in run/stages\.py"):
            context.once(1, "polish", lambda: None)
        with pytest.raises(LookupError, match="'polish'"):
            context.ask(1, "polish", [], lambda record: None)


def test_judges_are_asked_in_the_order_in_which_answers_were_made(whole, chat, monkeypatch):
    # Another order makes other batches, and those other expected scores (docs/log/tiny-world.md).
    asked = {}
    monkeypatch.setattr(
        RunContext,
        "ask_judge",
        lambda run, iteration, stage, model, answers, *_: asked.update({stage: list(answers)}),
    )
    with Store.read(whole) as store:
        context = RunContext(store, store.settings(), chat, TINY_MODEL, None, lambda at: None)
        reward_hacking.ask_judges(context, 1)
        made, held_out = store.made_by(Response, 1), context.held_out()
    assert [one.prompt_id for one in made] != [one.id for one in held_out]
    assert asked["outside_judgments"] == asked["self_judgments"] == made


def test_hours_that_remain_are_those_behind_a_stage():
    settings = config.load("overnight")
    costs = dict.fromkeys(get_args(stages.Piece), 1.0)
    everything = stages.seconds_by_stage(settings, 1, costs)
    left = stages.seconds_by_stage(settings, 1, costs, after="training")
    measuring = ("eval_responses", "eval_judgments", "canary_judgments", "outside_judgments")
    assert list(left) == ["export", *measuring, "self_judgments", "comparisons"]
    assert left.items() <= everything.items()
    assert stages.seconds_by_stage(settings, 1, costs, after="gates") == {}
    with pytest.raises(ValueError, match="polish"):
        stages.seconds_by_stage(settings, 1, costs, after="polish")


# -- gates and settings ----------


@pytest.mark.slow
def test_a_refused_model_is_not_promoted_and_the_run_resumes(tmp_path):
    with pytest.raises(GateStop, match=r"M0 was refused.*reading"):
        run(tmp_path / "run", **{"gates.mode": "stop", "gates.min_read_share": "0.99"})
    with Store.read(tmp_path / "run") as store:
        assert store.newest() is None
        assert store.gates(0)["reading"][0] is False
        assert (store.model_dir(0) / "adapter.gguf").exists()
    run(
        tmp_path / "run", **{"gates.min_read_share": "0.99"}
    )  # --gates report takes it all the same
    with Store.read(tmp_path / "run") as store:
        assert store.newest() == 2


def test_a_finished_run_does_nothing_and_can_be_extended(whole, tmp_path):
    before, kept = read_records(whole), read_contents(whole)
    run(whole)
    assert read_contents(whole) == kept
    run(whole, iterations="3")
    after = read_records(whole)
    with Store.read(whole) as store:
        assert store.newest() == 3
    for kind, records in before.items():
        assert set(records) <= set(after[kind])


def test_other_settings_for_a_started_run_are_refused(tmp_path):
    run(tmp_path / "run", iterations="0")
    for key, value in (("dpo.beta", "0.3"), ("seed", "5"), ("responses.count", "4")):
        with pytest.raises(ConfigError, match=f"other settings \\({key.split('.')[0]}\\)"):
            run(tmp_path / "run", **{key: value})
    with Store.write(tmp_path / "run") as store, pytest.raises(ConfigError, match="preset"):
        prepare.load_or_create_settings(store, {}, "overnight")


# -- the same code at the size and with the templates of Llama-3 ----------


@pytest.mark.slow
def test_all_stages_run_with_llama3_templates_at_overnight_sizes(tmp_path, chat):
    """All sizes are the preset's; only the number of prompts is small."""
    ranked = tmp_path / "ranked.jsonl"
    from selfreward_lite.data.tiny.ranked import generate_ranked_rows as tiny_rows

    rows = [
        {**row, "text": f"{row['text']} {'word ' * (40 if row['parent_id'] else 20)}"}
        for row in tiny_rows(60)
    ]
    ranked.write_text("".join(f"{__import__('json').dumps(row)}\n" for row in rows))
    overrides = {
        "model.base": str(tiny.TINY_MODEL),
        "seed_stage.ranked": str(ranked),
        "prompts.count": "6",
        "iterations": "2",
        "seed_stage.eval_prompts": "10",
        "evaluation.prompts": "5",
        "gates.mode": "report",
    }
    with Store.write(tmp_path / "run") as store:
        settings = prepare.load_or_create_settings(store, overrides, "overnight")
        assert (settings.responses.count, settings.judge.count, settings.model.templates) == (
            4,
            5,
            "llama3",
        )
        loop.run(store, settings, scripted_runtime(chat, length=12), lambda at: None)
        assert store.newest() == 2
        assert store.faults() == []
        for iteration in (1, 2):
            assert store.count(Prompt, iteration=iteration, origin="generated") == 6
            assert store.count(ResponsePair, iteration=iteration) > 0
            assert store.count(JudgmentPair, iteration=iteration) > 0
            assert store.metrics(iteration)["win_rate_vs_seed"] is not None
            assert "exact_score" not in store.metrics(iteration)
        assert any(one.expected_score is not None for one in store.records(Judgment))
        longest = max(len(one.text) for one in store.records(Response, model="M1"))
        assert longest > 500


@pytest.mark.parametrize(
    ("count", "judgments"),
    [(2, 1), *(pytest.param(*one, marks=pytest.mark.slow) for one in ((3, 3), (7, 2)))],
)
def test_any_number_of_responses_and_judgments(tmp_path, count, judgments):
    run(
        tmp_path / "run",
        **{"responses.count": str(count), "judge.count": str(judgments), "iterations": "1"},
    )
    with Store.read(tmp_path / "run") as store:
        responses = store.records(Response, iteration=1, model="M0")
        answered = {one.id for one in responses}
        made = sum(
            one.response_id in answered for one in store.records(Judgment, iteration=1, model="M0")
        )
        assert made == judgments * len(responses)


def test_a_refused_prompt_file_leaves_the_name_free(tmp_path):
    bad, good = tmp_path / "bad.csv", tmp_path / "good.csv"
    good.write_text(
        "prompt,topic\n" + "".join(f"Sort the letters {'abcdefgh'[n]} z y.,x\n" for n in range(8))
    )
    bad.write_text(good.read_text() + "only one field\n")
    for settings in ({"prompts.file": str(good)}, {"prompts.file": str(bad), "skip_bad": "true"}):
        folder = tmp_path / f"run{len(settings)}"
        with pytest.raises(UserError, match="bad.csv:10: another number of fields.*--skip-bad"):
            run(folder, iterations="1", **{"prompts.file": str(bad)})
        run(folder, iterations="1", **settings)
        with Store.read(folder) as store:
            assert store.newest() == 1
            assert 0 < store.count(Prompt, iteration=1) <= 8


def test_a_resumed_run_keeps_the_commits_of_its_start(tmp_path, monkeypatch):
    """A branch moves on between two nights; the command stays the same."""
    newest, fetched = ["a" * 40], []

    def fetch(repository, kind, show):
        fetched.append(str(repository))
        return TINY_MODEL, replace(repository, revision=repository.revision or newest[0])

    monkeypatch.setattr(prepare.hub, "fetch", fetch)
    monkeypatch.setattr(prepare, "check_repository", lambda settings, base, show: TINY_MODEL)
    monkeypatch.setattr(prepare, "find_base", lambda base: TINY_MODEL)
    wanted = {**SMALL, "iterations": "0", "model.base": "maker/llama"}
    with Store.write(tmp_path / "run") as store:
        settings = prepare.load_or_create_settings(store, wanted, "tiny")
        assert settings.model.base == f"maker/llama@{'a' * 40}"
        loop.run(store, settings, scripted_runtime(ChatFormat.load(TINY_MODEL)), lambda at: None)
        newest[0] = "b" * 40
        fetched.clear()
        again = prepare.load_or_create_settings(store, {**wanted, "iterations": "1"}, "tiny")
        assert again.model.base == settings.model.base
        assert fetched == [settings.model.base], "not the branch's newest"
        for other in ("maker/other", f"maker/llama@{'c' * 40}"):
            with pytest.raises(ConfigError, match="was started with other settings"):
                prepare.load_or_create_settings(store, {**wanted, "model.base": other}, "tiny")


@pytest.mark.slow
def test_ties_are_counted_in_the_scores_that_the_run_uses(tmp_path):
    run(tmp_path / "expected", iterations="1", **{"judge.score": "expected"})
    with Store.read(tmp_path / "expected") as store:
        assert (
            summary.measure_tie_rate(store, 1, summary.load_training_judgments(store, 1)) == 0.0
        ), "no two scripted ones are equal"
    run(tmp_path / "mean", iterations="1", **{"prompts.count": "20"})
    with Store.read(tmp_path / "mean") as store:
        assert summary.measure_tie_rate(store, 1, summary.load_training_judgments(store, 1)) > 0
