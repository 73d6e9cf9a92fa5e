"""CUDA's compiler nvcc: from pip's packages, or from an installed toolkit; tried on one small file.

pip's packages hold everything of CUDA 13 that llama.cpp needs, in the folder from which torch takes
its libraries. What they lack are the names by which a linker looks for them, and the driver's
library, without which llama.cpp is built too (GGML_CUDA_NO_VMM). Those of CUDA 12 have no nvcc.
"""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from selfreward_lite.system import cuda
from selfreward_lite.system.gpu import Gpu
from selfreward_lite.system.pip import Failed, find_cause, run_pip

OLDEST_TOOLKIT = (12, 4)  # the first that takes the compiler of Ubuntu 24.04, gcc 13
PIP_CUDA = 13
# CUDA 13.0 is that of the pinned torch, whose cuBLAS and runtime meet the last two.
PIP_PACKAGES = (
    "nvidia-cuda-nvcc==13.0.*",
    "nvidia-cuda-crt==13.0.*",
    "nvidia-nvvm==13.0.*",
    "nvidia-cuda-cccl==13.0.*",
    "nvidia-cuda-runtime==13.0.*",
    "nvidia-cublas>=13.0,<13.2",
)
TRIAL = """#include <cublas_v2.h>
#include <cuda_fp16.h>
__global__ void add(half * rows) { rows[threadIdx.x] = __hadd(rows[threadIdx.x], rows[0]); }
int main() { add<<<1, 32>>>(nullptr); cublasHandle_t handle; return cublasCreate(&handle); }
"""
_RELEASE = re.compile(r"release (\d+)\.(\d+)")


@dataclass(frozen=True)
class Compiler:
    """An nvcc, and the folder of its headers and libraries if CMake must be told."""

    name: str
    nvcc: Path
    root: Path | None = None
    options: str = ""

    def cmake_options(self, gpu: Gpu) -> str:
        """CMake's options for a llama.cpp for this GPU, which runs beside older CPUs too."""
        options = f"-DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES={gpu.architecture} -DGGML_NATIVE=off"
        # CMake would take headers and libraries of the first nvcc on the path.
        root = f" -DCUDAToolkit_ROOT={shlex.quote(str(self.root))}" if self.root else ""
        return options + root + self.options


def find_toolkits() -> list[Compiler]:
    """The compilers of the installed CUDA toolkits."""
    found = []
    for root in cuda.toolkits():
        # A distribution has them elsewhere, and CMake knows where.
        headers = root if (root / "include" / "cuda_runtime.h").exists() else None
        found.append(Compiler(f"the toolkit in {root}", root / "bin" / "nvcc", headers))
    return found


def install_pip_nvcc(folder: Path, say: Callable[[str], None]) -> Compiler:
    """pip's nvcc, with its headers and libraries under `folder` as a toolkit has them.

    Raises Failed if they cannot be installed.
    """
    run_pip("install", *PIP_PACKAGES, say=say)
    own = next((one for one in cuda.pip_folders() if (one.parent / "bin" / "nvcc").exists()), None)
    if own is None:
        raise Failed(f"nvcc is not where pip's packages had it: {', '.join(PIP_PACKAGES[:1])}")
    return Compiler("pip's nvcc", lay_out(own.parent, folder), folder, " -DGGML_CUDA_NO_VMM=on")


def lay_out(packages: Path, folder: Path) -> Path:
    """Make links under `folder`, so that pip's packages look like a toolkit; returns its nvcc.

    nvcc looks beside itself for the rest, so its own folder must be a real one. Linkers look in
    lib64, for names without a version.
    """
    for name in ("bin", "lib64"):
        (folder / name).mkdir(parents=True)
    (folder / "lib").symlink_to("lib64")
    for name in ("include", "nvvm"):
        (folder / name).symlink_to(packages / name)
    for file in (packages / "bin").iterdir():
        (folder / "bin" / file.name).symlink_to(file)
    for file in (packages / "lib").iterdir():
        (folder / "lib64" / file.name).symlink_to(file)
        plain = folder / "lib64" / re.sub(r"\.so\..*", ".so", file.name)
        if not plain.exists():
            plain.symlink_to(file)
    return folder / "bin" / "nvcc"


def find_fault(compiler: Compiler, gpu: Gpu, folder: Path) -> str | None:
    """Why a compiler cannot build for a GPU and its driver; None if it can.

    A small program that uses cuBLAS is compiled and linked in `folder`: that tells in seconds what
    a build would tell after minutes, such as a gcc that is too new.
    """
    try:
        said = subprocess.run(
            [compiler.nvcc, "--version"], capture_output=True, text=True, errors="replace"
        ).stdout
    except OSError as error:
        return f"nvcc does not start: {error.strerror}"
    found = _RELEASE.search(said)
    if found is None:
        return "nvcc names no version"
    version = int(found[1]), int(found[2])
    if version < OLDEST_TOOLKIT:
        return f"CUDA {found[1]}.{found[2]} is older than {OLDEST_TOOLKIT[0]}.{OLDEST_TOOLKIT[1]}"
    if version[0] > cuda.newest_cuda(gpu.driver):
        return f"driver {gpu.driver} is older than its CUDA {version[0]}"
    source = folder / "trial.cu"
    source.write_text(TRIAL, encoding="utf-8")
    host = os.environ.get("CUDAHOSTCXX")  # CMake takes the same
    ended = subprocess.run(
        [
            str(compiler.nvcc),
            *(f"-arch=sm_{gpu.architecture}", str(source), "-lcublas"),
            *("-o", str(folder / "trial"), *(["-ccbin", host] if host else [])),
        ],
        capture_output=True,
        text=True,
        errors="replace",
    )
    if not ended.returncode:
        return None
    lines = (ended.stdout + ended.stderr).splitlines()
    why = find_cause(lines) or (lines or ["nvcc printed nothing"])[-1]
    if "unsupported GNU version" in why:
        why += "; install an older g++, and name it in CUDAHOSTCXX"
    return why.strip()


def has_host_compiler() -> bool:
    """Whether there is a C++ compiler, which nvcc and CMake need."""
    named = shlex.split(os.environ.get("CXX", ""))[:1]
    return any(shutil.which(name) for name in (*named, "g++", "c++", "clang++"))
