"""A device whose memory is too short for the engine: fewer cells, nothing lost, a clear end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from engine_models import write_adapter, write_model
from engine_requests import make_requests
from repository import HELPERS

from selfreward_lite.engine import llama, loading, process
from selfreward_lite.engine.api import Completion, LlamaSpec
from selfreward_lite.engine.process import ProcessEngine
from selfreward_lite.system.errors import EngineError, EngineMemoryError
from selfreward_lite.system.processes import JsonProcess

CONTEXT = 4096
Start = Callable[..., ProcessEngine]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start an engine whose device has memory for `limit` cells; it aborts at the prompt `at`."""
    engines: list[ProcessEngine] = []

    def run(limit: int, at: str = "7", fixed: bool = False, how: str = "abort") -> ProcessEngine:
        monkeypatch.setenv("PYTHONPATH", str(HELPERS))
        monkeypatch.setenv("LIMIT", str(limit))
        monkeypatch.setenv("AT", at)
        monkeypatch.setenv("HOW", how)

        def start_child(spec: LlamaSpec) -> JsonProcess:
            child = JsonProcess("short_memory_worker", env=process.environment_for(spec))
            child.send(spec.model_dump(mode="json"))
            return child

        monkeypatch.setattr(process, "start", start_child)
        sizes = {"parallel": 4, "roots": 2, "context": CONTEXT, "batch": 64}
        engines.append(ProcessEngine(LlamaSpec(model=Path("none.gguf"), **sizes), fixed=fixed))
        return engines[-1]

    yield run
    for engine in engines:
        engine.close()


def texts(completions: list[Completion]) -> list[str]:
    return sorted(completion.text for completion in completions)


def expected(count: int) -> list[str]:
    return sorted(f"{index}:{seed}" for index in range(count) for seed in (10, 11, 12))


@pytest.mark.slow
def test_an_abort_for_memory_is_told_and_costs_no_sample(start: Start, caplog):
    engine = start(limit=CONTEXT // 2 + 300)  # 4,096 and 3,072 are too many, 2,304 fit
    with caplog.at_level(logging.WARNING):
        found = list(engine.complete(make_requests(20)))
    assert texts(found) == expected(20)
    assert engine.deaths == 2
    first, second = (record.getMessage() for record in caplog.records)
    assert "CUDA error: out of memory" in first
    assert "it starts again with 3072 cells instead of 4096" in first
    assert "engine.context=2304" in second
    again = list(engine.complete(make_requests(20)))
    assert texts(again) == expected(20) and engine.deaths == 2, "the lower number stays"


@pytest.mark.slow
def test_memory_that_never_suffices_ends_with_the_next_step(start: Start):
    engine = start(limit=0)
    given: list[Completion] = []
    with pytest.raises(EngineError, match=r"memory is too short .* even with 1728 cells") as raised:
        given.extend(engine.complete(make_requests(20)))
    assert "CUDA error: out of memory" in str(raised.value)
    assert "lower engine.context" in str(raised.value)
    assert engine.deaths == 4
    # What came before the death was passed on once.
    assert texts(given) == expected(7)


@pytest.mark.slow
def test_a_context_without_memory_is_tried_with_fewer_cells(start: Start):
    engine = start(limit=3500, at="load")
    assert texts(list(engine.complete(make_requests(5)))) == expected(5)
    assert engine.deaths == 0
    with pytest.raises(EngineError, match="no memory for a context of 1728 cells.*lower engine"):
        start(limit=0, at="load")


def test_an_adapter_without_memory_is_tried_with_fewer_cells(start: Start, caplog):
    """It is loaded when the cells have taken nearly all: for M0, hours into the first night."""
    engine = start(limit=3500, how="refuse")
    with caplog.at_level(logging.WARNING):
        found = list(engine.complete(make_requests(20)))
    assert texts(found) == expected(20)
    assert "(no memory for adapter M0.gguf); it starts again with 3072 cells" in caplog.text
    assert engine.deaths == 0


# What llama.cpp says where cudaMalloc fails, of a model and of an adapter.
NO_MODEL = (
    "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 7605.33 MiB on device 0: cudaMalloc "
    "failed: out of memory",
    "llama_model_load: error loading model: unable to allocate CUDA0 buffer",
)
NO_ADAPTER = (
    "alloc_tensor_range: failed to allocate CUDA0 buffer of size 167772160",
    "llama_adapter_lora_init: failed to apply lora adapter: failed to allocate buffer for lora "
    "adapter",
)


def refuse(lines: Sequence[str]) -> Callable[..., None]:
    """A loader of llama.cpp that gives up with these lines in its log."""

    def load(*_: object) -> None:
        for line in lines:
            loading.LOG.receive(loading._LEVEL_ERROR, line.encode(), None)

    return load


def test_a_model_without_memory_is_no_broken_file(tmp_path, monkeypatch):
    model = write_model(tmp_path / "base.gguf")
    monkeypatch.setattr(loading.cpp, "llama_model_load_from_file", refuse(NO_MODEL))
    with pytest.raises(EngineError, match=r"no memory for model .*out of memory.*close other"):
        loading.load_model(model, 0)
    monkeypatch.setattr(loading.cpp, "llama_model_load_from_file", refuse(["invalid magic"]))
    with pytest.raises(EngineError, match=r"\(invalid magic\); is it a complete GGUF file"):
        loading.load_model(model, 0)


def test_an_adapter_without_memory_is_no_wrong_adapter(tmp_path, monkeypatch):
    spec = LlamaSpec(model=write_model(tmp_path / "base.gguf"), parallel=2, context=256, batch=32)
    adapter = str(write_adapter(tmp_path / "M0.gguf"))
    engine = llama.LlamaEngine(spec)
    monkeypatch.setattr(llama.cpp, "llama_adapter_lora_init", refuse(NO_ADAPTER))
    try:
        with pytest.raises(EngineMemoryError, match=r"no memory for adapter .*M0\.gguf"):
            engine.logits([1, 2, 3], adapter)
    finally:
        engine.close()


def test_a_measurement_keeps_its_cells(start: Start):
    with pytest.raises(
        EngineError, match=r"for the engine \(no memory for a context of 4096 cells"
    ):
        start(limit=3500, at="load", fixed=True)


def test_a_request_that_fits_the_wanted_cells_only_is_not_refused_in_silence(start: Start):
    long, *others = make_requests(20)
    long = replace(long, tokens=(32,) * 3500)
    engine = start(limit=3500)
    with pytest.raises(EngineError, match="needs 3560 cells, and the device has memory for 3072"):
        list(engine.complete([*others, long]))
    too_long = replace(long, tokens=(32,) * 5000)
    finishes = [one.finish for one in engine.complete([too_long])]
    assert finishes == ["refused"] * 3, "it never fitted"


def test_sequences_with_cells_of_their_own_keep_them(start: Start):
    spec = LlamaSpec(
        model=Path("none.gguf"), parallel=8, roots=2, context=10_240, batch=64, unified=False
    )
    fewer = spec.with_fewer_cells()
    assert (fewer.parallel, fewer.context) == (6, 8192)
    assert fewer.sequence_cells == spec.sequence_cells == 1024
    assert LlamaSpec(model=Path("none.gguf"), context=10_240).with_fewer_cells().context == 7680
