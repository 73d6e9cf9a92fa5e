"""Training and export as tasks of one child process, which forks for each.

Importing torch and TRL takes longer than a tiny training (6 of 9 seconds, measured). So a child
without a GPU imports them once, and every task runs in a fresh fork; when it ends, all of its
memory is free again. With a GPU each task imports for itself: a process that has used CUDA must not
be forked.
Nobody uses what an orphan makes, so each end of a pipe that closes ends the process that reads it.

    parent to child    {"task": "train", "log": path, ...}    any number
    child to parent    {"report": {...}}                      any number, then
                       {"answer": ...}                        unless the task failed; see its log
                       {"ended": exit code}
"""

import json
import os
import select
import shutil
import sys
import threading
import traceback
from collections.abc import Callable
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any

from pydantic import ValidationError, validate_call
from pydantic_core import to_jsonable_python

from selfreward_lite.system.errors import SelfRewardError, UserError
from selfreward_lite.system.files import FULL
from selfreward_lite.system.gpu import allocator_settings
from selfreward_lite.system.processes import (
    DEATH,
    JsonProcess,
    Message,
    child_environment,
    end_with_parent,
    explain_exit,
    last_lines,
    open_wire,
)

BARE = "--bare"
NEARLY_FULL = (1e9, 0.05)  # bytes, and share of the disk: libraries name a full disk in many ways
GPU_DEVICES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))  # Linux; Windows' Linux


class TaskFailed(Exception):
    """A task ended without an answer; the message is the last line that it wrote."""


class TorchWorker:
    """The parent's side of the child process.

    The child starts at once, to import while the parent reads its data; a `bare` one imports
    nothing before its first task.
    """

    def __init__(self, bare: bool = False) -> None:
        self._arguments = [BARE] if bare else []
        self._child: JsonProcess | None = None
        self._open()

    def do(
        self,
        task: str,
        log: Path,
        report: Callable[[Message], None] | None = None,
        **arguments: Any,
    ) -> Any:
        """Do one task and return its answer, as JSON. After TaskFailed the next task can work."""
        child = self._open()
        answer, code = None, None
        log.unlink(missing_ok=True)  # what is there afterwards is from this task
        try:
            child.send(to_jsonable_python({"task": task, "log": log, **arguments}))
            while code is None:
                message = child.messages.get()
                if DEATH in message:
                    self._child, code = None, child.reap()
                elif "ended" in message:
                    code = message["ended"]
                elif "report" in message and report is not None:
                    report(message["report"])
                answer = message.get("answer", answer)
        except BaseException:
            self.close()  # interrupted: the task is no longer wanted
            raise
        if code != 0 or answer is None:
            raise TaskFailed(explain_exit(code, last_lines(log) or list(child.lines)))
        return answer

    def close(self) -> None:
        """End the child, and with it its task."""
        if self._child is not None:
            self._child.close(patience=0)
            self._child = None

    def _open(self) -> JsonProcess:
        if self._child is None:
            self._child = JsonProcess(
                "selfreward_lite.training.worker",
                *self._arguments,
                start_new_session=True,  # Ctrl-C is the parent's to handle
                env=child_environment(allocator_settings(), "one"),
            )
        return self._child


def explain_failure(
    kind: type[SelfRewardError], failure: str, folder: Path, log: Path | None = None
) -> SelfRewardError:
    """Return the error of a task that failed while it wrote into `folder`.

    A full disk, and a folder that is gone, are the user's to fix; all else is an error of `kind`.
    A log that says something is named.
    """
    if not folder.is_dir():
        return UserError(
            f"{folder} was removed while this wrote into it ({failure}). What was committed is "
            "kept: give the same command again"
        )
    see = f" (see {log})" if log and log.is_file() and log.stat().st_size else ""
    if any(os.strerror(code) in failure for code in FULL):
        place = os.statvfs(folder)
        files = ", and no more files" if place.f_files and not place.f_favail else ""
        free = f"{place.f_bavail * place.f_frsize / 1e6:.1f} MB"
        return UserError(
            f"{failure}{see}; the disk of {folder} has {free} free{files}. What was committed is "
            f"kept: {'remove files there' if files else 'free space'}, and give the same command "
            "again"
        )
    return kind(f"{failure}{see}{_nearly_full(folder)}")


def _nearly_full(folder: Path) -> str:
    """What to add to an error where a full disk is the likely reason."""
    usage = shutil.disk_usage(folder)
    if usage.free > min(NEARLY_FULL[0], NEARLY_FULL[1] * usage.total):
        return ""
    free = f"{usage.free / 1e6:.1f} MB"
    return (
        f"; the disk of {folder} has only {free} free: free space and give the same command again"
    )


# -- the child ----------


def serve() -> None:
    """Fork for every task that comes in; end with the parent."""
    send = open_wire()
    if BARE not in sys.argv and not any(device.exists() for device in GPU_DEVICES):
        from selfreward_lite.models import parity  # noqa: F401 - once, for all forks
        from selfreward_lite.training import trainer  # noqa: F401 - once, for all forks
    tasks = FileIO(0)  # `select` could not see what a buffer holds
    while line := tasks.readline():
        ours, theirs = os.pipe(), os.pipe()  # one end each shows one side that the other is gone
        pid = os.fork()
        if pid == 0:
            os.close(ours[0])
            os.close(theirs[1])
            os.dup2(theirs[0], 0)
            _do(json.loads(line), send)
        os.close(ours[1])
        os.close(theirs[0])
        ready, _, _ = select.select([0, ours[0]], [], [])
        if 0 in ready and ours[0] not in ready:
            # The parent never writes during a task, so it is gone; so the task ends too.
            os._exit(1)
        _, status = os.waitpid(pid, 0)
        os.close(ours[0])
        os.close(theirs[1])
        send({"ended": os.waitstatus_to_exitcode(status)})


def _do(task: Message, send: Callable[[Message], None]) -> None:
    """Do one task in this fork of the child, and exit."""
    code, reason = 1, ""
    try:
        threading.Thread(target=end_with_parent, daemon=True).start()
        log = os.open(task.pop("log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(log, 2)
        os.dup2(log, 1)
        answer = _work(task, lambda values: send({"report": values}))
        send({"answer": to_jsonable_python(answer)})
        code = 0
    except SelfRewardError as error:
        reason = f"{error}\n"
    except BaseException as error:  # noqa: BLE001 - a fork must never continue as the child itself
        sys.stdout.flush()
        traceback.print_exc()
        if isinstance(error, ValidationError):  # its own last line names no argument
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}\n"
    finally:
        sys.stdout.flush()  # the reason must be the log's last line
        sys.stderr.write(reason)
        sys.stderr.flush()
        os._exit(code)


def _work(task: Message, report: Callable[[Any], None]) -> Any:
    kind = task.pop("task")
    if kind == "train":
        from selfreward_lite.training import backends
        from selfreward_lite.training.job import Job

        job = Job.model_validate(task)
        # before transformers
        backend = backends.choose_backend(job.backend, job.rows.parent, job.processes)
        from selfreward_lite.training.trainer import train

        return train(job, report, backend)
    from selfreward_lite.models import hf_export, merge, parity, quantize, reference

    tasks: dict[str, Callable[..., Any]] = {
        "export_base": parity.export_base,
        "adopt_base": parity.adopt_base,
        "export_adapter": parity.export_adapter,
        "hf_folder": hf_export.write_folder,
        "write_reference": reference.write_reference,
        "check": parity.check,
        "full_model": partial(merge.write_model, report=report),
        "quantize": partial(quantize.quantize, report=report),
    }
    return validate_call(tasks[kind])(**task)  # JSON becomes what the parameters' types say


if __name__ == "__main__":
    serve()
