"""llama.cpp for this machine's GPU: from a kept wheel, else compiled and kept.

The package index has only the source, which pip compiles for the CPU. With CUDA that takes a
quarter of an hour or more, so on machines that are wiped the wheel is kept on a drive.
"""

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
from selfreward_lite.system.machine import Finding
from selfreward_lite.system.processes import last_lines

NVCC = Path("/usr/local/cuda/bin/nvcc")  # where the CUDA toolkit is, if not on the path
LOG = "selfreward_lite-pip.log"  # in the folder for temporary files

# Lines of a compiler, CMake or pip's resolver; pip itself prints "error" for any failed build.
_CAUSE = re.compile(
    r"CMake Error|fatal error|error: [^s]|No matching distribution|Could not find a version",
    re.IGNORECASE,
)
_RELEASE = re.compile(r"release (\d+)\.")


def install(wheels: Sequence[Path], say: Callable[[str], None]) -> Finding:
    """Make llama.cpp use the GPU, or run on the CPU if there is none; returns what it does now.

    A wheel that works is used from one of the folders `wheels`, or their subfolder named after GPU
    and CUDA. One that is built is kept in that subfolder of the last. Raises UserError if there is
    no CUDA compiler, or pip fails.
    """
    wanted, gpus = doctor.read_pins(), list_gpus()
    version = wanted["llama-cpp-python"]
    pin = f"llama-cpp-python=={version}"
    found = doctor.llama_finding(wanted, gpus)
    if found.state == "good":
        return found
    if not gpus:
        say(f"installing {pin}: pip compiles it, some minutes")
        _pip("install", pin)
        return doctor.llama_finding(wanted, gpus)
    compiler, release = _find_cuda()
    own = f"sm{gpus[0].architecture}-cuda{release}"
    keep = wheels[-1] / own if wheels else None

    def try_wheel(wheel: Path) -> Finding:
        """Install a wheel; one that works is kept for the next machine."""
        _pip("install", "--force-reinstall", "--no-deps", str(wheel))
        found = doctor.llama_finding(wanted, gpus)
        if found.state == "good" and keep is not None and wheel.parent != keep:
            keep.mkdir(parents=True, exist_ok=True)
            copy_file(wheel, keep / wheel.name)
        return found

    for folder in (folder for wheel in wheels for folder in (wheel / own, wheel)):
        for kept in sorted(folder.glob(f"llama_cpp_python-{version}-*.whl")):
            say(f"installing {kept}")
            found = try_wheel(kept)
            if found.state == "good":
                return found
            say(f"that wheel does not work here ({found.words})")
    say(f"compiling {pin} for {gpus[0].name}: a quarter of an hour or more on two cores")
    with tempfile.TemporaryDirectory() as scratch:
        found = try_wheel(_compile(pin, gpus[0], compiler, scratch))
    if keep is not None and found.state == "good":
        say(f"kept in {keep}")
    return found


def _compile(pin: str, gpu: Gpu, compiler: str, folder: str) -> Path:
    """Build a wheel into a folder."""
    # Not for this machine's CPU alone: the next one may be older.
    flags = f"{doctor.cuda_flags(gpu)} -DGGML_NATIVE=off"
    arguments = ("--no-deps", "--no-cache-dir", "-w", folder, pin)
    _pip("wheel", *arguments, CMAKE_ARGS=flags, CUDACXX=compiler)
    (wheel,) = Path(folder).glob("*.whl")
    return wheel


def _find_cuda() -> tuple[str, str]:
    """CUDA's compiler and its major version, which a build needs again at run time."""
    compiler = shutil.which("nvcc") or str(NVCC)
    try:
        command = [compiler, "--version"]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        release = _RELEASE.search(output)
    except (OSError, subprocess.CalledProcessError):
        release = None
    if release is None:
        raise UserError(
            "no CUDA compiler (nvcc) here, which makes llama.cpp use the GPU; install the CUDA "
            "toolkit"
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
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        causes = [line for line in lines if _CAUSE.search(line)]
        why = (causes or last_lines(log) or ["it printed nothing"])[0].strip()
        raise UserError(
            f"pip {arguments[0]} failed: {why} (full log: {log}); fix that, and try again"
        )
