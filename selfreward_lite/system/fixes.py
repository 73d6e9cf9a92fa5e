"""The command that fixes a problem with the GPU, by where the machine is: pure, from a Machine."""

from selfreward_lite.system.cuda import OLDEST_DRIVERS, driver_number
from selfreward_lite.system.machine import Machine

BLACKWELL = (10, 0)  # for which torch's CUDA 12.6 has no kernels, and the driver is the open one
WHEELS = "https://download.pytorch.org/whl"
DRIVER_PAGE = "https://www.nvidia.com/drivers"
PACKAGES = "pip install -r requirements.txt"
GPU_PACKAGES = "pip install -r requirements-gpu.txt"
# unsloth needs one, PEFT refuses old ones, and a newer one does not load beside torch 2.9.
TORCHAO = "pip install --no-deps torchao==0.17.0"
LLAMA = "python -m selfreward_lite llama"
RELOAD_MODULE = "modprobe -r nvidia_uvm && {sudo}modprobe nvidia_uvm"


def install_packages(machine: Machine) -> str:
    """The command for the Python packages; beside a GPU, llama.cpp comes by a command of its own.

    pip would compile it for the CPU.
    """
    return install_gpu_packages(machine) if machine.gpus else PACKAGES


def install_gpu_packages(machine: Machine) -> str:
    """The command for the Python packages of a machine with a GPU.

    A hosted notebook keeps the torch of its image, which fits its driver.
    """
    if machine.place in ("colab", "kaggle"):
        kept = "grep -vE '^(#|torch(vision)?=|pandas|matplotlib)' requirements-gpu.txt > pins.txt"
        return f"{kept} && pip install -r pins.txt"
    return GPU_PACKAGES


def install_system_packages(machine: Machine, *names: str) -> str | None:
    """The command for packages of the system; None where there is no apt."""
    if not machine.has_apt:
        return None
    return f"{_sudo(machine)}apt install -y {' '.join(names)}"


def install_driver(machine: Machine) -> str:
    """What brings a first driver, or shows a container its host's; no GPU is known yet.

    Ubuntu's open one runs every GPU that is used here. Debian's own, from its sections contrib and
    non-free, is older than torch's CUDA; the next `doctor` then names another torch.
    """
    if machine.place in ("colab", "kaggle", "container"):
        return reload_driver(machine)
    package = {"ubuntu": f"nvidia-driver-{OLDEST_DRIVERS[13]}-open", "debian": "nvidia-driver"}
    if machine.place not in package:
        return f"install the driver of {DRIVER_PAGE}"
    sudo = _sudo(machine)
    command = f"{sudo}apt install -y {package[machine.place]} && {sudo}reboot"
    if machine.place == "debian":
        return f"with contrib and non-free in apt's sources: {sudo}apt update && {command}"
    return command


def update_driver(machine: Machine, number: int) -> str:
    """What brings a driver of at least this number, or a torch that needs no such driver.

    A hosted notebook and a container have the driver of their host, and Debian has no newer one.
    """
    if machine.wsl:
        return f"in Windows: install the driver of {DRIVER_PAGE}, then `wsl --shutdown`"
    if machine.place == "ubuntu":
        kind = "-open" if machine.gpus[0].capability >= BLACKWELL else ""
        sudo = _sudo(machine)
        return f"{sudo}apt install -y nvidia-driver-{number}{kind} && {sudo}reboot"
    return install_older_torch(machine) or f"install the driver of {DRIVER_PAGE}"


def install_torch(machine: Machine) -> str:
    """The command for a torch with kernels for the GPU that the driver can run.

    An installed build without CUDA satisfies pip, so it goes first.
    """
    if older := install_older_torch(machine):
        return older
    return f"pip uninstall -y torch && pip install torch=={_version(machine)}"


def install_older_torch(machine: Machine) -> str | None:
    """The command for the pinned torch built for CUDA 12; None where that is of no use.

    The build is named, since an installed one for CUDA 13 has the same version. bitsandbytes 0.50.2
    has a library for CUDA 12.6; beside 12.9 it loads the one for 12.8.
    """
    gpu = machine.gpus[0]
    if not OLDEST_DRIVERS[12] <= driver_number(gpu.driver) < OLDEST_DRIVERS[13]:
        return None
    build = "cu129" if gpu.capability >= BLACKWELL else "cu126"
    names = f"torch=={_version(machine)}+{build}"
    if machine.torchvision:  # it fits its own torch only
        names += f" torchvision=={machine.torchvision.split('+')[0]}+{build}"
    return f"pip install {names} --index-url {WHEELS}/{build}"


def install_again(machine: Machine, name: str) -> str:
    """The command that puts a pinned package in the place of what is installed."""
    return f"pip install --force-reinstall --no-deps {name}=={machine.wanted[name]}"


def reload_driver(machine: Machine) -> str:
    """What wakes a driver that its system has put to sleep, or begins it anew."""
    if machine.wsl:
        return "in Windows: `wsl --shutdown`"
    if machine.place in ("colab", "kaggle"):
        return "restart the session, with a GPU as its accelerator"
    if machine.place == "container":
        return "start the container with the GPU: `docker run --gpus all …`"
    sudo = _sudo(machine)
    return sudo + RELOAD_MODULE.format(sudo=sudo)


def restart(machine: Machine) -> str:
    """What makes the system load the driver that is installed."""
    if machine.wsl or machine.place in ("colab", "kaggle", "container"):
        return reload_driver(machine)
    return f"{_sudo(machine)}reboot"


def _version(machine: Machine) -> str:
    return machine.wanted["torch"].split("+")[0]


def _sudo(machine: Machine) -> str:
    return "" if machine.is_root else "sudo "
