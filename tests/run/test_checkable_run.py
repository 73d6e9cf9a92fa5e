"""Runs in which a program checks constraints of the prompts, on a scripted engine."""

import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import scripted_run
from scripted_runtime import scripted_runtime

from selfreward_lite.app.tabs.explore import answer_rows
from selfreward_lite.data.checkable.answers import write_answer
from selfreward_lite.data.checkable.kinds import KINDS, TOPIC, read_constraints
from selfreward_lite.data.checkable.requests import Request as Asked
from selfreward_lite.data.checkable.requests import asks_unseen_kind, draw_requests
from selfreward_lite.data.checkable.score import score_answer
from selfreward_lite.data.ranked import pick_held_out_prompts
from selfreward_lite.data.records import Battle, Judgment, Prompt, Response, ResponsePair
from selfreward_lite.data.store import Store
from selfreward_lite.engine.api import Request
from selfreward_lite.engine.scripted import Reply, ScriptedEngine
from selfreward_lite.report import explore, html, summary
from selfreward_lite.report.constraints import build_constraint_table
from selfreward_lite.run import loop, plan, prepare
from selfreward_lite.run.evaluate import can_score_exactly

SMALL = {
    "model.base": "tiny",
    "model.templates": "compact",
    "prompts.count": "12",
    "responses.count": "4",
    "evaluation.prompts": "16",
    "seed_stage.eval_prompts": "6",
    "iterations": "2",
}


class Author:
    """Answers checkable requests; M1 keeps more constraints, M2 all. As judge it says 4."""

    def __init__(self, chat, seed: int) -> None:
        self._chat = chat
        prompts = pick_held_out_prompts(_settings(seed=str(seed)), "", ())
        held_out = [Asked(one.text, read_constraints(one)) for one in prompts]
        drawn = [*draw_requests(seed, "training", 24), *held_out]
        self._asked = {one.text: one for one in drawn}

    def reply(self, request: Request, sample: int) -> Reply:
        text = self._chat.tokenizer.decode(list(request.tokens), skip_special_tokens=True)
        text = text.removeprefix("user\n\n").removesuffix("assistant\n\n").strip()
        rng = random.Random(request.seeds[sample])
        if text not in self._asked:
            return Reply("Hm.\nScore: 4", probe=(0.2,) * 6 if request.probe else None)
        asked = self._asked[text]
        rules = [one for one in asked.constraints if one.kind != TOPIC]
        model = Path(request.adapter).parent.name if request.adapter else "base"
        share = {"M1": 0.7, "M2": 1.0}.get(model, 0.4)
        keep = [one for one in rules if rng.random() < share]
        return Reply(write_answer(asked, rng, keep) or "I like it.")


def _settings(**wanted: str):
    from selfreward_lite import config

    return config.load("smol", {**SMALL, **wanted})


def run(folder: Path, chat, watch: Callable = lambda at: None, **wanted: str) -> None:
    author = Author(chat, 0)
    runtime = replace(
        scripted_runtime(chat),
        open_engine=lambda base, _: ScriptedEngine(author.reply, chat.text_ids, shuffle_seed=5),
    )
    with Store.write(folder) as store:
        settings = prepare.load_or_create_settings(store, {**SMALL, **wanted}, "smol")
        loop.run(store, settings, runtime, watch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, chat) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "smol"
    run(folder, chat)
    return folder


def test_constraints_alone_decide_the_pairs(whole):
    with Store.read(whole) as store:
        assert store.newest() == 2
        assert store.faults() == []
        prompts = {one.id: one for one in store.records(Prompt)}
        answers = {one.id: one for one in store.records(Response)}
        pairs = store.records(ResponsePair, iteration=1)
        assert pairs
        for pair in pairs:
            chosen, rejected = (
                score_answer(prompts[pair.prompt_id], answers[name].text, "stop").score
                for name in (pair.chosen_id, pair.rejected_id)
            )
            assert (chosen, rejected) == (pair.chosen_score, pair.rejected_score)
            assert chosen > rejected


def test_no_judge_is_asked_in_the_loop_and_no_battle_fought(whole):
    with Store.read(whole) as store:
        assert store.count(Battle) == 0
        ranked = {one.id for one in store.records(Response, model="human")}
        assert {one.response_id for one in store.records(Judgment)} <= ranked


def test_iterations_have_other_requests_and_unseen_kinds_stay_held_out(whole):
    with Store.read(whole) as store:
        first, second = (store.records(Prompt, iteration=number) for number in (1, 2))
        held_out = store.records(Prompt, origin="held_out")
        assert len(first) == len(second) == 12
        texts = [one.text for one in (*first, *second, *held_out)]
        assert len(set(texts)) == len(texts)
        assert not any(asks_unseen_kind(read_constraints(one)) for one in (*first, *second))
        unseen = [asks_unseen_kind(read_constraints(one)) for one in held_out]
        assert unseen == [False, True] * 8
        assert can_score_exactly(store)


def test_the_tables_show_trained_and_unseen_kinds_with_errors(whole):
    with Store.read(whole) as store:
        document = summary.summarize_run(store)
        first, last = document["base"], document["iterations"][2]
        for kinds in ("trained_kinds", "unseen_kinds"):
            assert first[f"exact_score_{kinds}"] < 4 < 5 == last[f"exact_score_{kinds}"]
            assert first[f"exact_score_{kinds}_error"] > 0
        both = [last[f"exact_score_{kinds}"] for kinds in ("trained_kinds", "unseen_kinds")]
        assert last["exact_score"] == sum(both) / 2
        head, rows = summary.build_exact_table(document)
        assert head == ["exact score, 0 to 5", "base", "M0", "M1", "M2"]
        assert [row[0] for row in rows][:3] == ["all", "trained kinds", "unseen kinds"]
        assert rows[1][-1] == "5.00 ± 0.00"
        head, rows = build_constraint_table(store)
        assert head == ["constraint kept", "trained", "answers", "base", "M0", "M1", "M2"]
        assert [row[1] for row in rows] == sorted((row[1] for row in rows), reverse=True)
        assert {row[0].replace(" ", "_") for row in rows} <= KINDS.keys()
        assert {row[-1] for row in rows} == {"1.00"}, "M2 keeps all"
        asked = Counter(
            one.kind
            for prompt in store.records(Prompt, origin="held_out")
            for one in read_constraints(prompt)
        )
        assert all(int(count) == asked[kind.replace(" ", "_")] for kind, _, count, *_ in rows)
        shares = [float(share) for row in rows for share in row[3:6]]
        assert 0 <= min(shares) < max(shares), "the base and M1 keep less"
        page = html.render_page(store)
        assert "Which constraints are kept" in page
        assert "A program decided the pairs, not the model" in page
        assert 'aria-label="worth"' in page
        assert 'aria-label="scores"' not in page, "no judge scored what was trained on"


def test_a_faulty_or_missing_answer_keeps_no_constraint(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    with Store.write(folder) as store:
        before = build_constraint_table(store).rows
        one, other = store.made_by(Response, 2)[:2]
        store._db.execute("DELETE FROM record_response WHERE id = ?", (one.id,))
        store._db.execute("UPDATE record_response SET finish = 'length' WHERE id = ?", (other.id,))
        after = build_constraint_table(store).rows
        prompts = {one.id: one for one in store.records(Prompt)}
    lost = Counter(
        constraint.kind
        for answer in (one, other)
        for constraint in read_constraints(prompts[answer.prompt_id])
        if constraint.kind != TOPIC
    )
    known = {kind: (int(count), share) for kind, _, count, *_, share in after}
    assert known == {
        kind: (int(count), f"{1 - lost[kind.replace(' ', '_')] / int(count):.2f}")
        for kind, _, count, *_ in before
    }


def test_gates_of_judging_are_listed_as_off(whole):
    with Store.read(whole) as store:
        table = {(row[0], row[1]): row[2] for row in summary.build_gate_table(store).rows}
        off = {gate for (model, gate), state in table.items() if (model, state) == ("M2", "off")}
        assert off == {"labels", "outside", "reading", "judge", "canary"}
        assert table["M2", "signal"] == table["M2", "stopping"] == "passed"
        assert store.refusals(2) == {}


def test_explore_says_which_constraints_an_answer_keeps(whole):
    with Store.read(whole) as store:
        hits, _ = explore.find_prompts(store, "M1", pairs="gave a pair")
        history = explore.load_history(store, hits[0].id)
        assert "constraints kept decides before the judge does" in history.why
        chosen = next(one for one in history.answers if one.part == "chosen")
        assert chosen.checks.startswith("exact score ")
    assert f"chosen; {chosen.checks}" in [row[0] for row in answer_rows(history)]


def test_a_judge_that_tells_nothing_apart_is_only_warned_of(tmp_path, chat):
    said: list[str] = []
    run(tmp_path / "run", chat, lambda at: said.append(at.message), iterations="0")
    assert any("warning: " in one and "tells nothing apart" in one for one in said)


@pytest.mark.slow
def test_a_judge_that_decides_nothing_new_changes_no_pair(tmp_path, chat, whole):
    """It gives every answer the same score, so constraints decide as they do alone."""
    run(tmp_path / "run", chat, **{"judge.count": "2", "iterations": "1"})
    with Store.read(tmp_path / "run") as store, Store.read(whole) as alone:
        assert store.records(Judgment, iteration=1, model="M0")
        pairs = [
            {(one.chosen_id, one.rejected_id) for one in each.records(ResponsePair, iteration=1)}
            for each in (store, alone)
        ]
        assert pairs[0] == pairs[1] != set()
        top = max(one.chosen_score for one in store.records(ResponsePair, iteration=1))
        assert top == pytest.approx(0.9 * 5 + 0.1 * 4)


def test_hours_can_be_fitted_to_a_run_without_a_judge(whole, tmp_path):
    """M0 was not asked, so its copies must not make an answer look free."""
    shutil.copytree(whole, tmp_path / "run")
    with Store.write(tmp_path / "run") as store:
        store.measure(2, training_train_seconds=1.0)  # the scripted trainer does not say
        settings = store.settings()
        costs = plan.measure_costs(store, settings)
        assert costs["response"] > 0
        assert costs["judgment"] > 0
        assert 0 < plan.affordable_prompts(settings, 2, costs, 1e9) == settings.prompts.count


@pytest.mark.slow
def test_constraints_are_added_to_prompts_that_a_model_writes(tmp_path):
    wanted = {"prompts.constraints": "2", "pairs.verify": "veto", "judge.count": "2"}
    scripted_run.run(tmp_path / "run", iterations="1", **wanted)
    with Store.read(tmp_path / "run") as store:
        written = store.records(Prompt, iteration=1)
        assert written
        assert all(len(read_constraints(one)) == 2 for one in written)
        constraints = [read_constraints(one) for one in store.records(Prompt, origin="held_out")]
        assert [len(one) for one in constraints[:6]] == [0, 2, 2, 0, 2, 2]
        assert [asks_unseen_kind(one) for one in constraints[:3]] == [False, False, True]
        assert not any(asks_unseen_kind(read_constraints(one)) for one in written)
        known = store.metrics(1)
        assert known["exact_score_trained_kinds"] is not None
        assert known.get("exact_score") is None, "not every held-out prompt has constraints"
        assert not can_score_exactly(store), "so `evaluate` asks M0, as the run did"
        assert known["win_rate_vs_seed"] is not None, "M0 compares the answers"
