"""Asking the machine: each probe does a little of the real work in a child with a time limit.

A version number says what should work. A probe shows what does, and its crash ends a child only.
"""

import json
import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

from selfreward_lite.system.files import Json
from selfreward_lite.system.gpu import allocator_settings
from selfreward_lite.system.processes import child_environment, explain_exit, run_module

PATIENCE = 180  # seconds for a probe; importing torch from a cold disk takes most of it
COMPILE_PATIENCE = 60  # seconds for three lines of C
MODULE = "selfreward_lite.models.probe"
LINE = 300  # characters of an error
PROGRAM = "#include <Python.h>\n\nint answer(void) { return PY_MAJOR_VERSION; }\n"
# Variables that hosted notebooks set, and files that container engines make.
HOSTED = {"colab": "COLAB_RELEASE_TAG", "kaggle": "KAGGLE_KERNEL_RUN_TYPE"}
CONTAINER = (Path("/.dockerenv"), Path("/run/.containerenv"))


def ask(*arguments: str, patience: float = PATIENCE) -> Json:
    """What a probe of `models.probe` answered; {"error": why} if it failed, crashed or hung."""
    environment = child_environment(allocator_settings(), "one")  # as a training has it
    try:
        ended = run_module(MODULE, *arguments, env=environment, timeout=patience)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {patience:.0f} s"}
    if ended.returncode:
        why = explain_exit(ended.returncode, ended.stderr.splitlines(), "its process")
        return {"error": why[:LINE]}
    try:
        answer: Json = dict(json.loads(ended.stdout.splitlines()[-1]))
    except (ValueError, IndexError, TypeError):
        return {"error": f"its answer cannot be read: {ended.stdout[-LINE:]!r}"}
    return answer


def compile_with_python() -> Json:
    """Compile three lines of C with Python's headers, as Triton does before its first kernel.

    `compiler` is its path or None, `header` whether Python.h is there, `include` the folder that
    should hold it, `error` the compiler's line or None.
    """
    include = find_include()
    compiler = find_compiler()
    found: Json = {
        "compiler": compiler,
        "include": str(include),
        "header": (include / "Python.h").is_file(),
        "error": None,
    }
    if compiler is None or not found["header"]:
        return found
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "probe.c"
        source.write_text(PROGRAM, encoding="utf-8")
        out = source.with_suffix(".so")
        command = [compiler, str(source), "-shared", "-fPIC", f"-I{include}", "-o", str(out)]
        return {**found, "error": _run_compiler(command)}


def find_include() -> Path:
    """The folder with Python.h where Triton looks for it (triton/runtime/build.py).

    Debian's own scheme names a folder below /usr/local, which has no headers.
    """
    scheme = sysconfig.get_default_scheme()
    scheme = "posix_prefix" if scheme == "posix_local" else scheme
    return Path(sysconfig.get_paths(scheme=scheme)["include"])


def find_compiler() -> str | None:
    """The C compiler that Triton would use; None without one."""
    named = os.environ.get("CC")
    if named is not None:
        return shutil.which(named)
    return shutil.which("gcc") or shutil.which("clang")


def find_place() -> str:
    """Where this is: a hosted notebook, a container, or the distribution's id; "" if unknown."""
    for name, variable in HOSTED.items():
        if variable in os.environ:
            return name
    if any(file.exists() for file in CONTAINER):
        return "container"
    try:
        return platform.freedesktop_os_release()["ID"]
    except (OSError, KeyError):
        return ""


def _run_compiler(command: list[str]) -> str | None:
    """The line in which a compiler says why it failed; None if it did not."""
    try:
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=COMPILE_PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {COMPILE_PATIENCE} s"
    except OSError as error:
        return str(error)
    if not ended.returncode:
        return None
    lines = ended.stderr.splitlines()
    errors = [line for line in lines if "error" in line]
    return (errors or [explain_exit(ended.returncode, lines)])[0][:LINE]
