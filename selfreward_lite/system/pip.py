"""pip in a child process: its log in a file, how far a build is, and why it failed in one line."""

import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

LOG = "selfreward_lite-pip.log"  # in the folder for temporary files
PARTS = 20  # lines about a build at most
# Lines of a compiler, linker, CMake or pip's resolver; pip prints "error" for any failed build.
_CAUSE = re.compile(
    r"nvcc fatal|CMake Error|fatal error|#error|error: [^s]|ninja: error|cannot find -l"
    r"|No space left|No matching distribution|Could not find a version",
    re.IGNORECASE,
)
# What follows from another line: of a network that is missing, pip says last that it found nothing.
_FIRST = re.compile(r"Failed to establish a new connection|Name or service not known|timed out")
_STEP = re.compile(r"\[(\d+)/(\d+)\] ")  # ninja's count of files


class Failed(Exception):
    """pip failed; the message is the line of its output that says why."""


def find_log() -> Path:
    """The file with all that pip printed; calls of `run_pip` add to it."""
    return Path(tempfile.gettempdir()) / LOG


def run_pip(*arguments: str, say: Callable[[str], None], **environment: str) -> None:
    """Run pip and wait for it, saying how far a build is. Raises Failed."""
    command = [sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check"]
    log, shown, printed = find_log(), 0, list[str]()
    with (
        log.open("a", encoding="utf-8") as out,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=os.environ | environment,
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            out.write(line)
            printed.append(line)
            if step := _STEP.search(line):
                done, files = int(step[1]), int(step[2])
                if done * PARTS // files > shown:
                    shown = done * PARTS // files
                    say(f"compiled {done} of {files} files")
    importlib.invalidate_caches()  # this process may look for what is new
    if process.returncode:
        last = next((line for line in reversed(printed) if line.strip()), "it printed nothing")
        why = find_cause(printed) or last
        raise Failed(f"pip {arguments[0]} failed: {why.strip()} (full log: {log})")


def find_cause(lines: list[str]) -> str | None:
    """The line that says why a build or an installation failed; None if there is none.

    >>> find_cause(["nvcc fatal   : Unsupported gpu architecture 'compute_120'", "ninja: error"])
    "nvcc fatal   : Unsupported gpu architecture 'compute_120'"
    """
    for wanted in (_FIRST, _CAUSE):
        if found := next((line for line in lines if wanted.search(line)), None):
            return found
    return None
