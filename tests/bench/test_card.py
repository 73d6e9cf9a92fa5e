"""`bench card`: what it keeps when time runs out or a part fails; what its figures imply."""

import json
import subprocess
import time
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
from repository import ROOT, generated_block
from scripted_runtime import scripted_runtime
from typer.testing import CliRunner

from selfreward_lite import config
from selfreward_lite.bench import card, card_table
from selfreward_lite.bench.card import CardBenchConfig
from selfreward_lite.bench.card_file import PRECOMPUTED, CardFile, Figures, iteration_hours
from selfreward_lite.cli.main import app
from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.models.hf_folder import SHAPES
from selfreward_lite.run import speed, stages
from selfreward_lite.system.errors import DataError, EngineError, UserError
from selfreward_lite.system.gpu import Gpu


def wanted(folder, **changes) -> CardBenchConfig:
    given = {
        "shape": "10m",
        "preset": "tiny",
        "gpu": None,
        "vram": None,
        "seconds": 60.0,
        "only": None,
    }
    return CardBenchConfig(**{**given, "folder": folder, "command": "bench card", **changes})


def test_figures_are_kept_and_parts_without_time_are_named(tmp_path, monkeypatch):
    out, seen = tmp_path / "card.json", []

    def slow():
        seen.append(json.loads(out.read_text())["found"])
        time.sleep(0.3)
        return Figures(tokens_per_s=2.0)

    parts = [
        ("a", lambda: Figures(tokens_per_s=1.0)),
        ("b", slow),
        ("c", lambda: "no room on the GPU"),
        ("d", lambda: 1 / 0),
    ]
    monkeypatch.setattr(card, "_list_parts", lambda *_: iter(parts))
    monkeypatch.setattr(card, "run_in_child", lambda _, name, seconds: dict(parts)[name]())
    found = card.measure(wanted(tmp_path, seconds=0.2), out, lambda text: None)
    assert seen[0]["a"]["tokens_per_s"] == 1.0, "written before the next began"
    assert found.left_out == ["c", "d"]
    monkeypatch.setattr(card, "_list_parts", lambda *_: iter(parts[:3]))
    found = card.measure(wanted(tmp_path), out, lambda text: None)
    assert found.failed == {"c": "no room on the GPU"}
    assert json.loads(out.read_text())["found"] == {
        "a": {"tokens_per_s": 1.0, "peak_bytes": None},
        "b": {"tokens_per_s": 2.0, "peak_bytes": None},
    }
    assert CardFile.read(out) == found
    assert found.hours == {}, "too little is known"


def a_gpu(name: str) -> dict:
    return asdict(Gpu(name, "580.1", (8, 6), 24 * 10**9, 24 * 10**9))


def a_document(**changes) -> dict:
    found = {
        "q8_0: 64 sequences": {
            "tokens_per_s": 1000.0,
            "seconds": 10.0,
            "generated": 10_000,
            "read": 20_000,
        },
        "q8_0: prompts alone": {"tokens_per_s": 5000.0},
        "DPO, transformers, 1024 tokens": {"seconds_of_a_pair": 1.0, "tokens_of_a_pair": 2048},
        "DPO, unsloth, 1024 tokens": {"seconds_of_a_pair": 0.5, "tokens_of_a_pair": 2048},
    }
    return {
        "found": found,
        "card": a_gpu("NVIDIA GeForce RTX 3090"),
        "predicted": {
            "card": None,
            "source": None,
            "seconds": {"M1 x": 3600.0, "M0 y": 9.0},
            "memory": {},
        },
        **changes,
    }


def hours(**changes) -> CardFile:
    found = CardFile(shape="llama-3-8b", preset="overnight", vram=None, **a_document(**changes))
    found.add_hours()
    return found


def test_hours_follow_from_the_figures_and_scale_by_data_sheets():
    found = hours()
    settings, shape = config.load("overnight"), SHAPES["llama-3-8b"]
    costs = speed.costs_from_rates(
        settings, shape, speed.Rates((10 - 20_000 / 5000) / 10_000, 1 / 5000, 0.5 / 2048)
    )
    expected = sum(stages.seconds_by_stage(settings, 1, costs).values()) / 3600
    assert found.hours["here"] == pytest.approx(expected)
    assert found.hours["RTX 3090 (estimate)"] == pytest.approx(expected), "itself"
    assert found.hours["RTX 4090 (estimate)"] < expected < found.hours["T4 (estimate)"]
    assert found.predicted_hours == pytest.approx(1.0)
    assert list(hours(card=None).hours) == ["here"], "without a GPU, nothing about others follows"


def test_the_same_arithmetic_prices_a_plan():
    settings, shape = config.load("overnight"), SHAPES["llama-3-8b"]
    speeds = speed.GPU_SPEEDS["RTX 3090"]
    costs = speed.estimate_costs(settings, shape, speeds)
    faster = speed.Speeds(
        speeds.memory,
        2 * speeds.bandwidth,
        2 * speeds.operations,
        2 * speeds.operations8,
        speeds.threads,
    )
    twice = speed.estimate_costs(settings, shape, faster)
    assert twice["dpo"] == pytest.approx(costs["dpo"] / 2)
    # The CPU's part is as slow as before, and so is starting kernels.
    assert costs["judgment"] / 2 < twice["judgment"] < 0.65 * costs["judgment"]


def test_the_published_table_follows_from_the_files():
    files = sorted((ROOT / "docs" / "results" / "gpus").glob("card-*.json"))
    table = card_table.build_table([CardFile.read(path) for path in files])
    assert generated_block("your-gpu.md", "gpu-table") == table


RATES = speed.Rates(token=0.0006, read=0.0002, dpo=0.00025)
OVERNIGHT = config.load("overnight")
COSTS = speed.costs_from_rates(OVERNIGHT, SHAPES["llama-3-8b"], RATES)
HOURS = f"{iteration_hours(OVERNIGHT, COSTS):.2f}"


def known(**changes) -> CardFile:
    found = {
        "q8_0: naive loop": {"tokens_per_s": 50.0},
        "q8_0: 32 sequences": {"tokens_per_s": 700.0},
    }
    whole = a_document(shape="llama-3-8b", vram=None, rates=asdict(RATES))
    return CardFile.model_validate(whole | {"found": whole["found"] | found} | changes)


def rows_of(*documents: CardFile) -> dict[str, list[str]]:
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in card_table.build_table(documents).splitlines()[2:]
    ]
    return {name: rest for name, *rest in cells}


def test_a_measured_card_stands_beside_its_estimate():
    rows = rows_of(known())
    assert rows["RTX 3090"][:5] == ["1000", "20.00", "not measured yet", "0.50", HOURS]
    assert float(rows["RTX 3090"][5]) > 0
    assert rows["RTX 4090"][:5] == ["not measured yet"] * 5
    for other in ({"vram": 16 * 10**9}, {"shape": "10m"}, {"card": None}):
        assert rows_of(known(**other)) == rows_of(), "of another shape, or of a part of a card"
    broken = known(
        failed={"q8_0: naive loop": "no room", "q8_0: bare llama_decode, 32 sequences": "no room"},
        found={},
    )
    assert rows_of(broken)["RTX 3090"][:4] == [
        "not measured yet",
        "failed",
        "failed",
        "not measured yet",
    ]
    fuller = known(rates=None, found=known().model_dump()["found"] | {"more": {}})
    assert rows_of(known(), fuller, known())["RTX 3090"][4] == "not measured yet", (
        "the fullest file"
    )


@pytest.mark.parametrize(
    ("name", "row", "estimate"),
    [
        ("NVIDIA A100-PCIE-40GB", "A100-PCIE-40GB", True),
        ("NVIDIA H100 80GB HBM3", "H100 80GB HBM3", True),
        ("NVIDIA H200", "H200", True),
        ("NVIDIA GeForce RTX 5090", "RTX 5090", False),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "RTX 4090 Laptop GPU", False),
        ("NVIDIA RTX A1000", "RTX A1000", False),
        ("NVIDIA T400 4GB", "T400 4GB", False),
        ("NVIDIA GeForce RTX 3090 Ti", "RTX 3090 Ti", True),
    ],
)
def test_no_card_that_was_measured_is_left_out(name, row, estimate):
    cells = rows_of(known(card=a_gpu(name)))[row]
    assert cells[4] == HOURS
    assert (cells[5] != "–") == estimate


def test_a_gpu_too_small_for_the_preset_has_no_hours():
    cells = rows_of(known(card=a_gpu("Tesla T4")))
    assert cells["T4"] == [
        "1000",
        "20.00",
        "not measured yet",
        "0.50",
        "too small for it",
        "too small for it",
    ]
    assert cells["RTX 3060"][4:] == ["too small for it"] * 2


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read (No such file"),
        ("{", "Invalid JSON"),
        ("[1, 2]", "is not a file of `bench card`"),
        ("{}", "card: Field required"),
        (
            '{"card": null, "shape": "x", "vram": null, "found": {"a": {"tokens_per_s": "many"}}}',
            "found.a.tokens_per_s",
        ),
        (
            '{"card": null, "shape": "x", "vram": null, "found": {}, "rates": {"token": 1}}',
            "rates.read",
        ),
    ],
)
def test_what_is_no_file_of_the_bench_is_named(tmp_path, content, says):
    file = tmp_path / "card.json"
    if content is not None:
        file.write_text(content)
    ended = CliRunner().invoke(app, ["bench", "cards", str(file)])
    assert isinstance(ended.exception, DataError)
    assert str(file) in str(ended.exception)
    assert says in str(ended.exception)


def test_an_unknown_part_or_shape_is_one_line(tmp_path):
    ended = CliRunner().invoke(app, ["bench", "card", "--only", "magic"])
    assert ended.exit_code == 2
    ended = CliRunner().invoke(
        app, ["bench", "card", "--shape", "7b", "--out", str(tmp_path / "card.json")]
    )
    assert isinstance(ended.exception, UserError)
    assert str(ended.exception).startswith("--shape 7b: no such shape; choose one of tiny, 10m,")
    assert list(tmp_path.iterdir()) == []


def test_the_command_names_parts_without_time(tmp_path):
    out = tmp_path / "card.json"
    command = [
        "bench",
        "card",
        "--shape",
        "tiny",
        "--minutes",
        "0",
        "--folder",
        str(tmp_path / "models"),
        "--out",
        str(out),
    ]
    ended = CliRunner().invoke(app, command)
    assert ended.exception is None, ended.exception
    said = json.loads(ended.stdout.splitlines()[-1])
    assert "NF4 against its GGUF" in said["left_out"]
    document = json.loads(out.read_text())
    assert document["command"] == "bench card --shape tiny --minutes 0"
    assert document["predicted"]["seconds"] == {}, "of a CPU nothing is predicted"
    assert document["versions"]["llama-cpp-python"]


RTX = Gpu("NVIDIA GeForce RTX 3090", "580.1", (8, 6), 20 * 10**9, 24 * 10**9)


@pytest.mark.parametrize(
    ("looks", "most"), [([None, 7, None, 3], 7), ([None, None], None), ([-5], 0)]
)
def test_peak_memory_is_seen_though_the_driver_fails_at_times(monkeypatch, looks, most):
    answers = [
        [RTX],
        *([] if taken is None else [replace(RTX, free=RTX.free - taken)] for taken in looks),
    ]
    monkeypatch.setattr(card, "list_gpus", lambda: answers.pop(0) if answers else [])
    monkeypatch.setattr(card, "POLL", 0.001)
    with card.watch_memory(RTX) as peak:
        while answers:
            time.sleep(0.001)
    assert peak() == most


def test_what_takes_more_of_the_card_than_it_may_has_failed(tmp_path, monkeypatch):
    @contextmanager
    def watch_memory(_):
        yield lambda: 17 * 10**9

    monkeypatch.setattr(card, "watch_memory", watch_memory)
    monkeypatch.setattr(card, "_list_parts", lambda *_: iter([("a", dict)]))
    monkeypatch.setattr(card, "run_in_child", lambda *_: Figures(tokens_per_s=1.0))
    for vram, fails in ((16 * 10**9, True), (24 * 10**9, False), (None, False)):
        found = card.measure(
            wanted(tmp_path, vram=vram), tmp_path / "card.json", lambda words: None
        )
        assert ("a" in found.failed) == fails
        assert ("a" in found.found) != fails
    assert found.found["a"].peak_bytes == 17 * 10**9


def test_what_was_trained_on_the_cpu_is_no_figure_of_a_card(tmp_path, monkeypatch):
    monkeypatch.setattr(card, "_make_base", lambda _: TINY_MODEL)
    runtime = scripted_runtime(ChatFormat.load(TINY_MODEL))
    monkeypatch.setattr(card, "open_runtime", lambda backend: nullcontext(runtime))
    with pytest.raises(EngineError, match="torch sees no GPU and trained on the CPU"):
        card.train(wanted(tmp_path, gpu=RTX), "transformers", 64)


def test_torch_is_left_what_cuda_does_not_hold(tmp_path, monkeypatch):
    class Seen(Exception):
        pass

    def train(job, work, report):
        raise Seen(job.memory)

    monkeypatch.setattr(card, "_make_base", lambda _: TINY_MODEL)
    runtime = replace(scripted_runtime(ChatFormat.load(TINY_MODEL)), train=train)
    monkeypatch.setattr(card, "open_runtime", lambda backend: nullcontext(runtime))
    for vram, given in ((16 * 10**9, 15_200_000_000), (None, None)):
        with pytest.raises(Seen) as seen:
            card.train(wanted(tmp_path, vram=vram), "transformers", 64)
        assert seen.value.args == (given,)


@pytest.mark.parametrize(
    ("shape", "memory", "preset"),
    [
        ("llama-3-8b", 25 * 10**9, "overnight"),
        ("llama-3-8b", 16 * 10**9, "t4"),
        ("llama-3-8b", None, "overnight"),
        ("3b", 12 * 10**9, "small"),
        ("10m", None, "tiny"),
    ],
)
def test_what_is_measured_is_the_preset_for_such_a_card(shape, memory, preset):
    assert card.choose_preset(shape, memory) == preset


def test_on_a_card_the_presets_own_engine_is_measured(tmp_path):
    own, draw = config.load("overnight").engine, config.load("overnight").judge.draw
    one = card._EngineParts(wanted(tmp_path, preset="overnight", gpu=RTX), "q8_0")
    asked = one.plan(own.parallel)
    assert {
        name: getattr(asked.spec, name)
        for name in ("parallel", "context", "batch", "roots", "gpu_layers")
    } == {
        name: getattr(own, name) for name in ("parallel", "context", "batch", "roots", "gpu_layers")
    }
    sampling = asked.load.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (
        draw.temperature,
        draw.top_p,
        draw.top_k,
    )
    assert one.plan(8).spec.context == own.context
    small = card._EngineParts(wanted(tmp_path, preset="tiny", gpu=RTX), "q8_0")
    assert small.plan(32).spec.context > config.load("tiny").engine.context, (
        "what so many sequences need"
    )


def test_the_other_cache_holds_every_sequence_at_its_longest(tmp_path):
    for gpu, unified in ((RTX, False), (None, True)):
        parts = card._EngineParts(wanted(tmp_path, gpu=gpu), "q8_0")
        plan = parts.plan(32)
        spec = card.swap_cache(plan)
        assert (plan.spec.unified, spec.unified) == (not unified, unified)
        assert spec.context >= plan.load.cells * (32 if unified else 32 + spec.roots)


def test_drawing_is_measured_from_few_from_some_and_from_all_tokens(tmp_path, monkeypatch):
    asked = []

    def drawing(plan):
        asked.append(plan.load.requests[0].sampling.top_k)
        return {"one_thread": 1.0}

    monkeypatch.setattr(card.baselines, "drawing", drawing)
    preset = config.load("overnight").judge.draw.top_k
    for name, measure in card._EngineParts(wanted(tmp_path, preset="overnight"), "q8_0").details():
        if "drawing" in name:
            assert measure().model_dump(exclude_unset=True) == {"one_thread": 1.0}
    assert asked == [preset, config.load("paper").judge.draw.top_k, 0]


def test_a_build_for_the_cpu_is_no_card(tmp_path, monkeypatch):
    monkeypatch.setattr("llama_cpp.llama_supports_gpu_offload", lambda: False)
    parts = dict(card._list_parts(wanted(tmp_path, gpu=RTX)))
    for name in ("llama.cpp", "q8_0: naive loop"):
        with pytest.raises(EngineError, match="built for the CPU only"):
            parts[name]()


def test_what_an_ended_measurement_was_writing_is_removed(tmp_path, monkeypatch):
    def communicate(timeout=None):
        if timeout is not None:
            raise subprocess.TimeoutExpired("card", timeout)

    child = SimpleNamespace(communicate=communicate, kill=lambda: None)
    monkeypatch.setattr(card, "start_module", lambda *_, **__: child)
    names = (".8b.gguf.4242.part", "nf4/.a.safetensors.4242.part", ".8b.gguf.17.part", "8b.gguf")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    ended = card.run_in_child(wanted(tmp_path), "x", 5.0)
    assert ended == "not done in time, and ended after 5 s"
    assert [(tmp_path / name).exists() for name in names] == [False, False, False, True], (
        "by whichever of its processes"
    )


@pytest.mark.parametrize(
    ("output", "code", "found"),
    [
        ("", -11, "its process gave no answer: it was ended by SIGSEGV"),
        ('{"answer": {"tok', 0, "its process gave no answer: it ended with exit code 0"),
        ('{"answer": "no room"}\n', -11, "no room"),
        ('{"answer": {"tokens_per_s": 2.0}}\n', -11, Figures(tokens_per_s=2.0)),
    ],
)
def test_an_answer_counts_however_its_process_ends(tmp_path, monkeypatch, output, code, found):
    child = SimpleNamespace(
        communicate=lambda timeout=None: (output, None), kill=lambda: None, returncode=code
    )
    monkeypatch.setattr(card, "start_module", lambda *_, **__: child)
    assert card.run_in_child(wanted(tmp_path), "x", 5.0) == found


def test_contradicting_figures_give_no_hours():
    figures = a_document()["found"]
    figures["q8_0: prompts alone"]["tokens_per_s"] = 1000.0
    found = hours(found=figures, failed={"x": "y"})
    assert (found.hours, set(found.failed)) == ({}, {"x", "hours"})


@pytest.mark.slow
def test_a_part_runs_in_a_child_and_a_failure_is_one_line(tmp_path):
    found = card.run_in_child(wanted(tmp_path), "q8_0: naive loop", 100)
    assert found.tokens_per_s > 0
    assert card.run_in_child(wanted(tmp_path), "no such part", 100) == "'no such part'"
    late = card.run_in_child(wanted(tmp_path), "q8_0: naive loop", 0.01)
    assert late == "not done in time, and ended after 0 s"
    broken = tmp_path / "10m-q8_0.gguf"
    broken.write_bytes(b"no model")
    found = card.run_in_child(wanted(tmp_path), "q8_0: naive loop", 100)
    assert "10m-q8_0.gguf" in found
    assert str(tmp_path) not in found, "the file is for others to see"


@pytest.mark.slow
def test_all_of_it_runs_on_a_cpu_with_the_tiny_shape(tmp_path):
    out = tmp_path / "card.json"
    card.measure(
        wanted(tmp_path / "models", seconds=540.0, sequences=(1, 8), lengths=(64,)),
        out,
        lambda words: None,
    )
    document = json.loads(out.read_text())
    assert document["failed"] == {}, document["failed"]
    assert document["left_out"] == []
    found = document["found"]
    assert found["q8_0: naive loop"]["tokens_per_s"] > 0
    assert found["q4_k_m: 8 sequences"]["tokens_per_s"] > 0
    trained = found["DPO, transformers, 64 tokens"]
    assert (trained["first_margin"], trained["finite"], len(trained["losses"])) == (
        0.0,
        True,
        card.STEPS,
    )
    assert abs(found[f"DPO, transformers, 64 tokens, {PRECOMPUTED}"]["first_margin"]) < 1e-4
    assert found["NF4 against its GGUF"]["difference"] < 0.2
    assert document["hours"]["here"] > 0
