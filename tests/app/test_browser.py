"""The app in a real browser: from an empty folder to a better model; what no text may do to it."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import scripted_run
from hostile_text import HOSTILE
from task_rows import pin_small

from selfreward_lite.bench import app
from selfreward_lite.data import task_sets
from selfreward_lite.data.records import Judgment, Outcome, Prompt, Response, ResponsePair, make_id
from selfreward_lite.data.store import Store

pytestmark = pytest.mark.browser
browser_tools = pytest.importorskip(
    "browser", reason="needs playwright: pip install playwright==1.65.2"
)


@pytest.fixture(scope="module")
def chromium():
    assert browser_tools.CHROMIUM.exists(), "install Debian's chromium: apt-get install chromium"
    with browser_tools.browsing() as browser:
        yield browser


@pytest.fixture(scope="module")
def newcomer(chromium, tmp_path_factory):
    """The app on an empty machine, one page of it, and what that asks for.

    The tests build on each other.
    """
    with app.running(tmp_path_factory.mktemp("newcomer") / "runs") as (client, process, _):
        page = browser_tools.visit(chromium, client.src)
        asked, wrong = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        yield SimpleNamespace(
            page=page, client=client, process=process, asked=asked, wrong=wrong, browser=chromium
        )


def test_first_start_says_what_there_is_and_what_to_do(newcomer):
    page = newcomer.page
    page.get_by_text("No run yet.").wait_for()
    page.get_by_role("button", name="Start a tiny run").wait_for()
    page.get_by_text(re.compile(r"llama.cpp on the CPU \(\d+ cores\): ready")).wait_for(
        timeout=30_000
    )
    for tab, says in (
        ("Compare", "This run has only one model"),
        ("Run", "No run is chosen."),
        ("Explore", "There are no prompts to show yet."),
        ("Progress", "Nothing is measured yet."),
    ):
        browser_tools.open_tab(page, tab)
        page.get_by_text(says).first.wait_for()
    browser_tools.open_tab(page, "Chat")


def test_a_reply_has_its_self_score_and_judgments_to_unfold(newcomer):
    page = newcomer.page
    browser_tools.send(page, "Sort the letters c a b.")
    score = page.locator("#talk").get_by_text(re.compile(r"scores itself \d|no score")).last
    assert re.search(r"base", score.inner_text())
    score.click()
    page.locator("#talk").get_by_text("Score:").first.wait_for()
    box = page.get_by_placeholder("Write a message")
    box.fill("Half a thought")
    browser_tools.retry(page)
    page.locator("#talk").get_by_text(re.compile(r"scores itself \d|no score")).last.wait_for()
    assert box.input_value() == "Half a thought"


def test_a_message_can_be_written_after_an_error(newcomer):
    page, chosen = newcomer.page, newcomer.page.get_by_label("Model", exact=True)
    chosen.fill("M9")
    chosen.press("Enter")
    box = page.get_by_placeholder("Write a message")
    box.fill("Sort the letters c a b.")
    box.press("Enter")
    page.get_by_text("has no model 'M9'").wait_for()
    page.get_by_role("button", name="Send", exact=True).wait_for()
    assert box.is_enabled()
    chosen.fill("base")
    chosen.press("Enter")
    browser_tools.send(page, "Sort the letters c a b.")


def test_a_tiny_run_starts_at_a_click_and_its_models_appear(newcomer):
    page = newcomer.page
    page.get_by_role("button", name="Start a tiny run").click()
    page.locator("#state").get_by_text("is running").wait_for(timeout=30_000)
    page.locator("#bar progress").wait_for(timeout=60_000)
    page.reload()
    page.get_by_placeholder("Write a message").wait_for()
    browser_tools.open_tab(page, "Run")
    page.locator("#state").get_by_text("is running").wait_for(timeout=30_000)
    page.locator("#state").get_by_text("tiny is finished: M3 is its newest model").wait_for(
        timeout=900_000
    )
    browser_tools.open_tab(page, "Chat")
    assert page.get_by_label("Model", exact=True).input_value() == "M3"
    browser_tools.send(page, "Sort the letters d a c b.")
    assert (
        "M3"
        in page.locator("#talk")
        .get_by_text(re.compile(r"scores itself \d|no score"))
        .last.inner_text()
    )


def test_two_models_are_compared_blind_and_the_vote_is_kept(newcomer):
    page = newcomer.page
    browser_tools.open_tab(page, "Compare")
    assert [page.get_by_label(name).input_value() for name in ("Model A", "Model B")] == [
        "M0",
        "M3",
    ]
    browser_tools.compare(page, "Reverse the letters d o h k.", "Right is better")
    page.locator("#standing").get_by_text("M3 against M0").wait_for()
    assert "n = 1" in page.locator("#standing").inner_text()


def test_a_pair_is_explored_down_to_its_judgments(newcomer):
    page = newcomer.page
    browser_tools.open_tab(page, "Explore")
    page.get_by_label("a pair", exact=True).click()
    page.get_by_text(re.compile(r"\d+ prompts?, page 1 of")).wait_for()
    page.wait_for_timeout(1500)
    browser_tools.open_prompt(page, 0)
    page.locator("#why").get_by_text("Chosen: the shortest of").wait_for()
    assert page.locator("#answers").get_by_text("rejected").count()
    assert page.locator("#judgments [data-testid=cell-0-3]").inner_text()


def test_the_plots_show_the_run(newcomer):
    page = newcomer.page
    browser_tools.open_tab(page, "Progress")
    page.get_by_text("win rate against M0").first.wait_for()
    page.wait_for_function(
        "() => document.querySelectorAll('canvas, svg.marks').length >= 10", timeout=30_000
    )
    page.locator("#measured").get_by_text("judge pair accuracy", exact=True).first.wait_for()


def test_only_this_machine_was_asked_and_nothing_went_wrong(newcomer):
    assert {
        url.split("/")[2].split(":")[0] for url in newcomer.asked if url.startswith("http")
    } == {"127.0.0.1"}
    assert newcomer.wrong == []


def test_a_page_that_shows_asks_only_for_its_ticks(newcomer):
    """Changes that cause each other once went round four times a second; an open page is free."""
    page = newcomer.page
    page.wait_for_timeout(3000)
    before = len(newcomer.asked)
    page.wait_for_timeout(10_000)
    assert len(newcomer.asked) - before < 25


def test_the_card_of_open_tests_is_shown(chromium, tmp_path, monkeypatch):
    from selfreward_lite.app.library import RunLibrary

    pin_small(monkeypatch, tmp_path / "sets")
    monkeypatch.setattr(task_sets, "home", lambda: tmp_path / "sets")
    asked = {"iterations": "1", "evaluation.tasks": "ifeval,gsm8k"}
    scripted_run.run(tmp_path / "runs" / "mine", **asked)
    with serving(RunLibrary(tmp_path / "runs")) as address:
        page = browser_tools.visit(chromium, address)
        browser_tools.open_tab(page, "Progress")
        page.locator("#tasks").get_by_text("GSM8K", exact=True).first.wait_for()
        page.get_by_text("Asked in the run: ").wait_for()
        words = page.locator("li", has_text="IFEval: ").all_inner_texts()
    assert any(re.search("M1 is|between M1 and|M1 .*base", line) for line in words), words


# -- what no text may do ---------------------------------------------------------------------------


def hostile_run(folder: Path) -> None:
    """A run in which every text is hostile."""
    with Store.write(folder) as store:
        app.fill_run(store, 25)
        prompt = Prompt(
            make_id("seed 0", Prompt, 1, "generated", 99), 1, "generated", 99, f"Sort {HOSTILE}"
        )
        responses = [
            Response(
                make_id("seed 0", Response, 1, "M0", prompt.id, place),
                1,
                "M0",
                prompt.id,
                place,
                HOSTILE,
                "stop",
                4,
            )
            for place in range(2)
        ]
        judged = [
            Judgment(
                make_id("seed 0", Judgment, 1, "M0", one.id, 0),
                1,
                "M0",
                one.id,
                0,
                HOSTILE,
                "stop",
                4,
                score,
                score,
            )
            for one, score in zip(responses, (5.0, 1.0), strict=True)
        ]
        key, ids = make_id("seed 0", ResponsePair, 1, prompt.id), [one.id for one in responses]
        pair = ResponsePair(key, 1, prompt.id, *ids, 5.0, 1.0, 9, 9, 0.0)
        store.commit(1, "hostile", prompt.id, Outcome((prompt, *responses, *judged, pair)))
        store.record_gate(1, "length", False, HOSTILE)
    folder.with_name("hostile.log").write_text(HOSTILE)


def once(said):
    yield said


@contextmanager
def serving(library) -> Iterator[str]:
    """Yield the address of the app, served by this process."""
    from selfreward_lite.app import page as app_page

    blocks = app_page.build(library)
    blocks.queue(max_size=app_page.QUEUE)
    app_page._launch(blocks, None, False, None)
    yield blocks.local_url
    blocks.close()


@pytest.fixture
def hostile(chromium, tmp_path, monkeypatch):
    """A page in which a model, its judge, a run and its log say hostile things.

    `refreshes`: while it is not set, the page learns nothing of runs and models.
    """
    from selfreward_lite.app import page as app_page
    from selfreward_lite.app.library import RunLibrary
    from selfreward_lite.app.talk import PairVerdict, Score, StreamedReply, Talk

    hostile_run(tmp_path / "hostile")
    library, models = RunLibrary(tmp_path), {"base": None, "M0": "a", "M1": "b"}
    settings = SimpleNamespace(model=SimpleNamespace(base="other"))
    found = SimpleNamespace(run="hostile", adapters=models, settings=settings)
    judgment = Judgment("i", 0, "M1", "r", 0, HOSTILE, "stop", 3, 4.0, 4.0)
    monkeypatch.setattr(library, "models", lambda run: found)
    text = f"{HOSTILE}\n```c\n{INCLUDE}\n{HOSTILE}\n\n{HOSTILE}\n```\n{DISGUISED}"
    reply = StreamedReply(text, 3, "stop", 0.1, 0.2)
    verdict = PairVerdict("a", HOSTILE, HOSTILE)
    monkeypatch.setattr(Talk, "stream_reply", lambda *_: once(reply))
    monkeypatch.setattr(Talk, "stream_score", lambda *_: once(Score(1, (judgment,))))
    monkeypatch.setattr(Talk, "stream_verdict", lambda *_: once(verdict))
    monkeypatch.chdir(tmp_path)
    refreshes, describe = threading.Event(), app_page.describe_news
    refreshes.set()
    monkeypatch.setattr(
        app_page, "describe_news", lambda *given: refreshes.wait(100) and describe(*given)
    )
    with serving(library) as address:
        yield SimpleNamespace(
            visit=partial(browser_tools.visit, chromium, address), refreshes=refreshes
        )
        refreshes.set()


INCLUDE = "#include <stdio.h>"
# What looks like code to some Markdown parsers, and to others not; the last block is never closed.
DISGUISED = "\n\n".join(
    (
        f"\\`{HOSTILE}\\`",
        f"`` ` {HOSTILE} `` ` {HOSTILE}",
        f"~~~\n```\n~~~\n{HOSTILE}\n```",
        f"x ```\n\n{HOSTILE}\n\n```",
    )
)
HARM = """() => {
    const found = [];
    for (const one of document.querySelectorAll('form, iframe, object, embed, img, script')) {
        const said = one.outerHTML;
        if (/evil|alert\\(1\\)|onerror/.test(said)) found.push(said.slice(0, 200));
    }
    for (const one of document.querySelectorAll('body *'))
        if (getComputedStyle(one).position == 'fixed' && /alert\\(1\\)/.test(one.textContent))
            found.push(one.className);
    return found;
}"""


def test_no_text_becomes_part_of_the_page(hostile):
    page, asked, dialogs = hostile.visit(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    browser_tools.send(page, f"Hello {HOSTILE}")
    page.locator("#talk").get_by_text(re.compile("scores itself")).last.click()
    page.wait_for_timeout(500)
    assert INCLUDE in page.locator("#talk pre").first.inner_text(), "code is shown as it is"
    harm = page.evaluate(HARM)
    browser_tools.open_tab(page, "Compare")
    browser_tools.compare(page, HOSTILE, "Left is better")
    harm += page.evaluate(HARM)
    browser_tools.open_tab(page, "Run")
    page.locator("#log textarea").wait_for()
    harm += page.evaluate(HARM)
    browser_tools.open_tab(page, "Explore")
    page.get_by_label("a pair", exact=True).click()
    page.wait_for_timeout(1500)
    browser_tools.open_prompt(page, 0)
    harm += page.evaluate(HARM)
    assert "alert(1)" in page.locator("#judgments").inner_text(), "it is there, as letters"
    browser_tools.open_tab(page, "Progress")
    page.wait_for_timeout(1500)
    harm += page.evaluate(HARM)
    assert (harm, dialogs) == ([], [])
    assert {url.split("/")[2].split(":")[0] for url in asked if url.startswith("http")} == {
        "127.0.0.1"
    }


def test_a_page_that_still_loads_can_be_used(hostile):
    hostile.refreshes.clear()
    page = hostile.visit()
    browser_tools.send(page, "Hello.")
    browser_tools.open_tab(page, "Compare")
    browser_tools.compare(page, "Hello.", "Left is better")
    assert page.get_by_label("Model A").input_value() == "", "it still loads"
    hostile.refreshes.set()
    page.wait_for_function(
        "() => [...document.querySelectorAll('input')].some(one => one.value == 'M0')",
        timeout=60 * browser_tools.SECONDS,
    )
