"""What a run asks of its machine before the first download: which runs, and the GPU's memory."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from machines import GB, RTX, write_nvidia_smi, write_script

from selfreward_lite import config
from selfreward_lite.models import memory
from selfreward_lite.models.hf_folder import SHAPES
from selfreward_lite.run import readiness
from selfreward_lite.system import gpu
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.gpu import Gpu

SMALL = {"model.base": "tiny"}
CARD = replace(RTX, uuid="GPU-1f")
LLAMA = SHAPES["llama-3-8b"]


class Doctor:
    """Replaces the probes of this machine, and keeps what was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[dict] = []
        for name in ("check_gpu", "check_without_gpu"):
            monkeypatch.setattr(readiness.doctor, name, self.note(name))

    def note(self, name: str):
        return lambda *_, **named: self.asked.append({"name": name, **named})


@pytest.fixture
def doctor(monkeypatch) -> Doctor:
    return Doctor(monkeypatch)


def check(monkeypatch, folder: Path, cards: list[Gpu], preset: str, **changed: str) -> list[str]:
    """Check a played machine with these cards; returns what was said."""
    write_nvidia_smi(folder, cards)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    said: list[str] = []
    overrides = {name.replace("__", "."): value for name, value in changed.items()}
    readiness.check_machine(config.load(preset, overrides), folder, said.append)
    return said


@pytest.mark.parametrize("preset", ["tiny", "smol"])
@pytest.mark.parametrize("cards", [[], [CARD]], ids=["no card", "a card"])
def test_a_small_model_on_a_cpu_is_left_alone(monkeypatch, tmp_path, doctor, preset, cards):
    assert check(monkeypatch, tmp_path, cards, preset) == []
    assert doctor.asked == []


@pytest.mark.parametrize("preset", ["overnight", "t4", "small", "qwen3", "qwen3-small", "paper"])
def test_a_preset_for_a_gpu_tries_it(monkeypatch, tmp_path, doctor, preset):
    check(monkeypatch, tmp_path, [CARD], preset)
    (asked,) = doctor.asked
    assert (asked["name"], asked["with_llama"], asked["backend"]) == ("check_gpu", True, "auto")


def test_a_run_on_servers_needs_no_gpu_for_llama_cpp(monkeypatch, tmp_path, doctor):
    servers = {"engine__kind": "server", "engine__servers": '["http://gpu1:8000"]'}
    check(monkeypatch, tmp_path, [], "tiny", engine__gpu_layers="-1", **servers)
    assert doctor.asked == []
    check(monkeypatch, tmp_path, [CARD], "overnight", **servers)
    assert doctor.asked[0]["with_llama"] is False  # training still uses it


def test_a_preset_for_a_gpu_on_a_machine_without_one(monkeypatch, tmp_path, doctor):
    check(monkeypatch, tmp_path, [], "overnight")
    assert doctor.asked == [{"name": "check_without_gpu", "is_large": True}]


def test_a_small_model_that_is_to_use_the_gpu_tries_it(monkeypatch, tmp_path, doctor):
    check(monkeypatch, tmp_path, [CARD], "tiny", engine__gpu_layers="-1")
    assert doctor.asked[0]["name"] == "check_gpu"
    doctor.asked.clear()
    check(monkeypatch, tmp_path, [], "tiny", engine__gpu_layers="-1")
    assert doctor.asked == [{"name": "check_without_gpu", "is_large": False}]


def test_a_large_model_that_answers_on_the_cpu_still_trains_on_the_gpu(
    monkeypatch, tmp_path, doctor
):
    check(monkeypatch, tmp_path, [CARD], "overnight", engine__gpu_layers="0")
    assert doctor.asked[0]["name"] == "check_gpu"
    assert doctor.asked[0]["with_llama"] is False


def test_a_large_model_on_a_cpu_on_purpose_is_told_of_the_days(monkeypatch, tmp_path, doctor):
    (said,) = check(monkeypatch, tmp_path, [], "overnight", engine__gpu_layers="0")
    assert "on the CPU, for days" in said
    assert not doctor.asked


def test_a_large_model_does_not_train_on_the_cpu_since_the_driver_fails(
    monkeypatch, tmp_path, doctor
):
    """As after an update of the driver, before the restart."""
    fault = "Failed to initialize NVML: Driver/library version mismatch"
    monkeypatch.setattr(gpu, "_ask_driver", lambda *_: ("", fault))
    with pytest.raises(UserError, match=f"on the CPU for days .nvidia-smi fails: {fault}"):
        check(monkeypatch, tmp_path, [], "overnight", engine__gpu_layers="0")
    check(monkeypatch, tmp_path, [], "tiny")
    monkeypatch.setattr(gpu, "_ask_driver", lambda *_: ("", None))
    monkeypatch.setattr(gpu, "lacks_driver", lambda: True)
    with pytest.raises(UserError, match="the GPU has no driver"):
        check(monkeypatch, tmp_path, [], "overnight", engine__gpu_layers="0")


def test_a_gpu_may_be_hidden_on_purpose(monkeypatch):
    monkeypatch.setattr(gpu, "_ask_driver", lambda *_: ("", "no answer within 30 s"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu.explain_missing_gpu() == "nvidia-smi fails: no answer within 30 s"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert gpu.explain_missing_gpu() is None


def test_a_broken_base_is_refused_as_such(monkeypatch, tmp_path, doctor):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no family that is supported"):
        check(monkeypatch, tmp_path, [], "tiny", model__base=str(tmp_path / "base"))


# -- several GPUs ----------


def test_each_process_needs_a_gpu(monkeypatch, tmp_path, doctor):
    with pytest.raises(UserError, match=r"1 GPU is visible: set training\.processes=1 or lower"):
        check(monkeypatch, tmp_path, [CARD], "overnight", training__processes="2")
    two = [CARD, replace(CARD, uuid="GPU-2e")]
    with pytest.raises(UserError, match="2 GPUs are visible"):
        check(monkeypatch, tmp_path, two, "tiny", training__processes="4")
    assert check(monkeypatch, tmp_path, [], "tiny", training__processes="4") == [], "on the CPU"


def test_memory_of_every_gpu_that_trains_is_compared(monkeypatch, tmp_path, doctor):
    cards = [CARD, replace(CARD, uuid="GPU-2e", free=3 * GB), replace(CARD, free=3 * GB)]
    said = check(monkeypatch, tmp_path, cards, "overnight", training__processes="2")
    (line,) = [one for one in said if one.startswith("memory of GPU")]
    assert line.startswith("memory of GPU 2: training needs ")
    assert "lower training.processes" in line
    servers = {"engine__kind": "server", "engine__servers": '["http://127.0.0.1:1"]'}
    said = check(monkeypatch, tmp_path, cards[1:], "overnight", **servers)
    (line,) = [one for one in said if one.startswith("memory of GPU")]
    assert line.startswith("memory of GPU 1: training needs "), "servers answer, this GPU trains"


# -- memory ----------

PROGRAMS = """<nvidia_smi_log><gpu><uuid>GPU-1f</uuid><processes><process_info><pid>9</pid>
<process_name>/usr/bin/firefox</process_name><used_memory>8000 MiB</used_memory>
</process_info></processes></gpu></nvidia_smi_log>"""


def test_memory_that_others_hold_is_told_with_their_names(monkeypatch, tmp_path, doctor):
    settings = config.load("overnight")
    most = memory.largest_peak(memory.estimate_peaks(settings, LLAMA))
    assert readiness.describe_memory(settings, LLAMA, replace(CARD, free=most)) == []
    write_nvidia_smi(tmp_path, [CARD], PROGRAMS)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (said,) = readiness.describe_memory(settings, LLAMA, replace(CARD, free=most - 1))
    assert f"needs {most / 1e9:.1f} GB of the GPU by the estimate of `plan`" in said
    assert "in use by firefox 8.4 GB. Close them, or lower engine.context" in said
    assert "on Windows (WSL2)" in said


def test_memory_that_the_gpu_does_not_have_is_no_ones_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(readiness, "list_gpu_users", lambda gpu: pytest.fail("asked"))
    small = replace(CARD, free=11 * GB, total=12 * GB)
    (said,) = readiness.describe_memory(config.load("overnight"), LLAMA, small)
    assert said.endswith("or take a smaller preset")
    assert "11.8 GB of 12.9 GB are free" in said


def test_who_uses_an_unnamed_gpu_is_a_guess(tmp_path, monkeypatch):
    write_script(tmp_path / "nvidia-smi", "exit 0")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    short = replace(CARD, free=10 * GB)
    (said,) = readiness.describe_memory(config.load("overnight"), LLAMA, short)
    assert "in use by other programs (a desktop, a browser)" in said


def test_a_gguf_on_the_hub_is_planned_when_it_is_here(monkeypatch, tmp_path, doctor):
    base = "maker/model/small.Q8_0.gguf"
    said = check(
        monkeypatch, tmp_path, [CARD], "overnight", model__base=base, model__quantisation="nf4"
    )
    assert said[-1].startswith(f"{base} is not here yet")
