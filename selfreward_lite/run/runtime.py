"""What a run works with: the engine, the trainer and the exporter, each in a child process.

This process imports neither torch nor llama.cpp, so it survives their crashes, and a child's memory
is freed when it ends. Tests put scripted functions in their place.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfreward_lite.config.settings import EngineSettings, Model
from selfreward_lite.data import hub
from selfreward_lite.engine.api import Engine, LlamaSpec
from selfreward_lite.engine.process import ProcessEngine
from selfreward_lite.models.gguf_export import Weights
from selfreward_lite.models.parity import AdapterParity
from selfreward_lite.run import servers
from selfreward_lite.system.errors import ExportError, TrainingError
from selfreward_lite.training.job import Job, Report, TrainingResult
from selfreward_lite.training.worker import TaskFailed, TorchWorker, explain_failure

TokenLists = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Runtime:
    """All that needs torch or llama.cpp. Raises TrainingError or ExportError where a task fails."""

    worker: TorchWorker

    def open_engine(self, base: Path, settings: EngineSettings) -> Engine:
        """An engine on a base GGUF, here or on servers."""
        if settings.kind == "server":
            return servers.open_servers(base, settings)
        return ProcessEngine(LlamaSpec(model=base, **settings.model_dump()))

    def train(self, job: Job, folder: Path, report: Report) -> TrainingResult:
        """Train; the log is in `folder`."""
        log = folder / "train.log"
        try:
            return TrainingResult(**self.worker.do("train", log, report, **job.model_dump()))
        except TaskFailed as failure:
            raise explain_failure(
                TrainingError, f"training failed: {failure}", log.parent, log
            ) from None

    def export_base(self, model_dir: Path, out: Path, model: Model) -> None:
        """Write the base as GGUF, or use the file that the settings name."""
        out.parent.mkdir(parents=True, exist_ok=True)
        if model.gguf_file is None:
            self._export("export_base", model_dir, out, weights=_weights(model), dtype=model.gguf)
        else:
            gguf = hub.find_local(model.gguf_file, "model")
            self._export("adopt_base", model_dir, out, gguf=gguf)

    def export_adapter(
        self,
        model_dir: Path,
        adapter: Path,
        base: Path,
        out: Path,
        token_lists: TokenLists,
        model: Model,
    ) -> AdapterParity:
        """Write an adapter as GGUF; returns its parity on the token lists."""
        answer = self._export(
            "export_adapter",
            model_dir,
            out,
            weights=_weights(model),
            adapter=adapter,
            base=base,
            token_lists=token_lists,
        )
        return AdapterParity(**answer)

    def write_reference(
        self,
        model_dir: Path,
        adapter: Path | None,
        out: Path,
        token_lists: TokenLists,
        model: Model,
    ) -> None:
        """Write what the base, or an adapter on it, answers: servers are compared with it."""
        self._export(
            "write_reference",
            model_dir,
            out,
            adapter=adapter,
            token_lists=token_lists,
            weights=_weights(model),
        )

    def _export(self, task: str, model_dir: Path, out: Path, **arguments: Any) -> Any:
        log = out.with_suffix(".log")
        try:
            answer = self.worker.do(task, log, model_dir=model_dir, out=out, **arguments)
        except TaskFailed as failure:
            raise explain_failure(ExportError, str(failure), log.parent, log) from None
        if not log.parent.is_dir():
            raise explain_failure(ExportError, f"{task} was done", log.parent, log)
        log.unlink(missing_ok=True)  # the manifest of the folder lists what belongs to the model
        return answer


@contextmanager
def open_runtime(backend: str = "auto", *, bare: bool = False) -> Iterator[Runtime]:
    """llama.cpp in one child process, TRL and the exporter in another; both end with the block.

    With `bare`, which is for a single task, the second imports nothing at its start. Nor with
    backend "unsloth", which must be imported before what it rewrites.
    """
    with closing(TorchWorker(bare=bare or backend == "unsloth")) as worker:
        yield Runtime(worker)


def _weights(model: Model) -> Weights:
    return "nf4" if model.quantisation == "nf4" else "original"
