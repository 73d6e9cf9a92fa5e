"""The compare and run tabs, without a browser: what a click does; no text becomes markup."""

import re
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
import scripted_run
from app_parts import make_header
from hostile_text import HOSTILE, find_tags

from selfreward_lite.app import jobs, page
from selfreward_lite.app.jobs import RunRequest
from selfreward_lite.app.library import TINY, RunLibrary
from selfreward_lite.app.tabs import chat, compare, explore
from selfreward_lite.app.tabs import run as run_tab
from selfreward_lite.app.talk import PairVerdict, StreamedReply
from selfreward_lite.app.widgets import Choices
from selfreward_lite.config.settings import Sampling
from selfreward_lite.data import votes
from selfreward_lite.data.store import StageRow, Store
from selfreward_lite.report import status
from selfreward_lite.report.status import RunStatus
from selfreward_lite.system.errors import EngineError, UserError

DRAW = Sampling(temperature=0.7, top_p=0.95, max_tokens=16)


@pytest.fixture
def library(scripted_runs, monkeypatch) -> RunLibrary:
    found = RunLibrary(scripted_runs)
    models = {"base": None, "M0": "a", "M1": "b", "M2": "c"}
    settings = SimpleNamespace(model=SimpleNamespace(base="tiny"))
    monkeypatch.setattr(
        found, "models", lambda run: SimpleNamespace(run=run, adapters=models, settings=settings)
    )
    return found


@pytest.fixture
def chat_tab(library) -> chat.ChatTab:
    with gr.Blocks():
        return chat.ChatTab(library, make_header())


@pytest.fixture
def compare_tab(library) -> compare.CompareTab:
    with gr.Blocks():
        return compare.CompareTab(library, make_header())


@pytest.fixture
def tab(library) -> run_tab.RunTab:
    return make_run_tab(library)


def make_run_tab(library: RunLibrary) -> run_tab.RunTab:
    with gr.Blocks():
        return run_tab.RunTab(library, make_header())


class FakeTalk:
    """Stands for `Talk` and for the library: two models reply, the judge prefers the right one."""

    def __init__(self, folder: Path, monkeypatch) -> None:
        self.folder, self.fails, self.asked = folder.joinpath, False, []
        monkeypatch.setattr(compare, "Talk", lambda library, run, caller: self)

    def stream_reply(self, speaker, messages, draw, seed):
        self.asked.append((speaker, messages[0]["content"], seed))
        yield StreamedReply("", waits_for="another run's model is in use")
        yield StreamedReply(f"{speaker} says {HOSTILE}", 3, "stop", 0.1, 0.3)

    def stream_verdict(self, judge, prompt, texts):
        yield PairVerdict(is_final=False)
        if self.fails:
            raise EngineError("the engine died")
        yield PairVerdict("b", f"one {HOSTILE}", "two")


@pytest.fixture
def talk(tmp_path, monkeypatch) -> FakeTalk:
    (tmp_path / "mine").mkdir()
    return FakeTalk(tmp_path, monkeypatch)


def make_pair(**more) -> compare.SideBySide:
    given = {
        "id": "1",
        "at": "2026-01-01T00:00:00+00:00",
        "run": "mine",
        "prompt": "Hello?",
        "seed": 4,
        "draw": DRAW,
        "models": ("M0", "M2"),
        "judge": "M2",
        "blind": True,
    }
    return compare.SideBySide(**{**given, "caller": "me", **more})


def stream_answers(talk: FakeTalk, pair: compare.SideBySide):
    """The comparison as it grows, from the first part of an answer on."""
    with gr.Blocks():
        tab = compare.CompareTab(talk, make_header())
    updates = tab.answer(pair)
    assert next(updates)[tab.pair] == pair, "the question is shown at once"
    for update in updates:
        yield update[tab.pair]


def stream_vote(talk: FakeTalk, pair: compare.SideBySide, choice: votes.Side | None, judge: str):
    """The comparison from the vote on."""
    with gr.Blocks():
        tab = compare.CompareTab(talk, make_header())
    for update in tab.vote(choice, pair, judge):
        yield update[tab.pair]


def last(growing):
    *_, end = growing
    return end


# -- compare ---------------------------------------------------------------------------------------


def test_both_models_answer_one_prompt_with_one_seed(talk):
    first, *_, done = stream_answers(talk, make_pair())
    assert talk.asked == [("M0", "Hello?", 4), ("M2", "Hello?", 4)]
    assert done.is_answered
    assert not make_pair().is_answered
    assert compare.show_answer(first, 0)[1] == "waiting: another run's model is in use"


def test_names_and_verdict_are_shown_after_the_vote_only(talk, tmp_path):
    done = last(stream_answers(talk, make_pair()))
    assert [compare.show_answer(done, side)[0] for side in (0, 1)] == [
        "#### Left answer",
        "#### Right answer",
    ]
    assert (
        compare.verdict_text(done)
        == "Which answer is better? The judge's verdict is shown after your vote."
    )
    begun, *_, end = stream_vote(talk, done, "a", "M2")
    assert compare.show_answer(begun, 1)[0] == "#### Right answer: M2"
    assert compare.verdict_text(begun) == "M2 is reading both answers …"
    assert compare.verdict_text(end) == "You: M0 is better. M2 says: M2 is better."
    assert [one.choice for one in votes.load_votes(tmp_path / "mine")] == ["a"]


def test_a_vote_is_stored_with_everything_it_was_about(talk, tmp_path):
    done = last(stream_answers(talk, make_pair(models=("M2", "M0"))))
    last(stream_vote(talk, done, "tie", "M2"))
    (kept,) = votes.load_votes(tmp_path / "mine")
    assert (kept.prompt, kept.seed, kept.model_a, kept.model_b, kept.blind) == (
        "Hello?",
        4,
        "M2",
        "M0",
        True,
    )
    assert (kept.choice, kept.verdict, kept.judge, kept.judged_ba) == ("tie", "b", "M2", "two")
    assert kept.text_a.startswith("M2 says <script>")
    assert "0 won, 1 tied, 0 lost; win rate 50%" in compare.tally_text(
        tmp_path / "mine", "M2", "M0", "M2"
    )


def test_a_second_click_is_the_same_vote(talk, tmp_path):
    done = last(stream_answers(talk, make_pair()))
    for _ in range(2):
        last(stream_vote(talk, done, "b", "M2"))
    assert [(one.choice, one.verdict) for one in votes.load_votes(tmp_path / "mine")] == [
        ("b", "b")
    ]


def test_a_user_who_leaves_while_the_judge_reads_has_voted(talk, tmp_path):
    done = last(stream_answers(talk, make_pair()))
    voting = stream_vote(talk, done, "b", "M2")
    next(voting)
    voting.close()
    (kept,) = votes.load_votes(tmp_path / "mine")
    assert (kept.choice, kept.verdict) == ("b", None)


def test_a_judge_that_fails_loses_no_vote(talk, tmp_path):
    done = last(stream_answers(talk, make_pair()))
    seen, talk.fails = [], True
    with pytest.raises(gr.Error, match="the engine died"):
        for one in stream_vote(talk, done, "b", "M2"):
            seen.append(one)  # noqa: PERF402 - it ends with an error
    assert compare.verdict_text(seen[-1]) == "You: M2 is better. M2 could not be asked."
    assert not seen[-1].is_busy
    assert [one.choice for one in votes.load_votes(tmp_path / "mine")] == ["b"]


def test_skipping_stores_nothing_and_nobody_votes_twice(talk, tmp_path):
    done = last(stream_answers(talk, make_pair()))
    end = last(stream_vote(talk, done, None, "M2"))
    assert compare.verdict_text(end) == "You skipped the vote. M2 says: M2 is better."
    assert votes.load_votes(tmp_path / "mine") == []
    for pair in (end, make_pair()):
        with pytest.raises(gr.Error, match="ask both models first"):
            next(stream_vote(talk, pair, "a", "M2"))


def test_hostile_answers_are_shown_as_text(talk):
    done = last(stream_answers(talk, make_pair()))
    for side in (0, 1):
        text = compare.show_answer(done, side)[1]
        assert "alert(1)" in text
        assert find_tags(text) == []
        assert "![" not in text


def test_the_compare_tab_shows_a_pair_as_it_grows(compare_tab, talk):
    done = last(stream_answers(talk, make_pair()))
    busy, ready = compare_tab.show(make_pair()), compare_tab.show(done)
    assert busy[compare_tab.prompt.stop] == gr.update(visible=True)
    assert ready[compare_tab.prompt.stop] == gr.update(visible=False)
    for button in compare_tab.buttons:
        assert busy[button] == gr.update(interactive=False)
        assert ready[button] == gr.update(interactive=True)
    assert ready[compare_tab.judged_ab] == "", "no verdict before the vote"
    compare_tab.library = talk
    voted = compare_tab.show(last(stream_vote(talk, done, "b", "M2")))
    assert voted[compare_tab.judged_ba] == "two"
    assert "**M2 against M0**: 1 won" in voted[compare_tab.tally]


def choices(*names: str) -> Choices:
    return Choices("mine", names, is_tiny=True)


def test_by_default_m0_is_compared_with_the_newest(compare_tab):
    def offer(*given) -> list[object]:
        updates = compare_tab.offer_models("mine", *given)
        parts = (compare_tab.model_a, compare_tab.model_b, compare_tab.judge)
        return [updates[part]["value"] for part in parts]

    assert offer(None, None, None, None) == ["M0", "M2", "M2"]
    now = choices("base", "M0", "M1", "M2")
    assert compare_tab.offer_models("mine", None, None, None, None)[compare_tab.choices] == now
    again = compare_tab.offer_models("mine", "M0", "M2", "M2", now)
    assert again == gr.skip(), "nothing is sent twice"
    older = choices("base", "M0", "M1")
    assert offer("base", "M1", "M0", older) == ["base", "M2", "M0"], "the newest moves on"
    assert offer("base", "M0", "M0", choices("base", "M0")) == ["M0", "M2", "M2"], (
        "the base was not chosen by the user"
    )


def test_what_the_page_does_not_show_yet_is_the_default(compare_tab):
    parts = (compare_tab.header.run, compare_tab.model_a, compare_tab.model_b, compare_tab.judge)

    def choose(*given):
        return compare_tab.choose_models(dict(zip(parts, given, strict=True)))

    assert choose(None, None, None, None) == ("mine", "M2", ["M0", "M2"])
    assert choose("mine", "base", None, "M1") == ("mine", "M1", ["base", "M2"])
    assert choose("mine", "base", "M0", "M0") == ("mine", "M0", ["base", "M0"])
    alone = SimpleNamespace(adapters={"base": None})
    compare_tab.library = SimpleNamespace(choices=lambda: ["new"], models=lambda run: alone)
    with pytest.raises(UserError, match="only one model"):
        choose(None, None, None, None)


def test_a_chat_with_the_newest_model_moves_to_a_newer_one(chat_tab):
    def value(*given):
        return chat_tab.offer_models("mine", *given)[chat_tab.model]["value"]

    older = choices("base", "M0", "M1")
    assert value(None, chat.SELF, None) == "M2"
    assert value("M1", chat.SELF, older) == "M2"
    assert value("M0", chat.SELF, older) == "M0"
    assert value("M9", chat.SELF, older) == "M2"


# -- run -------------------------------------------------------------------------------------------


def test_a_plan_tells_what_a_run_needs(library):
    said = run_tab.describe_plan(library, RunRequest("x", "tiny"))
    for part in ("time: 5 minutes", "GPU memory:", "disk:", "download: nothing"):
        assert part in said
    assert re.search(
        r"download: \d+\.\d GB", run_tab.describe_plan(library, RunRequest("x", "overnight"))
    )


def test_the_form_tells_what_is_wrong_with_it(tab):
    wrong = tab.plan("x", "tiny", "", "", "", "dpo.betta=<b>")
    assert wrong.startswith("⚠ dpo.betta: no such setting")
    assert "<b>" not in tab.plan("x", "<b>nothing", "", "", "", "")
    for number, problem in enumerate(
        (
            "iterations must be a whole number",
            "random seed must be a whole number",
            "hours must be a number",
        ),
        start=2,
    ):
        form = ["x", "tiny", "", "", "", ""]
        form[number] = "two"
        assert tab.plan(*form) == f"⚠ {problem}, not 'two'"
    with pytest.raises(gr.Error, match="hours must be a number, not 'two'"):
        tab.start(*form)


def test_every_preset_is_described():
    from selfreward_lite import config

    assert set(run_tab.PRESETS) == set(config.presets())


def test_an_empty_form_means_the_preset():
    assert run_tab.parse_form("", "tiny", "", "", "", "") == RunRequest("tiny", "tiny")
    assert run_tab.parse_form(
        " mine ", "t4", "2", " 7", "0.5", "dpo.beta=0.2\n\n a.b=1 "
    ) == RunRequest("mine", "t4", 2, 7, 0.5, ("dpo.beta=0.2", "a.b=1"))


@pytest.mark.parametrize(
    ("view", "says"),
    [
        (
            RunStatus("mine", "finished", newest=3, iterations=3),
            "**mine** is finished: M3 is its newest model",
        ),
        (
            RunStatus("mine", "running", 77, newest=None, iterations=3),
            "is running (process 77): it is making M0, of M0 to M3",
        ),
        (RunStatus("mine", "stopped", newest=1), "Resume continues where it stopped"),
        (
            RunStatus("mine", "stopped", time_is_up="0.1 hours are left"),
            "limit: 0.1 hours are left",
        ),
        (
            RunStatus(
                "mine", "refused", newest=1, refused={"length": "1.9 <b>times</b>"}, may_accept=True
            ),
            "accept it anyway, or continue past the gates",
        ),
        (
            RunStatus("mine", "refused", newest=1, refused={"length": "1.9 times"}),
            "Then continue past the gates",
        ),
    ],
)
def test_headline_tells_the_state_and_what_to_do(view, says):
    said = run_tab.headline(view)
    assert says in said
    assert find_tags(said) == []


def test_progress_bar_shows_stage_rate_and_time_left():
    view = RunStatus(
        "mine", "running", 7, stages=(StageRow(1, "judgments", 30, 120, 10.0, False, {}),)
    )
    bar = run_tab.progress_bar(view)
    assert "M1 judgments: 30 of 120, 3.0 per second, about 30 s left in this stage" in bar
    assert '<progress max="120" value="30">' in bar
    assert run_tab.progress_bar(RunStatus("mine", "finished")) == ""
    hostile = RunStatus(
        "mine", "running", 7, stages=(StageRow(1, "<img src=x>", 1, 2, 1.0, False, {}),)
    )
    assert "<img" not in run_tab.progress_bar(hostile)


def visible_buttons(tab: run_tab.RunTab, shown: dict) -> list[str]:
    return [
        part.value
        for part, update in shown.items()
        if isinstance(part, gr.Button) and update["visible"]
    ]


def test_run_tab_shows_a_finished_run(library, tab):
    shown = tab.refresh("mine")
    assert shown[tab.state].startswith("**mine** is finished")
    assert visible_buttons(tab, shown) == ["One more iteration"]
    stages = status.read_status(library.runs_dir / "mine").stages
    assert len(shown[tab.stages]["value"]) == len(stages)
    assert not shown[tab.bar]["visible"]
    assert not shown[tab.log]["visible"]
    nothing = tab.refresh(TINY)
    assert nothing[tab.state] == run_tab.NO_RUN
    assert visible_buttons(tab, nothing) == []
    known = tab.refresh("mine", None)[tab.known]
    assert tab.refresh("mine", known) == gr.skip(), "nothing is sent twice"


def test_starting_a_run_chooses_it(library, tab, monkeypatch):
    begun = []
    monkeypatch.setattr(jobs, "start_run", lambda runs, request, cwd: begun.append(request))
    shown = tab.start("mine", "tiny", "", "", "", "")
    assert begun == [RunRequest("mine", "tiny")]
    assert shown[tab.header.run]["value"] == "mine"
    assert shown[tab.state].startswith("**mine** is finished")


def test_a_refused_model_can_be_accepted_from_the_page(tmp_path):
    from selfreward_lite.system.files import write_manifest

    scripted_run.copy(tmp_path / "mine", iterations="1")
    with Store.write(tmp_path / "mine") as store:
        store._db.execute("DELETE FROM promoted WHERE iteration = 1")
        store.record_gate(1, "length", False, "1.9 times as long")
    write_manifest(tmp_path / "mine" / "M1", {})
    library = RunLibrary(tmp_path)
    shown = make_run_tab(library)
    assert "Accept anyway" in visible_buttons(shown, shown.refresh("mine"))
    accepted = shown.act("Accept anyway", "mine")
    assert accepted[shown.state].startswith("**mine** is finished")
    assert status.read_status(tmp_path / "mine").state == "finished"


def test_resume_asks_for_the_rest_or_one_more_iteration(library, monkeypatch):
    begun = []
    monkeypatch.setattr(jobs, "start_run", lambda runs, request, cwd: begun.append(request))
    run_tab.resume(library, "mine")
    run_tab.resume(library, "mine", one_more=True)
    run_tab.resume(library, "mine", past_gates=True)
    assert begun == [
        RunRequest("mine"),
        RunRequest("mine", iterations=3),
        RunRequest("mine", past_gates=True),
    ]


@pytest.mark.parametrize("run", ["../outside", "/etc", "..", ".tiny", "a/b", ""])
def test_a_name_outside_the_folder_is_no_run(tmp_path, run):
    library = RunLibrary(tmp_path / "runs")
    scripted_run.copy(tmp_path / "outside", iterations="0")
    for act in (
        lambda: library.folder(run),
        lambda: library.models(run),
    ):
        with pytest.raises(UserError, match="no run"):
            act()
    with pytest.raises(UserError, match="no run|cannot name a run"):
        run_tab.resume(library, run)
    with gr.Blocks():
        opened = explore.ExploreTab(library, make_header())
    hits = SimpleNamespace(hits=[SimpleNamespace(id="x")])
    with pytest.raises(gr.Error, match="no run"):
        opened.open_prompt(SimpleNamespace(index=[0, 0]), run, hits)
    shown = make_run_tab(library)
    for name in ("Stop", "Accept anyway"):
        with pytest.raises(gr.Error, match=re.escape(f"no run {run!r} here")):
            shown.act(name, run)
    assert "no run" in shown.refresh(run)[shown.state] or not run
    assert [path.name for path in tmp_path.iterdir()] == ["outside"], "and nothing was created"


def test_accepting_without_a_run_creates_nothing(tmp_path):
    with pytest.raises(gr.Error, match="no run"):
        make_run_tab(RunLibrary(tmp_path)).act("Accept anyway", "gone")
    assert list(tmp_path.iterdir()) == []


def test_news_change_when_the_run_does(library, tmp_path):
    before = page.describe_news(library, "mine")
    assert page.describe_news(library, "mine") == before
    with Store.write(library.runs_dir / "mine"):
        assert page.describe_news(library, "mine") != before
    assert page.describe_news(library, TINY) == TINY
    assert page.describe_news(RunLibrary(tmp_path), "gone").startswith("gone: no run")


def test_no_votes_are_counted_where_there_is_no_run(compare_tab):
    for run in (None, "", TINY):
        assert compare_tab.show_tally(run, "M0", "M²", "base") == ""
    assert "M0 against M² yet" in compare_tab.show_tally("mine", "M0", "M²", "base")
