"""llama.cpp's llama-server, built from the source that the engine here was compiled from.

The source distribution of llama-cpp-python holds all of llama.cpp. Only the server is compiled; it
uses the libraries that pip compiled for the engine, so both can be compared token by token.
`python tests/helpers/llama_server.py` builds it and prints where it is.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from importlib import metadata
from pathlib import Path

import httpx
from filelock import FileLock

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "llama-server"  # ignored by git
PROJECT = Path(__file__).with_suffix(".cmake")
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=None",  # not optimized, to compile faster: what computes is in libraries
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
)
SHA256 = {  # of the source distribution on PyPI
    "llama-cpp-python==0.3.36": "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
}
STARTS_WITHIN = 120  # seconds


def find_pin() -> str:
    """The requirement that the engine here is compiled from."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    (pin,) = re.findall(r"^llama-cpp-python==\S+$", text, re.MULTILINE)
    return pin


def build() -> Path:
    """The path of llama-server; builds it unless this source was built with these options before.

    What runs, with llama.cpp's part of the source as `source` and llama_server.cmake as its
    CMakeLists.txt:

        cmake -S source -B build OPTIONS -DLIBRARIES=…/llama_cpp/lib -DCOMMON=…/lib
        cmake --build build --target llama-server -j CORES
    """
    pin, libraries = find_pin(), find_libraries()
    if pin not in SHA256:
        raise RuntimeError(f"add the sha256 of the source distribution of {pin} to {__file__}")
    options = (*OPTIONS, *libraries)
    words = (SHA256[pin], *options, PROJECT.read_text(encoding="utf-8"))
    folder = CACHE / hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "llama-server"
    with FileLock(folder / "lock"):
        if not program.exists():
            source, tree = folder / "source", folder / "build"
            if not source.exists():
                _unpack(pin, source)
            shutil.copy2(PROJECT, source / "CMakeLists.txt")
            cores = str(len(os.sched_getaffinity(0)))
            _run(folder, "cmake", "-S", source, "-B", tree, *options)
            _run(folder, "cmake", "--build", tree, "--target", "llama-server", "-j", cores)
            (built,) = tree.rglob("llama-server")
            shutil.copy2(built, folder / "part")
            (folder / "part").rename(program)
            shutil.rmtree(tree)
            shutil.rmtree(source)
    return program


def find_libraries() -> list[str]:
    """Options that say where pip put the libraries of the pinned llama-cpp-python."""
    name, version = find_pin().split("==")
    if metadata.version(name) != version:
        raise RuntimeError(f"{name} is {metadata.version(name)}; pip install -r requirements.txt")
    site = Path(str(metadata.distribution(name).locate_file("")))
    found = [site / "llama_cpp" / "lib" / "libllama.so", site / "lib" / "libllama-common.so"]
    for file in found:
        if not file.exists():
            raise RuntimeError(f"{file} is missing: install {name} by pip, without CMAKE_ARGS")
    return [f"-DLIBRARIES={found[0].parent}", f"-DCOMMON={found[1].parent}"]


class LlamaServer:
    """llama-server as a router over a file of models, on a free port of loopback.

    Its models are processes that it starts, and are in its group, which is no other process's. Each
    has one thread: on as many cores as servers, the threads of two wait for each other, and a tiny
    token takes a second.
    """

    def __init__(self, program: Path, presets: Path, log: Path) -> None:
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        command = [program, "--models-preset", presets, "--models-max", "2"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--offline", "--threads", "1"]
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait()
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """End the router and its models by SIGKILL, as the loss of their machine does."""
        if self._process.returncode is None:  # or its number may be another's by now
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _wait(self) -> None:
        """Return when it answers; RuntimeError with the end of its log if it does not."""
        deadline = time.monotonic() + STARTS_WITHIN
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if httpx.get(f"{self.url}/health", trust_env=False).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
        raise RuntimeError(f"llama-server did not start:\n{_tail(self.log)}")


def _unpack(pin: str, source: Path) -> None:
    """Fetch the source distribution, check it, and unpack llama.cpp's part of it."""
    with tempfile.TemporaryDirectory(dir=source.parent) as temporary:
        here = Path(temporary)
        name = pin.split("==")[0]
        options = ["--no-deps", "--no-binary", name, "-d", here]  # what it is built with has wheels
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", *options, pin], check=True)
        (archive,) = here.glob("*.tar.gz")
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != SHA256[pin]:
            raise RuntimeError(f"{archive.name} has the sha256 {found}, not that of {pin}")
        with tarfile.open(archive) as packed:
            for member in packed:
                if "/vendor/llama.cpp/" in member.name:
                    packed.extract(member, here, filter="data")
        (tree,) = here.glob("*/vendor/llama.cpp")
        tree.rename(source)


def _run(folder: Path, *command: str | Path) -> None:
    log = folder / "build.log"
    with log.open("ab") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    print(build())
