"""The batched engine compared with itself: batched, shared and swapped equal single and alone."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engine_models import quantise, write_adapter, write_model

from selfreward_lite.engine import llama, loading
from selfreward_lite.engine.api import (
    Bracket,
    Closing,
    Completion,
    LlamaSpec,
    Probe,
    Request,
    Sampling,
)
from selfreward_lite.engine.llama import LlamaEngine
from selfreward_lite.engine.scheduler import probabilities
from selfreward_lite.system.errors import EngineError

pytest.importorskip("llama_cpp")
BEGIN, END = 297, 298
GREEDY = Sampling(temperature=0.0, top_p=1.0, max_tokens=12)
WARM = Sampling(temperature=1.0, top_p=0.95, max_tokens=12, top_k=50)
HEAD = (BEGIN, *b"Judge this answer to the question with care: ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return write_model(folder / "base.gguf", spread=4.0)


@pytest.fixture(scope="module")
def adapters(folder: Path) -> list[str]:
    return [str(write_adapter(folder / f"adapter{seed}.gguf", seed=seed)) for seed in (1, 2)]


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[LlamaEngine]:
    engine = LlamaEngine(
        LlamaSpec(model=model, parallel=16, context=4096, batch=128, threads=1, exact=True)
    )
    yield engine
    engine.close()


def ask(
    name: str,
    *,
    sampling: Sampling = GREEDY,
    seeds: tuple[int, ...] = (0,),
    adapter: str | None = None,
) -> Request:
    return Request(name, (*HEAD, *name.encode() * 3), seeds, sampling, (END,), adapter)


def by_sample(completions: list[Completion]) -> dict[tuple[str, int], Completion]:
    found = {(completion.key, completion.sample): completion for completion in completions}
    assert len(found) == len(completions)
    return found


def answers(engine: LlamaEngine, requests: list[Request]) -> dict[tuple[str, int], tuple[int, ...]]:
    return {
        key: completion.tokens
        for key, completion in by_sample(list(engine.complete(requests))).items()
    }


def alone(engine: LlamaEngine, requests: list[Request]) -> dict[tuple[str, int], tuple[int, ...]]:
    """Complete every request in a run of its own, with nothing shared."""
    found = {}
    for request in requests:
        engine.logits([1])  # forgets all computed prompts
        found |= answers(engine, [request])
    return found


def test_batched_equals_single(engine: LlamaEngine):
    requests = [ask(f"question {index}") for index in range(40)]
    assert answers(engine, requests) == alone(engine, requests)


def test_quantized_prompts_do_not_crash_and_follow_their_logits(model: Path, folder: Path):
    """Also with AMX. Batches round activations to 8 bits differently, so near-ties may differ."""
    engine = LlamaEngine(
        LlamaSpec(
            model=quantise(model, folder / "q8.gguf"), parallel=8, context=1024, batch=64, threads=1
        )
    )
    requests = [ask(f"question {index}") for index in range(12)]
    found = answers(engine, requests)
    for request in requests:
        said = list(found[request.key, 0])
        rows = engine.logits([*request.tokens, *said])[len(request.tokens) - 1 : -1]
        lost = rows.max(axis=1) - rows[range(len(said)), said]
        assert lost.max() < 0.1 * rows.std()
    engine.close()


def test_unified_and_split_cache_give_the_same_text(engine: LlamaEngine, model: Path):
    parts = LlamaEngine(
        LlamaSpec(
            model=model,
            parallel=8,
            context=4096,
            batch=64,
            threads=1,
            roots=8,
            unified=False,
            exact=True,
        )
    )
    closing = Closing(tuple(b"\nScore: "), tuple(b"012345"))
    requests = [
        replace(ask(f"question {index}", seeds=(1, 2)), closing=closing) for index in range(20)
    ]
    found, again = (by_sample(list(one.complete(requests))) for one in (parts, engine))
    assert found.keys() == again.keys()
    for key, one in found.items():
        assert one.tokens == again[key].tokens
        assert one.closing == pytest.approx(again[key].closing, rel=1e-3)
    parts.close()


def test_split_cache_serves_adapters_and_survives_failures(
    engine: LlamaEngine, model: Path, adapters: list[str], monkeypatch: pytest.MonkeyPatch
):
    parts = LlamaEngine(
        LlamaSpec(
            model=model,
            parallel=4,
            context=256 * 8,
            batch=64,
            threads=1,
            roots=4,
            unified=False,
            exact=True,
        )
    )
    requests = [
        ask(f"question {index}", seeds=(1, 2, 3), adapter=[None, *adapters][index % 3])
        for index in range(18)
    ]
    whole = answers(engine, requests)
    running = parts.complete(requests)
    for _ in range(5):
        next(running)
    running.close()
    assert answers(parts, requests) == whole
    decode, count = parts._device.decode, iter(range(1000))
    monkeypatch.setattr(
        parts._device,
        "decode",
        lambda *rows: decode(*rows) if next(count) % 7 or len(rows[0].tokens) == 1 else 1,
    )
    assert answers(parts, requests) == whole
    parts.close()


def test_greedy_follows_logits_and_prefixes_are_computed_once(model: Path):
    engine = LlamaEngine(
        LlamaSpec(model=model, parallel=8, context=2048, batch=64, threads=1, exact=True)
    )
    requests = [ask(f"question {index}", seeds=(1, 2, 3)) for index in range(10)]
    found = answers(engine, requests)
    assert engine.stats.prompt_requested == sum(3 * len(request.tokens) for request in requests)
    assert engine.stats.prompt_computed < engine.stats.prompt_requested / 3
    for request in requests:
        said = found[request.key, 1]
        logits = engine.logits([*request.tokens, *said])
        assert said == tuple(logits[len(request.tokens) - 1 : -1].argmax(axis=1).tolist())
    engine.close()


def test_known_prompt_and_its_prefix_are_not_computed_again(model: Path):
    engine = LlamaEngine(
        LlamaSpec(model=model, parallel=4, context=1024, batch=64, threads=1, exact=True)
    )
    whole = ask("question")
    first = answers(engine, [whole])
    before = engine.stats.prompt_computed
    shorter = replace(whole, key="shorter", tokens=whole.tokens[:-4])
    assert answers(engine, [whole]) == first
    list(engine.complete([shorter]))
    assert engine.stats.prompt_computed == before + 2  # the last prompt token of each sample
    engine.close()


def test_seeds_differ_and_come_back_alone(engine: LlamaEngine):
    request = ask("draw", sampling=WARM, seeds=tuple(range(8)))
    together = answers(engine, [request])
    assert len(set(together.values())) == 8
    for sample in (0, 5):
        assert (
            answers(engine, [replace(request, seeds=(sample,))])["draw", 0]
            == together["draw", sample]
        )


def test_sampling_threads_draw_the_same_tokens(model: Path, monkeypatch: pytest.MonkeyPatch):
    requests = [ask(f"question {index}", sampling=WARM, seeds=(1, 2, 3)) for index in range(10)]
    found = []
    for worth in (10**9, 1):  # rows are never shared out; always
        monkeypatch.setattr(llama, "THREAD_WORTH", worth)
        drawing = LlamaEngine(
            LlamaSpec(model=model, parallel=8, context=2048, batch=64, threads=2, exact=True)
        )
        drawn: set[int] = set()
        draw = drawing._device._draw

        def watched(samplers, rows, draw=draw, drawn=drawn):
            drawn.add(threading.get_ident())
            return draw(samplers, rows)

        drawing._device._draw = watched
        found.append(answers(drawing, requests))
        assert (len(drawn) > 1) == (worth == 1)
        drawing.close()
    assert found[0] == found[1]


def test_mixed_adapters_equal_separate_runs(engine: LlamaEngine, adapters: list[str]):
    names = [None, *adapters]
    requests = [ask(f"question {index}", adapter=names[index % 3]) for index in range(150)]
    mixed = answers(engine, requests)
    separate: dict[tuple[str, int], tuple[int, ...]] = {}
    for name in names:
        separate |= answers(engine, [request for request in requests if request.adapter == name])
    assert mixed == separate
    plain = answers(engine, [replace(request, adapter=None) for request in requests])
    assert sum(plain[key] != mixed[key] for key in plain) > 50


def test_logits_with_and_without_adapter(engine: LlamaEngine, adapters: list[str]):
    text = list(HEAD)
    base, changed = engine.logits(text), engine.logits(text, adapters[0])
    assert base.shape == (len(text), 300)
    assert np.abs(base - changed).max() > 0.01
    assert np.array_equal(engine.logits(text), base)


def test_probe_is_the_softmax_where_the_token_was_drawn(engine: LlamaEngine):
    digits = tuple(b"012345")
    plain = WARM.model_copy(update={"max_tokens": 30, "top_k": 0, "top_p": 1.0})
    request = Request("probe", HEAD, tuple(range(60)), plain, (END,), probe=Probe(digits, ""))
    hits = [completion for completion in engine.complete([request]) if completion.probe]
    assert hits
    for hit in hits[:5]:
        place = max(index for index, token in enumerate(hit.tokens) if token in digits)
        row = engine.logits([*HEAD, *hit.tokens])[len(HEAD) + place - 1]
        assert hit.probe == pytest.approx(probabilities(row, digits), rel=1e-3)


def test_probe_waits_for_its_text(engine: LlamaEngine):
    """Greedy text is known: probe behind a marker that is there, and behind one that is not."""
    said = next(iter(engine.complete([ask("place")]))).tokens
    letters = [chr(token) if token < 128 else "?" for token in said]
    place = next((i for i in range(1, 12) if letters[i - 1].isalnum()), None)
    if place is None:
        pytest.skip("this random model says no plain letter")
    marker = letters[place - 1].swapcase()
    probes = [Probe((said[place],), marker), Probe((said[place],), "never said")]
    requests = [
        replace(ask("place"), key=str(index), probe=probe) for index, probe in enumerate(probes)
    ]
    found = by_sample(list(engine.complete(requests)))
    assert found["0", 0].probe and 0 < found["0", 0].probe[0] <= 1
    assert found["1", 0].probe is None


def test_closing_is_the_softmax_behind_the_sample(engine: LlamaEngine):
    """Many samples of many lengths at once; each closing equals the logits of its whole text."""
    digits = tuple(b"012345")
    closing = Closing(tuple(b"\nScore: "), digits, (Bracket("a", "b", tuple(b"]")),))
    plain = WARM.model_copy(update={"max_tokens": 30, "top_k": 0, "top_p": 1.0})
    open_request = Request("closed", HEAD, tuple(range(40)), plain, (END,), closing=closing)
    found = list(engine.complete([open_request]))
    assert {one.closing_text for one in found} == {"\nScore: ", "]\nScore: "}
    for one in found[:12]:
        text = [*HEAD, *one.tokens, *one.closing_text.encode()]
        assert one.closing == pytest.approx(
            probabilities(engine.logits(text)[-1], digits), rel=1e-3
        )
    plainly = list(engine.complete([replace(open_request, closing=None)]))
    assert by_sample(plainly).keys() == by_sample(found).keys()
    for key, one in by_sample(plainly).items():
        assert by_sample(found)[key].tokens == one.tokens, "a closing changes no sample"


def test_how_a_completion_ends(engine: LlamaEngine):
    plain = next(iter(engine.complete([ask("ends")])))
    assert (plain.finish, len(plain.tokens)) == ("length", 12)
    stopped = next(iter(engine.complete([replace(ask("ends"), stop=(END, plain.tokens[5]))])))
    assert stopped.finish == "stop"
    assert stopped.tokens == plain.tokens[: plain.tokens.index(plain.tokens[5])]
    long = replace(ask("long"), tokens=(BEGIN, *[65] * 2045))
    refused = list(engine.complete([replace(long, seeds=(1, 2)), ask("after")]))
    assert [completion.finish for completion in refused] == ["refused", "refused", "length"]
    assert refused[0].tokens == () and refused[0].prompt_tokens == 2046


def test_invalid_requests_are_named(engine: LlamaEngine):
    for wrong in (replace(ask("wrong"), tokens=()), replace(ask("wrong"), tokens=(BEGIN, 300))):
        with pytest.raises(EngineError, match="wrong"):
            list(engine.complete([wrong]))


def test_small_cache_admits_what_fits_and_completes_all(model: Path):
    engine = LlamaEngine(LlamaSpec(model=model, parallel=16, context=256, batch=64, threads=1))
    draw = np.random.default_rng(3)
    requests = [
        Request(
            f"{i}",
            (BEGIN, *draw.integers(0, 256, int(draw.integers(0, 200))).tolist()),
            (1, 2, 3),
            WARM,
            (END,),
        )
        for i in range(60)
    ]
    finishes = [completion.finish for completion in engine.complete(requests)]
    assert len(finishes) == 180
    assert "refused" not in finishes
    engine.close()


def test_a_refused_decode_halves_the_batch(engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch):
    requests = [ask(f"question {index}", seeds=(1, 2)) for index in range(20)]
    whole = answers(engine, requests)
    engine.logits([1])
    decode = engine._device.decode
    monkeypatch.setattr(
        engine._device, "decode", lambda *rows: decode(*rows) if len(rows[0].tokens) <= 5 else 1
    )
    assert answers(engine, requests) == whole
    monkeypatch.setattr(engine._device, "decode", lambda *rows: 1)
    with pytest.raises(EngineError, match="question"):
        list(engine.complete(requests))
    monkeypatch.undo()
    assert answers(engine, requests) == whole


def test_bad_adapters_are_errors(
    engine: LlamaEngine, folder: Path, model: Path, adapters: list[str]
):
    whole = Path(adapters[0]).read_bytes()
    cases = {"missing": None, "garbage": b"not a model at all" * 99, "empty": b""}
    cases |= {f"cut{share}": whole[: len(whole) * share // 100] for share in (1, 50, 99)}
    for name, content in cases.items():
        path = folder / f"{name}.gguf"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(EngineError, match=name):
            list(engine.complete([ask("question", adapter=str(path))]))
    with pytest.raises(EngineError, match="not a LoRA adapter"):
        list(engine.complete([ask("question", adapter=str(model))]))
    assert answers(engine, [ask("question", adapter=adapters[0])])


def test_adapters_that_do_nothing_or_do_not_fit(engine: LlamaEngine, folder: Path):
    zero = write_adapter(folder / "zero.gguf", scale=0.0)
    with pytest.raises(EngineError, match="no effect"):
        list(engine.complete([ask("question", adapter=str(zero))]))
    nan = write_adapter(folder / "nan.gguf", scale=float("nan"))
    with pytest.raises(EngineError, match="not finite"):
        list(engine.complete([ask("question", adapter=str(nan))]))
    wide = write_adapter(folder / "wide.gguf", hidden=96)
    with pytest.raises(EngineError, match="does not fit"):
        list(engine.complete([ask("question", adapter=str(wide))]))
    faint = write_adapter(folder / "faint.gguf", scale=1e-12)
    with pytest.raises(EngineError, match="no effect"):
        list(engine.complete([ask("question", adapter=str(faint))]))


def test_changed_adapter_file_is_loaded_again(engine: LlamaEngine, folder: Path):
    path = folder / "changing.gguf"
    write_adapter(path, seed=1)
    first = engine.logits([1, 2, 3], str(path))
    write_adapter(path, seed=2)
    os.utime(path, ns=(1, 1))
    assert not np.array_equal(engine.logits([1, 2, 3], str(path)), first)


def test_closing_early_leaves_the_engine_usable(engine: LlamaEngine):
    requests = [ask(f"question {index}", seeds=(1, 2)) for index in range(30)]
    whole = answers(engine, requests)
    running = engine.complete(requests)
    next(running)
    with pytest.raises(RuntimeError, match="already completing"):
        next(engine.complete(requests))
    running.close()
    assert answers(engine, requests) == whole


def test_models_that_cannot_be_loaded(
    folder: Path, model: Path, adapters: list[str], monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(EngineError, match="does not exist"):
        LlamaEngine(LlamaSpec(model=folder / "nowhere.gguf"))
    (folder / "half.gguf").write_bytes(model.read_bytes()[:5000])
    with pytest.raises(EngineError, match=r"cannot be loaded \(.*(read|load|tensor|data)"):
        LlamaEngine(LlamaSpec(model=folder / "half.gguf"))
    (folder / "words.gguf").write_text("not a model at all")
    with pytest.raises(EngineError, match=r"cannot be loaded \(.*magic"):
        LlamaEngine(LlamaSpec(model=folder / "words.gguf"))
    with pytest.raises(EngineError, match="cannot be loaded"):
        LlamaEngine(LlamaSpec(model=Path(adapters[0])))
    with pytest.raises(ValueError, match="parallel"):
        LlamaSpec(model=model, parallel=300)
    monkeypatch.setattr(loading.cpp, "llama_model_is_recurrent", lambda model: True)
    with pytest.raises(EngineError, match="use an attention model"):
        LlamaEngine(LlamaSpec(model=model))


def test_missing_gpu_is_an_error(model: Path):
    import llama_cpp

    if llama_cpp.llama_supports_gpu_offload():
        pytest.skip("this build can use a GPU")
    with pytest.raises(EngineError, match="gpu_layers=0"):
        LlamaEngine(LlamaSpec(model=model, gpu_layers=-1))


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        (None, r"no layer went there \(None\)"),
        ("load_tensors: offloaded 0/5 layers to GPU", "no layer went there .*offloaded 0/5"),
        ("load_tensors: offloaded 5/5 layers to GPU", None),
    ],
)
def test_unused_gpu_is_an_error(
    model: Path, monkeypatch: pytest.MonkeyPatch, said: str | None, fault
):
    """The log of a GPU build is simulated: test machines have no GPU."""
    load = loading.cpp.llama_model_load_from_file

    def loads(path, params):
        params.n_gpu_layers = 0
        found = load(path, params)
        if said:
            loading.LOG.receive(2, said.encode(), None)
        return found

    monkeypatch.setattr(loading.cpp, "llama_supports_gpu_offload", lambda: True)
    monkeypatch.setattr(loading.cpp, "llama_model_load_from_file", loads)
    if fault is None:
        LlamaEngine(
            LlamaSpec(model=model, parallel=2, context=256, batch=32, threads=1, gpu_layers=-1)
        ).close()
    else:
        with pytest.raises(EngineError, match=fault):
            LlamaEngine(LlamaSpec(model=model, gpu_layers=-1))


def test_closing_twice(model: Path):
    engine = LlamaEngine(LlamaSpec(model=model, parallel=2, context=256, batch=32, threads=1))
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.complete([])
