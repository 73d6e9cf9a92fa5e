"""What this machine can do, in words, and the one command that mends what it cannot.

    examine      asks: the packages, the driver, torch and llama.cpp in child processes, the disk, the hub  →  Machine
    findings     Machine  →  findings, worst said plainly; pure, so that every machine can be played in a test

Knows: which versions were proved together (`requirements.txt`), which cards can do what. Does not know: presets, plans.
"""

from __future__ import annotations

import json
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from selfreward_lite.system.errors import UserError
from selfreward_lite.system.files import format_bytes, free_bytes
from selfreward_lite.system.gpu import BF16, OLDEST, Gpu, list_gpus
from selfreward_lite.system.processes import child_environment, explain_exit, run_module

State = Literal["good", "note", "bad"]
REQUIREMENTS = Path(__file__).parents[2] / "requirements.txt"
HUB = "huggingface.co"
PATIENCE = 180  # seconds for a probe; importing torch from a cold disk is most of it
_LAYERS = re.compile(r"offloaded (\d+)/(\d+) layers")


@dataclass(frozen=True)
class Machine:
    """All that was found out. `torch` and `llama` are what the probes printed, or {"error": line} where they failed."""

    python: tuple[int, int, int]
    system: str
    wsl: bool
    wanted: dict[str, str]
    installed: dict[str, str | None]
    cards: tuple[Gpu, ...]
    torch: dict[str, Any]
    llama: dict[str, Any]
    free: int
    hub: bool | None
    unsloth: str | None = None
    token: bool = False


@dataclass(frozen=True)
class Finding:
    """One thing about the machine: `bad` stops a run, a `note` limits it; `mend` is a command, or None."""

    what: str
    state: State
    words: str
    mend: str | None = None


def examine(folder: Path) -> Machine:
    """Ask this machine; `folder` is where runs will lie. Takes as long as importing torch."""
    wanted = pins(REQUIREMENTS.read_text(encoding="utf-8"))
    there = tuple(list_gpus())
    return Machine(
        python=sys.version_info[:3],
        system=platform.system(),
        wsl="microsoft" in platform.release().casefold(),
        wanted=wanted,
        installed={name: _version(name) for name in wanted},
        cards=there,
        torch=_probe("torch"),
        llama=_llama_probe(there),
        free=free_bytes(folder),
        hub=None if os.environ.get("HF_HUB_OFFLINE") == "1" else _reachable(HUB),
        unsloth=_version("unsloth"),
        token=bool(os.environ.get("HF_TOKEN")),
    )


def findings(machine: Machine) -> list[Finding]:
    """Say what the machine can do, in the order in which one thing needs another."""
    found = [
        _python(machine),
        _packages(machine),
        _system(machine),
        _card(machine),
        _torch(machine),
    ]
    found.append(_llama(machine.cards, machine.llama, machine.wanted))
    found += [_unsloth(machine)] if machine.cards else []
    return [*found, _disk(machine), _hub(machine)]


def llama_finding(wanted: dict[str, str], there: Sequence[Gpu]) -> Finding:
    """Say what llama.cpp does on this machine, with these cards."""
    return _llama(there, _llama_probe(there), wanted)


def need_card(gpu_layers: int) -> None:
    """Raise UserError where layers are to go on a card that is not there, or that this build of llama.cpp cannot use."""
    if not gpu_layers or (said := _probe("build")).get("can_offload"):
        return
    why = (
        f"llama.cpp cannot be used ({said['error']})"
        if "error" in said
        else "llama.cpp was built for the CPU only"
    )
    raise UserError(
        f"{why}, and a card is to be used: run `python -m selfreward_lite llama`"
        if list_gpus()
        else "a card is to be used, and none is in sight; `python -m selfreward_lite doctor` says more; engine.gpu_layers=0 needs none"
    )


def pins(text: str) -> dict[str, str]:
    """Return name → version of every line `name==version`, apart from what only the tests need.

    >>> pins("# a card\\n-r other.txt\\ntorch==2.13.0\\n# tests\\npytest==9.2.0\\n")
    {'torch': '2.13.0'}
    """
    lines = text.partition("\n# tests\n")[0].splitlines()
    return dict(
        line.strip().split("==") for line in lines if "==" in line and not line.startswith("#")
    )


def _python(machine: Machine) -> Finding:
    version = ".".join(map(str, machine.python))
    if machine.python < (3, 11, 0):
        return Finding(
            "Python", "bad", f"{version} is too old: 3.11 is needed", "python3.11 -m venv .venv"
        )
    return Finding("Python", "good", version)


def _packages(machine: Machine) -> Finding:
    missing = [name for name, version in machine.installed.items() if version is None]
    others = {
        name: version
        for name, version in machine.installed.items()
        if version is not None and version.split("+")[0] != machine.wanted[name]
    }
    if missing:
        compiler = (
            " (llama-cpp-python is compiled: a C++ compiler is needed)"
            if "llama-cpp-python" in missing
            else ""
        )
        return Finding(
            "packages",
            "bad",
            f"missing: {', '.join(missing)}{compiler}",
            "pip install -r requirements.txt",
        )
    if others:
        words = ", ".join(
            f"{name} {version} instead of {machine.wanted[name]}"
            for name, version in others.items()
        )
        # A torch that came with the machine fits its driver, and torchvision's wheel fits that torch alone.
        mend = " ".join(f"{name}=={machine.wanted[name]}" for name in others if name != "torch")
        return Finding(
            "packages",
            "note",
            f"not the versions that were proved together: {words}",
            f"pip install {mend}" if mend else None,
        )
    return Finding("packages", "good", f"all {len(machine.wanted)} as pinned")


def _system(machine: Machine) -> Finding:
    if machine.system == "Windows":
        return Finding(
            "system",
            "bad",
            "Windows itself is not served: its Linux (WSL2) is, with the card",
            "wsl --install",
        )
    if machine.wsl:
        return Finding(
            "system",
            "note",
            "WSL2: keep runs inside Linux, not under /mnt, where locks and syncing are slow",
        )
    return Finding("system", "good", machine.system)


def _card(machine: Machine) -> Finding:
    if not machine.cards:
        return Finding(
            "card",
            "note",
            "none, or no driver (nvidia-smi): the tiny preset runs, larger models take days",
        )
    card = machine.cards[0]
    words = f"{card.name}, driver {card.driver}, {format_bytes(card.free)} of {format_bytes(card.total)} free"
    if len(machine.cards) > 1:
        words += f"; the first of {len(machine.cards)} is used"
    if card.capability < OLDEST:
        return Finding(
            "card",
            "bad",
            f"{words}; compute capability {_dotted(card.capability)} is below {_dotted(OLDEST)}",
        )
    if card.free < 0.9 * card.total:
        return Finding(
            "card",
            "note",
            f"{words}: a desktop or another program holds {format_bytes(card.total - card.free)}",
        )
    return Finding("card", "good", words)


def _torch(machine: Machine) -> Finding:
    said = machine.torch
    if said.get("error"):
        return Finding(
            "torch", "bad", f"cannot be used: {said['error']}", "pip install -r requirements.txt"
        )
    if not machine.cards:
        return Finding("torch", "good", f"{said['version']} on the CPU")
    if not said["cards"]:
        return Finding(
            "torch",
            "bad",
            f"{said['version']} sees no card"
            + (": it was built without CUDA" if not said["cuda"] else ""),
            f"pip install --force-reinstall torch=={machine.wanted.get('torch', said['version'].split('+')[0])}",
        )
    number = (
        "bf16"
        if machine.cards[0].capability >= BF16
        else "fp16, since bf16 begins at compute capability 8.0"
    )
    return Finding(
        "torch", "good", f"{said['version']} with CUDA {said['cuda']}; trains in {number}"
    )


def _llama(there: Sequence[Gpu], said: dict[str, Any], wanted: dict[str, str]) -> Finding:
    if not there:
        if said.get("error"):
            return Finding(
                "llama.cpp",
                "bad",
                f"cannot decode: {said['error']}",
                "pip install -r requirements.txt",
            )
        return Finding(
            "llama.cpp",
            "good",
            f"{said['version']} decodes on the CPU"
            + ("; its matrix units (AMX) fault and are not used" if said["amx"] else ""),
        )
    layers = _LAYERS.search(said.get("offloaded") or "")
    if said.get("error") or not layers or layers[1] != layers[2]:
        why = said.get("error") or f"it said {said.get('offloaded')!r} of the layers"
        return Finding(
            "llama.cpp", "bad", f"does not use the card: {why}", cuda_build(there[0], wanted)
        )
    return Finding(
        "llama.cpp", "good", f"{said['version']} puts every layer on the card ({layers[0]})"
    )


def _unsloth(machine: Machine) -> Finding:
    if machine.unsloth is None:
        words = "not installed: transformers and bitsandbytes train, in more memory and time"
        return Finding("unsloth", "note", words, "pip install -r requirements-gpu.txt")
    return Finding("unsloth", "good", f"{machine.unsloth} trains")


def cuda_build(card: Gpu, wanted: dict[str, str]) -> str:
    """Return the command that makes llama.cpp use this card. A CPU build that is installed satisfies pip, hence the force."""
    pin = (
        f"llama-cpp-python=={wanted['llama-cpp-python']}"
        if "llama-cpp-python" in wanted
        else "llama-cpp-python"
    )
    return f'CMAKE_ARGS="{cuda_flags(card)}" pip install --force-reinstall --no-deps --no-cache-dir {pin}'


def cuda_flags(card: Gpu) -> str:
    """Return what CMake must be told for llama.cpp to use this card."""
    return f"-DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES={card.architecture}"


def _disk(machine: Machine) -> Finding:
    words = f"{format_bytes(machine.free)} free where runs lie"
    return Finding("disk", "good" if machine.free >= 1e9 else "note", words)


def _hub(machine: Machine) -> Finding:
    if machine.hub is None:
        return Finding(
            "model hub",
            "note",
            "switched off (HF_HUB_OFFLINE=1): models and data must lie on this machine",
        )
    if not machine.hub:
        return Finding(
            "model hub",
            "note",
            f"{HUB} cannot be reached: models and data must lie on this machine",
        )
    whose = (
        "with the token in HF_TOKEN"
        if machine.token
        else "without a token (HF_TOKEN), which open models do not need"
    )
    return Finding("model hub", "good", f"{HUB} answers, {whose}")


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


# -- asking --------------------------------------------------------------------------------------------------------------


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _llama_probe(there: Sequence[Gpu]) -> dict[str, Any]:
    return _probe("llama", "-1" if there else "0")


def _probe(*arguments: str) -> dict[str, Any]:
    """What a probe printed; {"error": its last words} where it failed, however it failed."""
    try:
        ended = run_module(
            "selfreward_lite.models.probe",
            *arguments,
            env=child_environment(gpus="one"),
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {PATIENCE} s"}
    if ended.returncode:
        return {"error": explain_exit(ended.returncode, ended.stderr.splitlines(), "its process")}
    return json.loads(ended.stdout.splitlines()[-1])


def _reachable(host: str) -> bool:
    try:
        socket.create_connection((host, 443), timeout=5).close()
    except OSError:
        return False
    return True
