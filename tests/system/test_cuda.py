"""CUDA's libraries, drivers and compilers on machines made of files; nothing of CUDA runs."""

import os
from pathlib import Path

import pytest
from machines import OLD_DRIVER, RTX, T4

from selfreward_lite.engine.api import LlamaSpec
from selfreward_lite.engine.process import environment_for
from selfreward_lite.system import cuda, cuda_compilers, processes
from selfreward_lite.system.cuda_compilers import Compiler

# Prints a version, and compiles unless the file `fault` beside it says why not.
NVCC = """#!/bin/sh
[ "$1" = --version ] && echo "Cuda compilation tools, release VERSION, V0" && exit
echo "$@" > HERE/asked
[ ! -e HERE/fault ] || { cat HERE/fault >&2; exit 1; }
"""


@pytest.fixture
def place(monkeypatch, tmp_path):
    """A machine without CUDA; the functions below add to it."""
    for name in ("CUDA_HOME", "CUDA_PATH", "CUDAHOSTCXX", "LD_LIBRARY_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path / "llama"))
    monkeypatch.setattr(cuda, "PROGRAMS", tmp_path / "programs")
    monkeypatch.setattr(cuda.shutil, "which", lambda name: None)
    monkeypatch.setattr(cuda, "pip_folders", lambda: sorted((tmp_path / "nvidia").glob("*/lib")))
    return tmp_path


def add_build(place: Path, major: int | None) -> None:
    (place / "llama").mkdir()
    (place / "llama" / "libllama.so").write_bytes(b"\x7fELF")
    if major:
        needed = f"\x7fELF\0libcublas.so.{major}\0libcudart.so.{major}\0".encode()
        (place / "llama" / "libggml-cuda.so").write_bytes(needed)


def add_libraries(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def add_toolkit(place: Path, version: str) -> Path:
    root = place / "programs" / f"cuda-{version}"
    add_libraries(root / "bin")
    nvcc = root / "bin" / "nvcc"
    nvcc.write_text(NVCC.replace("VERSION", version).replace("HERE", str(root)))
    nvcc.chmod(0o755)
    return root


def test_a_build_for_cuda_is_told_by_its_files(place):
    assert cuda.build_cuda() is None, "not installed"
    add_build(place, None)
    assert cuda.build_cuda() is None
    assert cuda.explain_idle("570.1")[0] == "llama.cpp was built for the CPU only"
    (place / "llama" / "libggml-cuda.so").write_bytes(b"\0libcudart.so.12\0")
    assert cuda.build_cuda() == 12


def test_an_old_driver_is_called_by_its_name(place):
    add_build(place, 13)
    assert cuda.explain_idle("570.133") == (
        "driver 570.133 is older than this build's CUDA 13",
        "update the driver to 580 or newer",
    )
    folder = add_libraries(place / "nvidia" / "cu13" / "lib", "libcudart.so.13")
    why, advice = cuda.explain_idle("580.65")
    assert why.startswith("llama.cpp was built for CUDA 13, which does not start here (")
    assert str(folder / "libcudart.so.13") in why, "it is an empty file, and the loader says so"
    assert "nvidia-smi" in advice


def test_children_find_the_libraries_of_the_build_and_no_other(place, monkeypatch):
    ours = add_libraries(place / "nvidia" / "cu13" / "lib", "libcudart.so.13", "libcublas.so.13")
    add_libraries(place / "nvidia" / "cudnn" / "lib", "libcudnn.so.9")
    add_libraries(add_toolkit(place, "13.0") / "lib64", "libcudart.so.13", "libcublas.so.13")
    assert "LD_LIBRARY_PATH" not in processes.child_environment(), "no build, no libraries"
    add_build(place, 13)
    spec = LlamaSpec(model="base.gguf", gpu_layers=0)
    assert environment_for(spec)["LD_LIBRARY_PATH"] == str(ours), "a CUDA build needs them anyway"
    monkeypatch.setenv("LD_LIBRARY_PATH", "/mine")
    assert processes.child_environment(gpus="one")["LD_LIBRARY_PATH"] == f"/mine:{ours}"
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/mine:{ours}")
    assert processes.child_environment()["LD_LIBRARY_PATH"] == f"/mine:{ours}", "not twice"


def test_libraries_may_be_in_several_folders_or_in_a_toolkit(place):
    """CUDA 12's packages have a folder each; a toolkit has what they lack."""
    add_build(place, 12)
    runtime = add_libraries(place / "nvidia" / "cuda_runtime" / "lib", "libcudart.so.12")
    assert not cuda.has_libraries(12)
    toolkit = add_libraries(add_toolkit(place, "12.4") / "lib64", "libcublas.so.12")
    assert cuda.library_folders() == [runtime, toolkit]
    assert cuda.has_libraries(12)
    blas = add_libraries(place / "nvidia" / "cublas" / "lib", "libcublas.so.12")
    assert cuda.library_folders() == [runtime, blas]


def test_this_process_can_load_them_too(place, monkeypatch):
    add_build(place, 13)
    names = ("libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13")
    folder = add_libraries(place / "nvidia" / "cu13" / "lib", *names)
    loaded = []
    monkeypatch.setattr(cuda.ctypes, "CDLL", lambda path, mode: loaded.append(path))
    cuda.open_libraries()
    assert sorted(loaded) == sorted(str(folder / name) for name in names)
    assert loaded[-1].endswith("libcublas.so.13"), "it needs the others"


def test_toolkits_in_the_order_in_which_they_are_tried(place, monkeypatch):
    older, newer = add_toolkit(place, "12.4"), add_toolkit(place, "13.0")
    assert cuda.toolkits() == [newer, older]
    monkeypatch.setenv("CUDA_HOME", str(older))
    assert cuda.toolkits() == [older, newer]


def test_packages_of_pip_look_like_a_toolkit(tmp_path):
    """By their own names a linker does not find them, and nvcc looks for lib64 beside itself."""
    packages, folder = tmp_path / "nvidia" / "cu13", tmp_path / "toolkit"
    add_libraries(packages / "bin", "nvcc", "ptxas")
    add_libraries(packages / "lib", "libcublas.so.13", "libcudart.so.13", "libcudart_static.a")
    add_libraries(packages / "include", "cuda_runtime.h")
    add_libraries(packages / "nvvm" / "bin", "cicc")
    nvcc = cuda_compilers.lay_out(packages, folder)
    assert nvcc == folder / "bin" / "nvcc"
    assert not (folder / "bin").is_symlink(), "`bin/..` must be the new folder"
    held = {file.name for file in (folder / "lib64").iterdir()}
    assert held >= {"libcublas.so", "libcublas.so.13", "libcudart.so", "libcudart_static.a"}
    for file in ("include/cuda_runtime.h", "nvvm/bin/cicc", "lib/libcudart.so", "bin/ptxas"):
        assert (folder / file).exists(), file


@pytest.mark.parametrize(
    ("version", "gpu", "words"),
    [
        ("12.0", RTX, "CUDA 12.0 is older than 12.4"),
        ("13.0", OLD_DRIVER, "driver 570.133.20 is older than its CUDA 13"),
        ("12.4", OLD_DRIVER, None),
        ("13.0", T4, None),
    ],
)
def test_a_toolkit_must_fit_the_driver(place, version, gpu, words):
    root = add_toolkit(place, version)
    (compiler,) = cuda_compilers.find_toolkits()
    assert cuda_compilers.find_fault(compiler, gpu, place) == words
    assert (root / "asked").exists() == (words is None), "it is tried where it may do"


@pytest.mark.parametrize(
    ("printed", "words"),
    [
        (
            "nvcc fatal   : Unsupported gpu architecture 'sm_120'",
            "nvcc fatal   : Unsupported gpu architecture 'sm_120'",
        ),
        (
            "In file included from cuda_runtime.h:82,\nhost_config.h:143:2: error: #error -- "
            "unsupported GNU version! gcc versions later than 13 are not supported!",
            "install an older g++, and name it in CUDAHOSTCXX",
        ),
        ("trial.cu:1:10: fatal error: cublas_v2.h: No such file or directory", "cublas_v2.h"),
        ("something else", "something else"),
    ],
)
def test_a_compiler_is_tried_before_a_build(place, printed, words):
    (add_toolkit(place, "12.4") / "fault").write_text(printed)
    (compiler,) = cuda_compilers.find_toolkits()
    assert words in cuda_compilers.find_fault(compiler, RTX, place)


def test_the_trial_is_for_this_gpu_and_the_named_host_compiler(place, monkeypatch):
    root = add_toolkit(place, "12.8")
    monkeypatch.setenv("CUDAHOSTCXX", "g++-13")
    assert cuda_compilers.find_fault(*cuda_compilers.find_toolkits(), RTX, place) is None
    assert "-arch=sm_89" in (root / "asked").read_text()
    assert "-ccbin g++-13" in (root / "asked").read_text()


def test_cmake_is_told_which_toolkit(place):
    root = add_toolkit(place, "12.4")
    (compiler,) = cuda_compilers.find_toolkits()
    assert "CUDAToolkit_ROOT" not in compiler.cmake_options(T4), "its headers are elsewhere"
    add_libraries(root / "include", "cuda_runtime.h")
    (compiler,) = cuda_compilers.find_toolkits()
    assert f"-DCUDAToolkit_ROOT={root}" in compiler.cmake_options(T4)
    assert "-DCMAKE_CUDA_ARCHITECTURES=75" in compiler.cmake_options(T4)
    spaced = Compiler("mine", root / "bin" / "nvcc", Path("/my tools"))
    assert "-DCUDAToolkit_ROOT='/my tools'" in spaced.cmake_options(T4)


def test_nvcc_that_does_not_start_is_a_fault(place):
    root = add_toolkit(place, "12.4")
    (compiler,) = cuda_compilers.find_toolkits()
    os.chmod(root / "bin" / "nvcc", 0o644)
    assert "does not start" in cuda_compilers.find_fault(compiler, RTX, place)
    (root / "bin" / "nvcc").write_text("#!/bin/sh\necho hello\n")
    os.chmod(root / "bin" / "nvcc", 0o755)
    assert cuda_compilers.find_fault(compiler, RTX, place) == "nvcc names no version"
