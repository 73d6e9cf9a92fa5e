"""One of the processes that train together. `launch.py` starts them, and reads what they say.

    python -m selfreward_lite.training.rank JOB STORE MICRO_BATCH

JOB is the job as JSON, STORE a file through which they find each other. It says one of
{"answer": …} (the first process), {"short": true} (of memory), {"failed": reason}, or {"broken": …}
for a bug, and the first process {"report": …} before.
"""

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from selfreward_lite.system.errors import SelfRewardError, TrainingError
from selfreward_lite.system.processes import Message, end_with_parent, open_wire
from selfreward_lite.training.job import Job

PATIENCE = timedelta(minutes=30)  # for another process in one exchange: it may compile, or save


def main() -> None:
    """Train, say how it ended, and exit."""
    say = open_wire()
    threading.Thread(target=end_with_parent, daemon=True).start()
    code = 1
    try:
        job, store, micro_batch = sys.argv[1:]
        _train(Path(job), store, int(micro_batch), say)
        code = 0
    except SelfRewardError as error:
        say({"failed": str(error)})
    except BaseException as error:  # noqa: BLE001 - the others wait for whatever ended this one
        traceback.print_exc()
        say(_describe(error))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # libraries wait for other processes at a usual exit, and those may be gone


def _train(file: Path, store: str, micro_batch: int, say: Callable[[Message], None]) -> None:
    job = Job.model_validate(json.loads(file.read_bytes()))
    from selfreward_lite.training import backends

    # before transformers
    backend = backends.choose_backend(job.backend, job.rows.parent, job.processes)
    number = _join(job, store)
    from selfreward_lite.training.trainer import train_once

    def report(said: Any) -> None:
        if number == 0:
            say({"report": to_jsonable_python(said)})

    result = train_once(job, micro_batch, report, backend)
    if number == 0:
        say({"answer": to_jsonable_python(result)})


def _join(job: Job, store: str) -> int:
    """Join the others; returns the number of this process."""
    import torch
    from torch import distributed

    number, on_gpu = int(os.environ["RANK"]), job.devices is not None
    if on_gpu and not torch.cuda.is_available():
        raise TrainingError(
            f"process {number + 1} of {job.processes} sees no GPU (CUDA_VISIBLE_DEVICES="
            f"{os.environ.get('CUDA_VISIBLE_DEVICES')}); lower training.processes"
        )
    distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=distributed.FileStore(store, job.processes),
        rank=number,
        world_size=job.processes,
        timeout=PATIENCE,
    )
    return number


def _describe(error: BaseException) -> Message:
    """What to say of an error that is no message for the user yet."""
    from selfreward_lite.training.trainer import is_out_of_memory

    if isinstance(error, RuntimeError) and is_out_of_memory(error):
        return {"short": True}
    line = next(iter(str(error).splitlines()), "")
    return {"broken": f"{type(error).__name__}: {line}"}


if __name__ == "__main__":
    main()
