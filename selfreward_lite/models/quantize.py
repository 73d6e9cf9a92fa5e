"""A GGUF file in a smaller type, by llama.cpp's own quantiser; what it will take is known before it begins.

    before       bytes it will have, seconds it may take, bytes that are free
    quantise     the file, whole or not at all

Works on files only. llama_cpp is imported inside functions: importing this file is cheap.
"""

from __future__ import annotations

import ctypes
import glob
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from selfreward_lite.system.errors import ExportError, UserError
from selfreward_lite.system.files import format_bytes, free_bytes, whole_file

KINDS = ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k")
PROBE_ROWS, PROBE_COLUMNS = (
    256,
    4096,
)  # of the matrix that is quantised to learn how fast this machine is
_MIB = 2**20
_SIZES = re.compile(r"quant size\s*=\s*([\d.]+) MiB")
_TENSOR = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")


@dataclass(frozen=True)
class Before:
    """What quantising a file will take: its size in bytes, the seconds, and the bytes that are free where it will lie."""

    size: int
    seconds: float
    free: int

    def __str__(self) -> str:
        return f"{format_bytes(self.size)}, about {self.seconds:.0f} s; the disk has {format_bytes(self.free)} free"


def before(source: Path, out: Path, kind: str) -> Before:
    """Ask llama.cpp for the size, and this machine for its speed; nothing is written.

    `source` may be any GGUF with these tensors, quantised ones too. Raises UserError for a type or a source that does not exist,
    ExportError for a file that cannot be read.
    """
    params = _params(kind)
    params.dry_run = params.allow_requantize = True
    with _listening() as said:
        _run(source, out, params, said)
    sizes = _SIZES.findall("".join(said))
    if not sizes:
        raise ExportError(
            f"llama.cpp did not say how large {source} would be in {kind}: use the pinned llama-cpp-python"
        )
    tensors = _tensors(source)
    rest = source.stat().st_size - sum(
        int(tensor.n_bytes) for tensor in tensors
    )  # vocabulary and settings stay as they are
    size, free = int(float(sizes[-1]) * _MIB + rest), free_bytes(out)
    return Before(size, weights(source) / _weights_per_second(kind), free)


def check_source(source: Path) -> None:
    """Raise UserError for a source that is no file, or is quantised already; ExportError for one that is no whole GGUF."""
    if not source.is_file():
        raise UserError(f"{source} is no file: give a GGUF file in f32 or f16")
    types = {tensor.tensor_type.name for tensor in _tensors(source)} - {"F32", "F16", "BF16"}
    if types:
        raise UserError(
            f"{source} is quantised already ({', '.join(sorted(types))}): give a file in f32 or f16"
        )


def quantise(
    source: Path,
    out: Path,
    kind: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write `source` as `out` in another type; returns `out`. `progress` hears of each tensor: how many, of how many.

    Raises ExportError where llama.cpp refuses, as it does for a source that is quantised already: each time loses more. What an
    attempt that was killed has left is removed. The work is native and hears no interrupt: do it in a process that can be killed.
    """

    def heard(line: str) -> None:
        if place := _TENSOR.match(line):
            progress(int(place[1]), int(place[2]))

    sweep(out)
    with whole_file(out) as part, _listening(heard) as said:
        part.touch()  # what cannot be written is an OSError, with its reason
        _run(source, part, _params(kind), said)
    return out


def write(
    source: str, out: str, kind: str, report: Callable[[dict[str, int]], None]
) -> dict[str, int]:
    """Do `quantise` as a task of the workshop; returns `bytes`."""
    made = quantise(
        Path(source), Path(out), kind, lambda done, total: report({"done": done, "total": total})
    )
    return {"bytes": made.stat().st_size}


def sweep(out: Path) -> None:
    """Remove what attempts at `out` that were killed have left."""
    for left in out.parent.glob(f".{glob.escape(out.name)}.*.part"):
        left.unlink()


def _params(kind: str) -> Any:
    import llama_cpp

    if kind not in KINDS:
        raise UserError(f"{kind} is no type of a GGUF here: choose of {', '.join(KINDS)}")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    params.nthread = os.cpu_count() or 1
    return params


def _run(source: Path, out: Path, params: Any, said: list[str]) -> None:
    import llama_cpp

    if not source.is_file():
        raise UserError(f"{source} does not exist: give a GGUF file in f32 or f16")
    if llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(params)):
        last = next((line.strip() for line in reversed(said) if line.strip()), "no reason given")
        if "iostream" in last:  # how it says that it could not write
            free = format_bytes(free_bytes(out))
            raise ExportError(
                f"{out.parent} took no more ({last}; {free} free): free space and give the same command again"
            )
        raise ExportError(
            f"llama.cpp cannot quantise {source} ({last}): give a whole GGUF file in f32 or f16"
        )


@contextmanager
def _listening(heard: Callable[[str], None] = lambda line: None) -> Iterator[list[str]]:
    """Collect what llama.cpp says, which is how it tells sizes and progress."""
    import llama_cpp

    said: list[str] = []

    def receive(_level: int, text: bytes, _: Any) -> None:
        said.append(text.decode("utf-8", errors="replace"))
        heard(said[-1])

    callback = llama_cpp.llama_log_callback(receive)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    try:
        yield said
    finally:
        llama_cpp.llama_log_set(llama_cpp._logger.llama_log_callback, ctypes.c_void_p(0))


def weights(source: Path) -> int:
    """Return how many weights a GGUF file holds."""
    return sum(int(tensor.n_elements) for tensor in _tensors(source))


def _tensors(source: Path) -> list[Any]:
    from gguf import GGUFReader

    try:
        return GGUFReader(source).tensors
    except (OSError, ValueError, KeyError, IndexError) as error:  # it has no error of its own
        raise ExportError(
            f"{source} is no whole GGUF file ({error}): export or download it again"
        ) from None


def _weights_per_second(kind: str) -> float:
    """How many weights a second all cores turn into the main type of `kind`: a random matrix, timed on one core."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from llama_cpp._ggml import libggml

    main = GGMLQuantizationType[kind.upper().removesuffix("_M")]
    block, size = GGML_QUANT_SIZES[main]
    weights = (
        np.random.default_rng(0).standard_normal((PROBE_ROWS, PROBE_COLUMNS)).astype(np.float32)
    )
    target = np.empty(weights.size // block * size, np.uint8)
    libggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    long = ctypes.c_int64
    started = perf_counter()
    libggml.ggml_quantize_chunk(
        ctypes.c_int(int(main)),
        ctypes.c_void_p(weights.ctypes.data),
        ctypes.c_void_p(target.ctypes.data),
        long(0),
        long(PROBE_ROWS),
        long(PROBE_COLUMNS),
        None,
    )
    return weights.size / (perf_counter() - started) * (os.cpu_count() or 1)
