"""What this machine can do, and the command that fixes what it cannot.

examine      asks packages, driver, torch, llama.cpp, disk and hub  →  Machine
findings     Machine  →  findings; pure, so a test can make up any machine
check_gpu    the same before a run that needs a GPU
"""

import os
import platform
import re
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import httpx

from selfreward_lite.system import cuda, fixes, probes, proxies
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.files import Json, format_bytes, free_bytes
from selfreward_lite.system.gpu import (
    Gpu,
    find_driver_fault,
    is_wsl,
    lacks_driver,
    list_gpu_users,
    list_gpus,
    lock_holder,
)
from selfreward_lite.system.gpu_findings import describe_missing_library, dotted, find_on_gpu
from selfreward_lite.system.machine import Finding, Machine

HUB = "huggingface.co"
SAME = 0.2  # of the logits' size: two ways on a CPU differ by 0.015 (measured), nonsense by 1
UNSLOTH_PATIENCE = 600  # seconds; it takes half a minute on a desktop, and longer on two cores
_LAYERS = re.compile(r"offloaded (\d+)/(\d+) layers")


def examine(folder: Path, *, holds_gpu: bool = False, with_unsloth: bool = True) -> Machine:
    """Ask this machine; `folder` is where runs will be.

    Takes as long as importing torch, and with a GPU a minute or two. `holds_gpu` means that the
    caller has the GPU; else nothing is tried on one that another command uses.
    """
    wanted, gpus = read_pins(), tuple(list_gpus())
    holder = lock_holder() if gpus and not holds_gpu else None
    fault = proxies.find_request_fault()
    asked = {} if holder else _ask_probes(gpus, with_unsloth=with_unsloth)
    return Machine(
        python=sys.version_info[:3],
        system=platform.system(),
        wsl=is_wsl(),
        wanted=wanted,
        installed={name: installed_version(name) for name in wanted},
        gpus=gpus,
        torch=asked.get("torch"),
        llama=asked.get("llama"),
        free=free_bytes(folder),
        hub=None if os.environ.get("HF_HUB_OFFLINE") == "1" else not fault and _is_reachable(HUB),
        unsloth=installed_version("unsloth"),
        token=bool(os.environ.get("HF_TOKEN")),
        place=probes.find_place(),
        has_apt=shutil.which("apt") is not None,
        is_root=os.geteuid() == 0,
        driver_fault=None if gpus else find_driver_fault(),
        lacks_driver=not gpus and lacks_driver(),
        users=tuple(list_gpu_users(gpus[0])) if gpus else (),
        holder=holder,
        torchvision=installed_version("torchvision"),
        torchao=installed_version("torchao"),
        compiler=asked.get("compiler"),
        triton=asked.get("triton"),
        four_bit=asked.get("four_bit"),
        unsloth_import=asked.get("unsloth"),
        request_fault=fault,
    )


def findings(machine: Machine) -> list[Finding]:
    """What the machine can do, in the order in which one thing needs another."""
    return [
        _python(machine),
        _packages(machine),
        _system(machine),
        *find_on_gpu(machine),
        *([_llama(machine, machine.llama)] if machine.llama else []),
        _disk(machine),
        _hub(machine),
    ]


def llama_finding(gpus: Sequence[Gpu]) -> Finding:
    """What llama.cpp does on this machine, with these GPUs."""
    return describe_llama(gpus, _probe_llama(gpus))


def find_idle_build(gpu: Gpu) -> str | None:
    """Why a build for CUDA that is installed starts no CUDA, and what to do; None if it does.

    Another build would not start it either, unless it is for an older CUDA. None too for a build
    for the CPU, or one that cannot be loaded.
    """
    if cuda.build_cuda() is None:
        return None
    probed = probes.ask("build")
    if probed.get("error") or probed["can_offload"]:
        return None
    return ": ".join(cuda.explain_idle(gpu.driver))


def check_gpu(folder: Path, *, with_llama: bool, backend: str, say: Callable[[str], None]) -> None:
    """Raise UserError for the first thing that would end a training on the GPU, or the asking.

    The caller holds the GPU. `with_llama` means that llama.cpp is to use it too. What only slows a
    run down is said.
    """
    machine = examine(folder, holds_gpu=True, with_unsloth=backend != "transformers")
    for one in findings(machine):
        is_needed = one.what != "llama.cpp" or with_llama
        if one.what == "unsloth" and one.state != "good" and backend != "transformers":
            if backend == "unsloth":
                raise UserError(f"backend=unsloth, and unsloth is {_advise(one)}")
            say(f"unsloth {one.words}")
        if one.state == "bad" and is_needed:
            raise UserError(f"{one.what}: {_advise(one)}")


def check_without_gpu(*, is_large: bool) -> None:
    """Raise UserError if layers are to go on a GPU, and there is none that NVIDIA's driver knows.

    Another maker's GPU may do for llama.cpp, and torch's for training.
    """
    probed = probes.ask("build")
    fault = find_driver_fault()
    why = f" (nvidia-smi fails: {fault})" if fault else ""
    if not probed.get("can_offload"):
        raise UserError(
            f"a GPU is to be used, and none is found{why}; `python -m selfreward_lite doctor` says "
            "more; engine.gpu_layers=0 needs none"
        )
    if is_large and not probes.ask("torch").get("cards"):
        raise UserError(
            f"torch sees no GPU{why}, and this model would train on the CPU for days; "
            "`python -m selfreward_lite doctor` says more"
        )


def _advise(finding: Finding) -> str:
    """A finding's words, and what to do."""
    return f"{finding.words} → {finding.fix or '`python -m selfreward_lite doctor` says more'}"


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

    >>> parse_pins(["torch==2.13.0", "pandas>=2.2", 'unsloth==2026.10.9; extra == "gpu"'])
    {'torch': '2.13.0'}
    """
    pairs = (one.split("==") for one in requirements if "==" in one and "extra" not in one)
    return {name.strip(): version.strip() for name, version in pairs}


# -- findings ----------


def _python(machine: Machine) -> Finding:
    version = dotted(machine.python)
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
        return Finding("packages", "bad", f"missing: {missing[0]}", fixes.LLAMA)
    if missing:
        text = f"missing: {', '.join(missing)}"
        if "llama-cpp-python" in missing:
            text += " (llama-cpp-python is compiled: a C++ compiler is needed)"
        return Finding("packages", "bad", text, fixes.install_packages(machine))
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


def _llama(machine: Machine, probed: Json) -> Finding:
    """What llama.cpp does; where its CUDA is too new for the driver, how to update that."""
    found, built = describe_llama(machine.gpus, probed), probed.get("cuda")
    if machine.gpus and built and found.state == "bad":
        needed = cuda.oldest_driver(str(built))
        if cuda.driver_number(machine.gpus[0].driver) < needed:
            return replace(found, fix=fixes.update_driver(machine, needed))
    return found


def describe_llama(gpus: Sequence[Gpu], probed: Json) -> Finding:
    """What the answer of llama.cpp's probe means, with these GPUs."""
    error = probed.get("error")
    if error and (missing := describe_missing_library(error)):
        return missing
    if not gpus:
        if error:
            return Finding("llama.cpp", "bad", f"cannot decode: {error}", fixes.PACKAGES)
        amx = "; its matrix units (AMX) crash it and are not used" if probed["amx"] else ""
        return Finding("llama.cpp", "good", f"{probed['version']} decodes on the CPU{amx}")
    layers = _LAYERS.search(probed.get("offloaded") or "")
    if error or not layers or layers[1] != layers[2]:
        why = error or f"its log says {probed.get('offloaded')!r} of the layers"
        return Finding("llama.cpp", "bad", f"does not use the GPU: {why}", fixes.LLAMA)
    if not probed["difference"] < SAME:  # written so that NaN is refused too
        text = f"computes nonsense on the GPU: {probed['difference']:.2g} from the CPU's logits"
        return Finding("llama.cpp", "bad", text, fixes.LLAMA)
    text = f"{probed['version']} puts every layer on the GPU ({layers[0]}) and decodes"
    return Finding("llama.cpp", "good", text)


def _disk(machine: Machine) -> Finding:
    text = f"{format_bytes(machine.free)} free in the folder of the runs"
    return Finding("disk", "good" if machine.free >= 1e9 else "note", text)


def _hub(machine: Machine) -> Finding:
    if fault := machine.request_fault:
        text = f"{fault.words}: models and data must be on this machine"
        return Finding("model hub", "note", text, fault.fix)
    if not machine.hub:
        off = "switched off (HF_HUB_OFFLINE=1)"
        why = off if machine.hub is None else f"{HUB} cannot be reached"
        return Finding("model hub", "note", f"{why}: models and data must be on this machine")
    without = "without a token (HF_TOKEN), which open models do not need"
    how = "with the token in HF_TOKEN" if machine.token else without
    return Finding("model hub", "good", f"{HUB} answers, {how}")


# -- asking the machine ----------


def installed_version(name: str) -> str | None:
    """The installed version of a package; None if it is missing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _ask_probes(gpus: Sequence[Gpu], *, with_unsloth: bool) -> dict[str, Json]:
    """The answers of the probes that are worth asking: where torch sees no GPU, few are."""
    asked = {"torch": probes.ask("torch"), "llama": _probe_llama(gpus)}
    torch = asked["torch"]
    if not gpus:
        return {**asked, "four_bit": probes.ask("four_bit", "0")}
    asked["compiler"] = compiler = probes.compile_with_python()
    if torch.get("error") or torch.get("fault") or not torch["cards"]:
        return asked
    asked["four_bit"] = probes.ask("four_bit", "1")
    if compiler["header"] and compiler["compiler"] and not compiler["error"]:
        asked["triton"] = probes.ask("triton")
    if with_unsloth and installed_version("unsloth"):
        asked["unsloth"] = probes.ask("unsloth", patience=UNSLOTH_PATIENCE)
    return asked


def _probe_llama(gpus: Sequence[Gpu]) -> Json:
    return probes.ask("llama", "-1" if gpus else "0")


def _is_reachable(host: str) -> bool:
    """Whether a host answers, through the proxy that the environment names, if any."""
    try:
        httpx.head(f"https://{host}", timeout=5)
    except httpx.HTTPError:
        return False
    return True
