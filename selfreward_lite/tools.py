"""The heavy tools of a run: the engine, the trainer, the exporter. Each runs as a child process.

Knows: how a child is started and what it answers. Does not know: torch or llama.cpp themselves; this process imports neither,
so it survives whatever happens to them, and their memory really comes back. Tests put scripted tools in their place.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfreward_lite import training_job
from selfreward_lite.config import EngineSettings, Model
from selfreward_lite.engines.base import Engine
from selfreward_lite.engines.process import ProcessEngine
from selfreward_lite.errors import ExportError
from selfreward_lite.training_job import Job, Report

TokenLists = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Tools:
    """What a run works with.

    open_engine(base GGUF, settings); train(job, folder for its log, report) → facts;
    export_base(model folder, GGUF to write, settings);
    export_adapter(model folder, adapter folder, base GGUF, GGUF to write, token lists, settings) → `difference`, the
    largest between PEFT's logits and llama.cpp's on these tokens, and `change`, the largest that the adapter makes.
    """

    open_engine: Callable[[Path, EngineSettings], Engine]
    train: Callable[[Job, Path, Report], dict[str, float]]
    export_base: Callable[[Path, Path, Model], None]
    export_adapter: Callable[[Path, Path, Path, Path, TokenLists, Model], dict[str, float]]


def real_tools() -> Tools:
    """Return llama.cpp in a child process, TRL in another, and the GGUF exporter in a third."""
    return Tools(_open_llama, training_job.run, _export_base, _export_adapter)


def _open_llama(base: Path, settings: EngineSettings) -> Engine:
    return ProcessEngine({"kind": "llama", "model": str(base), **settings.model_dump()})


def _export_base(model_dir: Path, out: Path, model: Model) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    _in_child({"what": "base", "model_dir": str(model_dir), "out": str(out), **_format(model)})


def _export_adapter(
    model_dir: Path, adapter: Path, base: Path, out: Path, token_lists: TokenLists, model: Model
) -> dict[str, float]:
    return _in_child({
        "what": "adapter", "model_dir": str(model_dir), "adapter": str(adapter), "base": str(base), "out": str(out),
        "token_lists": token_lists, **_format(model),
    })


def _format(model: Model) -> dict[str, str]:
    return {"weights": "nf4" if model.quantisation == "nf4" else "original", "dtype": model.gguf}


def _in_child(task: dict[str, Any]) -> dict[str, Any]:
    """Run one export and return its answer; its last line of complaint becomes our error."""
    command = [sys.executable, "-m", "selfreward_lite.parity"]
    with tempfile.TemporaryFile("w+") as complaints:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, text=True, start_new_session=True
        )
        with child:
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                child.stdin.write(json.dumps(task) + "\n")
                child.stdin.flush()
                answer = child.stdout.read()
                code = child.wait()
            finally:
                child.kill()
        complaints.seek(0)
        words = [line.strip() for line in complaints if line.strip()]
    if code != 0:
        raise ExportError(words[-1] if words else f"the exporter ended with code {code}")
    return json.loads(answer.splitlines()[-1])
