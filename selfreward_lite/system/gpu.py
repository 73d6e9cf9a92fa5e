"""The GPUs of this machine as their driver describes them, and the lock on the one that is used.

One process at a time uses the GPU, and a run comes before an app. A run waits in `gpu_lock`, and
asks the holder to release it. An app takes it at once or not at all (`try_lock`), and releases it
when a run waits (`is_wanted`). Two models in one GPU would end a run hours later, out of memory.
Nothing here imports torch; asking takes milliseconds and no GPU memory.
"""

import logging
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from selfreward_lite.system import locks
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.surroundings import find_home

OLDEST = (7, 5)  # Turing: torch 2.13 has no kernels for older compute capabilities
BF16 = (8, 0)  # torch's own answer is wrong for a T4 (unslothai/unsloth#504)
LARGE = 10**9  # weights of a model that would train for days on a CPU
PATIENCE = 30  # seconds for nvidia-smi, which hangs where the driver does
FOLDER: Path | None = None  # of the locks; by default in the user's home
DEVICES = Path("/sys/bus/pci/devices")  # Linux's, each a folder; none under WSL2
NVIDIA, DISPLAY = "0x10de", "0x03"  # a vendor, and how the class of a display controller begins
HIDDEN = ("", "-1")  # what CUDA_VISIBLE_DEVICES says to use none
POLL = 0.5  # seconds between two attempts to take the lock
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver describes it; memory in bytes."""

    name: str
    driver: str
    capability: tuple[int, int]
    free: int
    total: int
    uuid: str = ""

    @property
    def short(self) -> str:
        """The name without its maker.

        >>> Gpu("NVIDIA GeForce RTX 4090", "580.1", (8, 9), 0, 0).short
        'RTX 4090'
        """
        return re.sub(r"NVIDIA |GeForce |Tesla ", "", self.name)

    @property
    def architecture(self) -> str:
        """The compute capability as compilers name it.

        >>> Gpu("Tesla T4", "580.1", (7, 5), 0, 0).architecture
        '75'
        """
        return "".join(map(str, self.capability))


@dataclass(frozen=True)
class GpuUser:
    """A program that holds memory of a GPU, in bytes; None where the driver does not say it."""

    name: str
    used: int | None


def is_wsl() -> bool:
    """Whether this is Linux inside Windows (WSL2), also in a container there."""
    return "microsoft" in platform.release().casefold()


def allocator_settings() -> dict[str, str]:
    """How torch takes a GPU's memory, as environment variables.

    Rows of many lengths, one after the other, would leave holes in it. In WSL2 the first allocation
    fails with such segments (pytorch/pytorch#192330).
    """
    return {} if is_wsl() else {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}


def list_gpus() -> list[Gpu]:
    """The GPUs of the driver that CUDA_VISIBLE_DEVICES allows; none without a driver that works."""
    columns = "index,uuid,name,driver_version,compute_cap,memory.free,memory.total"
    output, _ = _ask_driver(f"--query-gpu={columns}", "--format=csv,noheader,nounits")
    return parse_gpus(output, os.environ.get("CUDA_VISIBLE_DEVICES"))


def find_driver_fault() -> str | None:
    """Why nvidia-smi fails, in its own words; None if it works or there is none."""
    return _ask_driver("-L")[1]


def lacks_driver() -> bool:
    """Whether this machine has a GPU of NVIDIA and no nvidia-smi, which comes with the driver."""
    if shutil.which("nvidia-smi"):
        return False
    return any(
        (device / "vendor").read_text(encoding="ascii").strip() == NVIDIA
        and (device / "class").read_text(encoding="ascii").startswith(DISPLAY)
        for device in DEVICES.glob("*")
    )


def explain_missing_gpu() -> str | None:
    """Why no GPU is seen on a machine that has one; None if it has none, or hides it on purpose."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in HIDDEN:
        return None
    if fault := find_driver_fault():
        return f"nvidia-smi fails: {fault}"
    return "the GPU has no driver" if lacks_driver() else None


def list_gpu_users(gpu: Gpu) -> list[GpuUser]:
    """The programs that hold memory of a GPU, those that hold most first.

    Under WSL2 and in containers the driver names none.
    """
    return parse_gpu_users(_ask_driver("-q", "-x")[0], gpu.uuid)


def _ask_driver(*arguments: str) -> tuple[str, str | None]:
    """What nvidia-smi prints, and why it failed; "" and None without nvidia-smi."""
    try:
        ended = subprocess.run(
            ["nvidia-smi", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=PATIENCE,
        )
    except FileNotFoundError:
        return "", None
    except subprocess.TimeoutExpired:
        return "", f"no answer within {PATIENCE} s"
    except OSError as error:
        return "", str(error)
    if not ended.returncode:
        return ended.stdout, None
    lines = [line.strip() for line in (ended.stdout + ended.stderr).splitlines() if line.strip()]
    return "", lines[0] if lines else f"exit code {ended.returncode}"


def parse_gpus(output: str, visible: str | None = None) -> list[Gpu]:
    """GPUs from nvidia-smi's output: a line each, with memory in MiB.

    `visible` are numbers or beginnings of ids, in the order wanted; None for all. Parts of a GPU
    (MIG) cannot be told apart, so all GPUs are returned for them.

    >>> parse_gpus("0, GPU-1f, NVIDIA GeForce RTX 4090, 580.1, 8.9, 23028, 24564\\n")[0].capability
    (8, 9)
    """
    found: list[tuple[str, str, Gpu]] = []
    for line in output.splitlines():
        try:
            index, uuid, name, driver, capability, free, total = map(str.strip, line.split(","))
            major, minor = map(int, capability.split("."))
            memory = int(free) * 2**20, int(total) * 2**20
            gpu = Gpu(name, driver, (major, minor), *memory, uuid)
            found.append((index, uuid, gpu))
        except ValueError:  # [N/A], as for a GPU without memory of its own
            _log.warning("nvidia-smi does not give all figures of a GPU, so it is unused: %s", line)
    if visible is None or visible.startswith("MIG"):
        return [gpu for _, _, gpu in found]
    return [
        gpu
        for wanted in map(str.strip, visible.split(","))
        for index, uuid, gpu in found
        if wanted == index or (len(wanted) > 3 and uuid.startswith(wanted))
    ]


def parse_gpu_users(output: str, uuid: str) -> list[GpuUser]:
    """Programs on one GPU from `nvidia-smi -q -x`, those that hold most first."""
    if not output.strip():
        return []
    try:
        document = ElementTree.fromstring(output)
    except ElementTree.ParseError:
        _log.warning("nvidia-smi -q -x gives no XML, so programs on the GPU are not named")
        return []
    found = []
    for one in document.iterfind("gpu"):
        if one.findtext("uuid", "") != uuid:
            continue
        for program in one.iterfind("processes/process_info"):
            size = re.match(r"(\d+) MiB", program.findtext("used_memory", ""))
            used = int(size[1]) * 2**20 if size else None
            command = program.findtext("process_name", "").split(" -")[0]
            found.append(GpuUser(Path(command).name or "a program", used))
    return sorted(found, key=lambda user: -(user.used or 0))


def try_lock(who: str) -> int | None:
    """Lock the GPU; a handle for `locks.release`, or None if it is in use or a run waits for it."""
    return None if is_wanted() else locks.take(_lock_file("card"), who)


def lock_holder() -> str | None:
    """Who waits for the GPU, or else who has it; None if nobody does."""
    return locks.holder(_lock_file("card.wanted")) or locks.holder(_lock_file("card"))


def is_wanted() -> bool:
    """Whether a run waits for the GPU."""
    return locks.holder(_lock_file("card.wanted")) is not None


@contextmanager
def gpu_lock(who: str, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the GPU during the block; waits for it first, and says once for whom."""
    path, asking = _lock_file("card"), None
    handle = locks.take(path, who)
    if handle is None:
        say(
            f"the GPU is used by {locks.holder(path) or 'another process'}: waiting for it; end "
            "that process, or interrupt this one"
        )
    try:
        while handle is None:
            if asking is None:
                asking = locks.take(_lock_file("card.wanted"), who)
            time.sleep(POLL)
            handle = locks.take(path, who)
    finally:
        if asking is not None:
            locks.release(asking)
    try:
        yield
    finally:
        locks.release(handle)


def _lock_file(name: str) -> Path:
    home = find_home()
    folder = FOLDER or (home and home / ".cache" / "selfreward_lite")
    if folder is None:
        raise UserError("this user has no home, where it says who has the GPU: set HOME")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: {error.strerror}; it says who has the GPU: make it writable, or set HOME"
        ) from None
    return folder / f"{name}.lock"
