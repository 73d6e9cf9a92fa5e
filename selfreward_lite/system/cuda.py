"""CUDA: what a driver runs, what the installed llama.cpp was built with, where its libraries are.

What the installed llama.cpp is, its files tell: it may be one that cannot be loaded.
"""

import ctypes
import mmap
import os
import re
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

# The oldest driver for each CUDA, by its first number; it runs what any minor version compiled:
# https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
OLDEST_DRIVERS = {13: 580, 12: 525, 11: 450}
PROGRAMS = Path("/usr/local")  # toolkits are installed here, as cuda and cuda-12.4
_LIBRARY = "libggml-cuda.so"  # beside libllama.so in a build for CUDA, and in no other
_NEEDED = re.compile(rb"lib(?:cudart|cublas)\.so\.(\d+)")


def oldest_driver(cuda: str) -> int:
    """The first number of the oldest driver for a CUDA; later ones need at least the last known.

    >>> oldest_driver("13.0"), oldest_driver("12.6"), oldest_driver("14.1")
    (580, 525, 580)
    """
    return OLDEST_DRIVERS.get(int(cuda.split(".")[0]), max(OLDEST_DRIVERS.values()))


def driver_number(driver: str) -> int:
    """The first number of a driver's version, by which versions of CUDA ask for it.

    >>> driver_number("570.133.20"), driver_number("[N/A]")
    (570, 0)
    """
    found = re.match(r"\d+", driver)
    return int(found[0]) if found else 0


def newest_cuda(driver: str) -> int:
    """The newest major version of CUDA that a driver runs; 0 if it runs none of the last three.

    >>> newest_cuda("580.65.06"), newest_cuda("570.133"), newest_cuda("390.1")
    (13, 12, 0)
    """
    number = driver_number(driver)
    return max((cuda for cuda, first in OLDEST_DRIVERS.items() if number >= first), default=0)


def library_packages(cuda: int) -> tuple[str, ...]:
    """pip's packages with the libraries that a llama.cpp for a CUDA needs.

    >>> library_packages(13), library_packages(12)[0]
    (('nvidia-cuda-runtime==13.*', 'nvidia-cublas==13.*'), 'nvidia-cuda-runtime-cu12==12.*')
    """
    suffix = "" if cuda >= 13 else f"-cu{cuda}"
    return tuple(f"nvidia-{name}{suffix}=={cuda}.*" for name in ("cuda-runtime", "cublas"))


def build_cuda() -> int | None:
    """The major version of CUDA that llama.cpp was built with here; None for a CPU build."""
    folder = _find_build()
    if folder is None or not (library := folder / _LIBRARY).is_file():
        return None
    with (
        library.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        found = _NEEDED.search(content)
        return int(found[1]) if found else None


def explain_idle(driver: str | None) -> tuple[str, str]:
    """Why an installed llama.cpp that can be loaded uses no GPU, and what to do about it.

    `driver` is None where no GPU is known. A build for CUDA says that it can use no GPU wherever
    CUDA does not start, as a build for the CPU does.
    """
    cuda = build_cuda()
    if cuda is None:
        return "llama.cpp was built for the CPU only", "run `python -m selfreward_lite llama`"
    needed = oldest_driver(str(cuda))
    if driver and driver_number(driver) < needed:
        return (
            f"driver {driver} is older than this build's CUDA {cuda}",
            f"update the driver to {needed} or newer",
        )
    return (
        f"llama.cpp was built for CUDA {cuda}, which does not start here ({_ask_runtime(cuda)})",
        "`nvidia-smi` must show the GPU; restart the machine if its driver was updated",
    )


def library_folders() -> list[Path]:
    """Folders with the CUDA libraries that the installed llama.cpp needs; none for a CPU build.

    A build names the libraries and not their folders.
    """
    cuda = build_cuda()
    found = [] if cuda is None else _find_libraries(cuda)
    return list(dict.fromkeys(place for place in found if place))


def has_libraries(cuda: int) -> bool:
    """Whether Python's packages or a toolkit have the libraries of a major version of CUDA."""
    return None not in _find_libraries(cuda)


def find_library_name(text: str) -> str | None:
    """The first library of CUDA that llama.cpp needs and a text names; None without one.

    >>> find_library_name("libcublas.so.13: cannot open shared object file: No such file")
    'libcublas.so.13'
    """
    found = re.search(r"lib(?:cudart|cublas|cublasLt)\.so\.\d+", text)
    return found[0] if found else None


def _find_libraries(cuda: int) -> list[Path | None]:
    """The folders of CUDA's runtime and cuBLAS. Those of Python's packages first, as in torch."""
    places = [*pip_folders(), *(root / "lib64" for root in toolkits())]
    return [
        next((place for place in places if (place / f"lib{name}.so.{cuda}").exists()), None)
        for name in ("cudart", "cublas")
    ]


def library_path(before: str | None) -> dict[str, str]:
    """LD_LIBRARY_PATH for a child that loads llama.cpp, after what it was before; {} if unchanged.

    The loader reads it when a process starts, so it has no effect on this one.
    """
    places = (before or "").split(os.pathsep)
    more = [str(folder) for folder in library_folders() if str(folder) not in places]
    return {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, [before, *more]))} if more else {}


def open_libraries() -> None:
    """Load the CUDA libraries that the installed llama.cpp needs into this very process."""
    for folder in library_folders():
        for name in ("cudart", "cublasLt", "cublas"):  # cublas needs the other two
            for library in folder.glob(f"lib{name}.so.{build_cuda()}"):
                ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def _ask_runtime(cuda: int) -> str:
    """What CUDA's runtime says when it looks for GPUs, in its words."""
    name = f"libcudart.so.{cuda}"
    places = [folder / name for folder in library_folders() if (folder / name).exists()]
    try:
        runtime = ctypes.CDLL(str(places[0]) if places else name)
    except OSError as error:
        return str(error)
    runtime.cudaGetErrorString.restype = ctypes.c_char_p
    code = runtime.cudaGetDeviceCount(ctypes.byref(ctypes.c_int()))
    return str(runtime.cudaGetErrorString(code).decode())


def pip_folders() -> list[Path]:
    """The folders of libraries of NVIDIA's Python packages: nvidia/cu13/lib, nvidia/cublas/lib."""
    spec = find_spec("nvidia")
    roots = spec.submodule_search_locations if spec else None
    return [place for root in roots or () for place in sorted(Path(root).glob("*/lib"))]


def toolkits() -> list[Path]:
    """CUDA toolkits on this machine, as folders with bin/nvcc; what the user named comes first."""
    return list(dict.fromkeys(root for root in _list_roots() if (root / "bin" / "nvcc").exists()))


def _list_roots() -> Iterator[Path]:
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(name):
            yield Path(os.environ[name]).resolve()
    if compiler := shutil.which("nvcc"):
        yield Path(compiler).resolve().parents[1]
    yield (PROGRAMS / "cuda").resolve()
    yield from sorted(PROGRAMS.glob("cuda-*"), reverse=True)


def _find_build() -> Path | None:
    """The folder with llama.cpp's libraries; None if it is not installed."""
    if own := os.environ.get("LLAMA_CPP_LIB_PATH"):  # llama-cpp-python takes them from there
        return Path(own)
    spec = find_spec("llama_cpp")
    return Path(spec.origin).parent / "lib" if spec and spec.origin else None
