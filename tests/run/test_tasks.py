"""Open task sets: as a step of a run, asked later by `evaluate tasks`, and shown everywhere."""

import json
import math
import re
from pathlib import Path

import pytest
import scripted_run
from evaluate_command import evaluate, script_models
from run_contents import read_contents
from scripted_runtime import scripted_runtime
from task_rows import ROWS, pin_small
from typer.testing import CliRunner

from selfreward_lite import config
from selfreward_lite.cli.main import app
from selfreward_lite.data import task_sets
from selfreward_lite.data.records import TaskAnswer
from selfreward_lite.data.store import Store
from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.method.statistics import Change
from selfreward_lite.method.task_card import SetChange, TaskCard
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.report import html, model_card, notebook, tasks
from selfreward_lite.report.summary import Table
from selfreward_lite.run import loop, plan, prepare, stages
from selfreward_lite.run.steps.tasks import AskedTasks
from selfreward_lite.system.errors import ConfigError, UserError

WITH_TASKS = {
    "iterations": "1",
    "evaluation.tasks": "ifeval,gsm8k",
    "evaluation.task_samples": "2",
}
ASKED = 2 + 3  # of IFEval's three rows one cannot be checked offline


@pytest.fixture(scope="module", autouse=True)
def sets(tmp_path_factory):
    """Small sets, fetched already."""
    folder = tmp_path_factory.mktemp("sets")
    with pytest.MonkeyPatch.context() as patch:
        pin_small(patch, folder)
        patch.setattr(task_sets, "home", lambda: folder)
        yield folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory, sets) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    scripted_run.run(folder / "mine", **WITH_TASKS)
    return folder


@pytest.fixture
def command(runs, monkeypatch):
    """`evaluate tasks` on models that answer by a script."""
    script_models(monkeypatch)

    def give(*arguments: str, name: str = "mine"):
        ended, said = evaluate(runs, "tasks", *arguments, name=name)
        return " ".join(ended.stderr.split()), said

    return give


def start(folder: Path, watch=lambda at: None, **settings: str) -> None:
    wanted = {**scripted_run.SMALL, **WITH_TASKS, **settings}
    with Store.write(folder) as store:
        chosen = prepare.load_or_create_settings(store, wanted, "tiny")
        loop.run(store, chosen, scripted_runtime(ChatFormat.load(TINY_MODEL)), watch)


# -- a step of a run -------------------------------------------------------------------------------


def test_every_model_of_a_run_answers_the_sets(runs):
    with Store.read(runs / "mine") as store:
        assert store.faults() == []
        for model in (-1, 0, 1):
            given = store.made_by(TaskAnswer, model)
            assert len(given) == 2 * ASKED
            assert {one.task_set for one in given} == {"ifeval", "gsm8k"}
            assert {one.index for one in given} == {0, 1}
        asked = store.fact(task_sets.FACT)
        for iteration in (0, 1):
            names = [row.stage for row in store.stages() if row.iteration == iteration]
            table = list(stages.list_stages(store.settings(), iteration))
            assert names == [name for name in table if name in names]
            assert "task_answers" in names
    assert asked["left_out"] == {"ifeval": {"length_constraints:number_sentences": 1}, "gsm8k": {}}
    assert (asked["samples"], asked["temperature"]) == ({"ifeval": 2, "gsm8k": 2}, 0.9)


@pytest.mark.slow
def test_a_run_stopped_among_the_answers_resumes_with_the_rest(runs, tmp_path):
    def stop(at):
        if (at.iteration, at.stage, at.done) == (1, "task_answers", 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "mine", stop)
    with Store.read(tmp_path / "mine") as store:
        kept = store.made_by(TaskAnswer, 1)
        assert len(kept) == 2 * 3
    resumed = []
    start(tmp_path / "mine", resumed.append)
    first = next(at for at in resumed if at.stage == "task_answers")
    assert (first.already, first.total) == (3, ASKED)
    assert read_contents(tmp_path / "mine") == read_contents(runs / "mine")


@pytest.mark.slow
def test_sets_may_be_added_when_a_run_goes_on(runs, tmp_path):
    start(tmp_path / "later", **{"evaluation.tasks": ""})
    with Store.read(tmp_path / "later") as store:
        assert store.count(TaskAnswer) == 0
    more = {"iterations": "2", "evaluation.tasks": "gsm8k", "evaluation.task_prompts": "2"}
    start(tmp_path / "later", **more)
    with Store.read(tmp_path / "later") as store:
        assert {one.model for one in store.records(TaskAnswer)} == {"M2"}
        assert store.count(TaskAnswer) == 2 * 2
    with pytest.raises(ConfigError, match=r"started with other settings \(evaluation\)"):
        start(tmp_path / "later", **more, **{"evaluation.prompts": "5"})


def test_a_set_that_cannot_be_had_is_refused_before_the_first_stage(tmp_path, monkeypatch):
    monkeypatch.setattr(task_sets, "home", lambda: tmp_path / "empty")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="IFEval is not on this machine") as caught:
        start(tmp_path / "mine")
    assert len(str(caught.value).splitlines()) == 1
    with Store.read(tmp_path / "mine") as store:
        assert not store.stages()


def test_hours_and_disk_count_the_answers():
    without = config.load("overnight")
    settings = config.load("overnight", {"evaluation.tasks": "ifeval,gsm8k"})
    samples, prompts = settings.evaluation.task_samples, 475 + 1319
    costs = dict.fromkeys(("candidate", "response", "judgment", "battle"), 1.0)
    costs |= dict.fromkeys(("sft", "dpo", "base", "export", "start"), 1.0)
    for iteration, models in ((0, 2), (1, 1)):
        spent = [
            sum(stages.seconds_by_stage(one, iteration, costs).values())
            for one in (without, settings)
        ]
        assert spent[1] - spent[0] == models * samples * prompts
    greedy = settings.with_values(
        "evaluation", draw=settings.evaluation.draw.model_copy(update={"temperature": 0.0})
    )
    assert stages.count_task_answers(greedy) == prompts
    few = settings.with_values("evaluation", task_prompts=100)
    assert stages.count_task_answers(few) == samples * 200
    shape = plan.SHAPES["llama-3-8b"]
    less, more = (plan.disk_needs(one, shape)["records"] for one in (without, settings))
    assert more > less


# -- evaluate tasks --------------------------------------------------------------------------------


def test_the_command_asks_and_says_what_it_found(command):
    stderr, said = command("--models", "base,M1", "--samples", "3")
    assert said["asked"]["samples"] == {"ifeval": 3, "ifbench": 3, "gsm8k": 3}
    assert said["models"] == ["base", "M1"]
    for name, count in (("ifeval", 2), ("ifbench", 2), ("gsm8k", 3)):
        for model in ("base", "M1"):
            score = said["scores"][name][model]
            assert (score["prompts"], score["answers"]) == (count, 3 * count)
    assert [(one["set"], one["model"], one["against"]) for one in said["changes"]] == [
        ("ifeval", "M1", "base"),
        ("ifbench", "M1", "base"),
        ("gsm8k", "M1", "base"),
    ]
    assert {one["verdict"] for one in said["changes"]} == {"no difference seen"}, "so few prompts"
    assert "3 answers a prompt at temperature 0.9 and top-p" in stderr
    assert "no difference seen between M1 and base" in stderr
    assert "with so few prompts, no change would have been seen" in stderr
    assert "1 length_constraints:number_sentences" in stderr
    assert "1 words:start_verb" in stderr


def test_nothing_is_asked_twice_and_the_run_stays_unchanged(command, runs):
    with Store.read(runs / "mine") as store:
        before = store.count(TaskAnswer), store.stages()
    places = sorted((runs / "mine" / "evaluation").glob("*"))
    _, one = command("--samples", "2", "--tasks", "gsm8k")
    kept = sum(count_answers(runs).values())
    assert command("--samples", "2", "--tasks", "gsm8k")[1] == one
    assert sum(count_answers(runs).values()) == kept
    _, few = command("--samples", "2", "--tasks", "gsm8k", "--limit", "2")
    assert few["scores"]["gsm8k"]["M1"]["prompts"] == 2
    assert sum(count_answers(runs).values()) == kept
    with Store.read(runs / "mine") as store:
        assert (store.count(TaskAnswer), store.stages()) == before
    assert len(places) <= len(list((runs / "mine" / "evaluation").glob("*"))) <= len(places) + 1


def count_answers(runs: Path) -> dict[str, int]:
    found = {}
    for path in (runs / "mine" / "evaluation").glob("*/run.sqlite"):
        with Store.read(path.parent) as notes:
            found[path.parent.name] = notes.count(TaskAnswer)
    return found


def test_greedy_is_one_answer_and_says_so(command):
    stderr, said = command("--greedy", "--tasks", "ifeval")
    assert (said["asked"]["temperature"], said["asked"]["samples"]) == (0.0, {"ifeval": 1})
    assert "one answer a prompt, greedy" in stderr
    assert said["scores"]["ifeval"]["M0"]["answers"] == 2


def test_files_may_lie_anywhere(command, sets, tmp_path, monkeypatch):
    monkeypatch.setattr(task_sets, "home", lambda: tmp_path / "empty")
    with pytest.raises(UserError, match="evaluate fetch gsm8k"):
        command("--tasks", "gsm8k")
    _, said = command("--tasks", "gsm8k", "--from", str(sets))
    assert said["scores"]["gsm8k"]["base"]["prompts"] == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--tasks", "mmlu"), "there is no set 'mmlu' here"),
        (("--tasks", "gsm8k,llmbar"), "llmbar measures a judge"),
        (("--models", "base,M7"), "mine has no model 'M7'"),
        (("--set", "dpo.beta=1"), "only evaluation, engine, judge can be set here"),
    ],
)
def test_a_wrong_option_is_one_line(command, options, says):
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        command(*options)
    assert len(str(caught.value).splitlines()) == 1


def test_fetch_copies_from_a_folder(sets, tmp_path, monkeypatch):
    monkeypatch.setattr(task_sets, "home", lambda: tmp_path / "home")
    where = ("--from", str(sets))
    ended = CliRunner().invoke(app, ["evaluate", "fetch", "gsm8k", "ifeval", *where])
    said = json.loads(ended.stdout.splitlines()[-1])
    assert said["sets"]["gsm8k"]["licence"] == "MIT"
    assert "CC-BY-4.0" in ended.stderr
    assert len(task_sets.read_tasks("gsm8k")) == len(ROWS["gsm8k"])
    ended = CliRunner().invoke(app, ["evaluate", "fetch", "mmlu", *where])
    assert isinstance(ended.exception, UserError)


# -- where it is shown -----------------------------------------------------------------------------


def make_change(mean, low, high, changed=50) -> SetChange:
    return SetChange("ifeval", "M2", "M0", {"strict": Change(mean, low, high, 0.054, 475, changed)})


def test_the_verdict_comes_in_words():
    asked = {
        "samples": {"ifeval": 4},
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 512,
        "left_out": {},
    }
    found = [make_change(0.051, 0.012, 0.09), make_change(-0.02, -0.039, -0.001)]
    found.append(make_change(0.004, -0.021, 0.029))
    found.append(make_change(0.002, math.nan, math.nan, changed=1))
    better, worse, same, hardly = tasks.describe_card(TaskCard([], found), asked, "now").words
    assert better == (
        "IFEval: M2 is better than M0, by 5.1 points (95 % interval +1.2 to +9.0; 475 prompts)"
    )
    assert worse == (
        "IFEval: M2 is worse than M0, by 2.0 points (95 % interval −3.9 to −0.1; 475 prompts)"
    )
    assert same == (
        "IFEval: no difference seen between M2 and M0 (+0.4 points, 95 % interval −2.1 to +2.9; "
        "475 prompts); a change of 5.4 points would have been seen four times in five"
    )
    assert "(+0.2 points, changed prompts: 1, too few for an interval; 475 prompts)" in hardly


def test_a_report_holds_the_card_of_the_run_and_of_each_draw(runs, command, tmp_path):
    command("--samples", "3", "--tasks", "gsm8k")
    with Store.read(runs / "mine") as store:
        own, *later = tasks.load_reports(store)
        assert own.about.startswith("Asked in the run: 2 answers a prompt at temperature 0.9")
        assert later[-1].about.startswith("Asked by the command evaluate tasks: ")
        assert own.scores.head == ["set", "accuracy", "base", "M0", "M1"]
        assert {row[0] for row in own.scores.rows} == {"IFEval", "GSM8K"}
        assert ["IFEval", "prompts answered", "2", "2", "2"] in own.scores.rows
        assert [row[:3] for row in own.verdicts.rows] == [
            [title, accuracy, f"{model} against {rival}"]
            for title, accuracy in (("IFEval", "prompts, strict"), ("GSM8K", "last number right"))
            for model, rival in (("M0", "base"), ("M1", "base"), ("M1", "M0"))
        ]
        assert len(own.changes.rows) == 3 * 4 + 3
        page = html.render_page(store)
        assert "Open task sets" in page and own.words[0] in page
        assert own.notes[0] in page
        first = tasks.load_reports(store, newest=0)[0]
        assert first.scores.head == ["set", "accuracy", "base", "M0"], "none of a later model"


def test_a_notebook_shows_the_cards(runs, command, monkeypatch, capsys):
    shown: list[Table] = []
    monkeypatch.setattr(notebook, "show", lambda *tables: shown.extend(tables))
    with Store.read(runs / "mine") as store:
        notebook.show_reports(store)
        cards = tasks.load_reports(store)
    assert [line for one in cards for line in (one.about, *one.words, *one.notes)] == (
        capsys.readouterr().out.splitlines()
    )
    assert shown == [table for one in cards for table in (one.scores, one.verdicts)]


def test_sets_asked_at_different_times_are_each_described_as_they_were_asked(tmp_path):
    draw = config.load("tiny").evaluation.draw
    with Store.write(tmp_path) as store:
        AskedTasks([], 4, {"ifeval": {"x:y": 2}, "gsm8k": {}}).keep(store, draw)
        AskedTasks([], 2, {"gsm8k": {}}).keep(store, draw)
        asked = store.fact(task_sets.FACT)
    shown = tasks.describe_card(TaskCard([], []), asked, "now")
    assert "4 answers (IFEval) or 2 answers (GSM8K) a prompt" in shown.about
    assert shown.notes[0].startswith("IFEval: 2 prompts are left out")


def test_a_model_card_has_the_words_and_the_table(runs, tmp_path):
    config_of_adapter = {"peft_type": "LORA", "base_model_name_or_path": "x", "revision": None}
    adapter = runs / "mine" / "M1" / "adapter"
    (adapter / "adapter_config.json").write_text(json.dumps(config_of_adapter))
    with Store.read(runs / "mine") as store:
        card = (model_card.write_adapter(store, 1, tmp_path / "out") / "README.md").read_text()
        report = tasks.load_reports(store)[0]
    assert "## Open task sets" in card
    assert all(f"- {line}" in card for line in report.words)
    assert "| set | accuracy | base | M0 | M1 |" in card


def test_the_progress_tab_shows_the_card(runs):
    import gradio as gr
    from app_parts import make_header

    from selfreward_lite.app.library import RunLibrary
    from selfreward_lite.app.tabs import progress

    with gr.Blocks():
        tab = progress.ProgressTab(RunLibrary(runs), make_header())
    shown = tab.refresh("mine", "now", "loss", None)
    assert shown[tab.tasks] == gr.update(visible=True)
    assert "no difference seen between M1 and base" in shown[tab.task_words]
    assert "length&#95;constraints" in shown[tab.task_words], "escaped"
    assert shown[tab.task_scores]["headers"][:2] == ["set", "accuracy"]


def test_status_says_it_in_words(runs):
    ended = CliRunner().invoke(app, ["status", "--name", "mine", "--runs-dir", str(runs)])
    assert "IFEval: no difference seen between M1 and base" in " ".join(ended.stderr.split())


def test_a_run_without_task_sets_shows_none(scripted_runs):
    with Store.read(scripted_runs / "mine") as store:
        assert tasks.load_reports(store) == []
        assert "Open task sets" not in html.render_page(store)
