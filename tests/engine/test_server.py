"""Servers that work, fail, restart and lie: the same samples, or one line that says what to do."""

import itertools
import threading
import time
from dataclasses import replace

import pytest
import word_model
from server_world import CLOSING, FAST, SLOW, World, check_answers, gather

from selfreward_lite.engine import server as engine_server
from selfreward_lite.engine.api import Sampling
from selfreward_lite.engine.http_client import KEY
from selfreward_lite.engine.presets import PRESETS, add_section, build_head, read_sections
from selfreward_lite.system.errors import EngineError


@pytest.fixture
def world(tmp_path):
    """Opens servers and engines on a run with two adapters; closes all."""
    return_to = World(tmp_path)
    yield return_to
    return_to.close()


@pytest.mark.parametrize("kind", ["vllm", "llama"])
def test_servers_answer_as_one_engine(world, kind):
    servers = [world.server(kind), world.server(kind)]
    engine = world.engine(*servers)
    assert engine.parallel == 8
    requests = [
        *world.requests(8),
        world.request("other", adapter="M0"),
        world.request("base", adapter=None, closing=None),
        world.request("plain", probe=None, sampling=Sampling(temperature=0, top_p=1, max_tokens=9)),
    ]
    found = list(engine.complete(requests))
    check_answers(found, requests)
    assert any(one.probe for one in found), "no probe found its place: the test shows nothing"
    assert any(not one.probe for one in found)
    assert {one.finish for one in found} == {"stop", "length"}
    assert all(server.asked for server in servers)
    assert max(server.most_under_way for server in servers) <= 4
    assert engine.stats.generated == sum(len(one.tokens) for one in found)
    assert engine.stats.prompt_requested == sum(len(r.tokens) * len(r.seeds) for r in requests)
    assert engine.stats.prompt_computed > 0


def test_the_samples_of_a_request_follow_one_another_in_one_slot(world):
    server = world.server("llama")
    list(world.engine(server).complete(world.requests(6, samples=4)))
    slots = {}
    for body in server.asked:
        if "seed" in body:
            slots.setdefault(tuple(body["prompt"]), []).append((body["id_slot"], body["seed"]))
    assert len(slots) == 6
    for asked in slots.values():
        assert len({slot for slot, _ in asked}) == 1
        assert [seed for _, seed in asked] == [5, 6, 7, 8]


@pytest.mark.slow
def test_the_base_is_never_asked_while_an_adapter_is(world):
    """vLLM on a CPU would answer as the adapter; llama-server has a process for each."""
    server = world.server(mixes=True)
    requests = [
        one
        for number in range(6)
        for one in (
            world.request(f"base{number}", adapter=None),
            world.request(f"first{number}", adapter="M0"),
            world.request(f"second{number}", adapter="M1"),
        )
    ]
    check_answers(list(world.engine(server).complete(requests)), requests)
    assert server.most_under_way > 1


def test_requests_are_read_no_further_than_there_are_slots(world):
    gate = threading.Event()
    server = world.server()
    server.fault = lambda body: gate.wait(5) and None if "seed" in body else None
    read = []

    def feed():
        for request in world.requests(20, samples=1, adapter=None):
            read.append(request.key)
            yield request

    answers = world.engine(server).complete(feed())
    timer = threading.Timer(0.3, gate.set)
    timer.start()
    next(answers)
    assert len(read) <= 5
    assert len(list(answers)) == 19


def test_what_does_not_fit_the_smallest_context_is_refused_everywhere(world):
    engine = world.engine(world.server(context=200), world.server("llama", context=60))
    longest = Sampling(temperature=1, top_p=1, max_tokens=60 - 3 - CLOSING.longest - 1)
    fits = world.request("fits", samples=1, sampling=longest)
    over = longest.model_copy(update={"max_tokens": longest.max_tokens + 1})
    found = list(engine.complete([world.request("over", sampling=over), fits]))
    assert [(one.key, one.finish) for one in found[:3]] == [("over", "refused")] * 3
    check_answers(found[3:], [fits])


@pytest.mark.parametrize("kind", ["vllm", "llama"])
@pytest.mark.parametrize("what", ["drop", "cut", "html", "packed", "500", "429", "drip", "silence"])
def test_a_failure_now_and_then_changes_nothing(world, kind, what):
    server, count = world.server(kind), iter(range(10**6))
    engine = world.engine(server, timing=replace(FAST, answer=0.5 if what in SLOW else 5.0))
    server.fault = lambda body: what if "seed" in body and next(count) % 12 == 10 else None
    requests = world.requests()
    check_answers(list(engine.complete(requests)), requests)
    assert engine.faults >= 1


@pytest.mark.parametrize("kind", ["vllm", "llama"])
def test_a_server_that_restarts_is_used_again(world, kind):
    server, count = world.server(kind), iter(range(10**6))

    def fail(body):
        if next(count) == 100:
            server.restart(after=0.2)
            return "drop"
        return None

    engine = world.engine(server)
    server.fault = fail
    requests = world.requests()
    check_answers(list(engine.complete(requests)), requests)
    assert engine.faults >= 1


@pytest.mark.parametrize("idle", [False, True])
def test_another_base_behind_the_same_address_is_found(world, idle, monkeypatch):
    """Behind `ssh -L` a server that is gone only breaks off, and an idle engine sees nothing."""
    server, count, found = world.server(), iter(range(10**6)), []

    def change(body):
        if next(count) != 20:
            return None
        server.lies["base"] = "another"
        return "drop"

    engine = world.engine(server, slots=1)
    list(engine.complete(world.requests(2, adapter=None)))
    if idle:
        monkeypatch.setattr(engine_server, "IDLE_BEFORE_CHECK", 0.0)
        server.lies["base"] = "another"
    else:
        server.fault = change
    requests = {one.key: one for one in world.requests(12, adapter=None)}
    with pytest.raises(EngineError, match="has the same likeliest token as the base"):
        gather(engine.complete(requests.values()), found)
    assert bool(found) is not idle
    for one in found:
        assert one.tokens == word_model.answer(requests[one.key], one.sample).tokens


def test_patience_holds_however_many_servers_break_off(world):
    servers = [world.server() for _ in range(9)]
    engine = world.engine(*servers, patience=0.02)
    list(engine.complete(world.requests(18)))
    for server in servers:
        server.fault = lambda body: "drop"
    with pytest.raises(EngineError, match=r"answer(ed)? for 0\.0"):  # no number of failures
        list(engine.complete(world.requests(40)))


def test_adapters_that_a_restart_forgot_are_loaded_and_checked_again(world):
    server = world.server()
    engine = world.engine(server)
    list(engine.complete(world.requests(2)))
    server.adapters.clear()  # came back before anybody noticed
    before = server.paths["/v1/load_lora_adapter"]
    requests = world.requests(6)
    check_answers(list(engine.complete(requests)), requests)
    assert server.paths["/v1/load_lora_adapter"] == before + 1


def test_the_others_do_the_work_of_a_server_that_dies(world):
    dying, living = world.server(), world.server("llama")
    engine, count = world.engine(dying, living), iter(range(10**6))

    def die(body):
        if next(count) > 70:
            threading.Thread(target=dying.stop).start()
            return "drop"
        return None

    dying.fault = die
    requests = world.requests(20)
    check_answers(list(engine.complete(requests)), requests)
    assert engine.parallel == 4


def test_a_slow_server_gets_less(world):
    slow, quick = world.server(), world.server()
    engine = world.engine(slow, quick)
    list(engine.complete(world.requests(2, adapter=None)))
    slow.asked.clear()
    quick.asked.clear()
    slow.fault = lambda body: time.sleep(0.1)
    list(engine.complete(world.requests(30, adapter=None, closing=None, samples=1)))
    assert 0 < len(slow.asked) < len(quick.asked)


def test_no_server_for_too_long_is_one_line(world):
    server = world.server()
    engine = world.engine(server, patience=0.01)
    server.stop()
    with pytest.raises(EngineError, match="no server has answered for 0.01 minutes") as error:
        list(engine.complete(world.requests(3)))
    assert server.url in str(error.value)
    assert "give the same command again" in str(error.value)


def test_a_request_that_kills_servers_fails_alone(world):
    servers = [world.server(), world.server()]
    engine = world.engine(*servers)
    bad = world.request("bad", tokens=(1, 1, 1))
    for server in servers:
        server.fault = lambda body: "500" if body["prompt"][:3] == [1, 1, 1] else None
    good = world.requests(8)
    found = list(engine.complete([*good[:4], bad, *good[4:]]))
    check_answers([one for one in found if one.key != "bad"], good)
    assert [one.finish for one in found if one.key == "bad"] == ["failed"] * 3


def test_servers_that_fail_on_every_request_are_an_error_and_no_failed_samples(world):
    server, found = world.server(), []
    engine = world.engine(server)
    server.fault = lambda body: "500" if "seed" in body else None
    with pytest.raises(EngineError, match=r"failed 8 times in a row.*500: status 500 as planned"):
        gather(engine.complete(world.requests(12, adapter=None)), found)
    assert found == []


def test_a_server_that_answers_nothing_any_more_is_an_error_and_no_failed_samples(world):
    server, found = world.server(), []
    engine = world.engine(server, patience=0.02)
    server.fault = lambda body: "500"
    with pytest.raises(
        EngineError, match=r"for 0.02 minutes: .*500: status 500 as planned"
    ) as error:
        gather(engine.complete(world.requests(3, adapter=None)), found)
    assert server.url in str(error.value)
    assert found == []


def test_a_broken_server_costs_no_samples_where_another_works(world):
    """The broken one has the most free slots, so it is asked first, for whatever is left."""
    broken, works = world.server(), world.server()
    engine = world.engine(broken, works)
    broken.fault = lambda body: "500"
    requests = world.requests(20)
    check_answers(list(engine.complete(requests)), requests)
    assert engine.parallel == 4


def test_requests_that_kill_servers_are_blamed_when_the_servers_are_back(world):
    server = world.server()
    engine = world.engine(server)

    def die(body):
        if body["prompt"][:3] == [1, 1, 1]:
            server.restart(after=0.05)
            return "drop"
        return None

    server.fault = die
    bad = [world.request(f"bad{number}", tokens=(1, 1, 1)) for number in range(2)]
    good = world.requests(6)
    found = list(engine.complete([*good[:3], *bad, *good[3:]]))
    check_answers([one for one in found if "bad" not in one.key], good)
    failed = [(one.key, one.finish) for one in found if "bad" in one.key]
    assert sorted(failed) == [("bad0", "failed")] * 3 + [("bad1", "failed")] * 3


def test_the_last_request_of_all_may_be_the_one_that_fails(world):
    server = world.server()
    server.fault = lambda body: "500" if "seed" in body else None
    found = list(world.engine(server).complete([world.request("bad")]))
    assert [one.finish for one in found] == ["failed"] * 3


def test_a_model_that_cannot_be_loaded_is_no_fault_of_its_requests(world):
    server, found = world.server(load="as planned"), []
    engine = world.engine(server, patience=0.02)
    with pytest.raises(EngineError, match=r"load_lora_adapter answered 500: as planned"):
        gather(engine.complete(world.requests(6)), found)
    assert found == []


def test_a_sample_that_a_server_gives_up_is_asked_for_again(world):
    """As vLLM while it shuts down."""
    server, count = world.server(), itertools.count()
    engine = world.engine(server)

    def give_up(body, answer):
        if "seed" in body and next(count) % 12 == 10:
            answer["choices"][0]["finish_reason"] = "abort"

    server.change = give_up
    requests = world.requests()
    check_answers(list(engine.complete(requests)), requests)
    assert engine.faults >= 1


@pytest.mark.parametrize(
    ("kind", "lies", "says"),
    [
        ("vllm", {"status": 404}, "is neither vLLM nor llama-server: GET /v1/models gives 404"),
        ("vllm", {"status": 200, "says": "<html>hi</html>"}, "answered no JSON, but '<html>hi"),
        ("vllm", {"status": 307}, "redirects to another address"),
        ("vllm", {"key": "Bearer secret"}, "401: Unauthorized; check engine.servers, and the key"),
        ("vllm", {"owner": "some\nbody"}, "of a kind that is not known ('some body')"),
        ("vllm", {"owner": "x" * 9000}, "xxx …'); use vLLM or llama-server"),
        ("llama", {"single": True}, "start it with --models-preset"),
        ("llama", {"blind": True}, "failed to load: it must see"),
    ],
)
def test_what_is_no_server_of_ours_is_said_at_the_start(world, kind, lies, says):
    with pytest.raises(EngineError) as error:
        world.engine(world.server(kind, **lies))
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("kind", "lies", "says"),
    [
        ("vllm", {"no_routes": True}, "start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        (
            "vllm",
            {"load": "Worker failed with error 'LoRA rank 32 is greater than max_lora_rank 16.'"},
            "than max_lora_rank 16.'; start it as `doctor --servers RUN` says",
        ),
        ("vllm", {"base": "another"}, "model served, has the same likeliest token as the base"),
        ("vllm", {"ignores": True}, "so it ignores the adapter"),
        ("vllm", {"adapter": "M0"}, "of the adapter's effect in training, not 100 ± 25 %"),
        ("llama", {"base": "another"}, "serves another model"),
        ("llama", {"ignores": True}, "so it ignores the adapter"),
        ("llama", {"scale": 0.5}, "adapter.gguf at 0.5 in tiny-M1-"),
    ],
)
def test_another_model_is_found_before_a_sample_is_drawn(world, kind, lies, says):
    server = world.server(kind, **lies)
    with pytest.raises(EngineError) as error:
        list(world.engine(server).complete(world.requests(1)))
    assert says in str(error.value)
    assert str(error.value).startswith(server.url)
    assert not [body for body in server.asked if "seed" in body]


def test_a_folder_that_the_server_does_not_see_is_named(world):
    server = world.server()
    engine = world.engine(server)
    request = world.request("r", adapter="M1")
    engine._spec.paths.__dict__["seen_as"] = world.folder / "elsewhere"
    with pytest.raises(EngineError, match=r"cannot load the adapter .*set engine.shared"):
        list(engine.complete([request]))


def test_a_router_that_reads_another_file_is_named(world):
    server = world.server("llama")
    server.presets = world.folder / "other.ini"
    with pytest.raises(EngineError, match=r"does not know tiny-base-\w{8} after reloading"):
        world.engine(server)


def test_presets_are_written_before_they_are_used(world):
    (world.folder / PRESETS).unlink()
    with pytest.raises(EngineError, match="is missing: `doctor --servers RUN` writes it"):
        world.engine(world.server("llama"))


def test_a_section_is_added_once_and_never_changed(tmp_path):
    file = tmp_path / PRESETS
    file.write_text(build_head(2, 100))
    for _ in range(2):
        add_section(file, "M0", "/runs/base.gguf", "/runs/M0/adapter.gguf")
    sections = read_sections(file.read_text())
    assert sections["*"] == ["np = 2", "c = 200", "cache-ram = 0"]
    assert sections["M0"] == ["model = /runs/base.gguf", "lora = /runs/M0/adapter.gguf"]
    with pytest.raises(EngineError, match="remove that section"):
        add_section(file, "M0", "/runs/base.gguf", None)
    with pytest.raises(EngineError, match="rename that folder"):
        add_section(file, "M1", "/runs/a\n[x]/base.gguf", None)


def test_a_key_is_sent_and_never_shown(world, monkeypatch):
    monkeypatch.setenv(KEY, "hunter2")
    server = world.server(key="Bearer hunter2")
    engine = world.engine(server)
    requests = world.requests(2)
    check_answers(list(engine.complete(requests)), requests)
    assert all(one["Authorization"] == "Bearer hunter2" for one in server.headers)
    server.fault = lambda body: "403"
    monkeypatch.setattr(
        server, "_fail", lambda handler, _: server._send(handler, 403, "hunter2 is bad")
    )
    with pytest.raises(EngineError) as error:
        list(engine.complete(world.requests(1)))
    assert "hunter2" not in str(error.value)
    assert "*** is bad" in str(error.value)


def test_a_server_that_comes_back_with_less_context_is_refused(world):
    server = world.server()
    engine = world.engine(server)
    list(engine.complete(world.requests(1)))
    server.stop()
    server.context = 100
    server.restart()
    server.fault = lambda body: None
    server.adapters.clear()
    time.sleep(0.1)
    with pytest.raises(EngineError, match="with a context of 100, and the run has worked with 200"):
        list(engine.complete(world.requests(1)))


def test_an_iterator_that_is_closed_leaves_the_engine_usable(world):
    engine = world.engine(world.server())
    answers = engine.complete(world.requests(10))
    next(answers)
    with pytest.raises(RuntimeError, match="already completing"):
        next(engine.complete([]))
    answers.close()
    requests = world.requests(4)
    check_answers(list(engine.complete(requests)), requests)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        list(engine.complete(requests))


def test_the_bytes_of_an_adapter_are_in_its_name(world):
    server = world.server()
    engine = world.engine(server)
    list(engine.complete(world.requests(1)))
    (before,) = server.adapters
    weights = world.folder / "M1" / "adapter" / "adapter_model.safetensors"
    weights.write_text("trained again")
    engine.close()
    list(world.engine(server).complete(world.requests(1)))
    assert len(server.adapters) == 2
    assert before.startswith("tiny-M1-")
