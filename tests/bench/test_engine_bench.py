"""`bench engine` on a small random model: its loads, its counts, its ceiling, its command."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import product
from os.path import commonprefix
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from typer.testing import CliRunner

from selfreward_lite.bench import baselines, engine
from selfreward_lite.cli.main import app
from selfreward_lite.engine import loading
from selfreward_lite.engine.api import LlamaSpec
from selfreward_lite.engine.llama import LlamaEngine
from selfreward_lite.models import quantize, random_models
from selfreward_lite.models.gguf_export import base_to_gguf
from selfreward_lite.models.random_models import write_folder
from selfreward_lite.system.errors import ConfigError, SelfRewardError

pytestmark = pytest.mark.slow  # real engines of several kinds, a quarter of a minute
ROOT = Path(__file__).parents[2]
VOCAB = random_models.SHAPES["10m"].vocab


@pytest.fixture(scope="module", params=["q8_0", "q4_k_m"])
def model(request, tmp_path_factory) -> Path:
    return random_models.write_gguf(
        tmp_path_factory.mktemp("models") / "10m.gguf", "10m", request.param
    )


def test_a_random_model_has_its_type_and_sane_logits(model):
    """Every token has another distribution, all finite: the scales keep activations in range."""
    made = LlamaEngine(LlamaSpec(model=model, parallel=4, context=512, batch=64, threads=1))
    try:
        logits = made.logits([VOCAB - 2, 300, 301, 302])
    finally:
        made.close()
    assert logits.shape == (4, VOCAB)
    assert 0.3 < logits.std() < 3
    assert abs(logits[1] - logits[2]).max() > 0.1
    assert baselines.vocabulary(model) == VOCAB
    kinds = Counter(
        tensor.tensor_type.name for tensor in GGUFReader(model).tensors if len(tensor.shape) > 1
    )
    assert kinds in ({"Q8_0": 30}, {"Q4_K": 25, "Q6_K": 5})


def test_q4_k_m_is_the_mixture_that_llama_cpp_makes(tmp_path):
    llama = replace(random_models.SHAPES["10m"], layers=16)
    random_models.SHAPES["16 layers"] = llama
    try:
        ours = random_models.write_gguf(tmp_path / "ours.gguf", "16 layers", "q4_k_m")
        folder = write_folder(tmp_path / "folder", "16 layers")
    finally:
        del random_models.SHAPES["16 layers"]
    whole = base_to_gguf(folder, tmp_path / "f16.gguf", weights="nf4", dtype="f16")
    quantize.quantize(whole, tmp_path / "theirs.gguf", "q4_k_m")
    kinds = [
        {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors}
        for path in (ours, tmp_path / "theirs.gguf")
    ]
    assert kinds[0] == kinds[1]


def test_a_shape_or_type_that_is_not_known_is_refused(tmp_path):
    with pytest.raises(
        ConfigError,
        match=f"no synthetic 7m in q8_0; choose one of {', '.join(random_models.SHAPES)}, "
        "in q8_0 or q4_k_m",
    ):
        random_models.write_gguf(tmp_path / "m.gguf", "7m")
    assert list(tmp_path.iterdir()) == []


def test_the_judge_load_shares_beginnings_and_prompts():
    load = engine.judge_load(VOCAB, 3, samples=4, tokens=60, new=20)
    assert len(load.requests) == 12
    prompts = list(dict.fromkeys(request.tokens for request in load.requests))
    assert [len(prompt) for prompt in prompts] == [60] * 3
    assert len(commonprefix(prompts)) == 30
    assert load.unique_tokens == 30 + 3 * 30
    assert all(5 <= request.sampling.max_tokens <= 20 for request in load.requests)
    assert len({request.key for request in load.requests}) == 12
    assert load == engine.judge_load(VOCAB, 3, samples=4, tokens=60, new=20), (
        "the same at every call"
    )


def test_the_meta_load_has_every_pair_in_both_orders():
    load = engine.meta_load(VOCAB, 2, judgments=3)
    assert len(load.requests) == 2 * 6
    assert {len(request.tokens) for request in load.requests} == {600}
    # Common: 150. Six prompts a response: a question of 50, three judgments after it, two more
    # after each of those.
    assert load.unique_tokens == 150 + 2 * (50 + 3 * 200 + 6 * 200)
    with pytest.raises(ConfigError, match="--prompt-tokens above 401"):
        engine.meta_load(VOCAB, 2, tokens=400)


def test_unique_tokens_are_the_nodes_of_a_trie():
    load = engine.meta_load(VOCAB, 1, judgments=3)
    nodes = {
        request.tokens[: length + 1]
        for request in load.requests
        for length in range(len(request.tokens))
    }
    assert load.unique_tokens == len(nodes)


@pytest.mark.parametrize("kind", ["judge", "meta"])
def test_no_beginning_is_computed_twice_and_all_layouts_replay(model, kind):
    load = (
        engine.judge_load(VOCAB, 3, samples=4, tokens=120, new=12)
        if kind == "judge"
        else engine.meta_load(VOCAB, 1, judgments=3)
    )
    spec = engine.spec_for(model, load, parallel=6, gpu_layers=0, threads=1)
    trace = baselines.record(baselines.Plan(spec, load))
    assert trace.quantization in ("Q8_0", "Q4_K - Medium")
    assert trace.generated == sum(request.sampling.max_tokens for request in load.requests)
    computed = sum(step.columns.shape[1] - len(step.wanted) for step in trace.steps)
    assert computed <= load.unique_tokens
    # and as on a GPU: of a cache that is divided, each part must hold the longest request
    on_gpu = spec.model_copy(update={"unified": True, "context": 1024})
    for one in (spec, on_gpu):
        plan = baselines.Plan(one, load)
        steps = baselines.record(plan).steps
        for changes in engine.list_layouts(plan):
            for change in changes:
                assert baselines.replay(one.model_copy(update=change), steps) > 0


def test_flash_is_off_on_a_cpu_with_own_cells():
    def spec(**settings) -> LlamaSpec:
        return LlamaSpec(model="m.gguf", **{"unified": False, **settings})

    assert not loading.uses_flash(spec())
    assert loading.uses_flash(spec(unified=True))
    assert loading.uses_flash(spec(gpu_layers=-1))
    assert not loading.uses_flash(spec(gpu_layers=-1, exact=True))
    assert loading.uses_flash(spec(flash=True))
    different = ({}, {"unified": True}, {"batch": 64}, {"micro_batch": 7})
    assert [loading.micro_batch(spec(**more)) for more in different] == [256, 512, 64, 7]


def test_the_ceiling_is_the_fastest_layout(monkeypatch):
    load = engine.judge_load(VOCAB, 1, samples=1, tokens=60, new=8)
    spec = engine.spec_for(Path("m.gguf"), load, parallel=2, gpu_layers=0, threads=2)
    plan, said = baselines.Plan(spec, load), []
    steps = [baselines.Step((), np.zeros((3, 1500), np.int32), 1)] * 3
    own = {"unified": False, "flash": False, "threads": 2, "micro_batch": 256}

    def search(target: dict, own_wins: bool) -> dict:
        def replay(spec, steps):
            there = {name: getattr(spec, name) for name in own}
            if own_wins and len(steps) == 3 and there == own:
                return 0.5
            return 1.0 + sum(there[name] != target[name] for name in target)

        said.clear()
        monkeypatch.setattr(baselines, "replay", replay)
        found = engine.find_fastest(plan, steps, said.append)
        return {name: getattr(found, name) for name in own}

    for values in product((True, False), (True, False), (1, 2), (256, 512)):
        target = dict(zip(own, values, strict=True))
        assert search(target, own_wins=False) == target
        assert search(target, own_wins=True) == own
        assert sum("1 steps in" in line for line in said) == 8, "searched on the first steps"
        assert sum("3 steps in" in line for line in said) == (0 if target == own else 2)


def test_the_command_measures_all_three_and_ends_in_json(tmp_path):
    command = [
        sys.executable,
        "-m",
        "selfreward_lite",
        "bench",
        "engine",
        "--synthetic",
        "10m",
        "--folder",
        str(tmp_path),
    ]
    small = {
        "--parallel": 4,
        "--samples": 3,
        "--prompt-tokens": 40,
        "--new-tokens": 16,
        "--requests": 3,
        "--repeats": 1,
    }
    options = [
        *(str(part) for pair in small.items() for part in pair),
        "--threads",
        "1",
        "--adapter",
        "random",
    ]
    ended = subprocess.run([*command, *options], capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout.splitlines()[-1])
    assert set(said) >= {
        "naive_tokens_per_s",
        "engine_tokens_per_s",
        "ceiling_tokens_per_s",
        "engine_over_naive",
        "engine_over_ceiling",
        "prefill_tokens_requested",
        "prefill_tokens_computed",
        "prefill_tokens_unique",
        "slot_occupancy",
        "sampling_share",
        "model",
        "quantisation",
        "threads",
        "gpu",
        "adapter_load_s",
        "adapter_switch_s",
        "step_s",
    }
    assert said["prefill_tokens_unique"] == 20 + 3 * 20
    assert said["prefill_tokens_unique"] - 3 + 9 == said["prefill_tokens_computed"]
    assert said["engine_over_ceiling"] == pytest.approx(
        said["engine_tokens_per_s"] / said["ceiling_tokens_per_s"], rel=0.01
    )
    assert 0 < said["slot_occupancy"] <= 1
    assert "raw llama.cpp, unified KV cache, flash attention, 1 threads" in ended.stderr
    assert set(said["step_s"]) == {"one_thread", "graph"}, (
        "with so few tokens a second thread is not woken"
    )
    assert said["adapter_load_s"] > said["adapter_switch_s"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "name a --model or a --synthetic shape"),
        (
            ("--model", "nothing.gguf", "--synthetic", "10m"),
            "name a --model or a --synthetic shape",
        ),
        (
            ("--model", "nothing.gguf"),
            "model nothing.gguf does not exist; export or download it first",
        ),
        (
            ("--model", "nothing.gguf", "--adapter", "random"),
            "a random adapter is made for a --synthetic shape",
        ),
        (("--synthetic", "10m", "--prompt-tokens", "9000"), "lower --prompt-tokens"),
        (("--synthetic", "10m", "--load", "meta", "--samples", "1"), "give --samples 2 or more"),
    ],
)
def test_what_cannot_be_measured_is_one_line(tmp_path, options, says):
    ended = CliRunner().invoke(app, ["bench", "engine", "--folder", str(tmp_path), *options])
    assert isinstance(ended.exception, SelfRewardError)
    assert says in str(ended.exception)
    assert "\n" not in str(ended.exception)
