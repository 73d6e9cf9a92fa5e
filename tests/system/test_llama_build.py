"""llama.cpp for the GPU: kept, prebuilt, compiled; with pip, nvcc and its answers made up."""

import json
from pathlib import Path

import pytest
from machines import OLD_DRIVER, PINS, RTX, T4
from typer.testing import CliRunner

from selfreward_lite.cli import main
from selfreward_lite.system import cuda, cuda_compilers, doctor, llama_build, pip
from selfreward_lite.system.cuda_compilers import Compiler
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.gpu import Gpu
from selfreward_lite.system.machine import Finding

WHEEL = f"llama_cpp_python-{PINS['llama-cpp-python']}-py3-none-linux_x86_64.whl"
GOOD = Finding("llama.cpp", "good", "puts every layer on the GPU")
BAD = Finding("llama.cpp", "bad", "does not use the GPU", "by hand")
UNFOUND = doctor.describe_llama(
    [T4], {"error": "libcublas.so.13: cannot open shared object file: No such file"}
)
BLACKWELL = Gpu("NVIDIA GeForce RTX 5090", "580.65", (12, 0), 0, 0)
NO_WHEEL = "pip download failed: ERROR: No matching distribution found"


class Machine:
    """`asked` is what pip was asked. It has no prebuilt wheel, unless its build is in `prebuilt`.

    `found` are the answers about llama.cpp, one after the other, BAD once they are used up; `built`
    is the CUDA of what is installed, `idle` why it does not start.
    """

    def __init__(self, monkeypatch, *found: Finding, gpus=(T4,), built=None) -> None:
        self.found, self.asked, self.environments = list(found), [], []
        self.prebuilt: set[str] = set()
        self.fails: dict[str, str] = {}  # pip's command, and why
        self.toolkits: list[Compiler] = []
        self.faults: dict[str, str] = {}  # of a compiler, by its name
        self.said: list[str] = []
        self.idle: str | None = None
        monkeypatch.setattr(llama_build, "run_pip", self.pip)
        monkeypatch.setattr(llama_build, "list_gpus", lambda: list(gpus))
        monkeypatch.setattr(
            doctor, "llama_finding", lambda cards: self.found.pop(0) if self.found else BAD
        )
        monkeypatch.setattr(doctor, "find_idle_build", lambda gpu: self.idle)
        monkeypatch.setattr(cuda, "build_cuda", lambda: built)
        monkeypatch.setattr(cuda, "has_libraries", lambda major: major == 13)
        monkeypatch.setattr(cuda_compilers, "has_host_compiler", lambda: True)
        monkeypatch.setattr(cuda_compilers, "install_pip_nvcc", self.install_nvcc)
        monkeypatch.setattr(cuda_compilers, "find_toolkits", lambda: self.toolkits)
        monkeypatch.setattr(
            cuda_compilers, "find_fault", lambda compiler, *_: self.faults.get(compiler.name)
        )

    def pip(self, *arguments, say, **environment) -> None:
        self.asked.append(list(arguments))
        self.environments.append(environment)
        if arguments[0] in self.fails:
            raise pip.Failed(f"pip {arguments[0]} failed: {self.fails[arguments[0]]}")
        if arguments[0] == "download":
            build = arguments[arguments.index("--index-url") + 1].rsplit("/")[-1]
            if build not in self.prebuilt:
                raise pip.Failed(NO_WHEEL)
            (Path(arguments[arguments.index("-d") + 1]) / WHEEL).write_text(build)
        if arguments[0] == "wheel":
            (Path(arguments[arguments.index("-w") + 1]) / WHEEL).write_text("compiled")

    def install_nvcc(self, folder, say) -> Compiler:
        if "pip's nvcc" in self.fails:
            raise pip.Failed(self.fails["pip's nvcc"])
        return Compiler("pip's nvcc", folder / "bin" / "nvcc", folder, " -DGGML_CUDA_NO_VMM=on")

    def install(self, *wheels: Path) -> Finding:
        return llama_build.install(wheels, self.said.append)

    @property
    def commands(self) -> list[str]:
        return [asked[0] for asked in self.asked]


TOOLKIT = Compiler("the toolkit in /usr/local/cuda", Path("/usr/local/cuda/bin/nvcc"))


def test_working_build_is_kept(monkeypatch, tmp_path):
    machine = Machine(monkeypatch, GOOD)
    assert machine.install(tmp_path) == GOOD
    assert not machine.asked


def test_kept_wheel_is_installed(monkeypatch, tmp_path):
    folder = tmp_path / "kept" / "sm75-cuda13"
    folder.mkdir(parents=True)
    (folder / WHEEL).write_text("kept")
    machine = Machine(monkeypatch, BAD, GOOD)
    assert machine.install(tmp_path / "other", tmp_path / "kept") == GOOD
    assert machine.asked == [["install", "--force-reinstall", "--no-deps", str(folder / WHEEL)]]
    assert not (tmp_path / "other").exists()


def test_wheel_from_an_input_is_kept_too(monkeypatch, tmp_path):
    """From a flat folder, as pip uses, or a kept one; the last folder then has it too."""
    for number, place in enumerate(("", "sm75-cuda13")):
        folder, kept = tmp_path / f"input{number}" / place, tmp_path / f"kept{number}"
        folder.mkdir(parents=True)
        (folder / WHEEL).write_text("input")
        machine = Machine(monkeypatch, BAD, GOOD, built=13)
        assert machine.install(tmp_path / f"input{number}", kept) == GOOD
        assert machine.commands == ["install"]
        assert (kept / "sm75-cuda13" / WHEEL).read_text() == "input"


@pytest.mark.parametrize(
    "place",
    [f"sm89-cuda13/{WHEEL}", f"sm75-cuda14/{WHEEL}", "sm75-cuda13/llama_cpp_python-0.1.0-any.whl"],
)
def test_wheel_for_another_gpu_cuda_or_version_is_not(monkeypatch, tmp_path, place):
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_text("other")
    machine = Machine(monkeypatch, BAD, GOOD)
    machine.install(tmp_path)
    assert machine.commands == ["download", "download", "download", "wheel", "install"]


def test_prebuilt_wheel_comes_before_compiling_and_from_its_own_index(monkeypatch, tmp_path):
    machine = Machine(monkeypatch, BAD, GOOD, built=13)
    machine.prebuilt = {"cu130"}
    assert machine.install(tmp_path) == GOOD
    assert machine.commands == ["download", "install"]
    asked = machine.asked[0]
    assert asked[asked.index("--only-binary") + 1] == ":all:"
    assert asked[asked.index("--index-url") + 1].endswith("/whl/cu130")
    assert "--extra-index-url" not in asked, "PyPI may have a wheel for the CPU one day"
    assert asked[-1] == f"llama-cpp-python=={PINS['llama-cpp-python']}"
    assert (tmp_path / "sm75-cuda13" / WHEEL).read_text() == "cu130"


@pytest.mark.parametrize(
    ("gpu", "builds"),
    [(T4, ["cu130", "cu125", "cu124"]), (OLD_DRIVER, ["cu125", "cu124"]), (BLACKWELL, [])],
)
def test_prebuilt_wheels_fit_driver_and_gpu(monkeypatch, tmp_path, gpu, builds):
    machine = Machine(monkeypatch, gpus=(gpu,))
    machine.fails["wheel"] = "CMake Error"
    machine.toolkits = [TOOLKIT]
    with pytest.raises(UserError):
        machine.install(tmp_path)
    indexes = [asked[asked.index("--index-url") + 1] for asked in machine.asked if "-d" in asked]
    assert [index.rsplit("/")[-1] for index in indexes] == builds


def test_libraries_that_are_here_decide_between_two_versions_of_cuda(monkeypatch, tmp_path):
    machine = Machine(monkeypatch, BAD, GOOD, built=12)
    monkeypatch.setattr(cuda, "has_libraries", lambda major: major == 12)
    machine.prebuilt = {"cu130", "cu125"}
    machine.install(tmp_path)
    assert (tmp_path / "sm75-cuda12" / WHEEL).read_text() == "cu125"


def test_compiled_with_pips_nvcc_and_kept_in_the_last_folder(monkeypatch, tmp_path):
    machine = Machine(monkeypatch, BAD, GOOD, built=13)
    assert machine.install(tmp_path / "readonly", tmp_path / "kept") == GOOD
    assert machine.commands[-2:] == ["wheel", "install"]
    assert machine.asked[-2][-1] == f"llama-cpp-python=={PINS['llama-cpp-python']}"
    assert "-v" in machine.asked[-2], "else pip shows nothing of a build"
    options = machine.environments[-2]["CMAKE_ARGS"]
    for option in (
        "-DGGML_CUDA=on",
        "-DCMAKE_CUDA_ARCHITECTURES=75",
        "-DGGML_NATIVE=off",  # another machine's CPU may lack instructions
        "-DGGML_CUDA_NO_VMM=on",
    ):
        assert option in options.split()
    assert machine.environments[-2]["CUDACXX"].endswith("toolkit/bin/nvcc")
    assert (tmp_path / "kept" / "sm75-cuda13" / WHEEL).read_text() == "compiled"
    assert not (tmp_path / "readonly").exists()
    assert any("half an hour on two" in line for line in machine.said)


def test_each_attempt_has_a_line_and_the_next_one_follows(monkeypatch, tmp_path):
    machine = Machine(monkeypatch, BAD, GOOD, built=12)
    machine.fails["pip's nvcc"] = "no network"
    other = Compiler("the toolkit in /opt", Path("/opt/bin/nvcc"))
    machine.toolkits = [other, TOOLKIT]
    machine.faults[other.name] = "CUDA 12.0 is older than 12.4"
    assert machine.install() == GOOD
    assert machine.commands == ["download"] * 3 + ["wheel", "install"]
    assert machine.environments[-2]["CUDACXX"] == str(TOOLKIT.nvcc)
    for line in (
        f"the prebuilt wheel cu130: {NO_WHEEL}",
        "pip's nvcc: no network",
        "the toolkit in /opt: CUDA 12.0 is older than 12.4",
    ):
        assert line in machine.said


def test_old_driver_gets_no_build_for_cuda_13(monkeypatch, tmp_path):
    machine = Machine(monkeypatch, gpus=(OLD_DRIVER,), built=13)
    machine.idle = "driver 570.133.20 is older than this build's CUDA 13: update the driver"
    with pytest.raises(UserError) as refused:
        machine.install(tmp_path)
    assert machine.commands == ["download", "download"], "nothing is compiled"
    assert "update driver 570.133.20 to 580 or newer" in str(refused.value)
    assert "toolkit, 12.4 to 12.9" in str(refused.value)
    ancient = Machine(monkeypatch, gpus=(Gpu("Tesla T4", "470.1", (7, 5), 0, 0),))
    with pytest.raises(UserError, match="driver 470.1 runs no CUDA that is used here"):
        ancient.install(tmp_path)


def test_build_that_does_not_start_is_never_compiled_again(monkeypatch, tmp_path):
    machine = Machine(monkeypatch, built=13)
    machine.idle = "llama.cpp was built for CUDA 13, which does not start here: nvidia-smi"
    with pytest.raises(UserError, match="does not start here: nvidia-smi"):
        machine.install(tmp_path)
    assert not machine.asked


def test_wheel_is_kept_where_only_the_driver_is_at_fault(monkeypatch, tmp_path):
    machine = Machine(monkeypatch, built=None)
    machine.prebuilt = {"cu130"}
    monkeypatch.setattr(cuda, "build_cuda", lambda: 13 if machine.asked else None)
    machine.idle = "it does not start"
    with pytest.raises(UserError, match="it does not start"):
        machine.install(tmp_path)
    assert (tmp_path / "sm75-cuda13" / WHEEL).exists()


def test_missing_libraries_are_installed_and_nothing_is_compiled(monkeypatch, tmp_path):
    machine = Machine(monkeypatch, UNFOUND, GOOD, built=13)
    assert machine.install(tmp_path) == GOOD
    assert machine.asked == [["install", *cuda.library_packages(13)]]


def test_libraries_that_pip_cannot_install_are_a_reason_and_a_build_follows(monkeypatch, tmp_path):
    machine = Machine(monkeypatch, UNFOUND, built=13)
    machine.fails["install"] = "no network"
    with pytest.raises(UserError):
        machine.install(tmp_path)
    assert "the libraries of CUDA 13: pip install failed: no network" in machine.said
    assert "wheel" in machine.commands


def test_a_cuda_build_gets_its_libraries_on_a_machine_without_a_gpu_too(monkeypatch, tmp_path):
    machine = Machine(monkeypatch, UNFOUND, GOOD, gpus=(), built=13)
    assert machine.install(tmp_path) == GOOD
    assert machine.asked == [["install", *cuda.library_packages(13)]]


def test_kept_wheel_that_does_not_work_is_replaced(monkeypatch, tmp_path):
    folder = tmp_path / "sm75-cuda13"
    folder.mkdir()
    (folder / WHEEL).write_text("broken")
    machine = Machine(monkeypatch, BAD, BAD, GOOD)
    monkeypatch.setattr(cuda, "build_cuda", lambda: 13 if "wheel" in machine.commands else None)
    assert machine.install(tmp_path) == GOOD
    assert (folder / WHEEL).read_text() == "compiled"


def test_wheel_that_does_not_work_is_not_kept(monkeypatch, tmp_path):
    machine = Machine(monkeypatch)
    with pytest.raises(UserError, match="no llama.cpp uses Tesla T4"):
        machine.install(tmp_path)
    assert not list(tmp_path.rglob("*.whl"))


def test_without_a_gpu_the_cpu_build_is_installed(monkeypatch, tmp_path):
    machine = Machine(monkeypatch, BAD, GOOD, gpus=())
    assert machine.install(tmp_path) == GOOD
    assert machine.asked == [["install", "-v", f"llama-cpp-python=={PINS['llama-cpp-python']}"]]
    assert not list(tmp_path.iterdir())


def test_the_last_error_names_cause_and_next_step(monkeypatch, tmp_path):
    machine = Machine(monkeypatch, gpus=(RTX,))
    machine.fails["wheel"] = "nvcc fatal   : Unsupported gpu architecture 'compute_89'"
    with pytest.raises(UserError) as failed:
        machine.install(tmp_path)
    assert str(failed.value).startswith("no llama.cpp uses NVIDIA GeForce RTX 4090 (")
    assert "nvcc fatal" in str(failed.value)
    assert "CUDA toolkit, 12.4 or newer" in str(failed.value)
    monkeypatch.setattr(cuda_compilers, "has_host_compiler", lambda: False)
    with pytest.raises(UserError, match="sudo apt install build-essential"):
        machine.install(tmp_path)


def test_command_reports_the_result(monkeypatch, tmp_path):
    Machine(monkeypatch, GOOD)
    done = CliRunner().invoke(main.app, ["llama", "--wheels", str(tmp_path)])
    assert json.loads(done.stdout.splitlines()[-1])["state"] == "good"
    Machine(monkeypatch, gpus=())
    failed = CliRunner().invoke(main.app, ["llama"])
    assert isinstance(failed.exception, UserError)
    assert "does not use the GPU; `python -m selfreward_lite doctor` says more" in str(
        failed.exception
    )
