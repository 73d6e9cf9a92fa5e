"""A run as one page: it has every measurement, loads nothing, and escapes every text."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import scripted_run

from selfreward_lite.data.records import Judgment, JudgmentPair
from selfreward_lite.data.store import Store
from selfreward_lite.report import html, summary
from selfreward_lite.system.errors import UserError

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> {{ 7 * 7 }} &amp;"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "mine"
    scripted_run.copy(folder, **{"prompts.count": "30"})
    with Store.write(folder) as store:
        for table in ("prompt", "response", "judgment"):
            store._db.execute(f"UPDATE record_{table} SET text = text || ' ' || ?", (HOSTILE,))
        store.record_gate(2, "length", False, f"1.9 times {HOSTILE}")
        yield store


class Reader(HTMLParser):
    """Every tag of a page with its attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.said = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.said.append(data)


def test_the_page_holds_what_was_measured(run):
    said = " ".join(Reader(html.render_page(run)).said)
    for words in (
        "judge pair accuracy",
        "pick the longer: pair accuracy",
        "judge exact match",
        "Early warnings",
        "refused",
        "Before and after",
        "preset",
        "M2",
    ):
        assert words in said, words
    head, rows = summary.build_measurement_table(run, summary.summarize_run(run))
    for row in rows:
        assert all(cell in said for cell in row)
    assert html.SUPERVISION in said, "what the loop was given is said where its results are"


def test_pairs_of_both_kinds_are_shown(run):
    said = " ".join(Reader(html.render_page(run)).said)
    pairs = [one for t in (1, 2) for one in run.records(JudgmentPair, iteration=t)]
    assert pairs, "there are some to show"
    assert said.count("these two became a pair") >= len({one.iteration for one in pairs})
    shown = [one for one in pairs if f"strength {one.chosen_strength:+.2f}" in said]
    texts = {one.id: one.text for t in (1, 2) for one in run.records(Judgment, iteration=t)}
    assert any(texts[one.chosen_id] in said and texts[one.rejected_id] in said for one in shown)


def test_no_text_becomes_part_of_the_page(run):
    reader = Reader(html.render_page(run))
    assert not {"script", "img", "form", "iframe", "object", "link"} & {
        tag for tag, _ in reader.tags
    }
    assert not [
        name for _, attributes in reader.tags for name in attributes if name.startswith("on")
    ]
    assert "alert(1)" in " ".join(reader.said)
    assert "{{ 7 * 7 }}" in " ".join(reader.said), "nor of its template"


@pytest.mark.slow
def test_the_page_loads_nothing_and_is_the_same_every_time(run):
    page = html.render_page(run)
    assert page == html.render_page(run)
    addresses = set(re.findall(r"(?:https?:)?//[\w.]+", page))
    assert {
        one
        for one in addresses
        if "w3.org" not in one and "purl.org" not in one and "creativecommons" not in one
    } == set()
    assert "default-src 'none'" in page
    assert page.count("<svg") == 4


def test_without_a_run_there_is_no_page(tmp_path):
    with Store.write(tmp_path / "new") as store, pytest.raises(UserError, match="holds no run yet"):
        html.render_page(store)


@pytest.mark.slow
def test_the_command_writes_the_file_it_names(run, tmp_path):
    out = tmp_path / "deep" / "page.html"
    command = [
        sys.executable,
        "-m",
        "selfreward_lite",
        "report",
        "mine",
        "--runs-dir",
        str(run.folder.parent),
        "--out",
        str(out),
    ]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1])["out"] == str(out)
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")
    ended = subprocess.run([*command[:4], "gone", *command[5:]], capture_output=True, text=True)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1)
