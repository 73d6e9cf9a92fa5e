"""Replies, scores and verdicts of real models: the tiny one without a run, else a run's own."""

import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import scripted_run

from selfreward_lite.app.library import TINY, RunLibrary
from selfreward_lite.app.talk import Score, StreamedReply, Talk
from selfreward_lite.config.settings import Sampling
from selfreward_lite.data.records import Judgment
from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.method import judgments
from selfreward_lite.models.chat_template import user
from selfreward_lite.models.gguf_export import adapter_to_gguf
from selfreward_lite.models.random_models import write_adapter
from selfreward_lite.system.errors import EngineError, UserError
from selfreward_lite.system.files import write_manifest

pytestmark = pytest.mark.slow  # a real engine, in a process of its own
DRAW = Sampling(temperature=0.7, top_p=0.95, max_tokens=24)
WILD = Sampling(temperature=1.5, top_p=1.0, max_tokens=24)
ASKED = user("Sort the letters c a b.")


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Iterator[RunLibrary]:
    """A library, first without a run, then with one whose M1 is a random adapter on the base."""
    runs = tmp_path_factory.mktemp("runs")
    found = RunLibrary(runs)
    assert found.runs() == []
    base = found.models(TINY).base
    scripted_run.copy(runs / "mine", iterations="1")
    shutil.copyfile(base, runs / "mine" / "base" / "base.gguf")
    write_manifest(runs / "mine" / "base", {})
    write_adapter(TINY_MODEL, runs / "random")
    for name in ("M0", "M1"):
        adapter_to_gguf(runs / "random", TINY_MODEL, runs / "mine" / name / "adapter.gguf")
        write_manifest(runs / "mine" / name, {})
    yield found
    found.engine.close()


def last(replies: Iterator[StreamedReply]) -> StreamedReply:
    *_, end = replies
    return end


def open_talk(library: RunLibrary, run: str = TINY, caller: str = "me") -> Talk:
    return Talk(library, run, caller)


def test_without_a_run_there_is_the_tiny_model(library):
    models = library.models(TINY)
    assert list(models.adapters) == ["base"]
    assert models.base.exists()
    assert TINY not in library.runs(), "and it is no run"


def test_engine_status_tells_what_it_runs_on(library, tmp_path):
    assert (
        RunLibrary(tmp_path).engine_status()
        == "llama.cpp is not loaded yet: the first reply takes a moment longer"
    )
    last(open_talk(library).stream_reply("base", ASKED, DRAW, 7))
    assert re.fullmatch(
        r"llama.cpp on the CPU \(\d+ cores\): ready; "
        r"last reply: base of the tiny model, [\d,]+ tokens/s",
        library.engine_status(),
    )


def test_a_reply_grows_and_ends(library):
    said = list(open_talk(library).stream_reply("base", ASKED, DRAW, 7))
    texts = [one.text for one in said]
    assert all(later.startswith(earlier) for earlier, later in zip(texts, texts[1:], strict=False))
    assert 1 < len(set(texts)) < said[-1].tokens, "the page does not receive every token"
    assert [one.finish for one in said[:-1]] == [None] * (len(said) - 1)
    assert said[-1].finish == "stop"
    assert said[-1].tokens > 5
    assert said[-1].speed > 0
    assert said[-1].first <= said[-1].seconds


def test_a_reply_depends_on_the_seed_alone(library):
    talk = open_talk(library)
    first, again = (last(talk.stream_reply("base", ASKED, WILD, 7)).text for _ in range(2))
    assert first == again
    assert any(
        last(talk.stream_reply("base", ASKED, WILD, seed)).text != first for seed in (8, 9, 10)
    )


def test_the_models_of_a_run_reply_differently(library):
    assert library.runs() == ["mine"]
    talk = open_talk(library, "mine")
    assert list(talk.models.adapters) == ["base", "M0", "M1"]
    said = {
        name: [last(talk.stream_reply(name, ASKED, WILD, seed)).text for seed in range(5)]
        for name in ("base", "M1")
    }
    assert said["base"] != said["M1"]
    alone = [
        last(open_talk(library).stream_reply("base", ASKED, WILD, seed)).text for seed in range(5)
    ]
    assert alone == said["base"], "the same base"


def test_a_score_arrives_judgment_by_judgment(library):
    talk = open_talk(library)
    found = list(talk.stream_score("base", ASKED, "The answer is a b c."))
    counts = [len(one.judgments) for one in found]
    assert counts == sorted(counts)
    assert counts[-1] == 3
    end = found[-1]
    assert end.wanted == talk.models.settings.judge.count == 3
    assert all(one.text for one in end.judgments)
    assert all(0 <= score <= 5 for score in end.read)


def test_right_answers_score_higher_and_scores_repeat(library):
    talk = open_talk(library)

    def points(answer: str) -> list[float]:
        asked = [
            user(f"Sort the letters {letters}.")
            for letters in ("c a b", "f e d", "m k l", "r q p", "z x y", "h g i")
        ]
        found = [
            list(talk.stream_score("base", one, answer or right(one[0]["content"])))[-1].read
            for one in asked
        ]
        return [score for read in found for score in read]

    def right(asked: str) -> str:
        return f"The answer is {' '.join(sorted(asked.removesuffix('.').split()[3:]))}."

    good, bad = points(""), points("q q q q Please ask me again if you need more help.")
    assert sum(good) / len(good) > sum(bad) / len(bad) + 0.5
    assert points("") == good


def test_the_judge_reads_the_runs_question_and_all_turns(library, monkeypatch):
    asked = []
    real = judgments.make_judge_request

    def seen(prompt, response, role, count, first=0):
        asked.append((prompt.text, response.text))
        return real(prompt, response, role, count, first)

    monkeypatch.setattr(judgments, "make_judge_request", seen)
    talk = [
        *ASKED,
        {"role": "assistant", "content": "a b c"},
        {"role": "user", "content": "And backwards?"},
    ]
    for messages in (ASKED, talk):
        list(open_talk(library).stream_score("base", messages, "c b a"))
    assert asked[0] == ("Sort the letters c a b.", "c b a")
    assert (
        asked[1][0] == "User: Sort the letters c a b.\n\nAssistant: a b c\n\nUser: And backwards?"
    )


def test_an_unreadable_judgment_is_not_counted():
    def judgment(score: float | None, expected: float | None = None) -> Judgment:
        return Judgment("i", 0, "base", "r", 0, "text", "stop", 3, score, expected)

    assert Score(3).mean is None
    found = Score(4, (judgment(4.0, 3.5), judgment(None, 1.0), judgment(2.0, 2.5)), lost=1)
    assert (found.mean, found.spread, found.expected) == (3.0, 1.0, 3.0)


def test_stopping_frees_the_engine(library):
    talk = open_talk(library)
    long = Sampling(temperature=2.0, top_p=1.0, max_tokens=200)
    for _ in range(3):
        said = talk.stream_reply("base", ASKED, long, 2)
        next(one for one in said if one.text)
        said.close()
    assert last(talk.stream_reply("base", ASKED, DRAW, 7)).finish == "stop"
    assert library.engine.live.waiting == 0


def test_what_does_not_fit_the_context_is_refused(library):
    talk = open_talk(library)
    said = list(talk.stream_reply("base", user("a b c " * 3000), DRAW, 1))
    assert (said[-1].text, said[-1].finish) == ("", "refused")
    found = list(talk.stream_score("base", ASKED, "a b c " * 3000))[-1]
    assert (found.judgments, found.lost, found.mean) == ((), 3, None)


def test_two_talk_at_once(library):
    heard = {}

    def talk(name: str) -> None:
        question = user(f"Reverse the letters {name} b c.")
        replies = open_talk(library, caller=name).stream_reply("base", question, DRAW, 3)
        heard[name] = last(replies).finish

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
def test_a_missing_run_or_model_is_named(library, run, speaker, says):
    with pytest.raises(UserError, match=says):
        last(open_talk(library, run).stream_reply(speaker, ASKED, DRAW, 1))


def test_a_broken_model_leaves_the_others_usable(library, tmp_path):
    talk = open_talk(library, "mine")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\xff" * 1000)
    adapters = {**talk.models.adapters, "M1": str(tmp_path / "broken.gguf")}
    talk.models = replace(talk.models, adapters=adapters)
    for _ in range(2):
        with pytest.raises(EngineError, match="broken.gguf"):
            last(talk.stream_reply("M1", ASKED, DRAW, 1))
    assert last(talk.stream_reply("M0", ASKED, DRAW, 1)).finish in ("stop", "length")


def test_a_verdict_covers_both_orders_and_repeats(library):
    talk = open_talk(library)

    def verdict(a: str, b: str):
        (*waits, found) = talk.stream_verdict("base", ASKED[0]["content"], (a, b))
        assert not any(one.is_final or one.waits_for for one in waits)
        assert found.is_final
        return found

    good, bad = "The answer is a b c.", "q q q q Please ask me again if you need more help."
    found = verdict(good, bad)
    assert found == verdict(good, bad)
    assert found.result in ("a", "b", "tie")
    assert found.judged_ab
    assert found.judged_ba
    assert verdict("x " * 3000, good).result is None, "what does not fit cannot be asked"


def test_the_tiny_model_is_loaded_early_only_without_a_run(library, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        RunLibrary, "_tiny_base", lambda self: asked.append(self.runs_dir) or tmp_path / "none.gguf"
    )
    library.load_tiny_model()
    RunLibrary(tmp_path).load_tiny_model()
    assert asked == [tmp_path]

    def fails(self):
        raise UserError("no room for it")

    monkeypatch.setattr(RunLibrary, "_tiny_base", fails)
    broken = RunLibrary(tmp_path)
    broken.load_tiny_model()
    assert "no room for it" in broken.engine_status()


def test_a_run_that_was_pruned_says_so(library, tmp_path):
    shutil.copytree(library.runs_dir / "mine", tmp_path / "mine")
    shutil.rmtree(tmp_path / "mine" / "base")
    with pytest.raises(
        UserError, match="was pruned; `python -m selfreward_lite run --name mine` makes it"
    ):
        RunLibrary(tmp_path).models("mine")
