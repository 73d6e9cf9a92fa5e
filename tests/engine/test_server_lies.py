"""Servers whose answers do not fit what they were asked: each ends in one line."""

import math

import pytest
from server_world import World, gather
from word_model import DIGITS, STOP

from selfreward_lite.engine import http_client
from selfreward_lite.system.errors import EngineError


@pytest.fixture
def world(tmp_path):
    """Opens servers and engines on a run with two adapters; closes all."""
    return_to = World(tmp_path)
    yield return_to
    return_to.close()


LIES = {
    "lie: prompt": "counts 4 prompt tokens where 3 were sent",
    "lie: more": "answered with 300 tokens where at most 30 were asked for",
    "lie: foreign": "answered with token 40, and the base has 40",
    "lie: fewer": "cut a sample at 2 of 30 tokens",
    "lie: form": "in a form that is not known",
    "403": "refuses request r0 of 3 tokens (403: status 403 as planned)",
    "307": "redirects to another address (307)",
    "long": "answered with more than 0 MB",
}


@pytest.mark.parametrize("kind", ["vllm", "llama"])
@pytest.mark.parametrize("what", LIES)
def test_a_lie_ends_in_one_line(world, kind, what, monkeypatch):
    monkeypatch.setattr(http_client, "LONGEST", 100_000)
    server = world.server(kind)
    engine = world.engine(server)
    server.fault = lambda body: what if body.get("seed") == 5 else None
    with pytest.raises(EngineError) as error:
        list(engine.complete(world.requests(1)))
    line = str(error.value)
    assert LIES[what] in line
    assert line.startswith(server.url)
    assert "\n" not in line
    assert ";" in line or ":" in line.removeprefix(server.url)


def first_choice(answer):
    return answer["choices"][0]


def first_place(answer):
    return first_choice(answer)["logprobs"]["top_logprobs"][0]


def end_early(answer):
    """Say that a sample ended, without the token that ends it."""
    choice = first_choice(answer)
    choice["token_ids"] = [token for token in choice["token_ids"] if token not in STOP][:2]
    choice["finish_reason"] = "stop"


VLLM_LIES = [
    (lambda answer: answer["choices"].append(first_choice(answer)), "gave 2 samples where 1 was"),
    (lambda answer: first_choice(answer).pop("logprobs"), "gave log-probabilities at 0 of"),
    (lambda answer: first_place(answer).popitem(), "gave no log-probability of token"),
    (
        lambda answer: first_place(answer).update({f"token_id:{DIGITS[0]}": math.nan}),
        "gave nan as a log-probability; its model is broken",
    ),
    (
        lambda answer: first_place(answer).update({f"token_id:{DIGITS[0]}": 0.5}),
        "gave 0.5 as a log-probability; its model is broken",
    ),
    (end_early, "which is not among the ends of the chat template"),
]
LLAMA_LIES = [
    (lambda answer: answer.update(stop_type="wo\nrd"), "reason that was not asked for ('wo rd')"),
    (lambda answer: answer.update(truncated=True), "cut a text of"),
    (lambda answer: answer.update(completion_probabilities=[]), "gave no probabilities where"),
    (
        lambda answer: answer["completion_probabilities"][0]["top_logprobs"].clear(),
        "gave the probabilities of 0 tokens, and not those asked for, of 40",
    ),
    (
        lambda answer: answer["completion_probabilities"][0]["top_logprobs"][0].update(logprob=7),
        "gave 7 as a log-probability",
    ),
]


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [("vllm", *one) for one in VLLM_LIES] + [("llama", *one) for one in LLAMA_LIES],
)
def test_an_answer_that_does_not_fit_ends_in_one_line(world, kind, change, says):
    server = world.server(kind)
    engine = world.engine(server)
    # Of llama-server, what is asked of its probabilities is another request.
    part = "n_probs" if "probab" in says else "seed"
    part = "seed" if kind == "vllm" else part
    server.change = lambda body, answer: change(answer) if part in body else None
    found = []
    with pytest.raises(EngineError) as error:
        gather(engine.complete(world.requests(1)), found)
    line = str(error.value)
    assert says in line
    assert line.startswith(server.url)
    assert "\n" not in line
    assert ";" in line
    assert found == []
