"""A set of ranked answers that every new model judges, for a gate."""

import pytest
import scripted_run
from run_contents import read_contents
from scripted_runtime import scripted_runtime
from task_rows import pin_ranked

from selfreward_lite import config
from selfreward_lite.data import judge_sets, task_sets
from selfreward_lite.data.records import Judgment
from selfreward_lite.data.store import Store
from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.report import passport
from selfreward_lite.run import loop, prepare, stages
from selfreward_lite.system.errors import ConfigError, UserError

WITH_SET = {"iterations": "1", "gates.judge_set": "llmbar"}


@pytest.fixture(scope="module", autouse=True)
def sets(tmp_path_factory):
    """Small ranked sets, fetched already."""
    folder = tmp_path_factory.mktemp("sets")
    with pytest.MonkeyPatch.context() as patch:
        pin_ranked(patch, folder)
        patch.setattr(task_sets, "home", lambda: folder)
        yield folder


def start(folder, watch=lambda at: None, **settings: str) -> None:
    wanted = {**scripted_run.SMALL, **settings}
    with Store.write(folder) as store:
        chosen = prepare.load_or_create_settings(store, wanted, "tiny")
        loop.run(store, chosen, scripted_runtime(ChatFormat.load(TINY_MODEL)), watch)


@pytest.fixture(scope="module")
def run(tmp_path_factory, sets):
    folder = tmp_path_factory.mktemp("runs") / "mine"
    start(folder, **WITH_SET)
    return folder


def test_every_new_model_judges_the_set_and_the_gate_compares(run):
    with Store.read(run) as store:
        assert store.faults() == []
        for iteration in (0, 1):
            assert len(store.done_items(iteration, "judge_set")) == 20
            names = [row.stage for row in store.stages() if row.iteration == iteration]
            table = list(stages.list_stages(store.settings(), iteration))
            assert names == [name for name in table if name in names]
        _, first = store.gates(0)["judge"]
        _, second = store.gates(1)["judge"]
        assert "LLMBar" not in first, "M0 has no model before it that judged the set"
        (document,) = store.fact(judge_sets.FACT).values()
        (whole, *_) = document["changes"]
        assert (whole["model"], whole["against"], whole["part"]) == ("M1", "M0", "")
        change = whole["change"]
        by = f"{change['mean']:+.3f} ({change['changed']} prompts changed"
        if change["low"] is not None:
            by = f"{change['low']:+.3f} to {change['high']:+.3f}"
        assert f", on LLMBar by {by}" in second
        (report,) = passport.load_reports(store)
        assert report.about.startswith("LLMBar, by scores: 10 pairs of 10 prompts")


@pytest.mark.slow
def test_what_the_run_keeps_is_else_unchanged(run, tmp_path):
    start(tmp_path / "without", iterations="1")
    with Store.read(run) as store, Store.read(tmp_path / "without") as other:
        for model in (-1, 0, 1):
            assert store.metrics(model) == other.metrics(model)
        assert store.count(Judgment) == other.count(Judgment) + 2 * 2 * 20


@pytest.mark.slow
def test_a_run_stopped_among_the_pairs_resumes_with_the_rest(run, tmp_path):
    def stop(at):
        if (at.iteration, at.stage, at.done) == (1, "judge_set", 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "mine", stop, **WITH_SET)
    resumed = []
    start(tmp_path / "mine", resumed.append, **WITH_SET)
    first = next(at for at in resumed if at.stage == "judge_set")
    assert (first.already, first.total) == (3, 20)
    assert read_contents(tmp_path / "mine") == read_contents(run)


@pytest.mark.slow
def test_a_set_may_be_named_when_a_run_goes_on(tmp_path):
    start(tmp_path / "mine", iterations="0")
    later = {"gates.judge_set": "pandalm", "gates.judge_set_prompts": "2"}
    start(tmp_path / "mine", iterations="2", **later)
    with Store.read(tmp_path / "mine") as store:
        assert "PandaLM nothing to compare with" in store.gates(1)["judge"][1]
        assert ", on PandaLM by" in store.gates(2)["judge"][1]
        assert not store.done_items(0, "judge_set")
        (document,) = store.fact(judge_sets.FACT).values()
        assert document["asked"]["prompts"] == 2
        assert {one["model"] for one in document["figures"]} == {"M1", "M2"}


def test_a_set_that_cannot_be_had_is_refused_before_the_first_stage(tmp_path, monkeypatch):
    monkeypatch.setattr(task_sets, "home", lambda: tmp_path / "empty")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="LLMBar is not on this machine"):
        start(tmp_path / "one", **WITH_SET)
    with pytest.raises(ConfigError, match=r"gates.judge_set: .*gone.jsonl does not exist"):
        start(tmp_path / "two", **{"gates.judge_set": str(tmp_path / "gone.jsonl")})
    with pytest.raises(ConfigError, match="leave it out"):
        start(tmp_path / "three", **WITH_SET, **{"gates.judging": "false"})
    for name in ("one", "two", "three"):
        with Store.read(tmp_path / name) as store:
            assert not store.stages()


def test_hours_count_the_judgments():
    without = config.load("overnight")
    settings = config.load("overnight", {"gates.judge_set": "llmbar"})
    assert "judge_set" not in stages.list_stages(without, 1)
    piece, count = stages.list_stages(settings, 1)["judge_set"]
    assert piece == "judgment"
    assert count == 200 * stages.ANSWERS * settings.evaluation.judgments
