"""What a run needs: GPU memory and disk by hand, hours by counts, the stored prediction."""

import json
import os
import subprocess
import sys
import tomllib
from unittest.mock import patch

import pytest
import scripted_run
from command_line import call
from repository import ROOT

from selfreward_lite import config
from selfreward_lite.config.settings import Settings
from selfreward_lite.data import hub
from selfreward_lite.data.store import Store
from selfreward_lite.models import memory
from selfreward_lite.models.hf_folder import BASES, SHAPES
from selfreward_lite.report import summary
from selfreward_lite.run import plan, prepare, speed, stages
from selfreward_lite.system.errors import UserError

LLAMA = SHAPES["llama-3-8b"]
OVERNIGHT = config.load("overnight")


def test_the_weights_of_llama_3_8b():
    # A block: q and o 4096 x 4096, k and v 1024 x 4096, three of 14336 x 4096.
    # Two matrices of 128,256 x 4096 outside.
    block = 2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 14336 * 4096
    assert memory.count_linear_weights(LLAMA) == 32 * block == 6_979_321_856
    assert memory.count_weights(LLAMA) == 6_979_321_856 + 2 * 128256 * 4096 == 8_029_995_008
    # LoRA of rank 16: 16 x (in + out) of each of the seven.
    sides = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)
    assert memory.count_adapter_weights(LLAMA, 16) == 32 * 16 * sides == 41_943_040


def test_memory_while_it_asks_is_that_of_a_calculation_by_hand():
    settings = OVERNIGHT.engine.model_copy(update={"parallel": 64, "context": 49152, "batch": 2048})
    parts = memory.estimate_engine(settings, LLAMA, memory.count_weights(LLAMA) * 34 / 32, 16)
    # 8.53 GB without the table of tokens, which stays with the CPU
    assert parts["weights"] == pytest.approx((8_029_995_008 - 128256 * 4096) * 34 / 32)
    assert (
        parts["KV cache"] == 49152 * 32 * 8 * 128 * 2 * 2 == 6_442_450_944
    )  # 131,072 bytes a cell
    mask = 2 * 2048 * 49152
    assert parts["a step"] == 4 * 2048 * (2 * 14336 + 8 * 4096) + mask + 4 * 80 * 128256
    assert parts["adapters"] == 3 * 4 * 41_943_040
    assert sum(parts.values()) == pytest.approx(16.3e9, rel=0.01)


def test_a_tied_output_is_on_the_gpu_too():
    tied = SHAPES["3b"]
    assert memory.estimate_offloaded(3.4e9, tied) == 3.4e9
    assert memory.count_multiplied(tied) == memory.count_weights(tied)
    assert memory.count_multiplied(LLAMA) == 6_979_321_856 + 128256 * 4096


def test_memory_of_a_dpo_step_is_that_of_a_calculation_by_hand():
    settings = OVERNIGHT.dpo.model_copy(update={"micro_batch": 1, "max_length": 2048})
    parts = memory.estimate_training(settings, LLAMA, 16, packed=True, pairs=True)
    assert parts["weights"] == pytest.approx(
        6_979_321_856 * (0.5 + 1 / 64 + 4 / 16384) + 2 * 2 * 128256 * 4096, abs=2
    )
    assert parts["weights"] == pytest.approx(5.7e9, rel=0.01)  # what such a download weighs
    assert parts["adapter"] == 41_943_040 * 20
    assert parts["logits"] == 2048 * 8192 * 26  # a tile of TRL's head
    assert parts["activations"] == 4096 * 2 * (32 * 4096 + 2 * (8 * 4096 + 6 * 14336))
    alone = memory.estimate_training(settings, LLAMA, 16, packed=True, pairs=False)
    assert alone["logits"] == 256 * 128256 * 16
    assert alone["adapter"] == 41_943_040 * 16
    plain = memory.estimate_training(settings, LLAMA, 16, packed=False, pairs=False)
    assert plain["weights"] == 2 * 8_029_995_008


@pytest.mark.slow
def test_a_logit_weighs_what_is_said_of_it(tmp_path):
    """By the memory that a step takes of a model that is nearly all vocabulary.

    Neither head holds more for longer rows, and DPO's none for a larger vocabulary, of which it
    reads a part at a time. A pair of 1,024 tokens took 4.2 GB with all its logits.
    """
    taken, llama3 = {}, 128_256
    for method, tokens, vocabulary in (
        ("dpo", 1024, llama3),
        ("dpo", 2048, llama3 // 4),
        ("dpo", 4096, llama3 // 4),
        ("sft", 512, llama3),
        ("sft", 1024, llama3),
    ):
        folder = tmp_path / f"{method}-{tokens}"
        folder.mkdir()
        command = [
            sys.executable,
            ROOT / "tests" / "helpers" / "logit_memory.py",
            method,
            str(tokens),
            str(vocabulary),
            folder,
        ]
        ended = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        assert ended.returncode == 0, ended.stderr
        taken[method, tokens] = int(ended.stdout.splitlines()[-1])
    tile = taken["dpo", 2048] / (memory.DPO_TOKENS * memory.DPO_WORDS)
    chunk = taken["sft", 512] / (memory.SFT_TOKENS * llama3)
    print(f"bytes of a step: {taken}; of a logit held: DPO {tile:.2f}, SFT {chunk:.2f}")
    assert taken["dpo", 1024] < 0.3e9
    assert taken["dpo", 4096] == pytest.approx(taken["dpo", 2048], rel=0.1)
    assert tile == pytest.approx(memory.DPO_LOGIT_BYTES, rel=0.1)
    assert taken["sft", 1024] == pytest.approx(taken["sft", 512], rel=0.1)
    assert chunk == pytest.approx(memory.SFT_LOGIT_BYTES, rel=0.1)


ONE_B = {
    "model.base": "unsloth/Llama-3.2-1B-Instruct-bnb-4bit",
    "model.origin": "unsloth/Llama-3.2-1B-Instruct",
}
QWEN3_SMALLEST = {"model.base": "unsloth/Qwen3-1.7B-bnb-4bit", "model.origin": "Qwen/Qwen3-1.7B"}


@pytest.mark.parametrize(
    ("preset", "wanted", "gigabytes"),
    # nine tenths of what a card of 24, 15 (a T4's own count), 10 and 8 GB has
    [
        ("overnight", {}, 21.6),
        ("paper", {}, 21.6),
        ("t4", {}, 13.5),
        ("small", {}, 9.0),
        ("small", ONE_B, 7.2),
        ("qwen3", {}, 21.6),
        ("qwen3-small", {}, 9.0),
        ("qwen3-small", QWEN3_SMALLEST, 7.2),
    ],
)
def test_presets_fit_the_cards_they_are_for(preset, wanted, gigabytes):
    settings = config.load(preset, wanted)
    repository = hub.parse_repository(settings.model.base)
    assert repository
    shape = SHAPES[BASES[repository.id]]
    for stage, parts in memory.estimate_peaks(settings, shape).items():
        assert sum(parts.values()) < gigabytes * 1e9, stage


def test_a_gguf_that_is_given_weighs_what_it_weighs(tmp_path):
    given = tmp_path / "llama.Q4_K_M.gguf"
    given.write_bytes(bytes(5000))
    settings = config.load("overnight", {"model.gguf_file": json.dumps(str(given))})
    assert memory.estimate_peaks(settings, LLAMA)["asking (llama.cpp)"]["weights"] == int(
        5000 * (1 - 128256 * 4096 / 8_029_995_008)
    )
    assert plan.disk_needs(settings, LLAMA)["base"] == 5000
    alone = {
        "engine": settings.engine.model_copy(update={"parallel": 1})
    }  # a step is as fast as the weights are read
    seconds = [
        speed.estimate_costs(one.model_copy(update=alone), LLAMA, speed.GPU_SPEEDS["T4"])[
            "response"
        ]
        for one in (settings, OVERNIGHT)
    ]
    assert seconds[0] < seconds[1] / 5
    given.unlink()
    with pytest.raises(UserError, match="fix model.gguf_file"):
        memory.estimate_peaks(settings, LLAMA)
    named = config.load("overnight", {"model.gguf_file": '"a/b/llama.Q4_K_M.gguf"'})
    assert memory.estimate_peaks(named, LLAMA) == memory.estimate_peaks(OVERNIGHT, LLAMA), (
        "it is not here yet"
    )


def test_another_base_has_no_origin_but_its_own():
    assert config.load("small", {"model.base": "someone/llama"}).model.origin is None
    assert config.load("small", ONE_B).model.origin == ONE_B["model.origin"]
    assert config.load("small").model.origin == "unsloth/Llama-3.2-3B-Instruct"


def amounts(settings: Settings, iteration: int) -> dict[str, float]:
    listed = stages.list_stages(settings, iteration)
    return {name: work[1] for name, work in listed.items() if work}


def test_the_counts_of_an_iteration_are_the_papers_arithmetic():
    # Full scale: 35,000 responses, 385,000 judgments, at most 550,000 battles an iteration.
    counts = amounts(config.load("paper"), 1)
    assert (counts["responses"], counts["judgments"], counts["battles"]) == (
        35_000,
        385_000,
        550_000,
    )
    assert amounts(config.load("paper"), 3)["battles"] == 0
    small = config.load(
        "overnight", {"prompts.count": "200", "responses.count": "4", "judge.count": "3"}
    )
    counts = amounts(small, 1)
    assert (counts["responses"], counts["judgments"], counts["battles"]) == (800, 2400, 1200)


def test_overnight_is_planned_below_nine_hours_on_24_gb():
    for card in ("RTX 3090", "RTX 4090"):
        costs = speed.estimate_costs(OVERNIGHT, LLAMA, speed.GPU_SPEEDS[card])
        spent = stages.seconds_by_stage(OVERNIGHT, 1, costs)
        assert 1 < sum(spent.values()) / 3600 < 9


def test_the_cost_of_judging_is_computed_from_what_plan_says():
    costs = speed.estimate_costs(OVERNIGHT, LLAMA, speed.GPU_SPEEDS["RTX 4090"])
    seconds = stages.seconds_by_stage(OVERNIGHT, 1, costs)["judgments"]
    count = amounts(OVERNIGHT, 1)["judgments"]
    hours = 500_000 * seconds / count / 3600
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    for said in (
        f"gives {seconds:,.0f} s for the stage",
        f"= {count:,.0f} judgments of 150 tokens",
        f"{count:,.0f} / {seconds:,.0f} = {count / seconds:.1f} |",
        f"= {hours:.1f} |",
        f"if neither waits | {hours / 2:.1f} |",
    ):
        assert said in page, said


def test_a_training_begins_with_loading_and_compiling():
    costs = speed.estimate_costs(OVERNIGHT, LLAMA, speed.GPU_SPEEDS["RTX 3090"])
    rows = amounts(OVERNIGHT, 1)["training"]
    spent = stages.seconds_by_stage(OVERNIGHT, 1, costs)["training"]
    assert spent == pytest.approx(rows * costs["dpo"] + 180)
    nothing = OVERNIGHT.with_values("prompts", count=0)
    assert stages.seconds_by_stage(nothing, 1, costs)["training"] == 0
    plain = OVERNIGHT.model_copy(update={"backend": "transformers"})
    assert speed.estimate_costs(plain, LLAMA, speed.GPU_SPEEDS["RTX 3090"])["start"] == 60


def test_several_processes_divide_the_time_and_hold_one_more_gradient():
    two = config.load("overnight", {"training.processes": "2"})
    costs = [speed.estimate_costs(one, LLAMA, speed.GPU_SPEEDS["T4"]) for one in (OVERNIGHT, two)]
    assert costs[1]["dpo"] == costs[0]["dpo"] / 2
    assert costs[1]["sft"] == costs[0]["sft"] / 2
    assert costs[1]["response"] == costs[0]["response"], "one GPU generates"
    assert (costs[0]["start"], costs[1]["start"]) == (180, 60), "unsloth does not train"
    alone, shared = memory.estimate_peaks(OVERNIGHT, LLAMA), memory.estimate_peaks(two, LLAMA)
    for stage in ("SFT", "DPO"):
        more = {part: size - alone[stage][part] for part, size in shared[stage].items()}
        assert more.pop("adapter") == 4 * 41_943_040
        assert not any(more.values())


def test_a_speed_measured_by_other_processes_is_converted(tmp_path):
    scripted_run.copy(tmp_path / "run", iterations="1")
    with Store.write(tmp_path / "run") as store:
        settings = config.parse(config.complete(store.fact("settings")))
        for model in (0, 1):
            store.measure(model, training_train_seconds=8.0, training_tokens=4.0)
        assert plan.measure_costs(store, settings)["dpo"] == 2.0
        store.measure(1, training_processes=2.0)
        assert plan.measure_costs(store, settings)["dpo"] == 4.0
        four = settings.with_values("training", processes=4)
        assert plan.measure_costs(store, four)["dpo"] == 1.0


def test_what_is_affordable_is_what_its_own_plan_says():
    costs = speed.estimate_costs(OVERNIGHT, LLAMA, speed.GPU_SPEEDS["RTX 3090"])
    for hours in (0.01, 1, 3, 5):
        count = plan.affordable_prompts(OVERNIGHT, 1, costs, hours * 3600)
        spent = [
            sum(
                stages.seconds_by_stage(
                    OVERNIGHT.with_values("prompts", count=prompts), 1, costs
                ).values()
            )
            for prompts in (count, count + 1)
        ]
        assert count == 0 or spent[0] <= hours * 3600 < spent[1]
    assert plan.affordable_prompts(OVERNIGHT, 1, costs, 1e9) == OVERNIGHT.prompts.count


@pytest.mark.parametrize("preset", config.presets())
def test_every_preset_is_parsed_and_planned(preset):
    settings = config.load(preset)
    repository = hub.parse_repository(settings.model.base)
    name = "135m" if settings.model.base == hub.PACKAGED else "llama-3-8b"
    shape = SHAPES[BASES[repository.id] if repository else name]
    expected = plan.predict(settings, shape, "NVIDIA GeForce RTX 4090").to_json()
    seed_stage = 11 if settings.seed_stage.trains else 9  # M0 answers and judges as the base
    assert len(expected["seconds"]) == seed_stage + 12 * settings.iterations
    assert sum(plan.disk_needs(settings, shape).values()) > 8e9 or "sm" in preset
    assert plan.predict(settings, shape, None).to_json() == {
        "card": None,
        "source": None,
        "seconds": {},
        "memory": {},
    }


@pytest.mark.parametrize("preset", [name for name in config.presets() if name != "tiny"])
def test_every_line_of_a_preset_is_explained_here_or_in_another(preset):
    """P, K, N and the caps are written out; every line has a reason, here or in another preset."""
    text = (config.PRESETS_DIR / f"{preset}.toml").read_text(encoding="utf-8")
    tree = tomllib.loads(text)
    for section, key in (
        ("prompts", "count"),
        ("responses", "count"),
        ("judge", "count"),
        ("seed_stage", "train_examples"),
    ):
        assert key in tree[section]
    for section in ("responses", "judge", "meta_judge", "prompts", "evaluation"):
        assert "max_tokens" in tree[section]["draw"]
    bare = [line for line in text.splitlines() if "=" in line and "#" not in line]
    others = "".join(
        (config.PRESETS_DIR / f"{name}.toml").read_text()
        for name in ("overnight", "t4", "small", "paper")
        if name != preset
    )
    unexplained = [
        line for line in bare if line.split("=")[0].strip() not in _explained(others + text)
    ]
    assert not unexplained


def _explained(text: str) -> set[str]:
    """The names of settings that some preset explains; a schedule's are explained by its header."""
    names = {
        line.split("=")[0].strip() for line in text.splitlines() if "=" in line and "#" in line
    }
    return names | {"rho", "judgment_pairs", "max_chosen_response", "max_chosen_judgment", "warmup"}


def test_a_base_in_16_bits_is_a_larger_download():
    packed = config.load("qwen3")
    plain = config.load("qwen3", {"model.base": "Qwen/Qwen3-8B"})
    sizes = [plan._download(one, SHAPES["qwen3-8b"]) for one in (packed, plain)]
    # 8.19e9 weights of two bytes; in NF4 the 1.24e9 of the two embeddings stay so
    assert sizes == [pytest.approx(6.11e9, rel=0.01), pytest.approx(16.42e9, rel=0.01)]


# -- the prediction ----------


@pytest.mark.slow
def test_a_stored_prediction_never_changes(tmp_path, monkeypatch):
    from selfreward_lite.system.gpu import Gpu

    monkeypatch.setattr(
        prepare,
        "list_gpus",
        lambda: [Gpu("NVIDIA GeForce RTX 3090", "580", (8, 6), 23 * 2**30, 24 * 2**30)],
    )
    scripted_run.run(tmp_path / "run", iterations="1")
    with Store.read(tmp_path / "run") as store:
        kept = store.fact("plan")
        compared = summary.compare_predictions(store)
    assert kept["card"] == "NVIDIA GeForce RTX 3090"
    assert {"M0 training", "M1 responses", "M1 judgments", "M1 training", "M1 export"} <= {
        name for name, _, _ in compared
    }
    assert all(expected == kept["seconds"][name] for name, expected, _ in compared)
    monkeypatch.setattr(prepare, "list_gpus", list)
    scripted_run.run(tmp_path / "run", iterations="2")
    with Store.read(tmp_path / "run") as store:
        assert store.fact("plan") == kept, "never refitted"


# -- the command ----------


def planned(*arguments: str) -> subprocess.CompletedProcess[str]:
    with patch.dict(os.environ, COLUMNS="160"):
        return call("plan", *arguments)


def test_the_command_prints_a_plan_without_the_model(tmp_path):
    ended = planned("--preset", "overnight", "--card", "RTX 3090", "--runs-dir", str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    for words in (
        "estimate for RTX 3090",
        "M1, in total",
        "KV cache 8.9",
        "of 64 sequences those that run at once",
        "download: 5.7 GB",
        "T4",
        "too small",
    ):
        assert words in ended.stderr, words
    document = json.loads(ended.stdout.splitlines()[-1])
    assert document["seconds"]["M1 training"] > 0
    assert document["memory"]["DPO"] == pytest.approx(13.8e9, rel=0.01)


def test_a_file_of_prompts_is_read_alone(tmp_path):
    rows = [{"prompt": "Why?", "Hint": "a"}, {"prompt": "why?"}, {"prompt": ""}]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused = planned("--prompts", str(path))
    assert refused.returncode == 2
    assert f"{path}:1: field 'hint' belongs to the task" in refused.stderr
    read = planned("--prompts", str(path), "--set", "prompts.ignore=hint,source", "--skip-bad")
    assert read.returncode == 0, read.stderr
    assert f"{path}: fields that are not used: Hint" in read.stderr
    assert "1 different prompts, 1 repeated ones" in read.stderr
    assert json.loads(read.stdout.splitlines()[-1]) == {
        "prompts": 1,
        "repeated": 1,
        "left_out": {"field 'prompt' is empty": 1},
    }


def test_without_a_gpu_the_command_gives_no_hours():
    ended = planned()
    assert ended.returncode == 0, ended.stderr
    assert "no GPU here; a run of this preset takes 5 minutes on two CPU cores" in ended.stderr
    assert "download: nothing" in ended.stderr
    ended = planned("--preset", "small")
    assert "no GPU here, so there is no estimate" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--preset", "overnight", "--card", "Voodoo 2"], "no figures of it; choose one of T4"),
        (
            ["--preset", "overnight", "--set", "model.base=some/body"],
            "some/body was not downloaded before, and the hub cannot",
        ),
        (["--preset", "nightly"], "no preset"),
    ],
)
def test_what_cannot_be_planned_is_one_line(arguments, says):
    ended = planned(*arguments)
    assert ended.returncode == 2
    assert says in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr


def test_a_preset_too_large_for_the_card_says_what_to_do():
    ended = planned("--preset", "overnight", "--card", "T4")
    assert "That is more than the 15.0 GB there are: choose --preset small or t4" in " ".join(
        ended.stderr.split()
    )
