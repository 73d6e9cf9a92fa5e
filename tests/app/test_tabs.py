"""The tabs beside the chat, without a browser: what happens at a click, what is said, and that nobody's text becomes markup."""

import re
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
import scripted_run
from hostile_text import HOSTILE, find_tags

from selfreward_lite.app import jobs, page
from selfreward_lite.app.jobs import RunRequest
from selfreward_lite.app.library import TINY, RunLibrary
from selfreward_lite.app.tabs import chat, compare, explore
from selfreward_lite.app.tabs import run as run_tab
from selfreward_lite.app.talk import Reply, Verdict
from selfreward_lite.config.settings import Draw
from selfreward_lite.data import votes
from selfreward_lite.data.store import Store
from selfreward_lite.report import status
from selfreward_lite.report.status import Stage, View
from selfreward_lite.system.errors import EngineError, UserError

DRAW = Draw(temperature=0.7, top_p=0.95, max_tokens=16)


@pytest.fixture
def library(scripted_runs, monkeypatch) -> RunLibrary:
    found = RunLibrary(scripted_runs)
    models = {"base": None, "M0": "a", "M1": "b", "M2": "c"}
    settings = SimpleNamespace(model=SimpleNamespace(base="tiny"))
    monkeypatch.setattr(
        found, "place", lambda run: SimpleNamespace(run=run, adapters=models, settings=settings)
    )
    return found


class Talker:
    """A library in which the left model says less than the right, and the judge prefers the longer."""

    def __init__(self, folder: Path, breaks: bool = False) -> None:
        self.folder, self.breaks, self.asked = folder.joinpath, breaks, []

    def place(self, run):
        return SimpleNamespace(run=run)

    def reply(self, place, speaker, messages, draw, seed, caller):
        self.asked.append((speaker, messages[0]["content"], seed))
        yield Reply("", waits="another base is in use")
        yield Reply(f"{speaker} says {HOSTILE}", 3, "stop", 0.1, 0.3)

    def verdict(self, place, judge, prompt, texts, caller):
        yield None
        if self.breaks:
            raise EngineError("the engine died")
        yield Verdict(judge, "b", f"one {HOSTILE}", "two")


def bout(**more) -> compare.SideBySide:
    given = {
        "run": "mine",
        "prompt": "Hello?",
        "seed": 4,
        "draw": DRAW,
        "models": ("M0", "M2"),
        "judge": "M2",
        "blind": True,
    }
    return compare.SideBySide(**{**given, "caller": "me", **more})


def last(growing):
    *_, end = growing
    return end


# -- compare ----------------------------------------------------------------------------------------------------------------


def test_both_answer_the_same_prompt_with_the_same_seed(tmp_path):
    library = Talker(tmp_path)
    done = last(compare.answer(library, bout()))
    assert library.asked == [("M0", "Hello?", 4), ("M2", "Hello?", 4)]
    assert done.over
    assert not bout().over
    assert (
        compare.reply_of(next(compare.answer(library, bout())), 0)[0]
        == "waits: another base is in use"
    )


def test_names_and_verdict_are_told_after_the_vote_only(tmp_path):
    (tmp_path / "mine").mkdir()
    done = last(compare.answer(Talker(tmp_path), bout()))
    assert [compare.heading(done, side) for side in (0, 1)] == ["#### Left", "#### Right"]
    assert (
        compare.verdict_of(done)[0]
        == "Which is better? What the judge thinks is told after your vote."
    )
    begun, *_, end = compare.vote(Talker(tmp_path), done, "a", "M2")
    assert compare.heading(begun, 1) == "#### Right: M2"
    assert compare.verdict_of(begun)[0] == "M2 reads both answers …"
    assert compare.verdict_of(end)[0] == "You: M0 is better. M2 says: M2 is better."
    assert [one.choice for one in votes.all_votes(tmp_path / "mine")] == ["a"]


def test_a_vote_is_kept_with_everything_it_was_about(tmp_path):
    (tmp_path / "mine").mkdir()
    done = last(compare.answer(Talker(tmp_path), bout(models=("M2", "M0"))))
    last(compare.vote(Talker(tmp_path), done, "tie", "M2"))
    (kept,) = votes.all_votes(tmp_path / "mine")
    assert (kept.prompt, kept.seed, kept.model_a, kept.model_b, kept.blind) == (
        "Hello?",
        4,
        "M2",
        "M0",
        True,
    )
    assert (kept.choice, kept.verdict, kept.judge, kept.judged_ba) == ("tie", "b", "M2", "two")
    assert kept.text_a.startswith("M2 says <script>")
    assert "0 won, 1 tied, 0 lost; win rate 50%" in compare.standing(
        tmp_path / "mine", "M2", "M0", "M2"
    )


def test_a_verdict_is_kept_beside_the_vote_and_a_second_click_is_the_same_vote(tmp_path):
    (tmp_path / "mine").mkdir()
    done = last(compare.answer(Talker(tmp_path), bout()))
    for _ in range(2):
        last(compare.vote(Talker(tmp_path), done, "b", "M2"))
    assert [(one.choice, one.verdict) for one in votes.all_votes(tmp_path / "mine")] == [("b", "b")]


def test_whoever_leaves_while_the_judge_reads_has_voted(tmp_path):
    (tmp_path / "mine").mkdir()
    done = last(compare.answer(Talker(tmp_path), bout()))
    voting = compare.vote(Talker(tmp_path), done, "b", "M2")
    next(voting)
    voting.close()
    (kept,) = votes.all_votes(tmp_path / "mine")
    assert (kept.choice, kept.verdict) == ("b", None)


def test_a_judge_that_fails_loses_no_vote(tmp_path):
    (tmp_path / "mine").mkdir()
    done = last(compare.answer(Talker(tmp_path), bout()))
    seen = []
    with pytest.raises(EngineError, match="the engine died"):
        for one in compare.vote(Talker(tmp_path, breaks=True), done, "b", "M2"):
            seen.append(one)  # noqa: PERF402 - it ends with an error
    assert compare.verdict_of(seen[-1])[0] == "You: M2 is better. M2 could not be asked."
    assert [one.choice for one in votes.all_votes(tmp_path / "mine")] == ["b"]


def test_skipping_keeps_nothing_and_nobody_votes_twice(tmp_path):
    (tmp_path / "mine").mkdir()
    done = last(compare.answer(Talker(tmp_path), bout()))
    end = last(compare.vote(Talker(tmp_path), done, None, "M2"))
    assert compare.verdict_of(end)[0] == "You skipped it. M2 says: M2 is better."
    assert votes.all_votes(tmp_path / "mine") == []
    with pytest.raises(UserError, match="ask both models first"):
        next(compare.vote(Talker(tmp_path), end, "a", "M2"))
    with pytest.raises(UserError, match="ask both models first"):
        next(compare.vote(Talker(tmp_path), bout(), "a", "M2"))


def test_hostile_answers_are_letters(tmp_path):
    done = last(compare.answer(Talker(tmp_path), bout()))
    for side in (0, 1):
        text = compare.reply_of(done, side)[0]
        assert "alert(1)" in text
        assert find_tags(text) == []
        assert "![" not in text


def offered(library, *chosen):
    return [
        one.get("value") if isinstance(one, dict) else one
        for one in compare._offer(library, "mine", *chosen)
    ]


def test_at_first_m0_stands_against_the_newest_which_judges(library):
    one, two, judge, known, *_ = offered(library, None, None, None, [])
    assert (one, two, judge) == ("M0", "M2", "M2")
    assert known == ["mine", "", "base", "M0", "M1", "M2"]
    again = compare._offer(library, "mine", one, two, judge, known)
    assert again == tuple(gr.skip() for _ in range(8)), "nothing is said twice"
    older = ["mine", "", "base", "M0", "M1"]
    assert offered(library, "base", "M1", "M0", older)[:3] == ["base", "M2", "M0"], (
        "whoever had the newest has the newer"
    )
    assert offered(library, "base", "M0", "M0", ["mine", "", "base", "M0"])[:3] == [
        "M0",
        "M2",
        "M2",
    ], "nobody had chosen the base"


def test_whoever_talks_to_the_newest_goes_on_with_the_newer(library):
    def value(*given):
        return chat.offer(library, "mine", *given)[0]["value"]

    older = ["mine", "", "base", "M0", "M1"]
    assert value(None, chat.SELF, []) == "M2"
    assert value("M1", chat.SELF, older) == "M2"
    assert value("M0", chat.SELF, older) == "M0"
    assert value("M9", chat.SELF, older) == "M2"


# -- run --------------------------------------------------------------------------------------------------------------------


def test_a_plan_says_what_is_needed_before_anything_starts(library):
    said = run_tab.plan(library, RunRequest("x", "tiny"))
    for part in ("time: took", "card memory:", "disk:", "download: nothing"):
        assert part in said
    assert re.search(r"download: \d+\.\d GB", run_tab.plan(library, RunRequest("x", "overnight")))
    assert run_tab.plan(library, RunRequest("x", "tiny", settings=("dpo.betta=<b>",))).startswith(
        "⚠ dpo.betta: no such setting"
    )
    assert "<b>" not in run_tab.plan(library, RunRequest("x", "<b>nothing"))


def test_every_preset_is_described():
    from selfreward_lite import config

    assert set(run_tab.ABOUT) == set(config.presets())


def test_an_empty_form_means_the_preset():
    assert run_tab.wanted_of("", "tiny", None, None, None, "") == RunRequest("tiny", "tiny")
    assert run_tab.wanted_of(
        " mine ", "t4", 2.0, 7.0, 0.5, "dpo.beta=0.2\n\n a.b=1 "
    ) == RunRequest("mine", "t4", 2, 7, 0.5, ("dpo.beta=0.2", "a.b=1"))


@pytest.mark.parametrize(
    ("view", "says"),
    [
        (
            View("mine", "finished", newest=3, iterations=3),
            "**mine** is finished: M3 is its newest model",
        ),
        (
            View("mine", "running", 77, newest=None, iterations=3),
            "is running (process 77): M0 is being made, of M3",
        ),
        (View("mine", "stopped", newest=1), "Go on with it: it resumes where it was"),
        (
            View(
                "mine", "refused", newest=1, refused={"length": "1.9 <b>times</b>"}, may_accept=True
            ),
            "accept it all the same",
        ),
        (
            View("mine", "refused", newest=1, refused={"length": "1.9 times"}),
            "Then go past the gates",
        ),
    ],
)
def test_how_a_run_stands_is_said_with_what_to_do(view, says):
    said = run_tab.headline(view)
    assert says in said
    assert find_tags(said) == []


def test_the_bar_shows_the_stage_with_rate_and_time_left():
    view = View(
        "mine", "running", 7, stages=(Stage("M1", "judgments", 30, 120, 10.0, ended=False),)
    )
    bar = run_tab.progress(view)
    assert "M1 judgments: 30 of 120, 3.0 a second, about 30 s left of this stage" in bar
    assert '<progress max="120" value="30">' in bar
    assert run_tab.progress(View("mine", "finished")) == ""
    hostile = View(
        "mine", "running", 7, stages=(Stage("M1", "<img src=x>", 1, 2, 1.0, ended=False),)
    )
    assert "<img" not in run_tab.progress(hostile)


def test_the_tab_shows_a_run_as_it_stands(library):
    said, bar, *buttons, table, log = run_tab.look(library, "mine")
    assert said.startswith("**mine** is finished")
    assert [one["visible"] for one in buttons] == [False, False, True, False, False]
    assert len(table["value"]) == len(status.view(library.runs_dir / "mine").stages)
    assert (bar, log["visible"]) == ("", False)
    assert run_tab.look(library, TINY)[0] == run_tab.NO_RUN
    assert run_tab._now(library, "mine") == run_tab._now(library, "mine")


def test_a_refused_model_can_be_accepted_from_the_page(tmp_path):
    from selfreward_lite.system.files import write_manifest

    scripted_run.run(tmp_path / "mine", iterations="1")
    with Store.write(tmp_path / "mine") as store:
        store._db.execute("DELETE FROM promoted WHERE iteration = 1")
        store.record_gate(1, "length", False, "1.9 times as long")
    write_manifest(tmp_path / "mine" / "M1", {})
    library = RunLibrary(tmp_path)
    assert run_tab.look(library, "mine")[5]["visible"], "the button is there"
    run_tab.accept(library, "mine")
    assert status.view(tmp_path / "mine").state == "finished"


def test_going_on_asks_for_what_is_missing_or_one_more(library, monkeypatch):
    begun = []
    monkeypatch.setattr(jobs, "begin", lambda runs, wanted, here: begun.append(wanted))
    run_tab.go_on(library, "mine")
    run_tab.go_on(library, "mine", one_more=True)
    run_tab.go_on(library, "mine", past_gates=True)
    assert begun == [
        RunRequest("mine"),
        RunRequest("mine", iterations=3),
        RunRequest("mine", past_gates=True),
    ]


@pytest.mark.parametrize("run", ["../outside", "/etc", "..", ".tiny", "a/b", ""])
def test_a_name_that_leads_elsewhere_is_no_run(tmp_path, run):
    library = RunLibrary(tmp_path / "runs")
    scripted_run.run(tmp_path / "outside", iterations="0")
    for act in (
        lambda: library.folder(run),
        lambda: run_tab.accept(library, run),
        lambda: explore.whole(library, run, "x"),
        lambda: library.place(run),
    ):
        with pytest.raises(UserError, match="no run"):
            act()
    with pytest.raises(UserError, match="no run|no name for a run"):
        run_tab.go_on(library, run)
    assert "no run" in run_tab.look(library, run)[0] or not run
    assert [path.name for path in tmp_path.iterdir()] == ["outside"], "and nothing was made"


def test_accepting_where_there_is_no_run_makes_none(tmp_path):
    with pytest.raises(UserError, match="no run"):
        run_tab.accept(RunLibrary(tmp_path), "gone")
    assert list(tmp_path.iterdir()) == []


def test_news_change_when_there_is_something_new(library, tmp_path):
    before = page.news(library, "mine")
    assert page.news(library, "mine") == before
    with Store.write(library.runs_dir / "mine"):
        assert page.news(library, "mine") != before
    assert page.news(library, TINY) == TINY
    assert page.news(RunLibrary(tmp_path), "gone").startswith("gone : new")
