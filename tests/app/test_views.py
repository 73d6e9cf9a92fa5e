"""The explore and progress tabs and the page around all tabs, without a browser."""

import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import pytest
import scripted_run
from app_parts import make_header

from selfreward_lite.app import page
from selfreward_lite.app.library import TINY, RunLibrary
from selfreward_lite.app.tabs import explore, progress
from selfreward_lite.app.tabs import run as run_tab
from selfreward_lite.app.widgets import Choices, list_models
from selfreward_lite.data.records import JudgmentPair, Prompt, Response
from selfreward_lite.data.store import Store
from selfreward_lite.report import summary
from selfreward_lite.report.explore import PromptHistory
from selfreward_lite.report.plots import PANELS


@pytest.fixture
def library(scripted_runs) -> RunLibrary:
    return RunLibrary(scripted_runs)


# -- explore ---------------------------------------------------------------------------------------


@pytest.fixture
def explore_tab(library) -> explore.ExploreTab:
    with gr.Blocks():
        return explore.ExploreTab(library, make_header())


def find_prompts(library, run: str, group: str, outcome: str, number: int) -> explore.HitPage:
    with gr.Blocks():
        tab = explore.ExploreTab(library, make_header())
    return tab.list_page(number, run, group, "", outcome, explore.HitPage())[tab.hits]


def load_history(library: RunLibrary, prompt: str) -> PromptHistory:
    with Store.read(library.runs_dir / "mine") as store:
        return explore.explore.load_history(store, prompt)


def test_the_list_holds_what_was_found_and_how_much(library):
    page = find_prompts(library, "mine", "M1", "all", 0)
    with Store.read(library.runs_dir / "mine") as store:
        total = store.count(Prompt, iteration=1)
    assert (len(page.hits), len(page.rows), page.number) == (total, total, 0)
    assert page.title == f"{total} prompts, page 1 of 1"
    assert find_prompts(library, "mine", "M1", "all", 99) == page, "the last page"
    nothing = explore.HitPage()
    assert find_prompts(library, "mine", "M7", "all", 0) == nothing
    assert find_prompts(library, TINY, None, "all", 0) == nothing


def test_previous_and_next_page(explore_tab, monkeypatch):
    monkeypatch.setattr(explore.explore, "PAGE", 1)
    monkeypatch.setattr(explore, "PAGE", 1)
    hits = explore.HitPage()
    numbers = []
    for step in (None, 1, 1, -1, -1, -1, None):
        shown = explore_tab.list_page(step, "mine", "M1", "", "all", hits)
        hits = shown[explore_tab.hits]
        numbers.append(hits.number)
        assert len(shown[explore_tab.listing]) == len(hits.hits) == 1
    assert numbers == [0, 1, 2, 1, 0, 0, 0]


def test_the_first_pairs_replace_what_all_models_share(library, explore_tab):
    def value(chosen, known=None):
        updates = explore_tab.offer_groups("mine", chosen, known)
        return updates[explore_tab.group]["value"]

    def groups(*names):
        return Choices("mine", names)

    assert value(None) == value("gone") == "M2"
    shared = groups("ranked by people", "held out")
    assert value("ranked by people", shared) == "M2"
    assert value("held out", shared) == "held out", "the user chose it"
    with_m1 = groups("M1", "ranked by people", "held out")
    assert value("M1", with_m1) == "M1", "the user may be reading it"
    known = explore.list_groups(library, "mine")
    assert explore_tab.offer_groups("mine", "M1", known) == gr.skip(), "nothing is sent twice"


def test_a_prompt_is_shown_with_responses_and_judgments(library):
    page = find_prompts(library, "mine", "M1", "gave a pair", 0)
    history = load_history(library, page.hits[0].id)
    rows = explore.answer_rows(history)
    assert {row[0] for row in rows} >= {"chosen", "rejected"}
    first = explore.judgment_rows(history, 0)
    assert len(first) == len(history.answers[0].judgments) == int(rows[0][3])
    assert explore.judgment_rows(history, 99) == explore.judgment_rows(None, 0) == []
    assert explore.battles_text(history)
    assert len(explore.battle_rows(history)) == len(history.battles)


def test_a_forced_score_or_winner_is_marked(library):
    with Store.read(library.folder("mine")) as store:
        (pair, *_) = store.records(JudgmentPair, iteration=1)
        (response,) = store.records(Response, id=pair.response_id)
    history = load_history(library, response.prompt_id)
    place = [one.response.id for one in history.answers].index(response.id)
    answer = history.answers[place]
    marked = replace(answer, judgments=tuple(replace(j, source="forced") for j in answer.judgments))
    battles = [replace(one, source="forced") for one in history.battles]
    forced = replace(
        history,
        answers=(*history.answers[:place], marked, *history.answers[place + 1 :]),
        battles=battles,
    )
    for before, after in (
        (explore.judgment_rows(history, place), explore.judgment_rows(forced, place)),
        (explore.battle_rows(history), explore.battle_rows(forced)),
    ):
        assert before
        for plain, row in zip(before, after, strict=True):
            unread = plain[0] == "not readable"
            assert row == [plain[0] if unread else f"{plain[0]} (forced)", *plain[1:]]


def test_a_click_on_a_row_opens_its_prompt(explore_tab):
    hits = explore_tab.list_page(None, "mine", "M1", "", "all", explore.HitPage())[explore_tab.hits]
    shown = explore_tab.open_prompt(SimpleNamespace(index=[1, 0]), "mine", hits)
    assert shown[explore_tab.prompt]["value"] == hits.rows[1][0]
    history = shown[explore_tab.history]
    assert shown[explore_tab.judgments] == explore.judgment_rows(history, 0)
    second = explore_tab.open_answer(SimpleNamespace(index=[1, 0]), history)
    assert second == explore.judgment_rows(history, 1)
    beyond = SimpleNamespace(index=[len(hits.hits), 0])
    assert explore_tab.open_prompt(beyond, "mine", hits) == gr.skip()


def test_a_response_of_several_judges_shows_the_mean_of_each(library):
    page = find_prompts(library, "mine", "ranked by people", "all", 0)
    cells = [
        row[1] for one in page.hits for row in explore.answer_rows(load_history(library, one.id))
    ]
    assert any(re.fullmatch(r"base \d\.\d\d(, M\d \d\.\d\d)+", cell) for cell in cells), cells


def test_every_tab_says_what_cannot_be_read(tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.sqlite").write_bytes(b"no database <b>" * 99)
    scripted_run.copy(tmp_path / "pruned", iterations="0")
    shutil.rmtree(tmp_path / "pruned" / "base")
    library = RunLibrary(tmp_path)
    for run, says in (
        ("bad", "⚠ .*run.sqlite is damaged"),
        (
            "pruned",
            "⚠ pruned has no base model: it was never converted, or was pruned; .*--name pruned",
        ),
    ):
        found = list_models(library, run)
        assert (found.names, bool(re.match(says, found.problem))) == ((), True), found.problem
    assert re.match("⚠ .*run.sqlite", explore.list_groups(library, "bad").problem)
    assert re.match("⚠ .*run.sqlite", progress.find_results(library, "bad"))
    with gr.Blocks():
        tab = run_tab.RunTab(library, make_header())
    assert tab.refresh("bad")[tab.state].startswith("⚠ ")


def test_all_tables_show_text_and_no_markup(scripted_runs):
    """Cells of any other type would show a response as markup."""
    found = [
        one
        for one in page.build(RunLibrary(scripted_runs)).blocks.values()
        if isinstance(one, gr.Dataframe)
    ]
    assert len(found) >= 7
    assert {one.datatype for one in found} == {"str"}
    parts = page.build(RunLibrary(scripted_runs)).blocks.values()
    assert not [one for one in parts if isinstance(one, gr.HTML) and one.elem_id != "bar"]


# -- progress --------------------------------------------------------------------------------------


def test_measurements_are_shown_with_their_errors(scripted_runs):
    results = progress.load_results(scripted_runs / "mine", "now")
    measured, examples, signs, gates = results.tables
    assert results.constraints.rows == [], "its prompts have no constraints"
    assert measured.head == ["", "base", "M0", "M1", "M2"]
    names = {row[0] for row in measured.rows}
    assert names >= {"win rate vs seed", "judge pair accuracy", "pair yield"}
    assert names >= {"pick the longer: pair accuracy", "judge written share", "judge forced share"}
    row = {"rate": 0.5, "rate_error": 0.0123, "tokens": 1234.0}
    assert [summary._format_cell(row, name) for name in ("rate", "tokens", "none")] == [
        "0.500 ± 0.012",
        "1,234",
        "–",
    ]
    assert {row[1] for row in gates.rows} >= {"length", "canary"}
    assert len(examples.head) == 3
    assert signs.rows


def test_results_are_computed_once_for_all_browsers(scripted_runs, monkeypatch):
    first = progress.load_results(scripted_runs / "mine", "once")
    monkeypatch.setattr(progress.plots, "load_series", lambda *_: 1 / 0)
    assert progress.load_results(scripted_runs / "mine", "once") is first
    with pytest.raises(ZeroDivisionError):
        progress.load_results(scripted_runs / "mine", "anew")


def test_every_panel_has_its_series(scripted_runs):
    series = progress.load_results(scripted_runs / "mine", "now").series
    assert list(series) == list(PANELS)
    for key, panel in PANELS.items():
        assert series[key], f"{key} is not measured"
        assert {panel.x, panel.y, panel.color} - {None} <= set(series[key][0]), key


def test_progress_tab_fills_every_plot_and_table(library):
    with gr.Blocks():
        tab = progress.ProgressTab(library, make_header())
    shown = tab.refresh("mine", "now", "loss", None)
    assert (shown[tab.empty]["visible"], shown[tab.body]["visible"]) == (False, True)
    assert all(len(shown[plot]) for plot in tab.plots.values())
    tables = progress.load_results(library.runs_dir / "mine", "now").tables
    assert [shown[part]["data"] for part in tab.tables] == [table.rows for table in tables]
    assert list(shown[tab.training]["model"].unique()) == ["M0", "M1", "M2"]
    assert len(tab.show_curve("mine", "reward margin")) < len(shown[tab.training])
    assert tab.refresh("mine", "now", "loss", "now") == gr.skip(), "nothing is sent twice"
    nothing = tab.refresh(TINY, TINY, "loss", "now")
    assert nothing[tab.empty] == gr.update(value=progress.NOTHING, visible=True)
    assert nothing[tab.body] == gr.update(visible=False)


def test_a_plot_without_any_row_has_its_columns_and_is_not_shown(library, monkeypatch):
    with gr.Blocks():
        tab = progress.ProgressTab(library, make_header())
    frame = tab.show_curve(TINY, "loss")
    assert (len(frame), list(frame.columns)) == (0, ["step", "value", "model"])
    results = progress.load_results(library.runs_dir / "mine", "now")
    only = {key: series if key == "win_rate" else [] for key, series in results.series.items()}
    monkeypatch.setattr(progress, "find_results", lambda *_: results._replace(series=only))
    shown = tab.refresh("mine", "then", "loss", None)
    assert shown[tab.curves] == gr.update(visible=True)
    for key, panel in PANELS.items():
        assert shown[tab.frames[key]] == gr.update(visible=key == "win_rate")
        columns = [*filter(None, (panel.x, panel.y, panel.color))]
        assert list(shown[tab.plots[key]].columns) == columns
        assert bool(len(shown[tab.plots[key]])) == (key == "win_rate")


# -- the page --------------------------------------------------------------------------------------


def test_the_page_has_its_tabs_and_offers_four_endpoints(tmp_path):
    blocks = page.build(RunLibrary(tmp_path))
    assert [one.label for one in blocks.blocks.values() if isinstance(one, gr.Tab)] == [
        "Chat",
        "Compare",
        "Run",
        "Explore",
        "Progress",
    ]
    public = [one.api_name for one in blocks.fns.values() if one.api_visibility == "public"]
    assert public == ["runs", "chat", "judge", "compare"]


def test_nothing_that_changes_goes_round_for_ever(tmp_path):
    """By default ("always_last"), gradio runs a handler of two changes again and again."""
    for one in page.build(RunLibrary(tmp_path)).fns.values():
        if len([target for target in one.targets if target[1] == "change"]) > 1:
            assert one.trigger_mode == "multiple", one.fn
