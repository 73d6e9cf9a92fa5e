"""A real vLLM generates and judges for a run: PEFT's numbers, adapters by name, to the end.

    VLLM_PYTHON=… python -m pytest -n 0 -s -m server tests/end_to_end/test_vllm_server.py

It is started as `doctor --servers` says, on a CPU, with the base in 32 bits.
"""

import json
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served_run import command, finish, read_new, run_command
from vllm_server import VllmServer, find_fault

from selfreward_lite.config.settings import EngineSettings
from selfreward_lite.data.records import Judgment, JudgmentPair, Prompt, Response, ResponsePair
from selfreward_lite.data.store import Store
from selfreward_lite.engine import reference
from selfreward_lite.engine.api import Completion, Request, Sampling
from selfreward_lite.engine.dialects import Vllm, list_models
from selfreward_lite.engine.http_client import Client, Timing
from selfreward_lite.engine.reference import REFERENCE
from selfreward_lite.engine.server import ServerEngine
from selfreward_lite.method.closing import make_score_closing, make_score_probe
from selfreward_lite.method.judgments import make_judge_request
from selfreward_lite.method.roles import Role
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.models.chat_template import user
from selfreward_lite.models.parity import CONVERSATIONS, compute_logits, make_conversation
from selfreward_lite.models.pieces import read_pieces
from selfreward_lite.run import servers

pytestmark = pytest.mark.server
CLOSED = "http://127.0.0.1:9"  # nobody listens there
PARITY = 1e-3  # of a log-probability
PROBED = 1e-4  # of a probability
GREEDY = Sampling(temperature=0, top_p=1, max_tokens=24)


@dataclass
class World:
    """A tiny run behind its seed stage, its base as a folder, and vLLM with that."""

    runs: Path
    folder: Path
    server: VllmServer

    @property
    def base(self) -> Path:
        return self.runs / "tiny" / "base" / "base.gguf"

    @property
    def adapter(self) -> str:
        return str(self.runs / "tiny" / "M0" / "adapter.gguf")

    def find_name(self, model: str) -> str:
        """The name under which the server has loaded a model."""
        loaded = self.server.list_adapters()
        (name,) = [one for one in loaded if one.startswith(f"tiny-{model}-")]
        return name

    def open_engine(self) -> ServerEngine:
        named = EngineSettings(kind="server", servers=(self.server.url,), parallel=8, patience=30)
        return servers.open_servers(self.base, named)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[World]:
    if fault := find_fault():
        warnings.warn(fault, stacklevel=1)  # pytest shows it at the end; a skip it only counts
        pytest.skip(fault)
    home = tmp_path_factory.mktemp("vllm")
    runs = home / "runs"
    finish(run_command(runs, 0))
    # As a user who has no server yet: the base and the references are there, and a line says so.
    said = finish(run_command(runs, 1, CLOSED, more=("engine.patience=0.01",)), code=1)
    assert "no server has answered" in one_line(said)
    names = ("--runs-dir", str(runs))
    finish(command("export", "base", "--name", "tiny", "--dtype", "float32", *names), home)
    printed = finish(command("doctor", "--servers", "tiny", *names), home, code=2)
    (line,) = [one for one in printed.splitlines() if " python -m vllm." in one]
    server = VllmServer(line.strip(), home / "vllm.log")
    yield World(runs, home / "exported" / "tiny-base-hf", server)
    server.stop()


def one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def peft(world) -> Any:
    """The exported base with M0 on it, in transformers and PEFT, in float32."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(world.folder, dtype=torch.float32)
    return PeftModel.from_pretrained(base, world.adapter.removesuffix(".gguf")).eval()


def log_softmax(model: Any, tokens: list[int]) -> np.ndarray:
    """Log-probabilities (tokens, vocabulary) in float64, from logits in float32."""
    logits = compute_logits(model, tokens).astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def make_requests(chat: ChatFormat, adapter: str | None, sampling: Sampling) -> list[Request]:
    """Questions as a judge is asked, four samples of each."""
    answers = ("a b c", "c b a", "The answer is a b c.", "b", "I will think about it.", "a c b")
    return [
        Request(
            f"r{number}",
            tuple(chat.prompt_ids(user(f"Sort the letters c a b.\nAnswer: {answer}\nScore?"))),
            tuple(range(4 * number, 4 * number + 4)),
            sampling,
            chat.stop,
            adapter,
            make_score_probe(chat),
            closing=make_score_closing(chat),
        )
        for number, answer in enumerate(answers)
    ]


def find_score(tokens: Sequence[int], pieces: Sequence[bytes]) -> int:
    """Where the digit of the last "Score: 3" is."""
    texts = [b"".join(pieces[one] for one in tokens[:end]) for end in range(len(tokens) + 1)]
    ends = [text.rstrip(b" ").lower().endswith(b"score:") for text in texts]
    is_digit = [pieces[token].isdigit() for token in tokens]
    return max(p for p, found in enumerate(is_digit) if found and ends[p])


def collect(answers: Iterator[Completion]) -> dict[tuple[str, int], Completion]:
    return {(one.key, one.sample): one for one in answers}


def test_log_probabilities_are_those_of_peft(world, peft, chat):
    """At every place of the conversations that the export is checked with, 20 tokens each."""
    list_of_tokens = [chat.prompt_ids(make_conversation(texts)) for texts in CONVERSATIONS]
    with closing(world.open_engine()) as engine:
        list(engine.complete(make_requests(chat, world.adapter, GREEDY)[:1]))
    name = world.find_name("M0")
    base = world.server.ask("/v1/models").json()["data"][0]["id"]
    largest = {}
    for model in (base, name):
        off, tops, places, moved = [], 0, 0, []
        for tokens in map(list, list_of_tokens):
            with peft.disable_adapter():
                plain = log_softmax(peft, tokens)
            expected = plain if model == base else log_softmax(peft, tokens)
            body = {"model": model, "prompt": tokens, "max_tokens": 1, "prompt_logprobs": 20}
            answer = world.server.ask("/v1/completions", body | {"temperature": 0}).json()
            given = answer["choices"][0]["prompt_logprobs"]
            assert len(given) == len(tokens)
            for place, likeliest in enumerate(given[1:]):
                found = {int(token): one["logprob"] for token, one in likeliest.items()}
                off += [abs(value - expected[place, token]) for token, value in found.items()]
                moved += [abs(plain[place, token] - expected[place, token]) for token in found]
                tops += max(found, key=found.__getitem__) == expected[place].argmax()
                places += 1
        largest[model] = max(off)
        print(
            f"\n{model}: {max(off):.2g} is the largest difference of {len(off)} log-probabilities, "
            f"the adapter's effect up to {max(moved):.2g}; same likeliest token at {tops} of "
            f"{places} places"
        )
        assert tops >= 0.99 * places
    assert max(moved) > 0.1, "the adapter changes too little to show anything"
    assert max(largest.values()) <= PARITY


def test_references_of_training_are_met(world, chat):
    """The 64 places that every server is compared at, which NF4 and PEFT gave in training."""
    with closing(world.open_engine()) as engine:
        list(engine.complete(make_requests(chat, world.adapter, GREEDY)[:1]))
    name = world.find_name("M0")
    client = Client(world.server.url, Timing())
    with closing(client):
        asked = Vllm(client, list_models(client), 8, 10**6)
        places = reference.load(world.runs / "tiny" / "M0" / REFERENCE).places
        for model, field in ((asked.base, "base"), (name, "adapter")):
            off = [
                abs(found - wanted)
                for one in places
                for found, wanted in zip(
                    asked.next_token(model, one.tokens, one.ids, 0)[0].logprobs,
                    getattr(one, field),
                    strict=True,
                )
            ]
            print(f"\n{model}: {max(off):.2g} from reference.json at {len(places)} places")
            assert max(off) <= PARITY


def test_an_adapter_that_was_unloaded_is_loaded_again(world, chat):
    requests = make_requests(chat, world.adapter, GREEDY)
    with closing(world.open_engine()) as engine:
        before = collect(engine.complete(requests))
        name = world.find_name("M0")
        assert name.startswith("tiny-M0-")
        gone = world.server.ask("/v1/unload_lora_adapter", {"lora_name": name})
        assert gone.status_code == 200, gone.text
        body = {"model": name, "prompt": list(requests[0].tokens), "max_tokens": 1}
        assert world.server.ask("/v1/completions", body).status_code == 404
        after = collect(engine.complete(requests))
        assert world.find_name("M0") == name
        assert engine.faults == 0, "a model that is not there is no failure of the server"
        plain = collect(engine.complete(make_requests(chat, None, GREEDY)))
    assert {key: one.tokens for key, one in after.items()} == {
        key: one.tokens for key, one in before.items()
    }
    assert any(plain[key].tokens != one.tokens for key, one in before.items())


def test_the_base_beside_an_adapter_answers_as_alone(world, chat):
    """In one batch, vLLM on a CPU gives the base the effect of an adapter."""
    kinds = {name: make_requests(chat, name, GREEDY) for name in (None, world.adapter)}
    with closing(world.open_engine()) as engine:
        alone = [collect(engine.complete(requests)) for requests in kinds.values()]
        both = [
            replace(one, key=f"{number} {one.key}")
            for ones in zip(*kinds.values(), strict=True)
            for number, one in enumerate(ones)
        ]
        found = collect(engine.complete(both))
    for number, expected in enumerate(alone):
        for (key, sample), one in expected.items():
            beside = found[f"{number} {key}", sample]
            assert beside.tokens == one.tokens
            assert beside.closing == pytest.approx(one.closing, abs=PROBED)


def test_a_restart_in_the_middle_is_survived(world, chat):
    warm = Sampling(temperature=1, top_p=1, max_tokens=40)
    requests = make_requests(chat, world.adapter, warm)
    with closing(world.open_engine()) as engine:
        answers = engine.complete(requests)
        found = [next(answers)]
        world.server.stop()
        world.server.start()
        assert world.server.list_adapters() == [], "it forgot what it had loaded"
        found += list(answers)
        assert engine.faults >= 1
    assert len(collect(iter(found))) == len(found) == sum(len(one.seeds) for one in requests)
    assert {one.finish for one in found} <= {"stop", "length"}
    assert world.find_name("M0")


def make_judge_requests(world: World, chat: ChatFormat) -> list[Request]:
    """What a judge is asked about some responses of the run, four samples of each."""
    with Store.read(world.runs / "tiny") as store:
        draw, namespace = store.settings().judge.draw, store.id_namespace
        templates = store.settings().model.templates
        prompts = {one.id: one for one in store.records(Prompt)}
        responses = list(store.records(Response))[:8]
    role = Role("M0", world.adapter, chat, draw, templates, namespace, 5, 1, forces=True)
    return [make_judge_request(prompts[one.prompt_id], one, role, 4) for one in responses]


def test_probes_are_the_models_own_probabilities(world, peft, chat):
    requests = make_judge_requests(world, chat)
    with closing(world.open_engine()) as engine:
        found = collect(engine.complete(requests))
    pieces = read_pieces(world.base)
    off: dict[str, list[float]] = {"probe": [], "closing": []}
    for request in requests:
        for sample in range(len(request.seeds)):
            one = found[request.key, sample]
            whole = [*request.tokens, *one.tokens]
            if one.probe:
                place = len(request.tokens) + find_score(one.tokens, pieces)
                row = np.exp(log_softmax(peft, whole[:place])[-1])
                off["probe"].append(np.abs(row[list(request.probe.tokens)] - one.probe).max())
            behind = request.closing.tokens_behind(one.text)
            row = np.exp(log_softmax(peft, [*whole, *behind])[-1])
            off["closing"].append(np.abs(row[list(request.closing.choices)] - one.closing).max())
    for kind, values in off.items():
        print(f"\n{len(values)} of kind {kind}: probabilities differ by {max(values):.2g} at most")
        assert max(values) <= PROBED
    assert len(off["probe"]) >= 16, "too few scores were written to show anything"
    assert len(off["closing"]) == 32


def test_an_iteration_ends_with_a_promoted_model(world, tmp_path):
    before = tmp_path / "before"
    shutil.copytree(world.runs, before)
    asked = world.server.count_requests()
    finish(run_command(world.runs, 1, world.server.url))
    asked = world.server.count_requests() - asked
    new = read_new(world.runs, before)
    counts = {kind.__name__: len(records) for kind, records in new.items() if records}
    print(f"\n{asked} requests; {json.dumps(counts)}")
    for kind in (Response, Judgment, ResponsePair, JudgmentPair):
        assert new[kind], kind
    with Store.read(world.runs / "tiny") as store:
        number, _ = store.model(None)
        judgments = [one for one in store.records(Judgment) if one.id in new[Judgment]]
        names = {one.model for one in judgments}
    assert number == 1
    assert {"M0", "M1"} <= names
    read = [one for one in judgments if one.score is not None]
    assert len(read) >= 0.95 * len(judgments)
    assert asked > len(new[Response]) + len(judgments)
    assert world.find_name("M1")
    said = finish(command("doctor", "--servers", "tiny", "--runs-dir", str(world.runs)))
    slots = r"an unknown number of slots \(the run asks for 8 at once\), and the run's base"
    assert re.search(rf"vLLM \d\S* with a context of 512 tokens and {slots}", one_line(said))
