"""What this machine can do, and the command that fixes what it cannot.

examine      asks packages, driver, torch, llama.cpp, disk and hub  →  Machine
findings     Machine  →  findings; pure, so a test can make up any machine
"""

import json
import os
import platform
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from selfreward_lite.system import cuda
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.files import Json, format_bytes, free_bytes
from selfreward_lite.system.gpu import BF16, OLDEST, Gpu, is_wsl, list_gpus
from selfreward_lite.system.processes import child_environment, explain_exit, run_module

HUB = "huggingface.co"
INSTALL = "pip install -r requirements.txt"
BUILD = "python -m selfreward_lite llama"
PATIENCE = 180  # seconds for a probe; importing torch from a cold disk takes most of it
_LAYERS = re.compile(r"offloaded (\d+)/(\d+) layers")


@dataclass(frozen=True)
class Machine:
    """What was found. `torch` and `llama` are a probe's answer, or {"error": line}."""

    python: tuple[int, int, int]
    system: str
    wsl: bool
    wanted: dict[str, str]
    installed: dict[str, str | None]
    gpus: tuple[Gpu, ...]
    torch: Json
    llama: Json
    free: int
    hub: bool | None
    unsloth: str | None = None
    token: bool = False


@dataclass(frozen=True)
class Finding:
    """One fact about the machine: `bad` stops a run, a `note` limits it; `fix` is a command."""

    what: str
    state: Literal["good", "note", "bad"]
    words: str
    fix: str | None = None


def examine(folder: Path) -> Machine:
    """Ask this machine; `folder` is where runs will be. Takes as long as importing torch."""
    wanted, gpus = read_pins(), tuple(list_gpus())
    return Machine(
        python=sys.version_info[:3],
        system=platform.system(),
        wsl=is_wsl(),
        wanted=wanted,
        installed={name: installed_version(name) for name in wanted},
        gpus=gpus,
        torch=_probe("torch"),
        llama=_probe_llama(gpus),
        free=free_bytes(folder),
        hub=None if os.environ.get("HF_HUB_OFFLINE") == "1" else _is_reachable(HUB),
        unsloth=installed_version("unsloth"),
        token=bool(os.environ.get("HF_TOKEN")),
    )


def findings(machine: Machine) -> list[Finding]:
    """What the machine can do, in the order in which one thing needs another."""
    return [
        _python(machine),
        _packages(machine),
        _system(machine),
        _gpu(machine),
        _torch(machine),
        _llama(machine.gpus, machine.llama),
        *([_unsloth(machine)] if machine.gpus else []),
        _disk(machine),
        _hub(machine),
    ]


def llama_finding(gpus: Sequence[Gpu]) -> Finding:
    """What llama.cpp does on this machine, with these GPUs."""
    return _llama(gpus, _probe_llama(gpus))


def check_gpu(gpu_layers: int) -> None:
    """Raise UserError if layers are to go on a GPU that is missing, or unused by llama.cpp."""
    if not gpu_layers or (probed := _probe("build")).get("can_offload"):
        return
    gpus = list_gpus()
    if not gpus:
        raise UserError(
            "a GPU is to be used, and none is found; `python -m selfreward_lite doctor` says more; "
            "engine.gpu_layers=0 needs none"
        )
    why, advice = cuda.explain_idle(gpus[0].driver)
    if error := probed.get("error"):
        why, advice = f"llama.cpp cannot be used ({error})", f"run `{BUILD}`"
    raise UserError(f"{why}, and a GPU is to be used: {advice}")


def find_idle_build(gpu: Gpu) -> str | None:
    """Why a build for CUDA that is installed starts no CUDA, and what to do; None if it does.

    Another build would not start it either, unless it is for an older CUDA. None too for a build
    for the CPU, or one that cannot be loaded.
    """
    if cuda.build_cuda() is None:
        return None
    probed = _probe("build")
    if probed.get("error") or probed["can_offload"]:
        return None
    return ": ".join(cuda.explain_idle(gpu.driver))


def read_pins() -> dict[str, str]:
    """The pinned versions this package needs: of its checkout, else of the installed package."""
    project = Path(__file__).parents[2] / "pyproject.toml"
    if project.exists():  # what is installed may be of an older checkout
        wanted = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    else:
        wanted = metadata.requires("selfreward_lite") or []
    pins = parse_pins(wanted)
    if not pins:
        raise UserError("the installed selfreward_lite names no packages; install it again")
    return pins


def parse_pins(requirements: Iterable[str]) -> dict[str, str]:
    """Name → version of every pinned requirement; those of extras are left out.

    >>> parse_pins(["torch==2.13.0", "pandas>=2.2", 'unsloth==2026.10.7; extra == "gpu"'])
    {'torch': '2.13.0'}
    """
    pairs = (one.split("==") for one in requirements if "==" in one and "extra" not in one)
    return {name.strip(): version.strip() for name, version in pairs}


# -- findings ----------


def _python(machine: Machine) -> Finding:
    version = _dotted(machine.python)
    if machine.python < (3, 11, 0):
        text = f"{version} is too old: 3.11 is needed"
        return Finding("Python", "bad", text, "python3.11 -m venv .venv")
    return Finding("Python", "good", version)


def _packages(machine: Machine) -> Finding:
    wanted = machine.wanted
    missing = [name for name, version in machine.installed.items() if version is None]
    others = {
        name: version
        for name, version in machine.installed.items()
        if version is not None and version.split("+")[0] != wanted[name]
    }
    if missing == ["llama-cpp-python"] and machine.gpus:
        return Finding("packages", "bad", "missing: llama-cpp-python", BUILD)
    if missing:
        text = f"missing: {', '.join(missing)}"
        if "llama-cpp-python" in missing:
            text += " (llama-cpp-python is compiled: a C++ compiler is needed)"
        return Finding("packages", "bad", text, INSTALL)
    if others:
        text = ", ".join(f"{name} {one} instead of {wanted[name]}" for name, one in others.items())
        # A torch that came with the machine fits its driver, and torchvision fits only that torch.
        pins = " ".join(f"{name}=={wanted[name]}" for name in others if name != "torch")
        return Finding(
            "packages",
            "note",
            f"not the versions that were tested together: {text}",
            f"pip install {pins}" if pins else None,
        )
    return Finding("packages", "good", f"all {len(wanted)} as pinned")


def _system(machine: Machine) -> Finding:
    if machine.system == "Windows":
        text = "Windows itself is not supported: its Linux (WSL2) is, with the GPU"
        return Finding("system", "bad", text, "wsl --install")
    if machine.wsl:
        text = "WSL2: keep runs inside Linux, not under /mnt, where locks and syncing are slow"
        return Finding("system", "note", text)
    return Finding("system", "good", machine.system)


def _gpu(machine: Machine) -> Finding:
    if not machine.gpus:
        text = "none, or no driver (nvidia-smi): the tiny preset runs, larger models take days"
        return Finding("GPU", "note", text)
    gpu = machine.gpus[0]
    text = (
        f"{gpu.name}, driver {gpu.driver}, "
        f"{format_bytes(gpu.free)} of {format_bytes(gpu.total)} free"
    )
    if len(machine.gpus) > 1:
        text += f"; the first of {len(machine.gpus)} is used"
    if gpu.capability < OLDEST:
        text += f"; compute capability {_dotted(gpu.capability)} is below {_dotted(OLDEST)}"
        return Finding("GPU", "bad", text)
    if gpu.free < 0.9 * gpu.total:
        return Finding(
            "GPU",
            "note",
            f"{text}: a desktop or another program uses {format_bytes(gpu.total - gpu.free)}",
        )
    return Finding("GPU", "good", text)


def _torch(machine: Machine) -> Finding:
    probed = machine.torch
    if probed.get("error"):
        return Finding("torch", "bad", f"cannot be used: {probed['error']}", INSTALL)
    version = probed["version"]
    if not machine.gpus:
        return Finding("torch", "good", f"{version} on the CPU")
    if not probed["cards"]:
        why = "" if probed["cuda"] else ": it was built without CUDA"
        pin = machine.wanted.get("torch", version.split("+")[0])
        fix = f"pip install --force-reinstall torch=={pin}"
        return Finding("torch", "bad", f"{version} sees no GPU{why}", fix)
    has_bf16 = machine.gpus[0].capability >= BF16
    number = "bf16" if has_bf16 else "fp16, since bf16 needs compute capability 8.0"
    return Finding("torch", "good", f"{version} with CUDA {probed['cuda']}; trains in {number}")


def _llama(gpus: Sequence[Gpu], probed: Json) -> Finding:
    error = probed.get("error")
    if not gpus:
        if error:
            return Finding("llama.cpp", "bad", f"cannot decode: {error}", INSTALL)
        amx = "; its matrix units (AMX) crash it and are not used" if probed["amx"] else ""
        return Finding("llama.cpp", "good", f"{probed['version']} decodes on the CPU{amx}")
    layers = _LAYERS.search(probed.get("offloaded") or "")
    if error or not layers or layers[1] != layers[2]:
        why = error or f"its log says {probed.get('offloaded')!r} of the layers"
        return Finding("llama.cpp", "bad", f"does not use the GPU: {why}", BUILD)
    text = f"{probed['version']} puts every layer on the GPU ({layers[0]})"
    return Finding("llama.cpp", "good", text)


def _unsloth(machine: Machine) -> Finding:
    if machine.unsloth is None:
        text = "not installed: transformers and bitsandbytes train, in more memory and time"
        return Finding("unsloth", "note", text, "pip install -r requirements-gpu.txt")
    return Finding("unsloth", "good", f"{machine.unsloth} trains")


def _disk(machine: Machine) -> Finding:
    text = f"{format_bytes(machine.free)} free in the folder of the runs"
    return Finding("disk", "good" if machine.free >= 1e9 else "note", text)


def _hub(machine: Machine) -> Finding:
    if not machine.hub:
        off = "switched off (HF_HUB_OFFLINE=1)"
        why = off if machine.hub is None else f"{HUB} cannot be reached"
        return Finding("model hub", "note", f"{why}: models and data must be on this machine")
    without = "without a token (HF_TOKEN), which open models do not need"
    how = "with the token in HF_TOKEN" if machine.token else without
    return Finding("model hub", "good", f"{HUB} answers, {how}")


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


# -- asking the machine ----------


def installed_version(name: str) -> str | None:
    """The installed version of a package; None if it is missing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _probe_llama(gpus: Sequence[Gpu]) -> Json:
    return _probe("llama", "-1" if gpus else "0")


def _probe(*arguments: str) -> Json:
    """What a probe printed; {"error": why} if it failed, crashed or did not answer."""
    module, environment = "selfreward_lite.models.probe", child_environment(gpus="one")
    try:
        ended = run_module(module, *arguments, env=environment, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {PATIENCE} s"}
    if ended.returncode:
        return {"error": explain_exit(ended.returncode, ended.stderr.splitlines(), "its process")}
    answer: Json = json.loads(ended.stdout.splitlines()[-1])
    return answer


def _is_reachable(host: str) -> bool:
    try:
        socket.create_connection((host, 443), timeout=5).close()
    except OSError:
        return False
    return True
