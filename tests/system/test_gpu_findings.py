"""What the probes of GPU, torch and training mean on played machines, and the one command."""

from dataclasses import replace

import pytest
from machines import (
    CPU_TORCH,
    OLD_DRIVER,
    PINS,
    PRODUCT,
    RTX,
    T4,
    TOO_OLD,
    answers,
    machine,
    said,
)

from selfreward_lite.system import doctor, fixes
from selfreward_lite.system.gpu import Gpu, GpuUser
from selfreward_lite.system.gpu_findings import describe_users

GB = 2**30
P100 = Gpu("Tesla P100", "580.1", (6, 0), 16 * GB, 16 * GB)
BLACKWELL = Gpu("NVIDIA GeForce RTX 5090", "575.51", (12, 0), 31 * GB, 32 * GB)
TORCH = PINS["torch"]


def blind(card: Gpu, **changed) -> dict:
    """torch for CUDA 13 that sees no GPU."""
    return {"torch": {**answers(card)["torch"], "cards": [], "fault": TOO_OLD, **changed}}


@pytest.mark.parametrize("card", [None, RTX, T4])
def test_a_machine_without_faults_needs_no_fix(card):
    found = doctor.findings(machine(card))
    assert {one.state for one in found} <= {"good", "note"}
    assert [one.fix for one in found] == [None] * len(found)
    assert len({one.what for one in found}) == len(found)


def test_everything_that_trains_was_tried_where_there_is_a_gpu():
    assert {"torch", "compiler", "Triton", "4-bit", "llama.cpp", "unsloth"} <= said(
        machine(RTX)
    ).keys()
    assert "compiler" not in said(machine()), "the CPU needs no compiler"
    assert (
        said(machine())["4-bit"].words
        == "bitsandbytes 0.50.2 multiplies by 4-bit weights on the CPU"
    )


def test_bf16_follows_the_capability_and_not_what_torch_says():
    assert "trains in bf16" in said(machine(RTX))["torch"].words
    assert "trains in fp16" in said(machine(T4))["torch"].words


# -- the GPU, and who holds it ----------


def test_a_gpu_that_is_too_old_has_no_fix():
    found = said(machine(P100))["GPU"]
    assert (found.state, found.fix) == ("bad", None)
    assert "6.0 is below 7.5" in found.words


def test_who_holds_the_memory_is_named():
    full = replace(RTX, free=20 * GB)
    found = said(machine(full))["GPU"]
    assert found.state == "note"
    assert found.words.endswith("a desktop or another program uses 4.3 GB")
    users = (GpuUser("Xorg", GB), GpuUser("firefox", None))
    assert said(machine(full, users=users))["GPU"].words.endswith(
        "Xorg 1.1 GB, firefox hold 4.3 GB"
    )
    two = said(machine(RTX, gpus=(RTX, RTX)))["GPU"].words
    assert "the first of 2 is used; training.processes=2 trains on all" in two


def test_only_the_largest_users_are_named():
    users = [GpuUser(name, None) for name in "abcde"]
    assert describe_users(users) == "a, b, c, 2 more"
    assert describe_users([]) == ""


def test_a_driver_that_fails_is_not_a_machine_without_gpu():
    fault = "Failed to initialize NVML: Driver/library version mismatch"
    found = said(machine(driver_fault=fault))["GPU"]
    assert (found.state, found.fix) == ("note", "sudo reboot")
    assert found.words == f"nvidia-smi fails: {fault}"
    assert said(machine(driver_fault=fault, wsl=True))["GPU"].fix == "in Windows: `wsl --shutdown`"
    assert "restart the session" in said(machine(driver_fault=fault, place="colab"))["GPU"].fix
    assert "--gpus all" in said(machine(driver_fault=fault, place="container"))["GPU"].fix


@pytest.mark.parametrize(
    ("place", "fix"),
    [
        ("ubuntu", "sudo apt install -y nvidia-driver-580-open && sudo reboot"),
        (
            "debian",
            "with contrib and non-free in apt's sources: sudo apt update && sudo apt install -y "
            "nvidia-driver && sudo reboot",
        ),
        ("fedora", "install the driver of https://www.nvidia.com/drivers"),
        ("container", "start the container with the GPU: `docker run --gpus all …`"),
    ],
)
def test_a_gpu_without_its_driver_gets_one(place, fix):
    found = said(machine(lacks_driver=True, place=place))["GPU"]
    assert (found.state, found.fix) == ("note", fix)
    assert "nvidia-smi is missing" in found.words
    assert said(machine(place=place))["GPU"].fix is None, "there is no GPU at all"


def test_a_gpu_that_works_for_another_command_is_left_alone():
    busy = machine(RTX, holder="run mine, process 7", torch=None, llama=None, compiler=None)
    found = said(replace(busy, triton=None, four_bit=None, unsloth_import=None))
    assert "used by run mine, process 7" in found["GPU"].words
    assert not found.keys() & {"torch", "Triton", "4-bit", "llama.cpp", "unsloth", "compiler"}


# -- torch and the driver ----------

NEWER = "sudo apt install -y nvidia-driver-580 && sudo reboot"
CUDA_12 = f"pip install torch=={TORCH}+cu126 --index-url https://download.pytorch.org/whl/cu126"


@pytest.mark.parametrize(
    ("where", "fix"),
    [
        ({"place": "ubuntu"}, NEWER),
        ({"place": "ubuntu", "is_root": True}, NEWER.replace("sudo ", "")),
        ({"wsl": True}, "in Windows: install the driver of https://www.nvidia.com/drivers, then"),
        ({"place": "debian"}, CUDA_12),
        ({"place": "container"}, CUDA_12),
        ({"place": "colab"}, CUDA_12),
        ({"place": "kaggle"}, CUDA_12),
    ],
)
def test_a_driver_older_than_torchs_cuda_has_one_command(where, fix):
    """PyPI's torch is for CUDA 13, which needs driver 580; the same build again would not help."""
    found = said(machine(OLD_DRIVER, **where, **blind(OLD_DRIVER)))["torch"]
    assert found.state == "bad"
    assert "CUDA 13.0, which needs driver 580, and this is 570.133.20" in found.words
    assert CUDA_12 in found.words
    assert found.fix.startswith(fix)


def test_torchvision_comes_from_the_same_index():
    found = said(machine(OLD_DRIVER, torchvision="0.28.0", place="debian", **blind(OLD_DRIVER)))[
        "torch"
    ]
    assert f"torch=={TORCH}+cu126 torchvision==0.28.0+cu126 --index-url" in found.fix


def test_blackwell_gets_kernels_and_its_open_driver():
    found = said(machine(BLACKWELL, **blind(BLACKWELL)))["torch"]
    assert "nvidia-driver-580-open" in found.fix
    assert f"torch=={TORCH}+cu129" in found.words, "CUDA 12.6 has no kernels for it"


def test_a_driver_too_old_for_cuda_12_gets_no_torch_for_it():
    ancient = replace(OLD_DRIVER, driver="470.256.02")
    found = said(machine(ancient, place="debian", **blind(ancient)))["torch"]
    assert found.fix == "install the driver of https://www.nvidia.com/drivers"
    assert "cu12" not in found.words


def test_a_torch_without_cuda_is_replaced_by_one_for_the_driver():
    found = said(machine(RTX, torch=CPU_TORCH))["torch"]
    assert "sees no GPU: it was built without CUDA" in found.words
    assert found.fix == f"pip uninstall -y torch && pip install torch=={TORCH}"
    assert said(machine(OLD_DRIVER, torch=CPU_TORCH))["torch"].fix == CUDA_12


def test_a_new_driver_that_torch_cannot_use_is_reloaded():
    fault = "RuntimeError: CUDA unknown error"
    found = said(machine(RTX, **blind(RTX, fault=fault)))["torch"]
    assert fault in found.words
    assert found.fix == "sudo modprobe -r nvidia_uvm && sudo modprobe nvidia_uvm"


def test_a_gpu_that_is_seen_must_compute_too():
    whole = answers(BLACKWELL)["torch"]
    fault = "CUDA error: no kernel image is available for execution on the device"
    found = said(machine(BLACKWELL, torch={**whole, "fault": fault}))["torch"]
    assert "has no kernels for this GPU (120; it has sm_75, sm_89)" in found.words
    assert "+cu129" in found.fix
    found = said(machine(RTX, torch={**whole, "fault": "CUDA error: ECC"}))["torch"]
    assert found.state == "bad"
    assert "cannot compute on it: CUDA error: ECC" in found.words


# -- what trains ----------

NO_HEADER = {"compiler": "/usr/bin/gcc", "include": "/usr/include/python3.12", "header": False}


@pytest.mark.parametrize(
    ("probed", "where", "words", "fix"),
    [
        (
            {**NO_HEADER, "error": None},
            {"python": (3, 12, 3)},
            "no Python.h in /usr/include/python3.12: Triton needs both",
            "sudo apt install -y python3.12-dev",
        ),
        (
            {**NO_HEADER, "compiler": None, "error": None},
            {"python": (3, 12, 3), "is_root": True, "place": "colab"},
            "no C compiler (gcc or clang) and no Python.h",
            "apt install -y build-essential python3.12-dev",
        ),
        (
            {**NO_HEADER, "compiler": None, "header": True, "error": None},
            {"wsl": True},
            "no C compiler",
            "sudo apt install -y build-essential",
        ),
        (
            {**NO_HEADER, "include": "/opt/python/include/python3.12", "error": None},
            {},
            "install this Python again, with its headers",
            None,
        ),
        ({**NO_HEADER, "error": None}, {"has_apt": False}, "no Python.h", None),
        (
            {**NO_HEADER, "header": True, "error": "probe.c:1:10: fatal error: x.h"},
            {},
            "/usr/bin/gcc does not compile with Python.h: probe.c:1:10: fatal error: x.h",
            "sudo apt install -y build-essential python3.11-dev",
        ),
    ],
)
def test_what_triton_compiles_with_is_named(probed, where, words, fix):
    found = said(machine(RTX, compiler=probed, triton=None, **where))["compiler"]
    assert (found.state, found.fix) == ("bad", fix)
    assert words in found.words


def test_a_kernel_that_does_not_run_is_a_finding():
    found = said(machine(RTX, triton={"error": "No module named 'triton'"}))["Triton"]
    assert (found.state, found.fix) == ("bad", "pip install -r requirements-gpu.txt")
    assert "No module named 'triton'" in found.words


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"error": "RuntimeError: CUDA SETUP ERROR"}, "cannot compute: RuntimeError: CUDA SETUP"),
        ({"product": 0.7}, "computes nonsense: the product is off by 0.7"),
        ({"gradient": float("nan")}, "the gradient is off by nan"),
        ({"packing": 1.4}, "packing is off by 1.4"),
        ({"packing": 0.0}, "packing is off by 0"),
    ],
)
def test_four_bit_weights_must_multiply(changed, words):
    probed = {**answers(RTX)["four_bit"], **changed}
    found = said(machine(RTX, four_bit=probed))["4-bit"]
    assert found.state == "bad"
    assert words in found.words
    assert found.fix.endswith(f"bitsandbytes=={PINS['bitsandbytes']}")


def test_an_adapter_must_find_its_place():
    """No training can do without PEFT, which raises beside a torchao that does not fit."""
    assert "adapter" not in said(machine(RTX))
    probed = {**PRODUCT, "adapter": "ImportError: incompatible version of torchao", "device": ""}
    found = said(machine(RTX, four_bit=probed, torchao="0.10.0"))["adapter"]
    assert (found.state, found.fix) == ("bad", fixes.TORCHAO)
    assert "cannot put an adapter on a model beside torchao 0.10.0: ImportError" in found.words
    found = said(machine(RTX, four_bit=probed))["adapter"]
    assert found.fix.endswith(f"peft=={PINS['peft']}")
    assert "beside" not in found.words


def test_unsloth_is_good_only_if_it_was_imported():
    assert "unsloth" not in said(machine())
    missing = said(machine(RTX, unsloth=None))["unsloth"]
    hosted = said(machine(RTX, unsloth=None, place="colab"))["unsloth"]
    assert hosted.fix.startswith("grep -vE '^(#|torch("), "it keeps the torch of its image"
    assert (missing.state, missing.fix) == ("note", "pip install -r requirements-gpu.txt")
    whole = said(machine(RTX))["unsloth"]
    assert (whole.state, whole.words) == ("good", "2026.10.9 is imported in 24 s; it trains")
    broken = {"error": "ImportError: cannot import name 'x' from 'transformers'"}
    found = said(machine(RTX, unsloth_import=broken))["unsloth"]
    assert found.state == "note"
    assert "cannot be imported, so transformers trains: ImportError" in found.words
    assert "was not tried" in said(machine(RTX, unsloth_import=None))["unsloth"].words


# -- llama.cpp ----------


@pytest.mark.parametrize(
    "llama",
    [
        {
            "error": "a GPU was asked for, but llama.cpp was built for the CPU only",
            "can_offload": False,
        },
        {"error": None, "offloaded": "load_tensors: offloaded 0/5 layers to GPU"},
        {"error": None, "offloaded": "load_tensors: offloaded 3/5 layers to GPU"},
        {"error": None, "offloaded": None},
        {"error": "its process was ended by signal 11"},
    ],
)
def test_llama_cpp_must_prove_that_it_uses_the_gpu(llama):
    whole = answers(RTX)["llama"]
    found = said(machine(RTX, llama={**whole, **llama}))["llama.cpp"]
    assert found.state == "bad"
    assert found.words.startswith("does not use the GPU: ")
    assert found.fix == "python -m selfreward_lite llama"


def test_a_build_that_is_too_new_for_the_driver_is_not_to_be_built_again():
    probed = {**answers(OLD_DRIVER)["llama"], "cuda": 13, "error": "driver … is older"}
    found = said(machine(OLD_DRIVER, llama=probed))["llama.cpp"]
    assert (found.state, found.words) == ("bad", "does not use the GPU: driver … is older")
    assert found.fix == "sudo apt install -y nvidia-driver-580 && sudo reboot"
    older = said(machine(OLD_DRIVER, llama={**probed, "cuda": 12}))["llama.cpp"]
    assert older.fix == "python -m selfreward_lite llama"


@pytest.mark.parametrize("difference", [1.4, float("nan")])
def test_llama_cpp_must_compute_what_the_cpu_computes(difference):
    whole = answers(RTX)["llama"]
    found = said(machine(RTX, llama={**whole, "difference": difference}))["llama.cpp"]
    assert found.state == "bad"
    assert "computes nonsense on the GPU" in found.words


@pytest.mark.parametrize(
    ("library", "fix"),
    [
        ("libcudart.so.13", "python -m selfreward_lite llama"),
        ("libcublas.so.12", "python -m selfreward_lite llama"),
        ("libcuda.so.1", "sudo ldconfig"),
    ],
)
def test_a_missing_library_is_named_and_not_compiled_again(library, fix):
    error = (
        f"Failed to load shared library 'libllama.so': {library}: cannot open shared object file: "
        "No such file or directory"
    )
    found = said(machine(RTX, llama={"error": error}))["llama.cpp"]
    assert (found.state, found.fix) == ("bad", fix)
    assert library in found.words
