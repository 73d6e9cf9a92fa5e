"""Machines that tests make up: pins, GPUs, what probes answer, and a played nvidia-smi."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from selfreward_lite.system import doctor
from selfreward_lite.system.gpu import Gpu
from selfreward_lite.system.machine import Finding, Machine

GB = 2**30
PINS = doctor.read_pins()
RTX = Gpu("NVIDIA GeForce RTX 4090", "580.1", (8, 9), 23 * GB, 24 * GB)
T4 = Gpu("Tesla T4", "580.1", (7, 5), 15 * GB, 15 * GB)
OLD_DRIVER = replace(RTX, name="NVIDIA GeForce RTX 3090", driver="570.133.20", capability=(8, 6))
CPU_TORCH = {"version": "2.13.0+cpu", "cuda": None, "kernels": [], "cards": [], "fault": None}
TOO_OLD = "RuntimeError: The NVIDIA driver on your system is too old (found version 12080)"
COMPILER = {
    "compiler": "/usr/bin/gcc",
    "include": "/usr/include/python3.11",
    "header": True,
    "error": None,
}
PRODUCT = {
    "version": "0.50.2",
    "adapter": None,
    "packing": 0.092,
    "product": 0.002,
    "gradient": 0.003,
}


def answers(card: Gpu | None) -> dict[str, dict[str, Any]]:
    """What the probes answer on a machine without faults, by the probe's name."""
    seen = [] if card is None else [vars(card)]
    layers = "load_tensors: offloaded 5/5 layers to GPU" if card else None
    return {
        "torch": {
            "version": "2.13.0+cu130" if card else "2.13.0+cpu",
            "cuda": "13.0" if card else None,
            "kernels": ["sm_75", "sm_89"] if card else [],
            "cards": seen,
            "fault": None,
        },
        "build": {"version": "0.3.36", "can_offload": bool(card)},
        "llama": {
            "version": "0.3.36",
            "can_offload": bool(card),
            "amx": False,
            "error": None,
            "offloaded": layers,
            "difference": 0.004 if card else None,
        },
        "four_bit": {**PRODUCT, "device": "the GPU" if card else "the CPU"},
        "triton": {"version": "3.7.1", "error": None},
        "unsloth": {"version": "2026.10.9", "seconds": 24.0},
    }


def machine(card: Gpu | None = None, **changed: Any) -> Machine:
    """A machine without faults, with a GPU or without."""
    said = answers(card)
    whole = Machine(
        python=(3, 11, 7),
        system="Linux",
        wsl=False,
        wanted=PINS,
        installed=dict(PINS),
        gpus=(card,) if card else (),
        torch=said["torch"],
        llama=said["llama"],
        free=500 * GB,
        hub=True,
        place="ubuntu",
        has_apt=True,
        unsloth="2026.10.9" if card else None,
        compiler=COMPILER if card else None,
        triton=said["triton"] if card else None,
        four_bit=said["four_bit"],
        unsloth_import=said["unsloth"] if card else None,
    )
    return replace(whole, **changed)


def said(found: Machine) -> dict[str, Finding]:
    """The findings on a machine by their names."""
    return {one.what: one for one in doctor.findings(found)}


def write_nvidia_smi(folder: Path, cards: Sequence[Gpu], programs: str = "") -> Path:
    """A played nvidia-smi in a folder for PATH; `programs` is the XML of what is on the GPU."""
    lines = "".join(
        f"{number}, {card.uuid}, {card.name}, {card.driver}, {'.'.join(map(str, card.capability))}"
        f", {card.free // 2**20}, {card.total // 2**20}\n"
        for number, card in enumerate(cards)
    )
    (folder / "rows").write_text(lines, encoding="utf-8")
    (folder / "xml").write_text(programs, encoding="utf-8")
    return write_script(
        folder / "nvidia-smi",
        f'case "$1" in --query-gpu*) cat {folder}/rows;; -q) cat {folder}/xml;; esac',
    )


def write_script(path: Path, body: str) -> Path:
    """An executable shell script."""
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def play_probes(folder: Path, said: dict[str, Any]) -> Path:
    """A Python for `sys.executable` that answers each probe with what is scripted for it.

    Text instead of an answer is a shell command, such as one that hangs or dies.
    """
    cases = []
    for name, answer in said.items():
        body = answer
        if not isinstance(answer, str):
            (folder / f"{name}.json").write_text(json.dumps(answer), encoding="utf-8")
            body = f"cat {folder}/{name}.json"
        cases.append(f"{name}) {body};;")
    asked = folder / "asked"
    return write_script(
        folder / "python", f'echo "$3" >> {asked}\ncase "$3" in {" ".join(cases)} esac'
    )
