"""`bench servers`: the same answers are asked of the engine here and of every server."""

import json

import pytest
import word_model
from scripted_server import ScriptedServer
from typer.testing import CliRunner

from selfreward_lite import config
from selfreward_lite.bench import servers
from selfreward_lite.cli.main import app
from selfreward_lite.data.records import Outcome, Prompt, Response
from selfreward_lite.data.store import Store
from selfreward_lite.run import servers as run_servers
from selfreward_lite.system.errors import ConfigError, UserError


class WordEngine:
    """The model of 40 words, in this process."""

    def complete(self, requests):
        for request in requests:
            for sample in range(len(request.seeds)):
                yield word_model.answer(request, sample)

    def close(self):
        pass


class Chat:
    """A chat format of that model."""

    stop, special = word_model.STOP, {}

    def prompt_ids(self, messages, continue_with=""):
        return (1, 2, len(messages[0]["content"]) % 20)

    def text_ids(self, text):
        digits = [word_model.DIGITS[int(letter)] for letter in text if letter.isdigit()]
        return [word_model.SCORE, *digits] if "Score" in text else [3]


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A run whose M0 says what scripted servers say, also in place of the engine here."""
    word_model.write_run(tmp_path / "tiny", ("M0",))
    settings = config.load("tiny").model_dump(mode="json")
    with Store.write(tmp_path / "tiny") as store:
        store.state("settings", settings)
        prompts = [
            Prompt.make(store.id_namespace, 0, "held_out", i, "a" * (i + 1)) for i in range(4)
        ]
        answers = [
            Response(f"r{i}", 0, "M0", one.id, 0, "a", "stop", 1) for i, one in enumerate(prompts)
        ]
        store.commit(0, "ranked", "whole", Outcome(records=[*prompts, *answers]))
        store.promote(0, "gates")
    monkeypatch.setattr(run_servers, "read_pieces", lambda _: word_model.PIECES)
    monkeypatch.setattr(servers, "ProcessEngine", lambda spec: WordEngine())
    monkeypatch.setattr(servers.ChatFormat, "load", lambda folder: Chat())
    return tmp_path


def bench(runs, *words):
    return CliRunner().invoke(app, ["bench", "servers", "--runs-dir", str(runs), *words])


@pytest.mark.parametrize("load", [(), ("--judge",)])
def test_it_compares_speed_and_samples(runs, load):
    server = ScriptedServer("vllm")
    words = ("--server", server.url, "--prompts", "3", "--samples", "2", "--repeats", "2")
    result = bench(runs, *words, *load)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    assert list(found) == [servers.HERE, server.url]
    for one in found.values():
        assert (one["equal"], one["samples"], len(one["rates"])) == (6, 6, 2)
        assert one["tokens_per_s"] > 0
    assert "6 of 6" in result.stderr
    assert server.adapters, "the newest model was asked"
    server.stop()


def test_what_is_missing_is_said(runs):
    assert "--server" in str(bench(runs).exception)
    assert isinstance(bench(runs).exception, UserError)
    assert isinstance(bench(runs, "--server", "ftp://x").exception, ConfigError)
