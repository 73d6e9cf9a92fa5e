"""Talking to models: the tiny one where there is no run, a run's own otherwise; replies that grow, scores that arrive."""

import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import scripted_run
from random_llama import make_adapter

from selfreward_lite.app.library import TINY, RunLibrary
from selfreward_lite.app.talk import Reply, Score
from selfreward_lite.config.settings import Draw
from selfreward_lite.data.records import Judgment
from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.method import judgments
from selfreward_lite.models.chat_format import user
from selfreward_lite.models.gguf_export import adapter_to_gguf
from selfreward_lite.system.errors import EngineError, UserError
from selfreward_lite.system.files import write_manifest

DRAW = Draw(temperature=0.7, top_p=0.95, max_tokens=24)
WILD = Draw(temperature=1.5, top_p=1.0, max_tokens=24)
ASKED = user("Sort the letters c a b.")


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Iterator[RunLibrary]:
    """A library with one run, whose M1 is a random adapter on the tiny base; and, before it, with none."""
    runs = tmp_path_factory.mktemp("runs")
    found = RunLibrary(runs)
    assert found.runs() == []
    base = found.place(TINY).base
    scripted_run.run(runs / "mine", iterations="1")
    shutil.copyfile(base, runs / "mine" / "base" / "base.gguf")
    write_manifest(runs / "mine" / "base", {})
    make_adapter(TINY_MODEL, runs / "random")
    for name in ("M0", "M1"):
        adapter_to_gguf(runs / "random", TINY_MODEL, runs / "mine" / name / "adapter.gguf")
        write_manifest(runs / "mine" / name, {})
    yield found
    found.close()


def last(said: Iterator[Reply]) -> Reply:
    *_, end = said
    return end


def test_without_a_run_there_is_the_tiny_model(library):
    place = library.place(TINY)
    assert list(place.adapters) == ["base"]
    assert place.base.exists()
    assert TINY not in library.runs(), "and it is no run"


def test_it_says_what_it_runs_on_once_it_does(library, tmp_path):
    assert (
        RunLibrary(tmp_path).words()
        == "llama.cpp is not loaded yet: the first reply takes a moment longer"
    )
    last(library.reply(library.place(TINY), "base", ASKED, DRAW, 7, "me"))
    assert re.fullmatch(
        r"llama.cpp on the CPU \(\d+ cores\): ready; base of the tiny model just spoke, [\d,]+ tokens a second",
        library.words(),
    )


def test_a_reply_grows_and_ends(library):
    said = list(library.reply(library.place(TINY), "base", ASKED, DRAW, 7, "me"))
    texts = [one.text for one in said]
    assert all(later.startswith(earlier) for earlier, later in zip(texts, texts[1:], strict=False))
    assert 1 < len(set(texts)) < said[-1].tokens, "a page is not told of every token"
    assert [one.finish for one in said[:-1]] == [None] * (len(said) - 1)
    assert said[-1].finish == "stop"
    assert said[-1].tokens > 5
    assert said[-1].speed > 0
    assert said[-1].first <= said[-1].seconds


def test_the_same_seed_says_the_same_and_another_does_not(library):
    place = library.place(TINY)
    first, again = (last(library.reply(place, "base", ASKED, WILD, 7, "me")).text for _ in range(2))
    assert first == again
    assert any(
        last(library.reply(place, "base", ASKED, WILD, seed, "me")).text != first
        for seed in (8, 9, 10)
    )


def test_the_models_of_a_run_are_different_speakers(library):
    assert library.runs() == ["mine"]
    place = library.place("mine")
    assert list(place.adapters) == ["base", "M0", "M1"]
    said = {
        name: [last(library.reply(place, name, ASKED, WILD, seed, "me")).text for seed in range(5)]
        for name in ("base", "M1")
    }
    assert said["base"] != said["M1"]
    alone = [
        last(library.reply(library.place(TINY), "base", ASKED, WILD, seed, "me")).text
        for seed in range(5)
    ]
    assert alone == said["base"], "the same base"


def test_a_score_arrives_judgment_by_judgment(library):
    place = library.place(TINY)
    found = list(library.score(place, "base", ASKED, "The answer is a b c.", "me"))
    counts = [len(one.judgments) for one in found]
    assert counts == sorted(counts)
    assert counts[-1] == 3
    end = found[-1]
    assert end.wanted == place.settings.judge.count == 3
    assert all(one.text for one in end.judgments)
    assert all(0 <= score <= 5 for score in end.read)


def test_right_answers_are_liked_better_than_wrong_ones_and_every_time_as_much(library):
    place = library.place(TINY)

    def points(answer: str) -> list[float]:
        asked = [
            user(f"Sort the letters {letters}.")
            for letters in ("c a b", "f e d", "m k l", "r q p", "z x y", "h g i")
        ]
        found = [
            list(library.score(place, "base", one, answer or right(one[0]["content"]), "me"))[
                -1
            ].read
            for one in asked
        ]
        return [score for read in found for score in read]

    def right(asked: str) -> str:
        return f"The answer is {' '.join(sorted(asked.removesuffix('.').split()[3:]))}."

    good, bad = points(""), points("q q q q Please ask me again if you need more help.")
    assert sum(good) / len(good) > sum(bad) / len(bad) + 0.5
    assert points("") == good


def test_the_judges_question_is_that_of_a_run_and_of_several_turns_all_of_them(
    library, monkeypatch
):
    asked = []
    real = judgments.ask_for_judgments

    def seen(prompt, response, role, count, first=0):
        asked.append((prompt.text, response.text))
        return real(prompt, response, role, count, first)

    monkeypatch.setattr(judgments, "ask_for_judgments", seen)
    talk = [
        *ASKED,
        {"role": "assistant", "content": "a b c"},
        {"role": "user", "content": "And backwards?"},
    ]
    for messages in (ASKED, talk):
        list(library.score(library.place(TINY), "base", messages, "c b a", "me"))
    assert asked[0] == ("Sort the letters c a b.", "c b a")
    assert (
        asked[1][0] == "User: Sort the letters c a b.\n\nAssistant: a b c\n\nUser: And backwards?"
    )


def test_a_judgment_that_cannot_be_read_counts_for_nothing():
    def judgment(score: float | None, expected: float | None = None) -> Judgment:
        return Judgment("i", 0, "base", "r", 0, "text", "stop", 3, score, expected)

    assert Score(3).mean is None
    found = Score(4, (judgment(4.0, 3.5), judgment(None, 1.0), judgment(2.0, 2.5)), lost=1)
    assert (found.mean, found.spread, found.expected) == (3.0, 1.0, 3.0)


def test_whoever_stops_frees_the_engine(library):
    place = library.place(TINY)
    long = Draw(temperature=2.0, top_p=1.0, max_tokens=200)
    for _ in range(3):
        said = library.reply(place, "base", ASKED, long, 2, "greedy")
        next(one for one in said if one.text)
        said.close()
    assert last(library.reply(place, "base", ASKED, DRAW, 7, "me")).finish == "stop"
    assert library.engine.live.waiting == 0


def test_what_does_not_fit_the_context_is_refused_and_says_so(library):
    place = library.place(TINY)
    said = list(library.reply(place, "base", user("a b c " * 3000), DRAW, 1, "me"))
    assert (said[-1].text, said[-1].finish) == ("", "refused")
    found = list(library.score(place, "base", ASKED, "a b c " * 3000, "me"))[-1]
    assert (found.judgments, found.lost, found.mean) == ((), 3, None)


def test_two_talk_at_once(library):
    place, heard = library.place(TINY), {}

    def talk(name: str) -> None:
        heard[name] = last(
            library.reply(place, "base", user(f"Reverse the letters {name} b c."), DRAW, 3, name)
        ).finish

    threads = [threading.Thread(target=talk, args=(name,)) for name in "adefghij"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(heard.values()) <= {"stop", "length"}
    assert len(heard) == 8


@pytest.mark.parametrize(
    ("run", "speaker", "says"),
    [
        ("none", "base", "no run 'none'"),
        ("mine", "M7", "has no model 'M7'; it has base, M0, M1"),
        ("../x", "base", "no run"),
    ],
)
def test_who_is_not_there_is_said(library, run, speaker, says):
    with pytest.raises(UserError, match=says):
        last(library.reply(library.place(run), speaker, ASKED, DRAW, 1, "me"))


def test_a_broken_model_leaves_the_others_usable(library, tmp_path):
    place = library.place("mine")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\xff" * 1000)
    broken = replace(place, adapters={**place.adapters, "M1": str(tmp_path / "broken.gguf")})
    for _ in range(2):
        with pytest.raises(EngineError, match="broken.gguf"):
            last(library.reply(broken, "M1", ASKED, DRAW, 1, "me"))
    assert last(library.reply(broken, "M0", ASKED, DRAW, 1, "me")).finish in ("stop", "length")


def test_a_verdict_is_of_both_orders_and_the_same_every_time(library):
    place = library.place(TINY)

    def verdict(a: str, b: str):
        (*waits, found) = library.verdict(place, "base", ASKED[0]["content"], (a, b), "me")
        assert set(waits) <= {None}
        return found

    good, bad = "The answer is a b c.", "q q q q Please ask me again if you need more help."
    found = verdict(good, bad)
    assert found == verdict(good, bad)
    assert found.result in ("a", "b", "tie")
    assert found.judged_ab
    assert found.judged_ba
    assert verdict("x " * 3000, good).result is None, "what does not fit cannot be asked"


def test_the_tiny_model_is_made_ready_beforehand_only_where_there_is_no_run(
    library, tmp_path, monkeypatch
):
    asked = []
    monkeypatch.setattr(RunLibrary, "_tiny_base", lambda self: asked.append(self.runs_dir))
    library.prepare()
    RunLibrary(tmp_path).prepare()
    assert asked == [tmp_path]

    def fails(self):
        raise UserError("no room for it")

    monkeypatch.setattr(RunLibrary, "_tiny_base", fails)
    broken = RunLibrary(tmp_path)
    broken.prepare()
    assert "no room for it" in broken.words()


def test_a_run_that_was_pruned_says_so(library, tmp_path):
    shutil.copytree(library.runs_dir / "mine", tmp_path / "mine")
    shutil.rmtree(tmp_path / "mine" / "base")
    with pytest.raises(
        UserError, match="was pruned; `python -m selfreward_lite run --name mine` makes it"
    ):
        RunLibrary(Path(tmp_path)).place("mine")
