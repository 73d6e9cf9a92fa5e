"""Probes as their parent sees them: answers, failures, and the compiler of this machine."""

import os
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from machines import RTX, write_nvidia_smi, write_script

from selfreward_lite.system import gpu, probes


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("kill -11 $$", "its process was ended by SIGSEGV"),
        ("echo first >&2; echo last words >&2; exit 3", "last words"),
        ("exec sleep 60", "no answer within 1 s"),
        ("echo not JSON", "its answer cannot be read: 'not JSON"),
        ("echo 3", "its answer cannot be read: '3"),
        ("exit 0", "its answer cannot be read: ''"),
    ],
)
def test_a_probe_that_fails_is_an_answer(tmp_path, monkeypatch, script, words):
    monkeypatch.setattr(sys, "executable", str(write_script(tmp_path / "python", script)))
    assert words in probes.ask("llama", "0", patience=1)["error"]


def test_what_libraries_print_is_no_answer(tmp_path, monkeypatch):
    script = """echo 'a banner'; echo '{"version": "1"}'"""
    monkeypatch.setattr(sys, "executable", str(write_script(tmp_path / "python", script)))
    assert probes.ask("torch") == {"version": "1"}


@pytest.mark.parametrize(
    ("release", "settings"),
    [("6.8.0-48-generic", "expandable_segments:True"), ("5.15.167.4-microsoft-standard-WSL2", "")],
)
def test_torch_is_tried_with_the_memory_that_a_training_asks_for(
    tmp_path, monkeypatch, release, settings
):
    script = """echo "{\\"settings\\": \\"$PYTORCH_ALLOC_CONF\\"}\""""
    monkeypatch.setattr(sys, "executable", str(write_script(tmp_path / "python", script)))
    monkeypatch.setattr(platform, "release", lambda: release)
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    assert probes.ask("torch") == {"settings": settings}


def test_this_machines_compiler_compiles_with_its_python():
    found = probes.compile_with_python()
    if not (found["compiler"] and found["header"]):
        pytest.skip("no compiler, or no headers of Python")
    assert found["error"] is None


@pytest.fixture
def headers(tmp_path, monkeypatch) -> Path:
    """A played folder with Python's headers, which are not there yet."""
    folder = tmp_path / "include"
    folder.mkdir()
    monkeypatch.setattr(sysconfig, "get_paths", lambda scheme: {"include": str(folder)})
    return folder


def test_missing_headers_are_seen_before_anything_is_compiled(headers, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("compiled"))
    found = probes.compile_with_python()
    assert (found["header"], found["include"], found["error"]) == (False, str(headers), None)


def test_headers_that_cannot_be_compiled_are_the_compilers_line(headers):
    if probes.find_compiler() is None:
        pytest.skip("no compiler")
    (headers / "Python.h").write_text('#include "patchlevel.h"\n')  # Debian keeps it elsewhere
    assert "patchlevel.h" in probes.compile_with_python()["error"]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'a note' >&2; echo 'x.c:1: error: bad' >&2; exit 1", "x.c:1: error: bad"),
        ("exit 4", "it ended with exit code 4"),
        ("exec sleep 60", "no answer within 1 s"),
    ],
)
def test_a_compiler_that_fails_gives_its_reason(headers, tmp_path, monkeypatch, script, words):
    (headers / "Python.h").touch()
    monkeypatch.setenv("CC", str(write_script(tmp_path / "cc", script)))
    monkeypatch.setattr(probes, "COMPILE_PATIENCE", 1)
    assert words in probes.compile_with_python()["error"]


def test_the_compiler_is_the_one_that_triton_takes(tmp_path, monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert probes.find_compiler() is None
    clang = write_script(tmp_path / "clang", "")
    assert probes.find_compiler() == str(clang)
    gcc = write_script(tmp_path / "gcc", "")
    assert probes.find_compiler() == str(gcc)
    monkeypatch.setenv("CC", "clang")
    assert probes.find_compiler() == str(clang)
    monkeypatch.setenv("CC", "nothing-of-this-name")
    assert probes.find_compiler() is None


def test_headers_are_looked_for_where_triton_looks(monkeypatch):
    monkeypatch.setattr(sysconfig, "get_default_scheme", lambda: "posix_local")
    monkeypatch.setattr(sysconfig, "get_paths", lambda scheme: {"include": f"/{scheme}"})
    assert probes.find_include() == Path("/posix_prefix")


def test_the_place_is_a_notebook_a_container_or_a_distribution(tmp_path, monkeypatch):
    for variable in probes.HOSTED.values():
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(probes, "CONTAINER", (tmp_path / "mark",))
    monkeypatch.setattr(probes.platform, "freedesktop_os_release", lambda: {"ID": "ubuntu"})
    assert probes.find_place() == "ubuntu"
    (tmp_path / "mark").touch()
    assert probes.find_place() == "container"
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert probes.find_place() == "kaggle"
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    assert probes.find_place() == "colab"


# -- nvidia-smi ----------

PROGRAMS = """<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">
<nvidia_smi_log><driver_version>580.1</driver_version>
<gpu id="00000000:01:00.0"><uuid>GPU-1f</uuid><processes>
<process_info><pid>900</pid><type>G</type><process_name>/usr/lib/xorg/Xorg</process_name>
<used_memory>350 MiB</used_memory></process_info>
<process_info><pid>901</pid><type>C+G</type>
<process_name>/opt/chrome/chrome --type=gpu-process</process_name>
<used_memory>1200 MiB</used_memory></process_info>
<process_info><pid>902</pid><type>C</type><process_name>[Not Found]</process_name>
<used_memory>N/A</used_memory></process_info>
</processes></gpu>
<gpu id="00000000:02:00.0"><uuid>GPU-2e</uuid><processes>
<process_info><pid>7</pid><process_name>other</process_name></process_info>
</processes></gpu></nvidia_smi_log>
"""


@pytest.fixture
def card(monkeypatch) -> gpu.Gpu:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return gpu.Gpu(RTX.name, RTX.driver, RTX.capability, RTX.free, RTX.total, "GPU-1f")


def test_programs_on_the_gpu_are_named_with_the_largest_first(card, tmp_path, monkeypatch):
    write_nvidia_smi(tmp_path, [card], PROGRAMS)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert gpu.list_gpus() == [card]
    assert gpu.find_driver_fault() is None
    assert gpu.list_gpu_users(card) == [
        gpu.GpuUser("chrome", 1200 * 2**20),
        gpu.GpuUser("Xorg", 350 * 2**20),
        gpu.GpuUser("[Not Found]", None),
    ]


def test_what_names_no_program_is_no_error(card, caplog):
    assert gpu.parse_gpu_users("", card.uuid) == []
    assert gpu.parse_gpu_users("<gpu>", card.uuid) == []
    assert "no XML" in caplog.text


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        (
            "echo 'Failed to initialize NVML: mismatch'; exit 18",
            "Failed to initialize NVML: mismatch",
        ),
        ("exit 9", "exit code 9"),
        ("exec sleep 60", "no answer within 1 s"),
    ],
)
def test_a_driver_that_fails_has_a_reason_and_no_gpu(tmp_path, monkeypatch, script, fault):
    write_script(tmp_path / "nvidia-smi", script)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(gpu, "PATIENCE", 1)
    assert gpu.list_gpus() == []
    assert gpu.find_driver_fault() == fault


@pytest.mark.parametrize(
    ("vendor", "kind", "lacks"),
    [
        ("0x10de", "0x030000", True),  # of GeForce
        ("0x10de", "0x030200", True),  # of a T4
        ("0x10de", "0x040300", False),  # NVIDIA's sound
        ("0x1002", "0x030000", False),  # another maker's GPU
    ],
)
def test_a_gpu_without_driver_is_seen(tmp_path, monkeypatch, vendor, kind, lacks):
    device = tmp_path / "devices" / "0000:01:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "class").write_text(f"{kind}\n")
    monkeypatch.setattr(gpu, "DEVICES", device.parent)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu.lacks_driver() is lacks
    write_script(tmp_path / "nvidia-smi", "exit 9")
    assert not gpu.lacks_driver(), "it has one, which may fail"


def test_a_machine_without_nvidia_smi_has_no_fault(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu.list_gpus() == []
    assert gpu.find_driver_fault() is None
