"""Engine, trainer and exporter of a simulated run, whose processes may die, and its clock."""

import hashlib
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from scripted_runtime import Script
from simulated_disk import Disk

from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.engine.scripted import ScriptedEngine
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.models.parity import AdapterParity
from selfreward_lite.system.errors import EngineError, ExportError, SelfRewardError, TrainingError
from selfreward_lite.system.files import atomic_write, sync_folder
from selfreward_lite.training.job import Job, TrainingResult
from selfreward_lite.training.step_folders import list_complete, write_step

DIES = "dies"
STEPS, STEPS_A_CHECKPOINT = 5, 2
ANSWER, STEP = 0.5, 60.0  # seconds of an answer and of a training step


class Clock:
    """Seconds pass with the work; the time of day jumps by days, if there is `luck`."""

    def __init__(self, luck: random.Random | None) -> None:
        self._luck, self._now, self._jump = luck, 1000.0, 0.0

    def pass_by(self, seconds: float) -> None:
        """Let time pass; now and then somebody sets the clock, or the machine was suspended."""
        self._now += seconds
        if self._luck is not None and self._luck.random() < 0.2:
            self._jump = self._luck.uniform(-1, 1) * 90 * 24 * 3600

    def start_machine(self) -> None:
        """The monotonic clock begins anew, as after a power cut."""
        self._now = 10.0

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Python's clocks are this one inside the block; the process has a constant number."""
        with (
            patch("time.monotonic", lambda: self._now),
            patch("time.time", lambda: 1.7e9 + self._now + self._jump),
            patch("time.sleep", self.pass_by),
            patch("os.getpid", lambda: 4242),  # its digits are part of names and contents
        ):
            yield


class Tools:
    """A runtime as `run/runtime.py` has it; every answer, step and export is a moment."""

    def __init__(self, disk: Disk, clock: Clock) -> None:
        self._disk, self._clock = disk, clock
        self._chat = ChatFormat.load(TINY_MODEL)

    def open_engine(self, base: Path, settings: object) -> ScriptedEngine:
        self._moment("engine starts", EngineError)
        script = Script(self._chat)

        def reply(request, sample):
            self._clock.pass_by(ANSWER)
            self._moment("engine answers", EngineError)
            return script.reply(request, sample)

        return ScriptedEngine(reply, self._chat.text_ids, shuffle_seed=5)

    def train(self, job: Job, folder: Path, report) -> TrainingResult:
        """The adapter is a hash of all steps, each of which depends on the one before."""
        self._moment("training starts", TrainingError)
        rows = job.rows.read_bytes().splitlines()
        assert len(rows) == job.row_count
        step, state = self._resume(job)
        while step < STEPS and not job.is_out_of_time:
            self._clock.pass_by(STEP)
            self._moment("training step", TrainingError)
            step += 1
            state = hashlib.sha256(state.encode() + rows[step % len(rows)]).hexdigest()
            loss = 0.693 - step / 100
            report({"step": step, "steps": STEPS, "values": {"loss": loss}})
            if step % STEPS_A_CHECKPOINT == 0:
                _save(job, step, state)
        if out_of_time := 2 * step < STEPS:
            _save(job, step, state)
        else:
            job.adapter_out.mkdir(parents=True)
            (job.adapter_out / "adapter_model.safetensors").write_text(state)
            sync_folder(job.adapter_out)
        self._moment("training ends", TrainingError)
        return TrainingResult(
            step,
            len(rows),
            moved_share=1.0,
            first_margin=0.0,
            tokens=1000,  # of the whole training, as if nothing had ever been resumed
            train_seconds=STEPS * STEP,
            ended_early=step < STEPS,
            out_of_time=out_of_time,
        )

    def export_base(self, model_dir: Path, out: Path, model: object) -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        self._export(out, "base", "base export")

    def export_adapter(self, model_dir, adapter, base, out, token_lists, model) -> AdapterParity:
        weights = (adapter / "adapter_model.safetensors").read_text()
        self._export(out, f"gguf of {weights}", "adapter export")
        return AdapterParity(difference=0.0, change=1.0, share=1.0, agreement=1.0)

    def _export(self, out: Path, text: str, what: str) -> None:
        self._moment(f"{what} starts", ExportError)
        with atomic_write(out) as part:
            part.write_text(text)
        self._moment(f"{what} ends", ExportError)

    def _resume(self, job: Job) -> tuple[int, str]:
        for path in list_complete(job.checkpoints):
            known = json.loads((path / "state.json").read_text())
            if known["job"] == job.digest():
                return known["step"], known["state"]
        return 0, job.digest()

    def _moment(self, what: str, error: type[SelfRewardError]) -> None:
        kind = self._disk.reach(what, ("kill", "power", DIES))
        if kind == DIES:
            raise error(f"its process died ({what})")
        if kind is not None:
            self._disk.die(kind)


def _save(job: Job, step: int, state: str) -> None:
    known = {"job": job.digest(), "step": step, "state": state}
    write_step(
        job.checkpoints, step, lambda target: _write(target / "state.json", json.dumps(known))
    )


def _write(path: Path, text: str) -> None:
    path.write_text(text)
