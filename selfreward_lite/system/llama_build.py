"""llama.cpp for the card of this machine: from a wheel that was kept, else compiled, and kept.

Knows: which build fits which machine. Does not know: what llama.cpp is used for. PyPI has the source alone, which pip compiles
for the CPU; with CUDA that takes a quarter of an hour and more, so that on machines that are wiped a wheel is kept on a drive.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from selfreward_lite.system import doctor
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.files import copy_file
from selfreward_lite.system.gpu import Gpu, list_gpus

TOOLKIT = Path("/usr/local/cuda/bin/nvcc")  # where the toolkit lies if it is not on the path
LOG = "selfreward_lite-pip.log"  # in the folder for temporary files

# What a compiler, CMake or pip's resolver says; pip itself says "error" of every package that could not be built.
_CAUSE = re.compile(
    r"CMake Error|fatal error|error: [^s]|No matching distribution|Could not find a version",
    re.IGNORECASE,
)
_RELEASE = re.compile(r"release (\d+)\.")


def install(wheels: Sequence[Path], say: Callable[[str], None]) -> doctor.Finding:
    """Bring llama.cpp to use the card, or to run on the CPU where there is none; returns what it does now.

    A wheel that serves is taken from one of the folders, or from what is named after card and CUDA in it; one that is made is
    kept in the last of them, under that name. Raises UserError where there is no compiler for the card, or pip fails.
    """
    wanted, there = doctor.pins(doctor.REQUIREMENTS.read_text(encoding="utf-8")), list_gpus()
    pin = f"llama-cpp-python=={wanted['llama-cpp-python']}"
    found = doctor.llama_finding(wanted, there)
    if found.state == "good":
        return found
    if not there:
        say(f"installing {pin}: pip compiles it, some minutes")
        _pip("install", pin)
        return doctor.llama_finding(wanted, there)
    compiler, release = _toolkit()
    own = f"sm{there[0].architecture}-cuda{release}"
    keep = wheels[-1] / own if wheels else None
    name = f"{pin.replace('-', '_').replace('==', '-')}-*.whl"
    for kept in (
        file
        for wheel in wheels
        for folder in (wheel / own, wheel)
        for file in sorted(folder.glob(name))
    ):
        say(f"installing {kept}")
        _pip("install", "--force-reinstall", "--no-deps", str(kept))
        found = doctor.llama_finding(wanted, there)
        if found.state == "good":
            _keep(kept, keep)
            return found
        say(f"that wheel does not serve here ({found.words})")
    return _compile(pin, there, wanted, (compiler, keep), say)


def _compile(
    pin: str,
    there: list[Gpu],
    wanted: dict[str, str],
    where: tuple[str, Path | None],
    say: Callable[[str], None],
) -> doctor.Finding:
    compiler, folder = where
    say(f"compiling {pin} for {there[0].name}: a quarter of an hour and more on two cores")
    # Not for this machine's CPU alone: the next one that is lent may be older.
    flags = f"{doctor.cuda_flags(there[0])} -DGGML_NATIVE=off"
    with tempfile.TemporaryDirectory() as scratch:
        _pip(
            "wheel",
            "--no-deps",
            "--no-cache-dir",
            "-w",
            scratch,
            pin,
            CMAKE_ARGS=flags,
            CUDACXX=compiler,
        )
        (wheel,) = Path(scratch).glob("*.whl")
        _pip("install", "--force-reinstall", "--no-deps", str(wheel))
        found = doctor.llama_finding(wanted, there)
        if folder is not None and found.state == "good":
            _keep(wheel, folder)
            say(f"kept in {folder}")
    return found


def _keep(wheel: Path, folder: Path | None) -> None:
    """Put a wheel that serves where the next machine finds it."""
    if folder is not None and wheel.parent != folder:
        folder.mkdir(parents=True, exist_ok=True)
        copy_file(wheel, folder / wheel.name)


def _toolkit() -> tuple[str, str]:
    """CUDA's compiler and the first part of its version, which a build needs to find again where it runs."""
    compiler = shutil.which("nvcc") or str(TOOLKIT)
    try:
        said = subprocess.run(
            [compiler, "--version"], capture_output=True, text=True, check=True
        ).stdout
        release = _RELEASE.search(said)
    except (OSError, subprocess.CalledProcessError):
        release = None
    if release is None:
        raise UserError(
            "no CUDA compiler (nvcc) here, which makes llama.cpp use the card; install the CUDA toolkit"
        )
    return compiler, release[1]


def _pip(*arguments: str, **environment: str) -> None:
    command = [sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check"]
    log = Path(tempfile.gettempdir()) / LOG
    with log.open("w") as out:
        ended = subprocess.run(
            command, stdout=out, stderr=subprocess.STDOUT, env=os.environ | environment
        )
    if ended.returncode:
        lines = [
            line.strip()
            for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
            if line.strip()
        ]
        why = next(
            (line for line in lines if _CAUSE.search(line)),
            lines[-1] if lines else "it said nothing",
        )
        raise UserError(
            f"pip {arguments[0]} failed: {why} (all of it in {log}); mend that, and try again"
        )
