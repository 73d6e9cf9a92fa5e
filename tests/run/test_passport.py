"""A judge's passport: asked by `evaluate judge`, kept beside the run, and shown everywhere."""

import json
import math
import re
from pathlib import Path

import pytest
import scripted_run
from evaluate_command import evaluate, script_models
from task_rows import pin_ranked
from typer.testing import CliRunner

from selfreward_lite.cli.main import app
from selfreward_lite.data import task_sets
from selfreward_lite.data.records import Comparison, Judgment
from selfreward_lite.data.store import Store
from selfreward_lite.method.passport import Figures, JudgeChange, Passport, make_document
from selfreward_lite.method.statistics import Change
from selfreward_lite.report import html, model_card, passport
from selfreward_lite.system.errors import UserError


@pytest.fixture(scope="module", autouse=True)
def sets(tmp_path_factory):
    """Small ranked sets, fetched already."""
    folder = tmp_path_factory.mktemp("sets")
    with pytest.MonkeyPatch.context() as patch:
        pin_ranked(patch, folder)
        patch.setattr(task_sets, "home", lambda: folder)
        yield folder


@pytest.fixture
def runs(tmp_path_factory, made) -> Path:
    """The made run without what was asked of it before."""
    for path in (made / "mine" / "evaluation").glob("*/*"):
        path.unlink()
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    scripted_run.copy(folder / "mine", **{"prompts.count": "10", "iterations": "1"})
    return folder


@pytest.fixture
def command(runs, monkeypatch):
    """`evaluate judge` on models that judge by a script."""
    script_models(monkeypatch)

    def give(*arguments: str):
        ended, said = evaluate(runs, "judge", *arguments)
        return " ".join(ended.stderr.split()), said

    return give


def count_asked(runs: Path) -> tuple[int, int]:
    (path,) = (runs / "mine" / "evaluation").glob("*/run.sqlite")
    with Store.read(path.parent) as notes:
        return notes.count(Judgment), notes.count(Comparison)


# -- the command -----------------------------------------------------------------------------------


def test_both_ways_are_asked_by_part_beside_the_rule(command):
    stderr, said = command("--ranked", "llmbar", "--by", "both", "--models", "base,M1")
    scores, comparison = said["passports"]
    assert (scores["way"], comparison["way"]) == ("scores", "comparison")
    for one in (scores, comparison):
        parts = {(row["part"], row["model"]): row for row in one["figures"]}
        assert len(parts) == len(one["figures"]) == 2 * 7
        for model in ("base", "M1"):
            assert parts["", model]["pairs"] == 10
            assert parts["adversarial", model]["pairs"] == 8
            assert parts["Natural", model]["pairs"] == 2
        assert parts["", "M1"]["longer"] == 0.5, "half of the better answers are longer"
        against = {(row["model"], row["against"]) for row in one["changes"]}
        assert against == {("M1", "base")}
    assert scores["figures"][0]["first_share"] is None
    assert 0 <= comparison["figures"][0]["first_share"] <= 1
    assert "LLMBar, by comparison: 10 pairs of 10 prompts, both orders of every pair" in stderr
    assert "a coin, and no better than picking the longer answer (right in 50.0%)" in stderr
    assert "no difference seen between M1 and base" in stderr
    assert "of LLMBar's 8 adversarial pairs" in stderr
    assert "M1 names the first answer in" in stderr


def test_nothing_is_asked_twice_and_a_limit_asks_only_for_the_rest(command, runs):
    with Store.read(runs / "mine") as store:
        before = store.count(Judgment), store.count(Comparison), store.stages()
    some = ("--ranked", "llmbar", "--by", "both", "--models", "M1", "--judgments", "2")
    _, few = command(*some, "--limit", "4")
    assert count_asked(runs) == (2 * 2 * 4, 4)
    assert (few["prompts"], few["passports"][0]["asked"]["of_prompts"]) == (4, 10)
    _, whole = command(*some)
    asked = count_asked(runs)
    assert asked == (2 * 2 * 10, 10)
    assert command(*some)[1]["passports"][1]["figures"] == whole["passports"][1]["figures"]
    _, again = command(*some, "--limit", "4")
    assert again["passports"][0]["figures"] == few["passports"][0]["figures"]
    assert count_asked(runs) == asked
    with Store.read(runs / "mine") as store:
        assert (store.count(Judgment), store.count(Comparison), store.stages()) == before


def test_an_interrupted_command_goes_on_where_it_stopped(command, runs, monkeypatch):
    commit, left = Store.commit, [5]

    def stop(self, *arguments):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        commit(self, *arguments)

    some = ("--ranked", "llmbar", "--by", "comparison", "--models", "M1")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "commit", stop)
        with pytest.raises(KeyboardInterrupt):
            command(*some)
    assert count_asked(runs)[1] == 5
    with Store.read(runs / "mine") as store:
        assert passport.load_reports(store) == [], "nothing is said of a part"
    _, resumed = command(*some)
    assert count_asked(runs)[1] == 10
    assert resumed["passports"][0]["figures"][0]["pairs"] == 10


def test_pairs_of_one_prompt_are_one_group(command):
    stderr, said = command("--ranked", "pandalm", "--models", "M1")
    assert (said["prompts"], said["answers"]) == (3, 7)
    whole = said["passports"][0]["figures"][0]
    assert (whole["pairs"], whole["prompts"]) == (4, 3)
    assert "left out: 1 × pairs that no majority decided" in stderr


def test_oasst_is_read_in_its_own_schema(command):
    _, said = command("--ranked", "oasst", "--by", "comparison", "--models", "base")
    (only,) = said["passports"]
    assert only["asked"]["title"] == "OASST1, English validation part"
    assert only["figures"][0]["pairs"] == 3 * only["figures"][0]["prompts"] > 0
    assert "pair_accuracy" not in said, "no scores were asked for"


def test_the_runs_own_prompts_give_base_and_newest(command):
    _, said = command()
    assert said["models"] == ["base", "M1"]
    (only,) = said["passports"]
    figures = next(one for one in only["figures"] if one["model"] == "M1")
    ties = figures["tie_rate"] * (1 - figures["unread_share"]) + figures["unread_share"]
    assert said["pair_accuracy"] == pytest.approx(figures["accuracy"] - ties / 2)


def test_files_may_lie_anywhere(command, sets, tmp_path, monkeypatch):
    monkeypatch.setattr(task_sets, "home", lambda: tmp_path / "empty")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="PandaLM is not on this machine"):
        command("--ranked", "pandalm")
    _, said = command("--ranked", "pandalm", "--from", str(sets), "--models", "M1")
    assert said["prompts"] == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--model", "M1", "--models", "M0"), "leave one of them out"),
        (("--models", "base,M7"), "mine has no model 'M7'"),
        (("--ranked", "tiny", "--from", "."), "--from holds files of llmbar, pandalm or oasst"),
        (("--ranked", "no-such-file"), "no-such-file"),
    ],
)
def test_a_wrong_option_is_one_line(command, options, says):
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        command(*options)
    assert len(str(caught.value).splitlines()) == 1


# -- words -----------------------------------------------------------------------------------------

ASKED = {
    "set": "llmbar",
    "title": "LLMBar",
    "judgments": 3,
    "prompts": 418,
    "of_prompts": 418,
    "temperature": 0.8,
    "left_out": {},
}


def clear(mean: float) -> Change:
    """A change that is seen if it is above 4 points."""
    return Change(mean, mean - 0.04, mean + 0.04, 0.05, 418, 50)


def make_figures(part="", model="M2", accuracy=0.6, picks=0.5, over=(0.08, 0.05, 0.12), **other):
    values = {
        "pairs": 419,
        "prompts": 418,
        "accuracy_error": 0.02,
        "without_ties": 0.6,
        "tie_rate": 0.1,
        "unread_share": 0.0,
        "first_share": 0.7,
        "longer": 0.5,
        "longer_error": 0.02,
        "longer_without_ties": 0.5,
    }
    change = Change(*over, 0.05, 418, 50)
    known = {"part": part, "model": model, "accuracy": accuracy, "picks_longer": picks}
    known |= {"over_chance": clear(accuracy - 0.5), "length_habit": clear(picks - 0.5)}
    return Figures(**known, **(values | other), over_longer=change)


def say(way, *figures, changes=()):
    made = Passport(way, figures, changes)
    document = json.loads(json.dumps(make_document(made, ASKED, 1.0), allow_nan=False))
    return passport.describe(document).words


def test_the_verdict_on_the_rule_comes_in_words():
    (better,) = say("scores", make_figures())
    assert better == (
        "LLMBar, by scores: M2 is right in 60.0% of 419 pairs, better than a coin, and better than "
        "picking the longer answer (right in 50.0%), by 5.0 to 12.0 points"
    )
    (worse,) = say("scores", make_figures(over=(-0.08, -0.12, -0.05)))
    assert "worse than picking the longer answer (right in 50.0%), by 5.0 to 12.0 points" in worse
    (same,) = say("scores", make_figures(over=(0.01, -0.02, 0.04)))
    assert "no better than picking the longer answer (right in 50.0%): +1.0 points" in same
    (few,) = say("scores", make_figures(over=(0.01, math.nan, math.nan)))
    assert "no better than picking the longer answer" in few
    assert "too few for an interval" in few


def test_a_coin_beats_the_rule_on_adversarial_pairs_so_chance_is_named_too():
    (coin,) = say("scores", make_figures(accuracy=0.48, longer=0.27, over=(0.21, 0.15, 0.27)))
    assert "right in 48.0% of 419 pairs, no better than a coin, and better than picking" in coin
    (worse,) = say("scores", make_figures(accuracy=0.4))
    assert "worse than a coin" in worse


def test_adversarial_pairs_are_the_meter_of_length_bias():
    biased = make_figures("adversarial", accuracy=0.31, picks=0.7, pairs=319, longer=0.18)
    _, meter = say("scores", make_figures(), biased)
    assert meter == (
        "LLMBar, by scores: M2 picks longer answers: right in 31% of LLMBar's 319 adversarial "
        "pairs (of those it decides, it picks the longer answer in 70%; that rule: 18%)"
    )
    fair = make_figures("adversarial", accuracy=0.52, picks=0.53, pairs=319)
    _, meter = say("scores", make_figures(), fair)
    assert "M2 is right in 52% of LLMBar's 319 adversarial pairs" in meter


def test_order_unread_and_changes_come_in_words():
    gain = JudgeChange("", "M2", "base", Change(0.06, 0.03, 0.09, 0.04, 418, 80))
    base = make_figures(model="base")
    *_, change, order, unread = say(
        "comparison", base, make_figures(tie_rate=0.4, unread_share=0.02), changes=[gain]
    )
    assert change == "LLMBar, by comparison: M2 judges better than base, by 3.0 to 9.0 points"
    assert "40% of its verdicts flip; M2 names the first answer in 70%" in order
    assert "M2 said nothing on 2.0% of the pairs" in unread


# -- where it is shown -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_report_has_the_newest_of_each_set_and_way(command, runs):
    command("--ranked", "llmbar", "--by", "both", "--models", "base,M1")
    command("--ranked", "pandalm", "--models", "base,M1")
    command("--ranked", "llmbar", "--models", "M1", "--limit", "4")
    with Store.read(runs / "mine") as store:
        found = passport.load_reports(store)
        assert [one.about.split(":")[0] for one in found] == [
            "LLMBar, by comparison",
            "PandaLM, by scores",
            "LLMBar, by scores",
        ]
        assert "4 pairs of 4 of 10 prompts" in found[-1].about
        page = html.render_page(store)
        assert "Judges on ranked pairs" in page and found[0].words[0] in page
        assert "<td>adversarial</td>" in page
        early = passport.load_reports(store, newest=0)
        assert [row[1] for row in early[0].figures.rows[:1]] == ["base"]
        assert not any("M1" in cell for one in early for row in one.figures.rows for cell in row)
        assert len(early) == 2, "of the last, only M1 was asked"


def test_a_model_card_has_the_words_and_the_table(command, runs, tmp_path):
    command("--ranked", "llmbar", "--models", "base,M1")
    config_of_adapter = {"peft_type": "LORA", "base_model_name_or_path": "x", "revision": None}
    adapter = runs / "mine" / "M1" / "adapter"
    (adapter / "adapter_config.json").write_text(json.dumps(config_of_adapter))
    with Store.read(runs / "mine") as store:
        card = (model_card.write_adapter(store, 1, tmp_path / "out") / "README.md").read_text()
        (report,) = passport.load_reports(store)
    assert "## Judges on ranked pairs" in card
    assert all(f"- {line}" in card for line in report.words)
    assert "| part | judge | right | the longer |" in card
    assert "| part | judge | pairs | without ties | ties |" in card


def test_a_card_names_no_path_of_this_machine(command, runs, tmp_path):
    file = tmp_path / "secret" / "pairs.jsonl"
    file.parent.mkdir()
    file.write_bytes((task_sets.home() / "oasst1-en-validation.jsonl").read_bytes())
    command("--ranked", str(file), "--models", "M1")
    with Store.read(runs / "mine") as store:
        (report,) = passport.load_reports(store)
        page = html.render_page(store)
    assert report.about.startswith("pairs.jsonl, by scores")
    assert "secret" not in page


def test_the_progress_tab_and_status_show_it(command, runs):
    import gradio as gr
    from app_parts import make_header

    from selfreward_lite.app.library import RunLibrary
    from selfreward_lite.app.tabs import progress

    command("--ranked", "llmbar", "--by", "comparison", "--models", "base,M1")
    with gr.Blocks():
        tab = progress.ProgressTab(RunLibrary(runs), make_header())
    shown = tab.refresh("mine", "now", "loss", None)
    assert shown[tab.passports] == gr.update(visible=True)
    assert "picking the longer answer" in shown[tab.passport_words]
    assert shown[tab.passport_figures]["headers"][:2] == ["part", "judge"]
    ended = CliRunner().invoke(app, ["status", "--name", "mine", "--runs-dir", str(runs)])
    assert "LLMBar, by comparison: M1 is" in " ".join(ended.stderr.split())


def test_a_run_without_passports_shows_none(runs):
    with Store.read(runs / "mine") as store:
        assert passport.load_reports(store) == []
        assert "Judges on ranked pairs" not in html.render_page(store)
