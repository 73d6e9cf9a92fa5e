"""A real llama-server draws the samples of the engine in this machine's child, token by token."""

from contextlib import closing
from pathlib import Path

import pytest
from llama_server import LlamaServer, build

from selfreward_lite.config.settings import EngineSettings
from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.engine import LlamaSpec, ProcessEngine
from selfreward_lite.engine.api import Closing, Completion, Engine, Request, Sampling
from selfreward_lite.engine.presets import PRESETS
from selfreward_lite.engine.reference import REFERENCE
from selfreward_lite.models.chat_format import user
from selfreward_lite.models.gguf_export import adapter_to_gguf, base_to_gguf
from selfreward_lite.models.parity import CONVERSATIONS, make_conversation
from selfreward_lite.models.random_models import write_adapter
from selfreward_lite.models.reference import write_reference
from selfreward_lite.run import servers

pytestmark = pytest.mark.server
SAMPLES = 8
WORDS = ("c a b", "h u o", "z x", "e d f", "m k", "q w e", "t r", "n b", "l a", "y v")
SAMPLINGS = (
    Sampling(temperature=0.9, top_p=0.95, max_tokens=40),
    Sampling(temperature=1.2, top_p=1.0, max_tokens=30, top_k=20),
)
SETTINGS = EngineSettings(parallel=8, context=4096, roots=4)


@pytest.fixture(scope="module")
def base(tmp_path_factory, chat, tiny) -> Path:
    """The base of a run with one model: GGUF files, references, and what llama-server reads."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    base, model = run / "base" / "base.gguf", run / "M0"
    base.parent.mkdir(parents=True)
    base_to_gguf(TINY_MODEL, base, weights="nf4", dtype="f32")
    write_adapter(TINY_MODEL, model / "adapter")
    adapter_to_gguf(model / "adapter", TINY_MODEL, model / "adapter.gguf")
    lists = [chat.prompt_ids(make_conversation(texts)) for texts in CONVERSATIONS]
    write_reference(TINY_MODEL, None, base.with_name(REFERENCE), lists, "nf4")
    write_reference(TINY_MODEL, model / "adapter", model / REFERENCE, lists, "nf4")
    settings = tiny.model_copy(update={"engine": SETTINGS})
    servers.write_presets(settings, servers.find_paths(base, SETTINGS))
    return base


@pytest.fixture(scope="module")
def server(base, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "llama-server.log"
    started = LlamaServer(build(), base.parent.parent / PRESETS, log)
    yield started
    started.kill()


@pytest.fixture(scope="module")
def asked(base, chat) -> list[Request]:
    """160 samples, half of them of the base, half with an adapter; every second has a closing."""
    adapters = (None, str(base.parent.parent / "M0" / "adapter.gguf"))
    digits = tuple(chat.text_ids(str(digit))[-1] for digit in range(6))
    closings = (None, Closing(tuple(chat.text_ids("\nScore: ")), digits))
    return [
        Request(
            f"r{number}",
            tuple(chat.prompt_ids(user(f"Sort the letters {words}."))),
            tuple(range(SAMPLES * number, SAMPLES * (number + 1))),
            SAMPLINGS[number % 2],
            chat.stop,
            adapters[number // 2 % 2],
            closing=closings[number // 4 % 2],
        )
        for number, words in enumerate(2 * WORDS)
    ]


def complete(engine: Engine, asked: list[Request]) -> dict[tuple[str, int], Completion]:
    with closing(engine):
        return {(one.key, one.sample): one for one in engine.complete(asked)}


def test_samples_are_those_of_the_engine_here(base, server, asked):
    here = complete(ProcessEngine(LlamaSpec(model=base, **SETTINGS.model_dump())), asked)
    named = SETTINGS.model_copy(update={"kind": "server", "servers": (server.url,)})
    there = complete(servers.open_servers(base, named), asked)
    assert len(here) == 20 * SAMPLES
    assert there.keys() == here.keys()
    for key, one in here.items():
        found = there[key]
        assert (found.tokens, found.text, found.finish) == (one.tokens, one.text, one.finish), key
        assert found.closing_text == one.closing_text
        # The caches hold 16-bit numbers, so sums in another order show in the fourth digit.
        assert found.closing == (one.closing and pytest.approx(one.closing, abs=1e-3))
    assert len({one.text for one in here.values()}) > 100, "the samples differ from each other"
    assert any(one.closing for one in here.values())
