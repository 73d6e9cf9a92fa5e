"""A run of the model of words with two adapters, and servers and engines on it."""

from dataclasses import replace

import pytest
import word_model
from scripted_server import ScriptedServer
from word_model import DIGITS, PIECES, SCORE, STOP, write_run

from selfreward_lite.engine.api import Bracket, Closing, Probe, Request, Sampling
from selfreward_lite.engine.dialects import Paths
from selfreward_lite.engine.http_client import Timing
from selfreward_lite.engine.presets import PRESETS, build_head
from selfreward_lite.engine.remote import ServerSpec
from selfreward_lite.engine.server import ServerEngine

FAST = Timing(connect=2.0, answer=5.0, rest=0.01, longest_rest=0.05, check=0.02)
WARM = Sampling(temperature=1.0, top_p=1.0, max_tokens=30)
SLOW = ("drip", "silence")
CLOSING = Closing((29, SCORE), DIGITS, (Bracket(" go", " end", (36,)),))


class World:
    def __init__(self, folder):
        self.base = write_run(folder / "runs" / "tiny")
        self.folder = self.base.parent.parent
        (self.folder / PRESETS).write_text(build_head(4, 200))
        self._open = []

    def server(self, kind="vllm", **lies):
        server = ScriptedServer(kind, **lies)
        server.presets = self.folder / PRESETS
        self._open.append(server.stop)
        return server

    def engine(self, *servers, patience=1.0, timing=FAST, slots=4):
        runs = self.folder.parent
        paths = Paths(self.base, self.folder.name, runs, runs)
        spec = ServerSpec(paths, PIECES, slots)
        engine = ServerEngine([one.url for one in servers], spec, patience, timing)
        self._open.append(engine.close)
        return engine

    def request(self, key, *, samples=3, adapter="M1", **more):
        made = Request(
            key,
            (hash_of(key), 7, 9),
            tuple(range(5, 5 + samples)),
            WARM,
            STOP,
            str(self.folder / adapter / "adapter.gguf") if adapter else None,
            Probe(DIGITS, "score:"),
            closing=CLOSING,
        )
        return replace(made, **more)

    def requests(self, count=12, **more):
        return [self.request(f"r{number}", **more) for number in range(count)]

    def close(self):
        for close in reversed(self._open):
            close()


def hash_of(key: str) -> int:
    return sum(key.encode()) % 28


def check_answers(completions, requests):
    """Every sample is there once, and is what the model says, no matter which server was asked."""
    found = {(one.key, one.sample): one for one in completions}
    assert len(found) == len(completions)
    wanted = {(r.key, i): word_model.answer(r, i) for r in requests for i in range(len(r.seeds))}
    assert found.keys() == wanted.keys()
    for key, answer in wanted.items():
        got = found[key]
        for name in ("probe", "closing"):
            assert getattr(got, name) == pytest.approx(getattr(answer, name)), (key, name)
        assert replace(got, probe=None, closing=None) == replace(answer, probe=None, closing=None)


def gather(answers, found):
    """The completions that were handed out before an error, too."""
    for one in answers:
        found.append(one)
