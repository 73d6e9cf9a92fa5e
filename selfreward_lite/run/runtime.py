"""The heavy runtime of a run: the engine, the trainer, the exporter. They run in child processes.

Knows: what a child is asked and what it answers. Does not know: torch or llama.cpp themselves; this process imports neither,
so it survives whatever happens to them, and their memory really comes back. Tests put scripted runtime in their place.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from selfreward_lite.config.settings import EngineSettings, Model
from selfreward_lite.data import hub
from selfreward_lite.engine.api import Engine
from selfreward_lite.engine.process import ProcessEngine
from selfreward_lite.system.errors import ExportError, TrainingError
from selfreward_lite.training.job import Job, Report
from selfreward_lite.training.worker import TaskFailed, TorchWorker

TokenLists = Sequence[Sequence[int]]
NEARLY_FULL = (
    1e9,
    0.05,
)  # bytes, and share of the disk; a library that could not write says so in many ways


@dataclass(frozen=True)
class Runtime:
    """What a run works with.

    open_engine(base GGUF, settings); train(job, folder for its log, report) → facts;
    export_base(model folder, GGUF to write, settings);
    export_adapter(model folder, adapter folder, base GGUF, GGUF to write, token lists, settings) → `difference`, the
    largest between PEFT's logits and llama.cpp's on these tokens, `change`, the largest that the adapter makes, `share`, how
    much of it arrives (None where the base's rounding hides it), `agreement`, the share of positions at which both would say the
    same token next.
    """

    open_engine: Callable[[Path, EngineSettings], Engine]
    train: Callable[[Job, Path, Report], dict[str, float]]
    export_base: Callable[[Path, Path, Model], None]
    export_adapter: Callable[[Path, Path, Path, Path, TokenLists, Model], dict[str, float | None]]


@contextmanager
def open_runtime(backend: str = "auto", *, bare: bool = False) -> Iterator[Runtime]:
    """Give llama.cpp in one child process, and TRL and the GGUF exporter in another; they end with the block.

    With backend "unsloth" the latter imports nothing beforehand: unsloth must come before what it rewrites. Nor with `bare`,
    which is for a single task.
    """
    workshop = TorchWorker(bare=bare or backend == "unsloth")
    try:
        torch = _Torch(workshop)
        yield Runtime(_open_llama, torch.train, torch.export_base, torch.export_adapter)
    finally:
        workshop.close()


def _open_llama(base: Path, settings: EngineSettings) -> Engine:
    return ProcessEngine({"kind": "llama", "model": str(base), **settings.model_dump()})


@dataclass(frozen=True)
class _Torch:
    """What is done with torch, as calls."""

    workshop: TorchWorker

    def train(self, job: Job, folder: Path, report: Report) -> dict[str, float]:
        log = folder / "train.log"
        try:
            return self.workshop.do("train", log, report, **asdict(job))
        except TaskFailed as failure:
            raise TrainingError(
                f"training failed: {failure} (see {log}){_nearly_full(folder)}"
            ) from None

    def export_base(self, model_dir: Path, out: Path, model: Model) -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        paths = {"model_dir": str(model_dir), "out": str(out)}
        if model.gguf_file is None:
            self._export("export_base", model, dtype=model.gguf, **paths)
        else:
            self._export(
                "adopt_base", model, gguf=str(hub.find_local(model.gguf_file, "model")), **paths
            )

    def export_adapter(
        self,
        model_dir: Path,
        adapter: Path,
        base: Path,
        out: Path,
        token_lists: TokenLists,
        model: Model,
    ) -> dict[str, float | None]:
        paths = {
            "model_dir": str(model_dir),
            "adapter": str(adapter),
            "base": str(base),
            "out": str(out),
        }
        return self._export("export_adapter", model, **paths, token_lists=token_lists)

    def _export(self, task: str, model: Model, **arguments: Any) -> dict[str, Any]:
        log = Path(arguments["out"]).with_suffix(".log")
        try:
            answer = self.workshop.do(
                task, log, weights="nf4" if model.quantisation == "nf4" else "original", **arguments
            )
        except TaskFailed as failure:
            raise ExportError(f"{failure} (see {log}){_nearly_full(log.parent)}") from None
        log.unlink()  # the manifest of the folder lists what belongs to the model
        return answer


def _nearly_full(folder: Path) -> str:
    """What a failure's line should add where the disk is the likely reason."""
    usage = shutil.disk_usage(folder)
    if usage.free > min(NEARLY_FULL[0], NEARLY_FULL[1] * usage.total):
        return ""
    return f"; the disk of {folder} has only {usage.free / 1e6:.1f} MB free: free space and give the same command again"
