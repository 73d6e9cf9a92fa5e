"""Explore, Progress and the page around all tabs, without a browser: what of a run is shown, and that texts are letters."""

import re
import shutil

import gradio as gr
import pytest
import scripted_run

from selfreward_lite.app import page
from selfreward_lite.app.library import TINY, RunLibrary
from selfreward_lite.app.tabs import chat, explore, progress
from selfreward_lite.app.tabs import run as run_tab
from selfreward_lite.data.records import Prompt
from selfreward_lite.data.store import Store
from selfreward_lite.report import summary


@pytest.fixture
def library(scripted_runs) -> RunLibrary:
    return RunLibrary(scripted_runs)


# -- explore ----------------------------------------------------------------------------------------------------------------


def test_the_list_holds_what_was_found_and_says_how_much(library):
    ids, rows, count, number = explore.hits(library, "mine", "M1", "", "all", 0)
    with Store.read(library.runs_dir / "mine") as store:
        total = store.count(Prompt, iteration=1)
    assert (len(ids), len(rows), number) == (total, total, 0)
    assert count == f"{total} prompts, page 1 of 1"
    assert explore.hits(library, "mine", "M1", "", "all", 99)[::3] == (ids, 0), (
        "beyond the last page is the last"
    )
    assert explore.hits(library, "mine", "M7", "", "all", 0) == ([], [], "", 0)
    assert explore.hits(library, TINY, None, "", "all", 0) == ([], [], "", 0)


def test_the_first_pairs_take_the_place_of_what_all_models_share(library):
    def value(chosen, *known):
        return explore.offer(library, "mine", chosen, list(known))[1]["value"]

    assert value(None) == value("gone") == "M2"
    assert value("ranked by people", "mine", "", "ranked by people", "held out") == "M2"
    assert value("held out", "mine", "", "ranked by people", "held out") == "held out", (
        "it was chosen"
    )
    assert value("M1", "mine", "", "M1", "ranked by people", "held out") == "M1", (
        "somebody reads it"
    )
    known = ["mine", "", *explore._groups(library, "mine")[0]]
    assert explore.offer(library, "mine", "M1", known) == tuple(gr.skip() for _ in range(4)), (
        "nothing is said twice"
    )


def test_one_prompt_is_shown_with_its_responses_and_their_judgments(library):
    ids, *_ = explore.hits(library, "mine", "M1", "", "gave a pair", 0)
    look = explore.whole(library, "mine", ids[0])
    rows = explore.answers(look)
    assert {row[0] for row in rows} >= {"chosen", "rejected"}
    first = explore.judged(look, 0)
    assert len(first) == len(look.answers[0].judgments) == int(rows[0][3])
    assert explore.judged(look, 99) == explore.judged(None, 0) == []
    assert explore.battles_said(look)
    assert len(explore.fights(look)) == len(look.fights)


def test_a_response_that_several_judged_shows_what_each_gave(library):
    ids, *_ = explore.hits(library, "mine", "ranked by people", "", "all", 0)
    cells = [row[1] for one in ids for row in explore.answers(explore.whole(library, "mine", one))]
    assert any(re.fullmatch(r"base \d\.\d\d(, M\d \d\.\d\d)+", cell) for cell in cells), cells


def test_what_cannot_be_read_is_said_on_every_tab(tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.sqlite").write_bytes(b"no database <b>" * 99)
    scripted_run.run(tmp_path / "pruned", iterations="0")
    shutil.rmtree(tmp_path / "pruned" / "base")
    library = RunLibrary(tmp_path)
    for run, says in (
        ("bad", "⚠ .*run.sqlite is damaged"),
        ("pruned", "⚠ pruned has no base yet, or was pruned; .*--name pruned"),
    ):
        names, _, why = chat.models(library, run)
        assert (names, bool(re.match(says, why))) == ([], True), why
    assert re.match("⚠ .*run.sqlite", explore._groups(library, "bad")[1])
    assert re.match("⚠ .*run.sqlite", progress._found(library, "bad", "now"))
    assert run_tab.look(library, "bad")[0].startswith("⚠ ")


def test_all_tables_show_letters(scripted_runs):
    """Cells of any other type would show a response as markup; there is one way to lay a table out."""
    found = [
        one
        for one in page.build(RunLibrary(scripted_runs)).blocks.values()
        if isinstance(one, gr.Dataframe)
    ]
    assert len(found) >= 7
    assert {one.datatype for one in found} == {"str"}
    parts = page.build(RunLibrary(scripted_runs)).blocks.values()
    assert not [one for one in parts if isinstance(one, gr.HTML) and one.elem_id != "bar"]


# -- progress ---------------------------------------------------------------------------------------------------------------


def test_what_is_measured_stands_in_the_table_with_its_error(scripted_runs):
    found = progress.gathered(scripted_runs / "mine", "now")
    head, rows = found["table"]
    assert head == ["", "base", "M0", "M1", "M2"]
    assert {row[0] for row in rows} >= {"win rate vs seed", "judge pair accuracy", "pair yield"}
    row = {"rate": 0.5, "rate_error": 0.0123, "tokens": 1234.0}
    assert [summary._format_cell(row, name) for name in ("rate", "tokens", "none")] == [
        "0.500 ± 0.012",
        "1,234",
        "–",
    ]
    assert {row[1] for row in found["gates"]} >= {"length", "canary"}


def test_it_is_computed_once_for_all_browsers(scripted_runs, monkeypatch):
    first = progress.gathered(scripted_runs / "mine", "once")
    monkeypatch.setattr(progress.plot_data, "model_metrics", lambda store: 1 / 0)
    assert progress.gathered(scripted_runs / "mine", "once") is first
    with pytest.raises(ZeroDivisionError):
        progress.gathered(scripted_runs / "mine", "anew")


def test_every_measurement_has_its_plot():
    from selfreward_lite.report import plots

    assert [plot.title for plot in progress.PLOTS if plot.of == "worth"] == [
        title for title, _ in plots.PANELS
    ]


def test_a_plot_has_its_columns_without_any_row():
    assert list(progress.frame([], ("model", "value")).columns) == ["model", "value"]


# -- the page ---------------------------------------------------------------------------------------------------------------


def test_the_page_has_its_tabs_and_offers_four_endpoints_and_no_more(tmp_path):
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
    """gradio runs a handler of two changes again after itself, for ever, in its own way of doing that ("always_last")."""
    for one in page.build(RunLibrary(tmp_path)).fns.values():
        if len([target for target in one.targets if target[1] == "change"]) > 1:
            assert one.trigger_mode == "multiple", one.fn
