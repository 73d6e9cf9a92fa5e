"""Starts the processes that train together, hears what they say, and ends them together.

torch's launcher (`torchrun`, here called as a function) starts them, each in a session of its own
with one GPU, watches them, and ends all others when one ends. They find each other through a file,
so that no port is open to the network. Each ends by itself when this process is gone: its input is
a pipe of which this process holds the other end.
"""

import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from signal import SIGTERM
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from selfreward_lite.system.cores import count_cores
from selfreward_lite.system.errors import TrainingError
from selfreward_lite.system.processes import Message, describe_exit
from selfreward_lite.training.job import Job, Report, TrainingResult

MODULE = "selfreward_lite.training.rank"
NO_GPU = "-1"  # as CUDA_VISIBLE_DEVICES
# What torch's launcher needs to end all processes together, and to show each its own GPU: 2.10.
NEEDED = {"signals_to_handle", "virtual_local_rank"}
SECONDS_TO_READ = 10.0  # what a process wrote that could not be ended
RESUME = "give the same command again to resume from the last checkpoint"


def train_together(job: Job, micro_batch: int, report: Report) -> TrainingResult:
    """Train in `job.processes` processes, each with so many rows on its device at once.

    Raises torch.OutOfMemoryError where one of them is short of memory, and TrainingError for all
    else that ends one of them, and so all, or where torch is older than 2.10.
    """
    if not LaunchConfig.__dataclass_fields__.keys() >= NEEDED:
        raise TrainingError(
            f"training in several processes needs torch 2.10, and this is {torch.__version__}; "
            "give the same command with training.processes=1"
        )
    heard: Message = {}
    with tempfile.TemporaryDirectory(prefix="selfreward_lite-") as folder, _environment(job):
        saved = Path(folder) / "job.json"
        saved.write_text(json.dumps(job.model_dump(mode="json")), encoding="utf-8")
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=job.processes,
            run_id="training",
            rdzv_backend="c10d",
            rdzv_endpoint=str(Path(folder) / "rendezvous"),
            rdzv_configs={"store_type": "file"},
            local_addr="127.0.0.1",
            max_restarts=0,  # what it did is kept in checkpoints, and the caller decides
            signals_to_handle="SIGTERM",
            virtual_local_rank=True,  # each sees its own GPU alone, as a single process does
        )
        start = elastic_launch(config, sys.executable)
        try:
            with _listen(report, heard):
                start("-m", MODULE, saved, Path(folder) / "store", micro_batch)
        except ChildFailedError as error:
            codes = {number: one.exitcode for number, one in error.failures.items()}
            if heard.get("short"):
                raise torch.OutOfMemoryError("out of memory in one of the processes") from None
            raise TrainingError(explain(codes, heard, job.processes)) from None
    if "answer" not in heard:
        raise TrainingError(f"{job.processes} processes ended without an answer; {RESUME}")
    return TrainingResult(**heard["answer"])


def explain(codes: Mapping[int, int], heard: Message, processes: int) -> str:
    """Why processes that train together failed, from their exit codes and what they said.

    One that ends takes the others with it: they lose the connection, or are ended by SIGTERM.
    """
    if "failed" in heard:
        return str(heard["failed"])
    own = {number: code for number, code in codes.items() if code != -SIGTERM}
    killed = {number: code for number, code in own.items() if code < 0}
    if not killed and "broken" in heard:
        return f"{heard['broken']}; {RESUME}"
    number, code = next(iter((killed or own or codes).items()))
    how = describe_exit(code, f"process {number + 1} of {processes}")
    return f"{how}; that ended the training: {RESUME}"


@contextmanager
def _environment(job: Job) -> Iterator[None]:
    """This process's environment as the others are to have it; as before afterwards."""
    before = dict(os.environ)
    os.environ["CUDA_VISIBLE_DEVICES"] = job.devices or ",".join([NO_GPU] * job.processes)
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # it would listen on all interfaces
    threads = max(1, count_cores() // job.processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _listen(report: Report, heard: Message) -> Iterator[None]:
    """Hear what processes say that are started in the block; keep the first word of each kind.

    They get this process's input and output, which lead to it during the block.
    """
    life, ours = os.pipe()
    wire, theirs = os.pipe()
    reader = threading.Thread(target=_read, args=(wire, report, heard), daemon=True)
    reader.start()
    sys.stdout.flush()
    before = os.dup(0), os.dup(1)
    for source, target in ((life, 0), (theirs, 1)):
        os.dup2(source, target)
        os.close(source)
    try:
        yield
    finally:
        for target, source in enumerate(before):
            os.dup2(source, target)
            os.close(source)
        os.close(ours)
        reader.join(SECONDS_TO_READ)


def _read(wire: int, report: Report, heard: Message) -> None:
    with os.fdopen(wire, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            said = _parse(line)
            if said is None:  # a library printed it
                sys.stderr.write(line)
            elif "report" in said:
                report(said["report"])
            else:
                for kind, value in said.items():
                    heard.setdefault(kind, value)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        said = json.loads(line)
    except json.JSONDecodeError:
        return None
    return said if isinstance(said, dict) else None
