"""`doctor` on simulated machines, and on this one; what a run that needs a GPU refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from machines import (
    COMPILER,
    CPU_TORCH,
    OLD_DRIVER,
    PINS,
    RTX,
    T4,
    TOO_OLD,
    answers,
    machine,
    play_probes,
    said,
    write_nvidia_smi,
    write_script,
)
from repository import ROOT
from scripted_run import SMALL
from scripted_runtime import scripted_runtime
from typer.testing import CliRunner

from selfreward_lite.cli.main import app
from selfreward_lite.data import hub
from selfreward_lite.data.store import Store
from selfreward_lite.engine.api import LlamaSpec
from selfreward_lite.engine.process import environment_for
from selfreward_lite.run import loop, prepare
from selfreward_lite.system import doctor, gpu, probes, processes
from selfreward_lite.system.errors import UserError


def test_packages_missing_or_of_another_version():
    found = said(machine(installed={**PINS, "llama-cpp-python": None}))["packages"]
    assert (found.state, found.fix) == ("bad", "pip install -r requirements.txt")
    assert "missing: llama-cpp-python (" in found.words
    assert "a C++ compiler is needed" in found.words
    found = said(machine(RTX, installed={**PINS, "llama-cpp-python": None}))["packages"]
    assert found.fix == "python -m selfreward_lite llama", "pip would compile it for the CPU"
    found = said(machine(RTX, installed={**PINS, "llama-cpp-python": None, "trl": None}))
    assert found["packages"].fix == "pip install -r requirements-gpu.txt"
    found = said(machine(installed={**PINS, "trl": "1.16.0", "torch": f"{PINS['torch']}+cpu"}))[
        "packages"
    ]
    assert (found.state, found.words, found.fix) == (
        "note",
        f"not the versions that were tested together: trl 1.16.0 instead of {PINS['trl']}",
        f"pip install trl=={PINS['trl']}",
    )


def test_build_for_cuda_that_does_not_start_is_no_cpu_build(monkeypatch):
    monkeypatch.setattr(doctor.cuda, "build_cuda", lambda: 14)
    monkeypatch.setattr(probes, "ask", lambda kind: {"can_offload": False})
    assert doctor.find_idle_build(OLD_DRIVER) == (
        "driver 570.133.20 is older than this build's CUDA 14: update the driver to 580 or newer"
    )
    monkeypatch.setattr(probes, "ask", lambda kind: {"can_offload": True})
    assert doctor.find_idle_build(OLD_DRIVER) is None
    monkeypatch.setattr(probes, "ask", lambda kind: {"error": "it cannot be loaded"})
    assert doctor.find_idle_build(OLD_DRIVER) is None, "another build may do"
    monkeypatch.setattr(doctor.cuda, "build_cuda", lambda: None)
    assert doctor.find_idle_build(OLD_DRIVER) is None, "a build for the CPU"


def test_preinstalled_torch_is_named_and_kept():
    found = said(machine(T4, installed={**PINS, "torch": "2.11.0+cu128"}))["packages"]
    assert "torch 2.11.0+cu128 instead of" in found.words
    assert (found.state, found.fix) == ("note", None)


@pytest.mark.parametrize(
    ("changed", "what", "state", "words"),
    [
        ({"python": (3, 10, 2)}, "Python", "bad", "3.10.2 is too old"),
        ({"system": "Windows"}, "system", "bad", "WSL2"),
        ({"wsl": True}, "system", "note", "not under /mnt"),
        (
            {"torch": {"error": "No module named 'torch'"}},
            "torch",
            "bad",
            "No module named 'torch'",
        ),
        ({"llama": {"error": "it died"}}, "llama.cpp", "bad", "cannot decode: it died"),
        ({"free": 5 * 10**8}, "disk", "note", "500.0 MB free"),
        ({"hub": None}, "model hub", "note", "HF_HUB_OFFLINE=1"),
        ({"hub": False}, "model hub", "note", "cannot be reached"),
    ],
)
def test_every_other_fault_is_reported(changed, what, state, words):
    found = said(machine(**changed))[what]
    assert found.state == state
    assert words in found.words


def test_driver_output_is_read_line_by_line():
    found = gpu.parse_gpus(
        "0, GPU-1, Tesla T4, 535.1, 7.5, 14900, 15360\n"
        "1, GPU-2, Tesla T4, 535.1, 7.5, 15000, 15360\n"
    )
    assert [card.free for card in found] == [14900 * 2**20, 15000 * 2**20]
    assert found[0].name == "Tesla T4"


# -- a run that needs a GPU, on a played machine: nvidia-smi on PATH, a Python that is scripted ----

CHECK = {"with_llama": True, "backend": "auto", "say": print}


@pytest.fixture
def play(tmp_path, monkeypatch):
    """A function that makes this machine one with these cards, on which probes answer so."""

    def make(cards, **changed) -> None:
        write_nvidia_smi(tmp_path, cards)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        card = cards[0] if cards else None
        scripted = {name: changed.get(name, said) for name, said in answers(card).items()}
        monkeypatch.setattr(sys, "executable", str(play_probes(tmp_path, scripted)))
        monkeypatch.setattr(
            probes, "compile_with_python", lambda: changed.get("compiler", COMPILER)
        )
        monkeypatch.setattr(gpu, "FOLDER", tmp_path / "locks")
        versions = {**PINS, "unsloth": "2026.10.9"} | changed.get("installed", {})
        monkeypatch.setattr(doctor, "installed_version", versions.get)
        monkeypatch.setattr(hub, "fetch", lambda *_: pytest.fail("a download"))
        monkeypatch.setattr(hub, "fetch_small", lambda *_: pytest.fail("a download"))

    return make


def asked(tmp_path: Path) -> list[str]:
    """The probes that were asked, in order."""
    return (tmp_path / "asked").read_text().split()


def test_a_whole_machine_is_tried_and_passes(play, tmp_path):
    play([RTX])
    said: list[str] = []
    doctor.check_gpu(tmp_path, **{**CHECK, "say": said.append})
    assert asked(tmp_path) == ["torch", "llama", "four_bit", "triton", "unsloth"]
    assert not said


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"torch": {**answers(OLD_DRIVER)["torch"], "cards": [], "fault": TOO_OLD}},
            "torch: 2.13.0+cu130 sees no GPU: it is built for CUDA 13.0, which needs driver 580",
        ),
        ({"torch": CPU_TORCH}, "torch: 2.13.0+cpu sees no GPU: it was built without CUDA"),
        (
            {"compiler": {**COMPILER, "header": False}},
            "compiler: no Python.h in /usr/include/python3.11",
        ),
        ({"triton": {"error": "PTXASError"}}, "Triton: cannot run a kernel on the GPU: PTXASError"),
        (
            {"four_bit": "kill -11 $$"},
            "4-bit: bitsandbytes cannot compute: its process was ended by",
        ),
        ({"llama": {"error": "it died"}}, "llama.cpp: does not use the GPU: it died"),
        ({"torch": "echo nonsense"}, "torch: cannot be used: its answer cannot be read: 'nonsense"),
    ],
)
def test_whatever_would_end_the_night_ends_its_start(play, tmp_path, changed, words):
    play([OLD_DRIVER], **changed)
    arguments = ["run", "--preset", "overnight", "--runs-dir", str(tmp_path / "runs")]
    error = CliRunner().invoke(app, arguments).exception
    assert isinstance(error, UserError), error
    assert str(error).startswith(words)
    assert "\n" not in str(error)


def test_probes_that_others_doom_are_not_asked(play, tmp_path):
    play([OLD_DRIVER], torch={**answers(OLD_DRIVER)["torch"], "cards": []})
    with pytest.raises(UserError):
        doctor.check_gpu(tmp_path, **CHECK)
    assert asked(tmp_path) == ["torch", "llama"]


def test_a_broken_unsloth_is_said_and_refused_only_if_it_is_asked_for(play, tmp_path):
    play([RTX], unsloth={"error": "ImportError: no such name"})
    said: list[str] = []
    doctor.check_gpu(tmp_path, **{**CHECK, "say": said.append})
    assert said == [
        "unsloth 2026.10.9 cannot be imported, so transformers trains: ImportError: no such name"
    ]
    with pytest.raises(UserError, match="backend=unsloth, and unsloth is 2026.10.9 cannot"):
        doctor.check_gpu(tmp_path, **{**CHECK, "backend": "unsloth"})
    doctor.check_gpu(tmp_path, **{**CHECK, "backend": "transformers", "say": said.append})
    assert len(said) == 1


def test_a_llama_cpp_for_the_cpu_is_enough_if_it_is_to_run_there(play, tmp_path):
    play([RTX], llama={"error": "built for the CPU only"})
    doctor.check_gpu(tmp_path, **{**CHECK, "with_llama": False})
    with pytest.raises(UserError, match="llama.cpp"):
        doctor.check_gpu(tmp_path, **CHECK)


def test_doctor_leaves_a_gpu_alone_that_a_run_uses(play, tmp_path):
    play([RTX])
    with gpu.gpu_lock("run mine, process 7", print):
        found = doctor.examine(tmp_path)
    assert said(found)["GPU"].words.endswith(
        "used by run mine, process 7: nothing else is tried on it until that has ended"
    )
    assert not (tmp_path / "asked").exists()


def test_a_run_on_the_gpu_without_one_ends_before_any_download(play, tmp_path, monkeypatch):
    play([])
    arguments = ["run", "--preset", "small", "--runs-dir", str(tmp_path / "runs")]
    error = CliRunner().invoke(app, arguments).exception
    assert isinstance(error, UserError), error
    assert "a GPU is to be used, and none is found;" in str(error)
    write_script(tmp_path / "nvidia-smi", "echo 'Failed to initialize NVML: mismatch'; exit 18")
    error = CliRunner().invoke(app, arguments).exception
    assert "none is found (nvidia-smi fails: Failed to initialize NVML: mismatch)" in str(error)


def test_another_makers_gpu_may_do_unless_torch_would_train_for_days_on_the_cpu(play):
    play([], build={"version": "0.3.36", "can_offload": True})
    doctor.check_without_gpu(is_large=False)
    with pytest.raises(UserError, match="torch sees no GPU, and this model would train on the CPU"):
        doctor.check_without_gpu(is_large=True)
    play([], build={"can_offload": True}, torch=answers(RTX)["torch"])
    doctor.check_without_gpu(is_large=True)


def test_finished_run_needs_no_gpu(monkeypatch, tmp_path, chat):
    with Store.write(tmp_path / "run") as store:
        settings = prepare.load_or_create_settings(store, {**SMALL, "iterations": "0"}, "tiny")
        loop.run(store, settings, scripted_runtime(chat), lambda at: None)
    monkeypatch.setattr(probes, "ask", lambda kind: {"can_offload": False})
    again = [
        "run",
        "--name",
        "run",
        "--runs-dir",
        str(tmp_path),
        "--set",
        "engine.gpu_layers=-1",
        "--iterations",
    ]
    assert CliRunner().invoke(app, [*again, "0"]).exit_code == 0
    assert isinstance(CliRunner().invoke(app, [*again, "1"]).exception, UserError)


@pytest.mark.slow
def test_this_machine_is_examined_and_output_ends_in_json(tmp_path):
    command = [
        sys.executable,
        "-m",
        "selfreward_lite",
        "doctor",
        "--runs-dir",
        str(tmp_path / "runs"),
    ]
    ended = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    found = {one["what"]: one for one in json.loads(ended.stdout.splitlines()[-1])}
    assert ended.returncode == (2 if any(one["state"] == "bad" for one in found.values()) else 0), (
        ended.stderr
    )
    assert found["llama.cpp"]["state"] == "good"
    assert found["model hub"]["state"] == "note"
    assert not (tmp_path / "runs").exists(), "doctor writes nothing"


@pytest.mark.parametrize(
    ("before", "words"),
    [
        ("import os, pathlib, subprocess; os.name = 'nt'", "wsl --install"),
        (
            "import sys; sys.modules['typer'] = None",
            "the package typer is missing: run `pip install -r requirements.txt` "
            "(with a GPU: requirements-gpu.txt), or install selfreward_lite again with pip",
        ),
    ],
)
def test_start_failure_is_one_line(before, words):
    code = f"{before}; import runpy; runpy.run_module('selfreward_lite', run_name='__main__')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 2
    assert words in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_token_is_named_and_never_shown(monkeypatch, tmp_path):
    assert "HF_TOKEN" in said(machine(hub=True))["model hub"].words
    assert "with the token in HF_TOKEN" in said(machine(hub=True, token=True))["model hub"].words
    assert not [value for value in vars(machine(token=True)).values() if "hf_" in str(value)]


TWO = """0, GPU-1f2e, Tesla T4, 535.1, 7.5, 14900, 15360
1, GPU-8a9b, NVIDIA GeForce RTX 4090, 535.1, 8.9, 23028, 24564
"""


def test_gpu_of_unknown_memory_is_skipped_and_named(caplog):
    found = gpu.parse_gpus(f"{TWO}2, GPU-00, NVIDIA GB10, 580.1, 12.1, [N/A], [N/A]\n")
    assert [one.architecture for one in found] == ["75", "89"]
    assert "NVIDIA GB10" in caplog.text


@pytest.mark.parametrize(
    ("visible", "seen", "first"),
    [
        (None, ["75", "89"], "0"),
        ("1", ["89"], "1"),
        ("1,0", ["89", "75"], "1"),
        ("GPU-8a", ["89"], "GPU-8a"),
        ("", [], ""),
        ("-1", [], "-1"),
        ("7", [], "7"),
        ("MIG-5", ["75", "89"], "MIG-5"),
        ("0, 1", ["75", "89"], "0"),
    ],
)
def test_gpu_is_the_first_that_cuda_may_see(monkeypatch, visible, seen, first):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(
        gpu.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0, stdout=TWO)
    )
    assert [one.architecture for one in gpu.list_gpus()] == seen
    told = processes.one_gpu()
    assert told == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": first}
    assert processes.first_gpus(2).split(",")[0] == first
    on_gpu = environment_for(LlamaSpec(model="base.gguf", gpu_layers=-1))
    assert on_gpu.items() >= told.items()
    on_cpu = environment_for(LlamaSpec(model="base.gguf", gpu_layers=0))
    assert on_cpu["CUDA_VISIBLE_DEVICES"] == ""


def test_pins_are_those_of_the_checkout_else_of_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: ["torch==0.0.1"])
    assert doctor.read_pins()["torch"] != "0.0.1", "what is installed may be older"
    monkeypatch.setattr(doctor, "__file__", str(tmp_path / "a" / "system" / "doctor.py"))
    assert doctor.read_pins() == {"torch": "0.0.1"}
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: None)
    with pytest.raises(UserError, match="install it again"):
        doctor.read_pins()
