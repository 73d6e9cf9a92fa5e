"""Servers that cannot serve the run beside one that can: they are left out, and it goes on."""

import logging
import threading
import time

import pytest
from server_world import World, check_answers, gather

from selfreward_lite.system.errors import EngineError


@pytest.fixture
def world(tmp_path):
    """Opens servers and engines on a run with two adapters; closes all."""
    return_to = World(tmp_path)
    yield return_to
    return_to.close()


def read_lines(caplog, url):
    """The warnings that say that a server is left out, and why."""
    ends = "; until the next training or command it is left out"
    return [one.removesuffix(ends) for one in caplog.messages if url in one and one.endswith(ends)]


@pytest.mark.parametrize("kind", ["vllm", "llama"])
@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("404", "refuses request"),
        ("307", "redirects to another address"),
        ("lie: prompt", "prompt tokens where 3 were sent"),
        ("lie: foreign", "it serves another model"),
    ],
)
def test_one_that_refuses_or_lies_is_left_out(world, caplog, kind, what, says):
    wrong, works = world.server(kind), world.server(kind)
    engine = world.engine(wrong, works)
    wrong.fault = lambda body: what if "seed" in body else None
    requests = world.requests(20)
    check_answers(list(engine.complete(requests)), requests)
    (line,) = read_lines(caplog, wrong.url)
    assert says in line
    assert ";" in line, "it names the next step"
    assert engine.parallel == 4
    wrong.asked.clear()
    check_answers(list(engine.complete(requests)), requests)
    assert wrong.asked == []


@pytest.mark.parametrize(
    ("kind", "lies", "says"),
    [
        ("vllm", {"status": 404}, "is neither vLLM nor llama-server: GET /v1/models gives 404"),
        ("vllm", {"status": 200, "says": "<html>hi</html>"}, "answered no JSON, but '<html>hi"),
        ("vllm", {"key": "Bearer secret"}, "401: Unauthorized; check engine.servers, and the key"),
        ("vllm", {"base": "another"}, "serves another model"),
        ("vllm", {"adapter": "M0"}, "of the adapter's effect in training, not 100 ± 25 %"),
        ("llama", {"single": True}, "start it with --models-preset"),
        ("llama", {"ignores": True}, "so it ignores the adapter"),
    ],
)
def test_one_that_is_wrong_from_the_start_is_left_out(world, caplog, kind, lies, says):
    wrong, works = world.server(kind, **lies), world.server(kind)
    engine = world.engine(wrong, works)
    requests = world.requests(8)
    check_answers(list(engine.complete(requests)), requests)
    (line,) = read_lines(caplog, wrong.url)
    assert says in line
    assert not [body for body in wrong.asked if "seed" in body]


def test_one_that_joins_with_too_little_context_is_left_out(world, caplog):
    works, late = world.server(), world.server(context=100)
    late.stop()
    engine, requests = world.engine(works, late), world.requests(4)
    late.start()
    deadline = time.monotonic() + 20
    while not (found := read_lines(caplog, late.url)) and time.monotonic() < deadline:
        check_answers(list(engine.complete(requests)), requests)
    assert "with a context of 100, and the run has worked with 200; start it with" in found[0]
    assert not late.asked


class Opener(logging.Handler):
    """Sets an event when a server is said to be left out."""

    def __init__(self):
        super().__init__()
        self.gate = threading.Event()

    def emit(self, record):
        if "it is left out" in record.getMessage():
            self.gate.set()


def test_what_it_draws_afterwards_is_asked_of_another(world, request):
    wrong, works = world.server("llama"), world.server("llama")
    engine, opener = world.engine(wrong, works), Opener()
    log = logging.getLogger("selfreward_lite.engine.server")
    log.addHandler(opener)
    request.addfinalizer(lambda: log.removeHandler(opener))

    def fail(body):
        if "seed" not in body:
            return None
        if "-M1-" in body["model"]:
            return "404"
        assert opener.gate.wait(20)
        return None

    wrong.fault = fail
    under_way = world.request("slow", samples=2, adapter="M0", probe=None, closing=None)
    requests = [under_way, *world.requests(6)]
    check_answers(list(engine.complete(requests)), requests)

    def seeds(server):
        bodies = [body for body in server.asked if body["prompt"] == list(under_way.tokens)]
        return [body["seed"] for body in bodies if "seed" in body]

    assert seeds(wrong) == [5]
    assert seeds(works) == [5, 6]


def test_the_last_one_ends_the_run_at_once(world, caplog):
    servers = [world.server(), world.server("llama")]
    engine, found = world.engine(*servers, patience=1000), []
    for server in servers:
        server.fault = lambda body: "404" if "seed" in body else None
    for _ in range(2):  # nobody waits for them a second time
        with pytest.raises(EngineError) as error:
            gather(engine.complete(world.requests(1)), found)
        line = str(error.value)
        assert all(f"{server.url} refuses request" in line for server in servers)
        assert "\n" not in line
    assert found == []
    assert len([one for one in caplog.messages if "it is left out" in one]) == 1


def test_only_wrong_addresses_end_at_once(world):
    servers = [world.server(status=404), world.server("llama", single=True)]
    with pytest.raises(EngineError) as error:
        world.engine(*servers)
    assert f"{servers[0].url} is neither vLLM nor llama-server" in str(error.value)
    assert f"{servers[1].url} is llama-server with one model" in str(error.value)


def test_a_wrong_one_is_not_waited_for_but_a_dead_one_is(world):
    wrong, gone = world.server(status=404), world.server()
    gone.stop()
    with pytest.raises(EngineError, match="no server has answered for 0.01 minutes") as error:
        world.engine(wrong, gone, patience=0.01)
    assert f"{wrong.url} is neither" in str(error.value)
    assert f"{gone.url} cannot be reached" in str(error.value)
    assert wrong.paths["/v1/models"] == 1


def test_what_is_missing_here_is_no_fault_of_a_server(world, caplog):
    engine = world.engine(world.server(), world.server())
    (world.folder / "M1" / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(EngineError, match="is missing; restore the model's folder"):
        list(engine.complete(world.requests(4)))
    assert not caplog.messages
