"""OpenAI's chat API as its official client and any other program use it, and what it refuses."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import openai
import pytest
import scripted_run
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfreward_lite.app import openai_api
from selfreward_lite.app.library import RunLibrary
from selfreward_lite.app.openai_api import build_server, check_key
from selfreward_lite.app.openai_request import NEUTRAL, Refused, read_request
from selfreward_lite.app.talk import Talk
from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.engine.api import LlamaSpec
from selfreward_lite.models.gguf_export import adapter_to_gguf
from selfreward_lite.models.random_models import write_adapter
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.files import write_manifest

pytestmark = pytest.mark.slow  # as test_talk.py
KEY = "a-key-of-tests"
TASK = [{"role": "user", "content": "Sort the letters c a b."}]
ASK = {"model": "mine/M1", "messages": TASK, "seed": 7, "max_tokens": 24}


def parts(second: object) -> list[dict[str, object]]:
    """A message in two parts."""
    return [{"role": "user", "content": [{"type": "text", "text": "Look."}, second]}]


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Iterator[RunLibrary]:
    """A run whose M0 and M1 are random adapters on the tiny base, and another without a base."""
    runs = tmp_path_factory.mktemp("runs")
    found = RunLibrary(runs)
    base = found.models(openai_api.TINY).base
    for name in ("mine", "bare"):
        scripted_run.copy(runs / name, iterations="1")
    shutil.copyfile(base, runs / "mine" / "base" / "base.gguf")
    write_manifest(runs / "mine" / "base", {})
    shutil.rmtree(runs / "bare" / "base")
    write_adapter(TINY_MODEL, runs / "random")
    for name in ("M0", "M1"):
        adapter_to_gguf(runs / "random", TINY_MODEL, runs / "mine" / name / "adapter.gguf")
        write_manifest(runs / "mine" / name, {})
    yield found
    found.engine.close()


@pytest.fixture(scope="module")
def address(library) -> Iterator[str]:
    """The server of all runs on a port of this machine, with a key."""
    config = uvicorn.Config(build_server(library, KEY, None), port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def client(address) -> openai.OpenAI:
    return openai.OpenAI(base_url=address, api_key=KEY, max_retries=0, timeout=60)


# -- the official client ---------------------------------------------------------------------------


def test_every_model_of_every_run_is_listed(client):
    assert [one.id for one in client.models.list()] == [
        "mine/base",
        "mine/M0",
        "mine/M1",
        "tiny-model/base",
    ]
    assert client.models.retrieve("mine/M0").owned_by == "selfreward_lite"
    with pytest.raises(openai.NotFoundError, match="no model 'mine/M9' here"):
        client.models.retrieve("mine/M9")


def test_a_reply_is_that_of_the_named_model(client):
    def ask(seed: int, model: str = "mine/M1"):
        asked = {**ASK, "model": model, "seed": seed, "temperature": 1.5, "top_p": 1.0}
        return client.chat.completions.create(**asked)

    first = ask(1)
    text = first.choices[0].message.content
    assert text
    assert ask(1).choices[0].message.content == text, "the seed decides"
    assert any(
        ask(seed).choices[0].message.content != ask(seed, "mine/base").choices[0].message.content
        for seed in range(5)
    )
    assert first.model == "mine/M1"
    assert first.usage.total_tokens == first.usage.prompt_tokens + first.usage.completion_tokens


def test_a_stream_has_the_same_text_and_its_usage(client):
    whole = client.chat.completions.create(**ASK)
    chunks = list(
        client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True})
    )
    said = [one.choices[0].delta.content or "" for one in chunks if one.choices]
    assert "".join(said) == whole.choices[0].message.content
    assert [one.choices[0].finish_reason for one in chunks if one.choices][-1] == (
        whole.choices[0].finish_reason
    )
    assert chunks[-1].usage == whole.usage


def test_a_reply_ends_at_its_limit_and_before_a_stop(client):
    short = client.chat.completions.create(**{**ASK, "max_tokens": 3})
    assert (short.usage.completion_tokens, short.choices[0].finish_reason) == (3, "length")
    text = client.chat.completions.create(**ASK).choices[0].message.content
    stop = text[len(text) // 2 :][:4]
    cut = client.chat.completions.create(**ASK, stop=["never there", stop])
    assert cut.choices[0].message.content == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    streamed = client.chat.completions.create(**ASK, stop=stop, stream=True)
    assert (
        "".join(one.choices[0].delta.content or "" for one in streamed)
        == (text[: text.index(stop)])
    )


def test_system_turns_parts_and_history_are_read(client):
    def count(messages) -> int:
        asked = {**ASK, "messages": messages, "max_tokens": 1}
        return client.chat.completions.create(**asked).usage.prompt_tokens

    parts = [{"role": "user", "content": [{"type": "text", "text": TASK[0]["content"]}]}]
    system = {"role": "system", "content": "Answer in one word."}
    turns = [*TASK, {"role": "assistant", "content": "a b c"}, *TASK]
    assert count(parts) == count(TASK)
    assert count([system, *TASK]) == count([{**system, "role": "developer"}, *TASK]) > count(TASK)
    assert count(turns) > 2 * count(TASK)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"model": "mine/M7"}, "no model 'mine/M7' here"),
        ({"model": "../mine/M1"}, "no model '../mine/M1' here"),
        ({"model": "bare/M1"}, "bare has no base model"),
        ({"messages": []}, "messages: "),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            r"messages\[0\].role=tool: give 'system'",
        ),
        ({"messages": [*TASK, {"role": "assistant", "content": "a"}]}, "the last one must be"),
        (
            {"messages": [{"role": "user", "content": None}]},
            r"messages\[0\].content: null is no te",
        ),
        ({"messages": parts({"type": "image_url", "image_url": {"url": "x"}})}, "part 1 is a pict"),
        (
            {"messages": parts({"type": "input_text", "text": "x"})},
            "part 1 has the type input_text",
        ),
        ({"messages": parts({"type": "input_audio"})}, "part 1 has the type input_audio, and only"),
        ({"messages": parts({"type": "text", "text": 5})}, "part 1: its text is no text"),
        ({"messages": parts({"type": "text", "text": "x", "cache": 1})}, "part 1: cache is not s"),
        ({"messages": parts("x")}, "part 1 has no type"),
        ({"stop": [*"abcdefghi"]}, "stop: 9 texts: give 4 at most"),
        ({"stop": ["a", 5]}, "stop: give a text, or a list of 4 at most"),
        ({"messages": [{**TASK[0], "name": "Ann"}]}, r"messages\[0\].name is not supported"),
        ({"seed": -1}, "seed=-1: give a number of at least 0"),
        ({"temperature": 3}, "temperature=3: give a number of at most 2"),
        ({"top_p": 0}, "top_p=0: give a number above 0"),
        ({"max_tokens": 0}, "max_tokens=0: give a number of at least 1"),
        ({"max_tokens": True}, "max_tokens=true: give a whole number"),
        (
            {"max_tokens": 5000},
            "a sequence of this model may have 1,024 with the reply: shorten it",
        ),
        ({"n": 2}, "n is not supported here"),
        ({"logprobs": True}, "logprobs is not supported here"),
        ({"response_format": {"type": "json_object"}}, "response_format is not supported"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools is not supported"),
        ({"extra_body": {"mirostat": 2}}, "mirostat is not supported here"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(client, changed, says):
    with pytest.raises(openai.APIStatusError, match=says) as caught:
        client.chat.completions.create(**{**ASK, **changed})
    assert caught.value.status_code in (400, 404)
    assert not re.search(r"Traceback|/\w+/\w+/", caught.value.message), "no path of this machine"


def test_fields_that_ask_for_nothing_are_accepted(client):
    quiet = {"n": 1, "presence_penalty": 0, "logprobs": False, "tools": [], "user": "me"}
    quiet["messages"] = [{**TASK[0], "tool_calls": []}]
    said = client.chat.completions.create(**{**ASK, **quiet})
    assert said.choices[0].message == client.chat.completions.create(**ASK).choices[0].message


# -- lengths, with the limits of the real engine --------------------------------------------------


@pytest.mark.parametrize("given", [{}, {"max_tokens": None}, {"max_completion_tokens": None}])
def test_without_a_limit_a_reply_has_as_many_tokens_as_fit(client, given):
    """The first example of docs/app.md."""
    asked = {name: value for name, value in ASK.items() if name != "max_tokens"}
    said = client.chat.completions.create(**asked, **given)
    assert said.choices[0].message.content


@pytest.mark.parametrize(
    "engine",
    [
        {},  # as the tiny preset: 4,096 cells, of a model that takes 1,024 tokens
        {"context": 1000, "parallel": 4, "roots": 1},
        {"context": 300},
        {"context": 2000, "parallel": 3, "roots": 1, "unified": False},
    ],
)
def test_the_longest_sequence_is_what_the_engine_takes(library, engine):
    from selfreward_lite.engine.llama import LlamaDevice

    models = library.models(openai_api.TINY)
    settings = models.settings.with_values("engine", **engine)
    talk = Talk(library, openai_api.TINY, "me")
    talk.models = replace(models, settings=settings)
    device = LlamaDevice(LlamaSpec(model=models.base, **settings.engine.model_dump()))
    try:
        assert talk.longest == device.limit
    finally:
        device.close()


def test_one_more_token_than_fit_is_refused_with_the_number_that_fits(client):
    # At temperature 2 a reply goes on for long, so that its last token is computed too.
    asked = {**ASK, "temperature": 2.0}
    prompt = client.chat.completions.create(**asked).usage.prompt_tokens
    most = 1024 - prompt
    client.chat.completions.create(**{**asked, "max_tokens": most})
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{**asked, "max_tokens": most + 1})
    assert f"or give max_tokens of {most:,} or fewer" in caught.value.message
    assert caught.value.code == "context_length_exceeded"
    long = [{"role": "user", "content": "a b c " * 600}]
    with pytest.raises(openai.BadRequestError, match="1,024 with the reply: shorten it") as caught:
        client.chat.completions.create(model="mine/M1", messages=long)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(("asked", "given"), [(None, 1024), (4096, 4096)])
def test_a_long_context_has_limits_of_its_own(asked, given):
    assert openai_api._fit(asked, 10, 20_000) == given
    with pytest.raises(Refused, match="max_tokens=4,097: give 4,096 or fewer"):
        openai_api._fit(4097, 10, 20_000)


# -- half characters -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "place"),
    [
        ({"messages": [{"role": "user", "content": "a\ud83d b"}]}, "messages[0].content"),
        ({"messages": [{"role": "system", "content": "\ud83d"}, *TASK]}, "messages[0].content"),
        ({"messages": parts({"type": "text", "text": "\udc00"})}, "messages[0].content[1].text"),
        ({"messages": [{**TASK[0], "na\ud83dme": "x"}]}, "a name in messages[0]"),
        ({"stop": ["x", "\ud83d"]}, "stop[1]"),
        ({"model": "mine/\ud83d"}, "model"),
        ({"tools": [{"function": {"name": "\ud83d"}}]}, "tools[0].function.name"),
        (
            {"stream": True, "messages": [{"role": "user", "content": "\ud83d"}]},
            "messages[0].conte",
        ),
    ],
)
def test_half_a_character_is_refused_wherever_it_stands(address, changed, place):
    body = json.dumps({**ASK, **changed})
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    answer = httpx.post(f"{address}/chat/completions", content=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(place)
    assert "holds half a character: leave it out" in answer.json()["error"]["message"]


# -- many callers ----------------------------------------------------------------------------------


def test_a_caller_who_leaves_frees_the_engine(client, library):
    long = {**ASK, "temperature": 2.0, "max_tokens": 900}
    stream = client.chat.completions.create(**long, stream=True)
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 30
    while library.engine.users and time.monotonic() < deadline:
        time.sleep(0.05)
    assert library.engine.users == 0


def test_a_bad_call_ends_no_other(client):
    """Twelve callers, every third of whom asks for what is refused."""
    results: dict[int, object] = {}

    def ask(number: int) -> None:
        changed = {"seed": -1} if number % 3 == 0 else {"seed": number}
        try:
            results[number] = client.chat.completions.create(**{**ASK, **changed})
        except openai.BadRequestError as error:
            results[number] = error

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    refused = {number for number, one in results.items() if isinstance(one, Exception)}
    assert refused == {0, 3, 6, 9}
    assert all(results[number].choices[0].message.content for number in results.keys() - refused)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
FIELDS = ["model", "messages", "seed", "stop", "stream", "top_k", "stream_options", *NEUTRAL]


@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=6), st.booleans())
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_whatever_is_sent_is_read_or_refused(fields, whole):
    body = json.dumps({**ASK, **fields} if whole else fields).encode()
    try:
        asked = read_request(body)
    except Refused as refused:
        assert refused.status == 400
        assert refused.message
        assert "\n" not in refused.message
    else:
        assert asked.messages


# -- who may call ----------------------------------------------------------------------------------


def call(address: str, path: str, **headers: str) -> tuple[int, str]:
    answer = httpx.get(f"{address}{path}", headers=headers)
    return answer.status_code, answer.text


def test_the_key_is_needed_everywhere(address):
    for path in ("/models", "/models/mine/M0", "/nothing"):
        for sent in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}):
            status, text = call(address, path, **sent)
            assert status == 401
            assert KEY not in text
    assert call(address, "/nothing", Authorization=f"Bearer {KEY}")[0] == 404


def test_without_a_key_only_this_machines_names_are_answered(library):
    async def ask(host: str, **headers: str) -> int:
        transport = httpx.ASGITransport(build_server(library, None, "mine"))
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as caller:
            answer = await caller.post(
                "/v1/chat/completions", content=json.dumps(ASK), headers=headers
            )
            return answer.status_code

    import anyio

    assert anyio.run(ask, "evil.example:8000") == 400, "a name that leads here by its DNS"
    assert anyio.run(ask, "localhost:8000") == 415, "a form of another page"


def test_one_run_is_served_alone(library):
    import anyio

    async def ask() -> list[str]:
        transport = httpx.ASGITransport(build_server(library, None, "mine"))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as caller:
            return [one["id"] for one in (await caller.get("/v1/models")).json()["data"]]

    assert anyio.run(ask) == ["mine/base", "mine/M0", "mine/M1"]


def test_others_get_in_only_with_a_key_that_is_worth_the_name():
    assert check_key(False, None) is None
    assert check_key(True, KEY) == KEY
    for listen, key in ((True, None), (True, ""), (False, "short"), (True, "has spaces in it")):
        with pytest.raises(UserError, match="SELFREWARD_KEY"):
            check_key(listen, key)


# -- the command -----------------------------------------------------------------------------------


def test_the_command_serves_until_it_is_interrupted(library):
    command = [sys.executable, "-m", "selfreward_lite", "serve", "mine", "--port", "18431"]
    command += ["--runs-dir", str(library.runs_dir)]
    served = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "SELFREWARD_KEY": KEY}
    )
    try:
        assert "http://127.0.0.1:18431/v1 serves" in served.stderr.readline()
        client = openai.OpenAI(base_url="http://127.0.0.1:18431/v1", api_key=KEY, max_retries=8)
        assert client.chat.completions.create(**ASK).choices[0].message.content
        taken = subprocess.run(command, capture_output=True, text=True, check=False)
        assert taken.returncode == 2
        assert "choose another --port" in taken.stderr
        served.send_signal(signal.SIGINT)
        assert served.wait(60) == 0
        assert KEY not in served.stderr.read()
    finally:
        served.kill()


def test_a_run_that_is_not_there_is_said_at_once(tmp_path: Path):
    from typer.testing import CliRunner

    from selfreward_lite.cli.main import app

    ended = CliRunner().invoke(app, ["serve", "none", "--runs-dir", str(tmp_path)])
    assert isinstance(ended.exception, UserError)
    assert str(ended.exception) == f"no run 'none' in {tmp_path}; choose one of 'the tiny model'"


def test_the_names_that_exist_are_said_beside_a_wrong_one(library):
    library.check_choice("mine")
    with pytest.raises(UserError, match=r"no run 'nope' in .*; choose one of .*'mine'"):
        library.check_choice("nope")
