"""What was found on a machine, and one fact about it."""

from dataclasses import dataclass
from typing import Literal

from selfreward_lite.system.files import Json
from selfreward_lite.system.gpu import Gpu, GpuUser
from selfreward_lite.system.proxies import Fault


@dataclass(frozen=True)
class Machine:
    """What was found. A `Json` is a probe's answer, {"error": line}, or None: it was not asked.

    `place` is a hosted notebook ("colab", "kaggle"), "container", a distribution by its id
    ("ubuntu", "debian", …), or "". `holder` is the command that uses the GPU now.
    """

    python: tuple[int, int, int]
    system: str
    wsl: bool
    wanted: dict[str, str]
    installed: dict[str, str | None]
    gpus: tuple[Gpu, ...]
    torch: Json | None
    llama: Json | None
    free: int
    hub: bool | None
    unsloth: str | None = None
    token: bool = False
    place: str = ""
    has_apt: bool = False
    is_root: bool = False
    driver_fault: str | None = None
    lacks_driver: bool = False
    users: tuple[GpuUser, ...] = ()
    holder: str | None = None
    torchvision: str | None = None
    torchao: str | None = None
    compiler: Json | None = None
    triton: Json | None = None
    four_bit: Json | None = None
    unsloth_import: Json | None = None
    request_fault: Fault | None = None


@dataclass(frozen=True)
class Finding:
    """One fact about the machine: `bad` stops a run, a `note` limits it; `fix` is a command."""

    what: str
    state: Literal["good", "note", "bad"]
    words: str
    fix: str | None = None
