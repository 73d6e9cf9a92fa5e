"""llama.cpp for this machine's GPU: a kept wheel, a prebuilt one, else compiled and kept.

The package index has only the source, which pip compiles for the CPU. With CUDA that takes minutes
on many cores and half an hour on two, so on machines that are wiped the wheel is kept on a drive.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from selfreward_lite.system import cuda, cuda_compilers, doctor
from selfreward_lite.system.cuda_compilers import OLDEST_TOOLKIT, PIP_CUDA, Compiler
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.files import copy_file
from selfreward_lite.system.gpu import Gpu, list_gpus
from selfreward_lite.system.machine import Finding
from selfreward_lite.system.pip import Failed, find_log, run_pip

PREBUILT = "https://abetlen.github.io/llama-cpp-python/whl"  # of llama-cpp-python's own project
BUILDS = {13: ("cu130",), 12: ("cu125", "cu124")}  # there, by the major version of CUDA
NEWEST_PREBUILT = (9, 0)  # a later GPU compiles its kernels anew when they are first used
HURRY = ("--retries", "1", "--timeout", "20")  # there may be no network


@dataclass
class Work:
    """What is to be installed for which GPU, and why what was tried did not do."""

    version: str
    gpus: list[Gpu]
    wheels: Sequence[Path]
    say: Callable[[str], None]
    reasons: list[str] = field(default_factory=list)

    @property
    def gpu(self) -> Gpu:
        return self.gpus[0]

    @property
    def pin(self) -> str:
        return f"llama-cpp-python=={self.version}"

    def majors(self) -> list[int]:
        """The versions of CUDA that the driver runs; first those whose libraries are here."""
        newest = cuda.newest_cuda(self.gpu.driver)
        found = [major for major in BUILDS if major <= newest]
        return sorted(found, key=lambda major: not cuda.has_libraries(major))

    def fail(self, what: str, why: object) -> None:
        """Say and note why an attempt did not do."""
        self.reasons.append(f"{what}: {why}")
        self.say(self.reasons[-1])

    def pip(self, *arguments: str, **environment: str) -> None:
        run_pip(*arguments, say=self.say, **environment)


def install(wheels: Sequence[Path], say: Callable[[str], None]) -> Finding:
    """Make llama.cpp use the GPU, or run on the CPU if there is none; returns what it does now.

    Tried in this order, each with a line of its own: what is installed; wheels kept in one of the
    folders `wheels`, or in a subfolder named after GPU and CUDA; prebuilt wheels; a build with
    pip's nvcc; one with an installed toolkit. What works is kept in such a subfolder of the last.
    Raises UserError, with cause and advice, if llama.cpp does not use the GPU in the end.
    """
    find_log().unlink(missing_ok=True)
    work = Work(doctor.read_pins()["llama-cpp-python"], list_gpus(), wheels, say)
    if not work.gpus:
        return _install_for_cpu(work)
    if not work.majors():
        raise UserError(
            f"driver {work.gpu.driver} runs no CUDA that is used here: update the driver to "
            f"{cuda.oldest_driver(str(PIP_CUDA))} or newer"
        )
    for attempt in (_use_installed, _use_kept, _use_prebuilt, _build):
        if found := attempt(work):
            return found
    raise UserError(_conclude(work))


def _install_for_cpu(work: Work) -> Finding:
    found = _probe(work)
    if found.state == "good":
        return found
    work.say(f"installing {work.pin}: pip compiles it, some minutes")
    try:
        work.pip("install", "-v", work.pin)
    except Failed as failed:
        raise UserError(f"{failed}; fix that, and give the same command again") from None
    return doctor.llama_finding([])


def _use_installed(work: Work) -> Finding | None:
    found = _look(work)
    if found.state == "good":
        return found
    if cuda.build_cuda() is not None:
        work.fail("what is installed", found.words)
    return None


def _use_kept(work: Work) -> Finding | None:
    places = [_folder(work, major) for major in work.majors()]
    for root in work.wheels:
        for folder in (*(root / place for place in places), root):
            for wheel in sorted(folder.glob(f"llama_cpp_python-{work.version}-*.whl")):
                if found := _use_wheel(work, wheel, f"the kept {wheel}"):
                    return found
    return None


def _use_prebuilt(work: Work) -> Finding | None:
    if work.gpu.capability > NEWEST_PREBUILT:
        work.fail("a prebuilt wheel", "none has kernels for so new a GPU")
        return None
    for build in (build for major in work.majors() for build in BUILDS[major]):
        what = f"the prebuilt wheel {build}"
        with tempfile.TemporaryDirectory() as scratch:
            try:
                # From there alone: another index may have a wheel of this version for the CPU.
                source = ("--only-binary", ":all:", "--index-url", f"{PREBUILT}/{build}", *HURRY)
                work.pip("download", "--no-deps", *source, "-d", scratch, work.pin)
            except Failed as failed:
                work.fail(what, failed)
                continue
            (wheel,) = Path(scratch).glob("*.whl")
            if found := _use_wheel(work, wheel, what):
                return found
    return None


def _build(work: Work) -> Finding | None:
    if not cuda_compilers.has_host_compiler():
        work.fail("compiling", "there is no C++ compiler: `sudo apt install build-essential`")
        return None
    with tempfile.TemporaryDirectory() as scratch:
        for compiler in _list_compilers(work, Path(scratch) / "toolkit"):
            if why := cuda_compilers.find_fault(compiler, work.gpu, Path(scratch)):
                work.fail(compiler.name, why)
                continue
            work.say(
                f"compiling {work.pin} for {work.gpu.name} with {compiler.name}: minutes on many "
                "cores, half an hour on two"
            )
            out = Path(tempfile.mkdtemp(dir=scratch))
            try:
                _compile(work, compiler, out)
            except Failed as failed:
                work.fail(compiler.name, failed)
                continue
            (wheel,) = out.glob("*.whl")
            if found := _use_wheel(work, wheel, f"the build with {compiler.name}"):
                return found
    return None


def _list_compilers(work: Work, folder: Path) -> Iterator[Compiler]:
    if PIP_CUDA in work.majors():
        try:
            yield cuda_compilers.install_pip_nvcc(folder, work.say)
        except Failed as failed:
            work.fail("pip's nvcc", failed)
    toolkits = cuda_compilers.find_toolkits()
    if not toolkits and PIP_CUDA not in work.majors():
        work.fail("a CUDA toolkit", "none is installed")
    yield from toolkits


def _compile(work: Work, compiler: Compiler, folder: Path) -> None:
    """Build a wheel into a folder; raises Failed."""
    arguments = ("-v", "--no-deps", "--no-cache-dir", "-w", str(folder), work.pin)
    options = compiler.cmake_options(work.gpu)
    work.pip("wheel", *arguments, CMAKE_ARGS=options, CUDACXX=str(compiler.nvcc))


def _use_wheel(work: Work, wheel: Path, what: str) -> Finding | None:
    """What llama.cpp does with a wheel; None, said and noted, if it does not use the GPU.

    One that works is kept. Raises UserError for a build that another one would not help.
    """
    work.say(f"installing {what}")
    try:
        work.pip("install", "--force-reinstall", "--no-deps", str(wheel))
    except Failed as failed:
        work.fail(what, failed)
        return None
    try:
        found = _look(work)
    except UserError:  # the driver's fault: the wheel is good
        _keep(work, wheel)
        raise
    if found.state != "good":
        work.fail(what, found.words)
        return None
    _keep(work, wheel)
    return found


def _look(work: Work) -> Finding:
    """What the installed llama.cpp does, after libraries that it lacks are installed.

    Raises UserError where a build that the driver should run does not start: another would not.
    """
    found = _probe(work)
    fault = None if found.state == "good" else doctor.find_idle_build(work.gpu)
    if fault and cuda.build_cuda() in work.majors():
        raise UserError(fault)
    return found


def _probe(work: Work) -> Finding:
    """What the installed llama.cpp does, once libraries of CUDA that it lacks are installed."""
    found, major = doctor.llama_finding(work.gpus), cuda.build_cuda()
    if found.state == "good" or major is None or not cuda.find_library_name(found.words):
        return found
    work.say(f"installing the libraries of CUDA {major}: {found.words}")
    try:
        work.pip("install", *cuda.library_packages(major))
    except Failed as failed:
        work.fail(f"the libraries of CUDA {major}", failed)
        return found
    return doctor.llama_finding(work.gpus)


def _keep(work: Work, wheel: Path) -> None:
    """Copy a wheel to the last of the folders, for the next machine."""
    major = cuda.build_cuda()
    if not work.wheels or major is None:
        return
    folder = work.wheels[-1] / _folder(work, major)
    if wheel.parent != folder:
        folder.mkdir(parents=True, exist_ok=True)
        copy_file(wheel, folder / wheel.name)
        work.say(f"kept in {folder}")


def _folder(work: Work, major: int) -> str:
    return f"sm{work.gpu.architecture}-cuda{major}"


def _conclude(work: Work) -> str:
    """Cause and advice after everything was tried."""
    oldest = ".".join(map(str, OLDEST_TOOLKIT))
    if PIP_CUDA in work.majors():
        advice = f"fix that, or install NVIDIA's CUDA toolkit, {oldest} or newer"
    else:
        advice = (
            f"update driver {work.gpu.driver} to {cuda.oldest_driver(str(PIP_CUDA))} or newer, for "
            f"which no toolkit is needed, or install NVIDIA's CUDA toolkit, {oldest} to 12.9"
        )
    return (
        f"no llama.cpp uses {work.gpu.name} ({work.reasons[-1]}); {advice}, and give the same "
        "command again"
    )
