"""What the probes of GPU, torch and what trains mean: Machine → findings, pure.

A finding is made only of what was asked. A probe that another one dooms is not asked, so a machine
with one fault has one finding that says so.
"""

from collections.abc import Sequence

from selfreward_lite.system import fixes
from selfreward_lite.system.cuda import driver_number, find_library_name, oldest_driver
from selfreward_lite.system.files import Json, format_bytes
from selfreward_lite.system.gpu import BF16, OLDEST, GpuUser
from selfreward_lite.system.machine import Finding, Machine

SHOWN_USERS = 3
CLOSE = 0.02  # a share of what is right; float16 and bfloat16 are nearer
NF4_ERROR = (0.05, 0.15)  # of weights that are normally distributed, relative; about 0.09
_ABSENT = "cannot open shared object"
_NO_DRIVER = f"libcuda.so.1: {_ABSENT}"


def find_on_gpu(machine: Machine) -> list[Finding]:
    """GPU and torch, then what trains: compiler, Triton, 4-bit weights, unsloth."""
    return [
        describe_gpu(machine),
        *([_torch(machine, machine.torch)] if machine.torch else []),
        *([_compiler(machine, machine.compiler)] if machine.compiler else []),
        *([_triton(machine, machine.triton)] if machine.triton else []),
        *([_four_bit(machine, machine.four_bit)] if machine.four_bit else []),
        *_find_adapter_fault(machine),
        *([_unsloth(machine)] if machine.gpus and not machine.holder else []),
    ]


def describe_users(users: Sequence[GpuUser]) -> str:
    """Programs that hold memory of the GPU, as text; "" if none is known."""
    shown = [
        one.name + (f" {format_bytes(one.used)}" if one.used is not None else "") for one in users
    ]
    more = [f"{len(shown) - SHOWN_USERS} more"] if len(shown) > SHOWN_USERS else []
    return ", ".join(shown[:SHOWN_USERS] + more)


def describe_missing_library(error: str) -> Finding | None:
    """The finding for an error of llama.cpp that a library is missing; None for another error.

    `llama` installs those of CUDA, and compiles nothing then.
    """
    if _NO_DRIVER in error:
        text = "its CUDA build does not find the driver's libcuda.so.1"
        return Finding("llama.cpp", "bad", text, "sudo ldconfig")
    library = find_library_name(error)
    if library and _ABSENT in error:
        text = f"its CUDA build does not find {library}"
        return Finding("llama.cpp", "bad", text, fixes.LLAMA)
    return None


def describe_gpu(machine: Machine) -> Finding:
    """The GPU, its driver, and who holds its memory."""
    if not machine.gpus:
        if machine.driver_fault:
            text = f"nvidia-smi fails: {machine.driver_fault}"
            return Finding("GPU", "note", text, fixes.restart(machine))
        if machine.lacks_driver:
            text = "one of NVIDIA is here and its driver is not (nvidia-smi is missing)"
            return Finding("GPU", "note", text, fixes.install_driver(machine))
        text = "none, or no driver (nvidia-smi): the tiny preset runs, larger models take days"
        return Finding("GPU", "note", text)
    gpu = machine.gpus[0]
    text = (
        f"{gpu.name}, driver {gpu.driver}, "
        f"{format_bytes(gpu.free)} of {format_bytes(gpu.total)} free"
    )
    if len(machine.gpus) > 1:
        count = len(machine.gpus)
        text += f"; the first of {count} is used; training.processes={count} trains on all"
    if gpu.capability < OLDEST:
        text += f"; compute capability {dotted(gpu.capability)} is below {dotted(OLDEST)}"
        return Finding("GPU", "bad", text)
    if machine.holder:
        text += f"; used by {machine.holder}: nothing else is tried on it until that has ended"
        return Finding("GPU", "note", text)
    if gpu.free < 0.9 * gpu.total:
        who = describe_users(machine.users) or "a desktop or another program"
        used = format_bytes(gpu.total - gpu.free)
        return Finding("GPU", "note", f"{text}: {who} {'hold' if machine.users else 'uses'} {used}")
    return Finding("GPU", "good", text)


def _torch(machine: Machine, probed: Json) -> Finding:
    if probed.get("error"):
        return Finding(
            "torch", "bad", f"cannot be used: {probed['error']}", fixes.install_packages(machine)
        )
    version, cuda, fault = probed["version"], probed["cuda"], probed.get("fault")
    if not machine.gpus:
        where = f"with CUDA {cuda}; it sees a GPU" if probed["cards"] else "on the CPU"
        return Finding("torch", "good", f"{version} {where}")
    gpu = machine.gpus[0]
    if not cuda:
        text = f"{version} sees no GPU: it was built without CUDA"
        return Finding("torch", "bad", text, fixes.install_torch(machine))
    needed = oldest_driver(cuda)
    if not probed["cards"] and driver_number(gpu.driver) < needed:
        text = (
            f"{version} sees no GPU: it is built for CUDA {cuda}, which needs driver {needed}, and "
            f"this is {gpu.driver}"
        )
        if other := fixes.install_older_torch(machine):
            text += f"; a newer driver serves llama.cpp too, else `{other}`"
        return Finding("torch", "bad", text, fixes.update_driver(machine, needed))
    if not probed["cards"]:
        text = f"{version} sees no GPU: {fault or 'torch gives no reason'}"
        return Finding("torch", "bad", text, fixes.reload_driver(machine))
    if fault and "no kernel image" in fault:
        kernels = ", ".join(probed["kernels"])
        text = f"{version} has no kernels for this GPU ({gpu.architecture}; it has {kernels})"
        return Finding("torch", "bad", text, fixes.install_torch(machine))
    if fault:
        text = f"{version} sees the GPU and cannot compute on it: {fault}"
        return Finding("torch", "bad", text, fixes.reload_driver(machine))
    number = "bf16" if gpu.capability >= BF16 else "fp16, since bf16 needs compute capability 8.0"
    return Finding("torch", "good", f"{version} with CUDA {cuda} computes; trains in {number}")


def _compiler(machine: Machine, probed: Json) -> Finding:
    """Without compiler or Python.h, the first kernel that Triton compiles ends a training.

    The system's packages hold headers of its own Python. Others come with theirs.
    """
    python = f"python{machine.python[0]}.{machine.python[1]}-dev"
    is_own = probed["include"].startswith("/usr/include")
    advice = "" if probed["header"] or is_own else "; install this Python again, with its headers"
    missing = [
        *([] if probed["compiler"] else ["no C compiler (gcc or clang)"]),
        *([] if probed["header"] else [f"no Python.h in {probed['include']}"]),
    ]
    packages = [
        *([] if probed["compiler"] else ["build-essential"]),
        *([python] if is_own and not probed["header"] else []),
    ]
    if missing:
        text = f"{' and '.join(missing)}: Triton needs both when a training begins{advice}"
        fix = fixes.install_system_packages(machine, *packages) if packages else None
        return Finding("compiler", "bad", text, fix)
    if probed["error"]:
        text = f"{probed['compiler']} does not compile with Python.h: {probed['error']}"
        packages = ["build-essential", *([python] if is_own else [])]
        fix = fixes.install_system_packages(machine, *packages)
        return Finding("compiler", "bad", text, fix)
    return Finding("compiler", "good", f"{probed['compiler']} compiles with Python.h")


def _triton(machine: Machine, probed: Json) -> Finding:
    if probed.get("error"):
        text = f"cannot run a kernel on the GPU: {probed['error']}"
        return Finding("Triton", "bad", text, fixes.install_gpu_packages(machine))
    return Finding("Triton", "good", f"{probed['version']} compiles a kernel and runs it")


def _four_bit(machine: Machine, probed: Json) -> Finding:
    """bitsandbytes: weights packed in NF4, their product with rows, and the gradient through it."""
    fix = fixes.install_again(machine, "bitsandbytes")
    if probed.get("error"):
        more = "; `python -m bitsandbytes` says more"
        text = f"bitsandbytes cannot compute: {probed['error']}{more}"
        return Finding("4-bit", "bad", text, fix)
    low, high = NF4_ERROR
    wrong = [
        *([] if low < probed["packing"] < high else [f"packing is off by {probed['packing']:.2g}"]),
        # written so that NaN is wrong too
        *(
            f"the {what} is off by {probed[what]:.2g}"
            for what in ("product", "gradient")
            if not probed[what] < CLOSE
        ),
    ]
    if wrong:
        text = f"bitsandbytes {probed['version']} computes nonsense: {', '.join(wrong)}"
        return Finding("4-bit", "bad", text, fix)
    text = f"bitsandbytes {probed['version']} multiplies by 4-bit weights on {probed['device']}"
    return Finding("4-bit", "good", text)


def _find_adapter_fault(machine: Machine) -> list[Finding]:
    """A finding if PEFT cannot put an adapter on a model, which no training can do without."""
    fault = (machine.four_bit or {}).get("adapter")
    if not fault:
        return []
    beside = f" beside torchao {machine.torchao}" if machine.torchao else ""
    fix = fixes.TORCHAO if machine.torchao else fixes.install_again(machine, "peft")
    text = f"PEFT cannot put an adapter on a model{beside}: {fault}"
    return [Finding("adapter", "bad", text, fix)]


def _unsloth(machine: Machine) -> Finding:
    """It is not needed: where it fails, transformers trains."""
    if machine.unsloth is None:
        text = "not installed: transformers and bitsandbytes train, in more memory and time"
        return Finding("unsloth", "note", text, fixes.install_gpu_packages(machine))
    probed = machine.unsloth_import
    if probed is None:
        return Finding("unsloth", "note", f"{machine.unsloth} was not tried: see above")
    if probed.get("error"):
        text = f"{machine.unsloth} cannot be imported, so transformers trains: {probed['error']}"
        return Finding("unsloth", "note", text, fixes.install_gpu_packages(machine))
    seconds = f"{probed['seconds']:.0f} s"
    return Finding("unsloth", "good", f"{machine.unsloth} is imported in {seconds}; it trains")


def dotted(version: tuple[int, ...]) -> str:
    """A version as text.

    >>> dotted((8, 9))
    '8.9'
    """
    return ".".join(map(str, version))
