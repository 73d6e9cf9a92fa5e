"""The app without a browser: how conversations look, handlers as functions, how it is served."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import httpx
import pytest
from app_parts import make_header
from hostile_text import HOSTILE, find_tags
from hypothesis import example, given
from hypothesis import strategies as st

from selfreward_lite.app import conversation, page
from selfreward_lite.app.conversation import Turn, headline, render
from selfreward_lite.app.escape import escape_markdown, markdown, strip_tags
from selfreward_lite.app.library import TINY, RunLibrary
from selfreward_lite.app.tabs import chat
from selfreward_lite.app.talk import Score, StreamedReply
from selfreward_lite.data.records import Judgment, Source
from selfreward_lite.system.errors import UserError

ROOT = Path(__file__).parents[2]


def judgment(
    score: float | None, text: str = "fine\nScore: 4", source: Source = "written"
) -> Judgment:
    return Judgment("i", 0, "M1", "r", 0, text, "stop", 3, score, score, source)


def turn(said: str = "Hello.", **more) -> Turn:
    reply = StreamedReply("Hi.", tokens=3, finish="stop", first=0.1, seconds=0.4)
    score = Score(2, (judgment(4.0), judgment(3.0)))
    return Turn(
        **{"said": said, "speaker": "M1", "reply": reply, "judge": "M1", "score": score, **more}
    )


def test_a_turn_is_shown_as_question_reply_and_score():
    user, reply, under = render([turn()])
    assert (user["role"], user["content"]) == ("user", "Hello.")
    assert (reply["role"], reply["content"]) == ("assistant", "Hi.")
    assert (
        under["metadata"]["title"]
        == "M1 scores itself 3.5 of 5 (± 0.5, expected 3.5; 2 of 2 judgments)"
    )
    assert under["metadata"]["log"] == "3 tokens · 7 tokens/s"
    assert under["metadata"]["status"] == "done"
    assert under["content"].count("Score: 4") == 2


def test_a_forced_score_is_marked_in_headline_list_and_download():
    score = Score(2, (judgment(4.0), judgment(2.0, "no score", "forced")))
    (*_, under) = render([turn(score=score)])
    assert "2 of 2 judgments, 1 forced)" in under["metadata"]["title"]
    assert "**4 of 5**" in under["content"]
    assert "**2 of 5 (forced: the judge wrote no score" in under["content"]
    assert json.loads(conversation.as_jsonl([turn(score=score)]))["forced"] == 1
    assert "forced" not in headline(turn())


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"score": None}, "M1 · not judged"),
        ({"judge": "M0"}, "M1, scored by M0: 3.5 of 5"),
        ({"score": Score(3, (judgment(4.0),))}, "M1 scores itself … 1 of 3 judgments"),
        (
            {"score": Score(1, (judgment(None),))},
            "M1: no score, since none of 1 judgments by M1 could be read",
        ),
        ({"score": Score(2, (judgment(5.0),), lost=1)}, "1 of 2 judgments"),
    ],
)
def test_headline_tells_the_score_so_far(changed, says):
    assert says in headline(turn(**changed))


@pytest.mark.parametrize(
    ("finish", "says"),
    [
        ("length", "cut at the maximum length"),
        ("refused", "shorten the conversation"),
        ("failed", "restarted"),
        ("stopped", "stopped"),
    ],
)
def test_a_reply_that_was_cut_says_why(finish, says):
    assert says in render([turn(reply=StreamedReply("x", 1, finish))])[2]["metadata"]["log"]


def test_speed_leaves_out_the_time_until_the_first_token():
    """A model that loads for 30 seconds is not slower for that."""
    assert StreamedReply("x", tokens=11, first=30.0, seconds=31.0).speed == 10.0
    assert StreamedReply("x", tokens=1, first=30.0, seconds=30.0).speed is None


def test_model_reads_the_texts_and_not_the_rendered_page():
    turns = [turn("<b>first</b> & second"), turn("And now?", reply=None, score=None)]
    assert conversation.messages(turns, "Be brief.") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<b>first</b> & second"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "And now?"},
    ]
    assert render(turns)[0]["content"] == "&lt;b>first&lt;/b> &amp; second"


# Two of these look like code, and are none to a parser.
ESCAPES = (
    "x ```\n\n<div style='position:fixed'>y</div>\n\n```",
    "\\`<div>\\`",
    "~~~\n```\n~~~\n<div>\n```",
    "`` ` <b> `` ` <b>",
)


@given(st.text(alphabet=st.sampled_from('<>&!`[]()\n ~\\ax/="'), max_size=60))
@example(HOSTILE)
@example(ESCAPES[0])
@example(ESCAPES[1])
@example(ESCAPES[2])
@example(ESCAPES[3])
def test_no_text_opens_a_tag(text):
    page_of = conversation.as_markdown([turn(text, reply=StreamedReply(text, 1, "stop"))])
    for shown_as in (markdown(text), escape_markdown(text), strip_tags(text), page_of):
        assert find_tags(shown_as) == []
    assert unescape(escape_markdown(text)) == unescape(strip_tags(text)) == text
    outside = re.sub(r"(?ms)^(`{3,})[^`\n]*\n.*?^\1$", "", markdown(text))
    assert re.search(r"<[A-Za-z/!?]", outside) is None


def test_find_tags_finds_tags():
    assert find_tags("<div>") == ["<div>"]
    assert find_tags(ESCAPES[0]) != []


def test_code_is_shown_as_it_is():
    assert (
        markdown("`a < b && c` and\n```\nif (a < 3) x &= 1;\n```")
        == "`a < b && c` and\n\n```\nif (a < 3) x &= 1;\n```"
    )
    nested = "1. Write:\n   ```c\n   #include <stdio.h>\n   int x;\n   ```\n2. Compile <it>."
    assert markdown(nested) == (
        "1. Write:\n\n```c\n#include <stdio.h>\nint x;\n```\n\n2. Compile &lt;it>."
    )
    assert markdown("~~~ html\n<b>\n````\n~~~") == "`````html\n<b>\n````\n`````"
    assert markdown("Still writing:\n```c\n#include <std") == (
        "Still writing:\n\n```c\n#include <std\n```"
    )
    assert markdown("a\n\n    <b>") == "a\n\n```\n<b>\n```"
    assert markdown("a `<b> &amp;` b") == "a &#60;b&#62; &#38;amp; b"


def test_hostile_text_is_shown_as_text():
    looks = render(
        [
            turn(
                HOSTILE,
                reply=StreamedReply(HOSTILE, 3, "stop"),
                score=Score(1, (judgment(5.0, HOSTILE),)),
            )
        ]
    )
    page_of = conversation.as_markdown([turn(HOSTILE, reply=StreamedReply(HOSTILE, 3, "stop"))])
    for text in [*(one["content"] for one in looks), page_of]:
        assert "alert(1)" in text
        assert find_tags(text) == []
    for one in looks:
        for part in ("<script", "<form", "<img", "!["):
            assert part not in one["content"]


def test_conversation_is_downloaded_completely():
    turns = [turn("naïve 中文"), turn("And?", reply=None, score=None)]
    rows = [json.loads(line) for line in conversation.as_jsonl(turns).splitlines()]
    assert [row["user"] for row in rows] == ["naïve 中文", "And?"]
    assert (rows[0]["assistant"], rows[0]["score"], len(rows[0]["judgments"])) == ("Hi.", 3.5, 2)
    assert (rows[1]["assistant"], rows[1]["score"]) == (None, None)


# -- what happens at a click -----------------------------------------------------------------------


def values_of(tab: chat.ChatTab, **more) -> dict:
    given = {"run": "mine", "judge": chat.SELF, "text": "", **more}
    return {part: part.value for part in (tab.system, *tab.draw.parts)} | {
        tab.draw.parts[-1]: 5,  # the seed
        tab.header.run: given["run"],
        tab.model: "M1",
        tab.judge: given["judge"],
        tab.turns: [],
        tab.prompt.text: given["text"],
    }


def stream_answer(tab: chat.ChatTab, turns: list[Turn], **more) -> Iterator[list[Turn]]:
    """The turns as they grow."""
    updates = tab.answer(turns, values_of(tab, **more), SimpleNamespace(session_hash="me"))
    assert next(updates)[tab.turns] == turns, "the question is shown at once"
    try:
        for update in updates:
            yield update[tab.turns]
    finally:
        updates.close()


@pytest.fixture
def chat_tab() -> chat.ChatTab:
    with gr.Blocks():
        return chat.ChatTab(None, make_header())


class FakeTalk:
    """Stands for `Talk`: repeats a word, and gives good scores. Keeps what it was asked."""

    def __init__(self, monkeypatch, fails: bool = False) -> None:
        self.asked, self.fails, self.closed = [], fails, 0
        monkeypatch.setattr(chat, "Talk", self.open)

    def open(self, library, run, caller):
        if self.fails:
            raise UserError(f"no run {run!r} here")
        self.run, self.caller = run, caller
        return self

    def stream_reply(self, speaker, messages, draw, seed):
        self.asked.append((self.run, speaker, messages, seed, self.caller))
        try:
            for count in (1, 2, 3):
                yield StreamedReply("word " * count, count)
            yield StreamedReply("word word word", 3, "stop")
        finally:
            self.closed += 1

    def stream_score(self, judge, messages, text):
        self.asked.append((judge, text))
        try:
            yield Score(2, (judgment(4.0),))
            yield Score(2, (judgment(4.0), judgment(5.0)))
        finally:
            self.closed += 1


def test_question_is_answered_then_judged_step_by_step(chat_tab, monkeypatch):
    talk = FakeTalk(monkeypatch)
    steps = list(stream_answer(chat_tab, [Turn("Hello.", "M1")]))
    assert [turns[0].reply.text for turns in steps[:4]] == [
        "word ",
        "word word ",
        "word word word ",
        "word word word",
    ]
    assert steps[-1][0].score.mean == 4.5
    assert talk.asked == [
        ("mine", "M1", [{"role": "user", "content": "Hello."}], 5, "me"),
        ("M1", "word word word"),
    ]


def test_another_model_may_judge(chat_tab, monkeypatch):
    talk = FakeTalk(monkeypatch)
    (*_, turns) = stream_answer(chat_tab, [Turn("Hello.", "M1")], judge="M0")
    assert talk.asked[1][0] == "M0"
    assert turns[0].judge == "M0"


def test_stopping_frees_the_engine(chat_tab, monkeypatch):
    talk = FakeTalk(monkeypatch)
    steps = stream_answer(chat_tab, [Turn("Hello.", "M1")])
    turns = next(steps)
    steps.close()
    assert talk.closed == 1
    assert conversation.mark_stopped(turns)[0].reply.finish == "stopped"
    assert conversation.mark_stopped([turn()]) == [turn()], "a finished turn stays as it is"


def test_stopped_judging_is_marked_as_done():
    half = turn(score=Score(5, (judgment(4.0),)))
    assert render([half])[2]["metadata"]["status"] == "pending"
    under = render(conversation.mark_stopped([half]))[2]
    assert under["metadata"]["status"] == "done"
    assert "4.0 of 5" in under["metadata"]["title"]
    assert "1 of 5 judgments" in under["metadata"]["title"]
    nothing = render(conversation.mark_stopped([turn(score=Score(5))]))[2]
    assert (nothing["metadata"]["status"], nothing["metadata"]["title"]) == (
        "done",
        "M1 · not judged",
    )


def test_model_does_not_read_empty_replies():
    turns = [turn("one", reply=StreamedReply("", 0, "refused")), turn("two", reply=None)]
    assert [message["content"] for message in conversation.messages(turns)] == ["one", "two"]


def test_edited_text_is_the_original_text():
    text = "is a < b & c? ![x](y)"
    before = render([turn(text)])[0]["content"]
    assert unescape(before) == text


def test_write_files_writes_the_current_conversation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert chat.write_files([]) == (None, None)
    first, page_of = (Path(path) for path in chat.write_files([turn("naïve")]))
    assert (first.name, page_of.name) == ("conversation.jsonl", "conversation.md")
    assert "naïve" in first.read_text(encoding="utf-8")
    assert first.is_relative_to(tmp_path)


def test_send_asks_the_chosen_model_and_ignores_empty_text(chat_tab, monkeypatch):
    talk = FakeTalk(monkeypatch)
    request = SimpleNamespace(session_hash="me")
    assert list(chat_tab.send(values_of(chat_tab, text="  "), request)) == []
    first, *_, last = chat_tab.send(values_of(chat_tab, text="  Hello. "), request)
    assert first[chat_tab.prompt.text] == gr.update(value="", interactive=False)
    (answered,) = last[chat_tab.turns]
    assert (answered.said, answered.speaker, answered.score.mean) == ("Hello.", "M1", 4.5)
    assert last[chat_tab.chatbot] == render([answered])
    assert talk.asked[0] == ("mine", "M1", [{"role": "user", "content": "Hello."}], 5, "me")


def test_a_message_while_the_page_loads_goes_to_the_newest(chat_tab, tmp_path, monkeypatch):
    talk, request = FakeTalk(monkeypatch), SimpleNamespace(session_hash="me")
    chat_tab.library = library = RunLibrary(tmp_path)
    models = SimpleNamespace(adapters={"base": None, "M0": "M0.gguf", "M1": "M1.gguf"})
    monkeypatch.setattr(library, "models", lambda run: models)
    values = values_of(chat_tab, text="Hello.") | {chat_tab.model: None, chat_tab.header.run: None}
    (*_, last) = chat_tab.send(values, request)
    assert (talk.asked[0][:2], talk.asked[1][0]) == ((TINY, "M1"), "M1")
    assert last[chat_tab.turns][0].speaker == "M1"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "run.sqlite").write_bytes(b"not empty")
    list(chat_tab.send(values, request))
    assert talk.asked[2][:2] == ("mine", "M1")


def test_error_is_one_line_on_the_page(chat_tab, monkeypatch):
    FakeTalk(monkeypatch, fails=True)
    steps = stream_answer(chat_tab, [Turn("Hello.", "M1")], run="gone")
    assert next(steps)[0].reply is None
    with pytest.raises(gr.Error, match="no run 'gone' here"):
        next(steps)


def test_retry_edit_and_undo(chat_tab):
    turns = [turn("one"), turn("two"), turn("three")]
    assert [one.said for one in chat.repeat_from(turns, 4)] == ["one", "two"]
    assert chat.repeat_from(turns, 4)[-1].reply is None
    assert [one.said for one in chat.repeat_from(turns, 3, "other")] == ["one", "other"]
    undone = chat_tab.undo(turns, SimpleNamespace(index=7))
    assert [one.said for one in undone[chat_tab.turns]] == ["one", "two"]
    assert undone[chat_tab.prompt.text] == "three"


# -- how it is served ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--listen"], "--listen lets others on the network in: add --auth USER:PASSWORD"),
        (["--listen", "--auth", "me"], "--auth: write it as USER:PASSWORD"),
        (["--auth", ":x"], "--auth: write it as USER:PASSWORD"),
    ],
)
def test_listening_needs_a_password(arguments, says):
    ended = subprocess.run(
        [sys.executable, ROOT / "app.py", *arguments], capture_output=True, text=True, cwd=ROOT
    )
    assert (ended.returncode, ended.stderr.strip()) == (2, says)


def test_page_is_served_locally_and_hands_out_no_files(monkeypatch, tmp_path):
    told = {}

    def launch(self, **settings):
        told.update(settings, here=Path.cwd())
        self.local_url = "http://127.0.0.1:1"

    monkeypatch.setattr(gr.Blocks, "launch", launch)
    monkeypatch.setattr(gr.Blocks, "block_thread", lambda self: None)
    monkeypatch.chdir(tmp_path)
    page.serve(page.RunLibrary(tmp_path / "runs"), None, False, None)
    assert (told["server_name"], told["share"], told["auth"]) == ("127.0.0.1", False, None)
    assert (
        told["allowed_paths"],
        told["run_history"],
        told["enable_monitoring"],
        told["mcp_server"],
    ) == (
        [],
        False,
        False,
        False,
    )
    (guard,) = told["app_kwargs"]["middleware"]
    assert guard.kwargs == {"names": ("127.0.0.1", "localhost")}
    assert told["here"] != tmp_path, "gradio hands out files of the folder it runs in"
    assert not told["here"].exists()
    page.serve(page.RunLibrary(tmp_path / "runs"), 7999, True, ("me", "secret"))
    assert (told["server_name"], told["auth"], told["share"]) == (
        "0.0.0.0",
        ("me", "secret"),
        False,
    )
    (guard,) = told["app_kwargs"]["middleware"]
    assert guard.kwargs == {"names": None}


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError("all taken; set server_port"), "in use: 7999.; choose another --port"),
        (OSError(13, "Permission denied"), "Permission denied.; choose another --port"),
        (httpx.ConnectError("no network"), "does not reach itself .*no network.* lo up"),
    ],
)
def test_page_that_cannot_be_opened_is_one_line(monkeypatch, error, says):
    def launch(self, **settings):
        raise error

    monkeypatch.setattr(gr.Blocks, "launch", launch)
    with pytest.raises(UserError, match=says):
        page._launch(gr.Blocks(), 7999, False, None)


def test_page_can_be_built_without_a_run(tmp_path):
    blocks = page.build(page.RunLibrary(tmp_path))
    assert {"Chat"} <= {one.label for one in blocks.blocks.values() if isinstance(one, gr.Tab)}


def test_port_that_this_user_may_not_have_is_not_called_in_use(monkeypatch):
    """Gradio tries ports by itself, and says of each that it is taken."""

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(page.socket, "create_server", refuse)
    assert page._explain_port(80, listen=False) == "80: Permission denied"
