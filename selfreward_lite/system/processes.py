"""Child processes: how one starts, what it may see, how it ended, what it wrote last."""

import json
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

from selfreward_lite.system import cores, cuda

Message = dict[str, Any]
# Launchers of several processes (torchrun, accelerate, MPI) leave these to what they start. A
# training would wait for the others, or be done with settings that its run does not name.
LAUNCHERS = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "NODE_RANK", "PMI_RANK"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "PMI_SIZE", "MASTER_ADDR", "MASTER_PORT"),
)
LAUNCHED = ("ACCELERATE_", "TORCHELASTIC_", "OMPI_COMM_WORLD_", "MV2_COMM_WORLD_", "FSDP_")
AGAIN = "and give the same command again"
DEATH = "death"  # the one key of the last message of a JsonProcess
TAIL_BYTES = 16_000  # of a log, in which the last lines are looked for
CLOSE_SECONDS = 5.0
_log = logging.getLogger(__name__)


def one_gpu() -> dict[str, str]:
    """Environment variables that limit a child process to the first visible GPU.

    With two, llama.cpp would split the layers, and TRL every batch. GPUs are counted as nvidia-smi
    counts them; CUDA by itself would begin with the fastest.
    """
    return {
        "CUDA_DEVICE_ORDER": os.environ.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID"),
        "CUDA_VISIBLE_DEVICES": first_gpus(1),
    }


def first_gpus(count: int) -> str:
    """The first `count` visible GPUs, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = [str(number) for number in range(count)] if named is None else named.split(",")
    return ",".join(one.strip() for one in found[:count])


def child_environment(
    defaults: Mapping[str, str] = {}, gpus: Literal["all", "one", "none"] = "all"
) -> dict[str, str]:
    """This process's environment, for a child in any folder that imports this package.

    `defaults` apply where the user has not set the variable. The child keeps to a quota of CPU
    time, takes itself for one of no group of processes, and finds the CUDA libraries that
    llama.cpp needs, also with no layer on a GPU. It imports nothing from its current folder, where
    a user's torch.py would hide the package.
    """
    own = {
        name: value
        for name, value in os.environ.items()
        if name not in LAUNCHERS and not name.startswith(LAUNCHED)
    }
    found = {**cores.thread_limit(), **defaults, **own}
    found |= cuda.library_path(found.get("LD_LIBRARY_PATH"))
    found["PYTHONSAFEPATH"] = "1"
    if gpus != "all":
        found |= one_gpu()
    if gpus == "none":  # a CUDA build takes some of a GPU's memory even without a layer on it
        found["CUDA_VISIBLE_DEVICES"] = ""
    package = Path(__file__).resolve().parents[2]
    if package.name not in ("site-packages", "dist-packages"):  # there, a child finds it anyway
        found["PYTHONPATH"] = os.pathsep.join(filter(None, [str(package), found.get("PYTHONPATH")]))
    return found


def start_module(module: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start `python -m module`; `options` are those of Popen."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.Popen(command, encoding="utf-8", errors="replace", **options)


def run_module(module: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `python -m module` to its end, without input, and keep what it printed."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        **options,
    )


def describe_exit(code: int, subject: str = "it") -> str:
    """How a process ended, from its return code.

    >>> describe_exit(3), describe_exit(-11)
    ('it ended with exit code 3', 'it was ended by SIGSEGV')
    """
    if code >= 0:
        return f"{subject} ended with exit code {code}"
    known = {one.value: one.name for one in signal.Signals}  # not all real-time signals
    name = known.get(-code, f"signal {-code}")
    return f"{subject} was ended by {name}{_explain_signal(name)}"


def _explain_signal(name: str) -> str:
    """Where a signal says why a process was ended: the reason, as far as it is known."""
    seconds, _ = resource.getrlimit(resource.RLIMIT_CPU)
    limit = f"a limit of CPU time (`ulimit -t`) ends processes: raise it, {AGAIN}"
    if name == "SIGXCPU":
        return f", which is how {limit}"
    if name != "SIGKILL":
        return ""
    if seconds != resource.RLIM_INFINITY:
        return f", which is how {limit}. A system short of memory does so too"
    return ", which is how a system short of memory ends processes"


def explain_exit(code: int, lines: Sequence[str], subject: str = "it") -> str:
    """Why a process failed: its last line, and first how it ended where a signal ended it."""
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    how = describe_exit(code, subject)
    if not last:
        return f"{how} and wrote nothing" if code >= 0 else how
    return last if code >= 0 else f"{how}; its last line: {last}"


def last_lines(log: Path, count: int = 1) -> list[str]:
    """The last lines of a log that are not empty; none if there is no such file."""
    if not log.is_file():
        return []
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    return [line for line in lines if line.strip()][-count:]


def open_wire() -> Callable[[Message], None]:
    """In a child: a function that sends its parent a message; stray prints go to stderr."""
    wire = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(message: Message) -> None:
        print(json.dumps(message), file=wire, flush=True)

    return send


def end_with_parent() -> None:
    """In a child whose input is a pipe: wait until its other end is gone, then exit at once."""
    os.read(0, 1)
    os._exit(1)


class JsonProcess:
    """A child that reads and writes lines of JSON; `messages` are its own, {DEATH: True} the last.

    One thread reads the messages, another keeps the last lines of its standard error.
    """

    def __init__(self, module: str, *arguments: str, **options: Any) -> None:
        pipe = subprocess.PIPE
        self._process = process = start_module(
            module, *arguments, stdin=pipe, stdout=pipe, stderr=pipe, **options
        )
        assert process.stdin and process.stdout and process.stderr
        self._stdin, self._stdout, self._stderr = process.stdin, process.stdout, process.stderr
        self.messages: SimpleQueue[Message] = SimpleQueue()
        self.lines: deque[str] = deque(maxlen=12)
        self._threads = [
            threading.Thread(target=run, daemon=True) for run in (self._read, self._read_errors)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def send(self, message: Message) -> None:
        """Send a message; nothing happens if the child is gone, which `messages` reports."""
        if self._stdin.closed:
            return
        try:
            print(json.dumps(message), file=self._stdin, flush=True)
        except BrokenPipeError:
            _log.debug("child %s is gone; its reader reports the death", self.pid)

    def reap(self) -> int:
        """Wait until a dying child has ended and all it wrote is read; returns its exit code."""
        code = self._process.wait()
        self.close()
        return code

    def close(self, patience: float = CLOSE_SECONDS) -> None:
        """Close the child's input, which asks it to end; kill it after `patience` seconds."""
        try:
            self._stdin.close()
        except BrokenPipeError:
            _log.debug("child %s ended before its input was closed", self.pid)
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for thread in self._threads:
            thread.join()
        self._stdout.close()
        self._stderr.close()

    def _read(self) -> None:
        try:
            for line in self._stdout:
                try:
                    message = json.loads(line)
                except json.JSONDecodeError:
                    message = None
                if isinstance(message, dict) and line.endswith("\n"):
                    self.messages.put(message)
                else:  # a library printed it, or a death cut a message off
                    self._keep(line)
        finally:
            self.messages.put({DEATH: True})

    def _read_errors(self) -> None:
        for line in self._stderr:
            self._keep(line)

    def _keep(self, line: str) -> None:
        if line.strip():
            self.lines.append(line.strip())
