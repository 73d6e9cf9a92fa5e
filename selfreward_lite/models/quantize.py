"""A GGUF file in a smaller type, made by llama.cpp, and an estimate of its size and time first."""

import ctypes
import glob
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from selfreward_lite.system.cores import count_cores
from selfreward_lite.system.errors import ExportError, UserError
from selfreward_lite.system.files import atomic_write, format_bytes, free_bytes

KINDS = ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k")
PROBE_ROWS, PROBE_COLUMNS = 256, 4096  # of the matrix that measures the speed of this machine
_MIB = 2**20
_SIZES = re.compile(r"quant size\s*=\s*([\d.]+) MiB")
_TENSOR = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")
Report = Callable[[dict[str, int]], None]  # tensors `done` of a `total`


@dataclass(frozen=True)
class Estimate:
    """What quantizing a file will take: bytes, seconds, and the free bytes on its disk."""

    size: int
    seconds: float
    free: int

    def __str__(self) -> str:
        return (
            f"{format_bytes(self.size)}, about {self.seconds:.0f} s; "
            f"the disk has {format_bytes(self.free)} free"
        )


def estimate(source: Path, out: Path, kind: str) -> Estimate:
    """Ask llama.cpp for the size, and time this machine for the seconds; nothing is written.

    `source` may be any GGUF with these tensors, a quantized one too. Raises UserError for an
    unknown type or a source that does not exist, ExportError for a file that cannot be read.
    """
    params = _params(kind)
    params.dry_run = params.allow_requantize = True
    sizes = _SIZES.findall("".join(_run(source, out, params)))
    if not sizes:
        raise ExportError(
            f"llama.cpp did not print how large {source} would be in {kind}: "
            "use the pinned llama-cpp-python"
        )
    # Vocabulary and settings keep their size.
    rest = source.stat().st_size - sum(int(tensor.n_bytes) for tensor in _tensors(source))
    seconds = count_weights(source) / _weights_per_second(kind)
    return Estimate(int(float(sizes[-1]) * _MIB + rest), seconds, free_bytes(out))


def check_source(source: Path) -> None:
    """Raise UserError for a missing or already quantized source, ExportError for a broken one."""
    if not source.is_file():
        raise UserError(f"{source} is no file: give a GGUF file in f32 or f16")
    types = {tensor.tensor_type.name for tensor in _tensors(source)} - {"F32", "F16", "BF16"}
    if types:
        raise UserError(
            f"{source} is quantized already ({', '.join(sorted(types))}): give a file in f32 or f16"
        )


def quantize(source: Path, out: Path, kind: str, report: Report = lambda at: None) -> int:
    """Write `source` as `out` in another type, and return its bytes.

    Leftovers of killed attempts are removed. `report` receives how many tensors are `done`, of a
    `total`. Raises ExportError where llama.cpp refuses, as it does for a quantized source: each
    time loses more. An interrupt cannot stop this native code: run it in a process that can be
    killed.
    """
    for left in out.parent.glob(f".{glob.escape(out.name)}.*.part"):
        left.unlink()
    with atomic_write(out) as part:
        part.touch()  # an OSError with its reason, if nothing can be written there
        _run(source, part, _params(kind), report)
    return out.stat().st_size


def count_weights(source: Path) -> int:
    """How many weights a GGUF file holds."""
    return sum(int(tensor.n_elements) for tensor in _tensors(source))


def _params(kind: str) -> Any:
    import llama_cpp

    if kind not in KINDS:
        raise UserError(f"{kind} is no type of a GGUF here: choose one of {', '.join(KINDS)}")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    params.nthread = count_cores()
    return params


def _run(source: Path, out: Path, params: Any, report: Report = lambda at: None) -> list[str]:
    """Run llama.cpp; returns its log, the only place where it writes sizes and progress."""
    import llama_cpp

    if not source.is_file():
        raise UserError(f"{source} does not exist: give a GGUF file in f32 or f16")
    log: list[str] = []

    def receive(_level: int, text: bytes, _: Any) -> None:
        log.append(text.decode("utf-8", errors="replace"))
        if place := _TENSOR.match(log[-1]):
            report({"done": int(place[1]), "total": int(place[2])})

    callback = llama_cpp.llama_log_callback(receive)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    try:
        code = llama_cpp.llama_model_quantize(
            os.fsencode(source), os.fsencode(out), ctypes.byref(params)
        )
    finally:
        llama_cpp.llama_log_set(llama_cpp._logger.llama_log_callback, ctypes.c_void_p(0))
    if code == 0:
        return log
    last = next((line.strip() for line in reversed(log) if line.strip()), "no reason given")
    if not params.dry_run:
        try:  # llama.cpp has no error code: whether the disk takes more tells the two reasons apart
            with out.open("ab") as file:
                file.write(bytes(_MIB))
        except OSError as error:
            free = format_bytes(free_bytes(out))
            raise ExportError(
                f"{out.parent} took no more ({error.strerror}; {free} free): "
                "free space and give the same command again"
            ) from None
    raise ExportError(
        f"llama.cpp cannot quantize {source} ({last}): give a complete GGUF file in f32 or f16"
    )


def _tensors(source: Path) -> list[Any]:
    from gguf import GGUFReader

    try:
        return list(GGUFReader(source).tensors)
    except (OSError, ValueError, KeyError, IndexError) as error:  # it has no error class of its own
        raise ExportError(
            f"{source} is no complete GGUF file ({error}): export or download it again"
        ) from None


def _weights_per_second(kind: str) -> float:
    """Weights a second that all cores quantize to the main type of `kind`, timed on one core."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from llama_cpp._ggml import libggml

    main = GGMLQuantizationType[kind.upper().removesuffix("_M")]
    block, size = GGML_QUANT_SIZES[main]
    shape = (PROBE_ROWS, PROBE_COLUMNS)
    weights = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    target = np.empty(weights.size // block * size, np.uint8)
    start, rows, columns = map(ctypes.c_int64, (0, *shape))
    libggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    started = perf_counter()
    libggml.ggml_quantize_chunk(
        int(main), weights.ctypes, target.ctypes, start, rows, columns, None
    )
    return weights.size / (perf_counter() - started) * count_cores()
