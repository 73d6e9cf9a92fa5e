"""Which runs and models there are, and the one engine that answers for them."""

import os
import threading
from collections.abc import Generator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from selfreward_lite.app.engine_pool import EnginePool
from selfreward_lite.config import Settings, load
from selfreward_lite.data import hub
from selfreward_lite.data.store import Store
from selfreward_lite.engine.api import LlamaSpec
from selfreward_lite.engine.live import Live
from selfreward_lite.models.gguf_folder import find_base
from selfreward_lite.run.runtime import open_runtime
from selfreward_lite.system.cores import count_cores
from selfreward_lite.system.errors import SelfRewardError, UserError
from selfreward_lite.system.files import MANIFEST, write_manifest
from selfreward_lite.system.gpu import list_gpus

TINY = "the tiny model"  # chosen in place of a run, so that there is always a model
BASE = "base"


@dataclass(frozen=True)
class RunModels:
    """Where the models of a run are, and the run's settings."""

    run: str
    hf_folder: Path
    base: Path  # GGUF
    settings: Settings
    adapters: dict[str, str | None]  # by name: base, M0, M1, …; the newest last


class RunLibrary:
    """The runs of a folder, and one engine, which loads the base of the run that is asked."""

    def __init__(self, runs_dir: Path) -> None:
        self.runs_dir, self.started_in = runs_dir, Path.cwd()
        self.gpus = list_gpus()
        self.on_cpu = False  # whether to leave the GPU to runs
        self.engine = EnginePool(bool(self.gpus))
        self.last_reply = ""  # who replied last, and how fast
        self._lock = threading.Lock()
        self._load_error = ""

    def runs(self) -> list[str]:
        """Return the names of all runs, the most recently written first."""
        found: dict[str, float] = {}
        for path in self.runs_dir.glob("*/run.sqlite"):
            # SQLite's third file, "-shm", changes when the run is only read.
            for written in (path, path.with_name("run.sqlite-wal")):
                with suppress(OSError):  # deleted since it was listed
                    if (stat := written.stat()).st_size:
                        name = path.parent.name
                        found[name] = max(found.get(name, 0.0), stat.st_mtime)
        return sorted(found, key=lambda name: -found[name])

    def choices(self) -> list[str]:
        """Return what can be chosen as a run, the default first: all runs, then the tiny model."""
        return [*self.runs(), TINY]

    def check_choice(self, run: str) -> None:
        """Raise UserError, with the names of up to 20, for what cannot be chosen as a run."""
        if run not in (found := self.choices()):
            names = ", ".join(map(repr, found[:20])) + (", …" if len(found) > 20 else "")
            raise UserError(f"no run {run!r} in {self.runs_dir}; choose one of {names}")

    def folder(self, run: object) -> Path:
        """Return the folder of a run. Raises UserError for all else, as a path or no text."""
        with suppress(FileNotFoundError), os.scandir(self.runs_dir) as entries:
            for entry in entries:
                if entry.name == run and entry.is_dir() and not entry.name.startswith("."):
                    return self.runs_dir / entry.name
        raise self._no_such_run(run)

    def models(self, run: str) -> RunModels:
        """Return where a run's models are. Raises UserError without the run or its base."""
        if run == TINY:
            hf_folder = hub.find_model_folder("tiny")
            return RunModels(TINY, hf_folder, self._tiny_base(), load("tiny"), {BASE: None})
        folder = self.folder(run)
        if run not in self.runs():
            raise self._no_such_run(run)
        with Store.read(folder) as store:
            settings = store.settings()
            model_folders = [store.model_dir(number) for number in range(store.next_model())]
        base = folder / "base" / "base.gguf"
        if not (base.parent / MANIFEST).exists():
            if Store.writer(folder) is not None:
                raise UserError(
                    f"the base model of {run} is still being converted; try again in a moment"
                )
            raise UserError(
                f"{run} has no base model: it was never converted, or was pruned; "
                f"`python -m selfreward_lite run --name {run}` makes it"
            )
        adapters: dict[str, str | None] = {BASE: None}
        for model_folder in model_folders:
            if (model_folder / MANIFEST).exists():
                adapters[model_folder.name] = str(model_folder / "adapter.gguf")
        if "M0" in adapters and not settings.seed_stage.trains:
            adapters["M0"] = None  # the base itself
        # `run` and the app are started in the same folder, so a relative path means the same here.
        source, local = settings.model.base, self.started_in / settings.model.base
        if source != "tiny" and local.exists():
            source = str(local)
        return RunModels(run, find_base(source), base, settings, adapters)

    def load_tiny_model(self) -> None:
        """Load the tiny model where there is no run. `engine_status` tells what went wrong."""
        if self.runs():
            return
        try:
            with closing(self.use_engine(self.models(TINY))) as waiting:
                next(found for found in waiting if isinstance(found, Live)).load()
        except SelfRewardError as error:
            self._load_error = f"; {error}"

    def engine_status(self) -> str:
        """Return what the engine runs on, its state, and the speed of the last reply."""
        live = self.engine.live
        if live is None or live.state == "not started":
            return (
                "llama.cpp is not loaded yet: the first reply takes a moment longer"
                f"{self._load_error}"
            )
        on_gpu = self.gpus and live.spec.gpu_layers
        where = self.gpus[0].name if on_gpu else f"the CPU ({count_cores()} cores)"
        crashes = ""
        if live.deaths:
            crashes = f"; it crashed {live.deaths} times and was restarted ({live.last_death})"
        return f"llama.cpp on {where}: {live.state}{self.last_reply}{crashes}{self._load_error}"

    def use_engine(self, models: RunModels) -> Generator[str | Live, None, None]:
        """Yield why the caller waits; then the engine with a run's base, until this is closed."""

        def get_spec() -> LlamaSpec:
            changed = {"gpu_layers": 0} if self.on_cpu else {}
            settings = models.settings.engine.model_dump() | changed
            return LlamaSpec(model=models.base, **settings)

        return self.engine.using(get_spec)

    def _no_such_run(self, run: object) -> UserError:
        return UserError(f"no run {str(run)[:100]!r} here; choose one from the list")

    def _tiny_base(self) -> Path:
        """The tiny base as GGUF, made once beside the runs; takes a few seconds."""
        out = self.runs_dir / ".tiny" / "base.gguf"
        with self._lock:
            if not (out.parent / MANIFEST).exists():
                try:
                    out.parent.mkdir(parents=True, exist_ok=True)  # before a process is started
                    with open_runtime(bare=True) as runtime:
                        runtime.export_base(hub.find_model_folder("tiny"), out, load("tiny").model)
                    write_manifest(out.parent, {"base": "tiny"})
                except OSError as error:
                    raise UserError(
                        f"{TINY} cannot be made in {out.parent} ({error.strerror}); start this "
                        "with a --runs-dir that you can write"
                    ) from None
        return out
