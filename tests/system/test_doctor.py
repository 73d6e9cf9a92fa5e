"""`doctor` on simulated machines, and on this one."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from machines import GB, PINS, RTX, T4
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
from selfreward_lite.system import doctor, gpu, processes
from selfreward_lite.system.doctor import Machine
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.gpu import Gpu


def machine(card: Gpu | None = None, **changed) -> Machine:
    """A machine without faults, with a GPU or without."""
    seen = (
        [
            {
                "name": card.name,
                "capability": list(card.capability),
                "free": card.free,
                "total": card.total,
            }
        ]
        if card
        else []
    )
    offloaded = "load_tensors: offloaded 5/5 layers to GPU" if card else None
    whole = Machine(
        python=(3, 11, 7),
        system="Linux",
        wsl=False,
        wanted=PINS,
        installed=dict(PINS),
        gpus=(card,) if card else (),
        unsloth="2026.10.7" if card else None,
        torch={"version": "2.13.0", "cuda": "13.0" if card else None, "kernels": [], "cards": seen},
        llama={
            "version": "0.3.36",
            "can_offload": bool(card),
            "amx": False,
            "error": None,
            "offloaded": offloaded,
        },
        free=500 * GB,
        hub=True,
    )
    return replace(whole, **changed)


P100 = Gpu("Tesla P100", "580.1", (6, 0), 16 * GB, 16 * GB)


def said(found: Machine) -> dict[str, doctor.Finding]:
    return {one.what: one for one in doctor.findings(found)}


@pytest.mark.parametrize("card", [None, RTX, T4])
def test_machine_without_faults_needs_no_fix(card):
    found = doctor.findings(machine(card))
    assert {one.state for one in found} <= {"good", "note"}
    assert [one.fix for one in found] == [None] * len(found)
    assert len({one.what for one in found}) == len(found)


def test_bf16_follows_the_capability_and_not_what_torch_says():
    assert "trains in bf16" in said(machine(RTX))["torch"].words
    assert "trains in fp16" in said(machine(T4))["torch"].words


def test_gpu_that_is_too_old_has_no_fix():
    found = said(machine(P100))["GPU"]
    assert found.state == "bad"
    assert "6.0 is below 7.5" in found.words


def test_memory_used_by_a_desktop_is_reported():
    found = said(machine(replace(RTX, free=20 * GB)))["GPU"]
    assert found.state == "note"
    assert "uses 4.3 GB" in found.words
    assert "the first of 2 is used" in said(machine(RTX, gpus=(RTX, RTX)))["GPU"].words


@pytest.mark.parametrize(
    "llama",
    [
        {
            "error": "a GPU was asked for, but this llama-cpp-python is built for the CPU only",
            "can_offload": False,
        },
        {"error": None, "offloaded": "load_tensors: offloaded 0/5 layers to GPU"},
        {"error": None, "offloaded": "load_tensors: offloaded 3/5 layers to GPU"},
        {"error": None, "offloaded": None},
        {"error": "its process was ended by signal 11"},
    ],
)
def test_llama_cpp_must_prove_that_it_uses_the_gpu(llama):
    whole = machine(RTX)
    found = said(replace(whole, llama={**whole.llama, **llama}))["llama.cpp"]
    assert found.state == "bad"
    assert found.words.startswith("does not use the GPU: ")
    assert found.fix == "python -m selfreward_lite llama"


def test_torch_without_cuda_on_a_gpu_machine():
    whole = machine(RTX)
    found = said(replace(whole, torch={**whole.torch, "cuda": None, "cards": []}))["torch"]
    assert (found.state, found.fix) == (
        "bad",
        f"pip install --force-reinstall torch=={PINS['torch']}",
    )
    assert "built without CUDA" in found.words


def test_packages_missing_or_of_another_version():
    found = said(machine(installed={**PINS, "llama-cpp-python": None}))["packages"]
    assert (found.state, found.fix) == ("bad", "pip install -r requirements.txt")
    assert "missing: llama-cpp-python (" in found.words
    assert "a C++ compiler is needed" in found.words
    found = said(machine(RTX, installed={**PINS, "llama-cpp-python": None}))["packages"]
    assert found.fix == "python -m selfreward_lite llama", "pip would compile it for the CPU"
    found = said(machine(installed={**PINS, "trl": "1.16.0", "torch": f"{PINS['torch']}+cpu"}))[
        "packages"
    ]
    assert (found.state, found.words, found.fix) == (
        "note",
        f"not the versions that were tested together: trl 1.16.0 instead of {PINS['trl']}",
        f"pip install trl=={PINS['trl']}",
    )


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


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("kill -11 $$", "ended by SIGSEGV"),
        ("echo first >&2; echo last words >&2; exit 3", "last words"),
    ],
)
def test_probe_that_dies_is_a_finding(tmp_path, monkeypatch, script, words):
    (tmp_path / "python").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert words in doctor._probe("llama", "0")["error"]


@pytest.mark.parametrize(
    ("said", "there", "words"),
    [
        (
            {"can_offload": False},
            [RTX],
            "built for the CPU only, and a GPU is to be used: run "
            "`python -m selfreward_lite llama`",
        ),
        ({"error": "it died"}, [RTX], "llama.cpp cannot be used (it died)"),
        ({"can_offload": False}, [], "none is found"),
    ],
)
def test_unusable_gpu_is_reported_before_any_download(monkeypatch, said, there, words):
    monkeypatch.setattr(doctor, "list_gpus", lambda: there)
    monkeypatch.setattr(doctor, "_probe", lambda kind: said)
    doctor.check_gpu(0)
    with pytest.raises(UserError) as refused:
        doctor.check_gpu(-1)
    assert words in str(refused.value)
    monkeypatch.setattr(doctor, "_probe", lambda kind: {"can_offload": True})
    doctor.check_gpu(-1)


def test_build_for_cuda_that_does_not_start_is_no_cpu_build(monkeypatch):
    monkeypatch.setattr(doctor, "list_gpus", lambda: [RTX])
    monkeypatch.setattr(doctor.cuda, "build_cuda", lambda: 14)
    monkeypatch.setattr(doctor, "_probe", lambda kind: {"can_offload": False})
    with pytest.raises(UserError, match="driver 580.1 is older than this build's CUDA 14, and"):
        doctor.check_gpu(-1)
    assert "older than this build" in doctor.find_idle_build(RTX)
    monkeypatch.setattr(doctor, "_probe", lambda kind: {"can_offload": True})
    assert doctor.find_idle_build(RTX) is None
    monkeypatch.setattr(doctor, "_probe", lambda kind: {"error": "it cannot be loaded"})
    assert doctor.find_idle_build(RTX) is None, "another build may do"
    monkeypatch.setattr(doctor.cuda, "build_cuda", lambda: None)
    assert doctor.find_idle_build(RTX) is None, "a build for the CPU"


def test_run_without_its_gpu_ends_before_any_download(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "list_gpus", list)
    monkeypatch.setattr(doctor, "_probe", lambda kind: {"can_offload": False})
    monkeypatch.setattr(hub, "fetch", lambda *_: pytest.fail("a download"))
    ended = CliRunner().invoke(app, ["run", "--preset", "small", "--runs-dir", str(tmp_path)])
    assert isinstance(ended.exception, UserError), ended.exception
    assert "none is found" in str(ended.exception)


def test_finished_run_needs_no_gpu(monkeypatch, tmp_path, chat):
    with Store.write(tmp_path / "run") as store:
        settings = prepare.load_or_create_settings(store, {**SMALL, "iterations": "0"}, "tiny")
        loop.run(store, settings, scripted_runtime(chat), lambda at: None)
    monkeypatch.setattr(doctor, "_probe", lambda kind: {"can_offload": False})
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


def test_unsloth_is_reported_with_a_gpu():
    assert "unsloth" not in said(machine())
    missing = said(machine(RTX, unsloth=None))["unsloth"]
    assert (missing.state, missing.fix) == ("note", "pip install -r requirements-gpu.txt")
    assert said(machine(RTX))["unsloth"].words == "2026.10.7 trains"


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
