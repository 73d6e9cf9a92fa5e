"""Several processes that train together: rows dealt, faults of one, and who is ended by whom."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_jobs import BY_TRANSFORMERS, make_job

from selfreward_lite.system.errors import TrainingError
from selfreward_lite.training import backends, launch, trainer
from selfreward_lite.training.job import Job, TrainingResult
from selfreward_lite.training.rows import deal_rows
from selfreward_lite.training.token_trainers import Countdown

HELPERS = Path(__file__).parents[1] / "helpers"
ANSWER = {"steps": 3, "rows": 24, "moved_share": 1.0, "first_margin": 0.0}
WAIT = ["wait"]
Play = Callable[..., list[Any]]


@pytest.fixture
def job(tmp_path, tiny, chat) -> Job:
    made = make_job(tmp_path, tiny, chat, "sft", micro_batch=4)
    return made.model_copy(update={"processes": 2})


@pytest.fixture
def play(monkeypatch, job) -> Iterator[Play]:
    """Start two played processes; returns what was reported."""
    monkeypatch.setattr(launch, "MODULE", "played_rank")
    monkeypatch.setenv("PYTHONPATH", str(HELPERS))
    before = signal.getsignal(signal.SIGTERM)

    def start(*steps: list[Any], devices: str | None = None) -> list[Any]:
        monkeypatch.setenv("PLAY", json.dumps(steps))
        said: list[Any] = []
        one = job.model_copy(update={"devices": devices})
        assert launch.train_together(one, 2, said.append) == TrainingResult(**ANSWER)
        return said

    yield start
    signal.signal(signal.SIGTERM, before)


@given(
    count=st.integers(1, 70),
    parts=st.integers(1, 3),
    micro_batch=st.integers(1, 4),
    processes=st.integers(1, 4),
)
def test_every_step_is_dealt_as_one_process_would_do_it(count, parts, micro_batch, processes):
    batch = parts * micro_batch * processes
    order = [{"prompt_ids": [number], "completion_ids": [0]} for number in range(count)]
    dealt = [deal_rows(order, batch, micro_batch, one, processes) for one in range(processes)]
    micro = [
        [rows[at : at + micro_batch] for at in range(0, len(rows), micro_batch)]
        for rows in (one.rows for one in dealt)
    ]
    assert len({len(one) for one in micro}) == 1, "all compute as often, else they wait for ever"
    for step in range(-(-count // batch)):
        seen = [
            row["prompt_ids"][0]
            for process, one in zip(micro, dealt, strict=True)
            for place, part in enumerate(process[: one.counted])
            if place // parts == step
            for row in part
        ]
        assert sorted(seen) == list(range(count))[step * batch : (step + 1) * batch]
    assert all(len(one) - each.counted <= 1 for one, each in zip(micro, dealt, strict=True))


def test_one_process_has_all_rows_in_their_order():
    order = [{"prompt_ids": [number], "completion_ids": [0]} for number in range(19)]
    dealt = deal_rows(order, 8, 4, 0, 1)
    assert dealt.rows == order
    assert dealt.counted == 2 + 2 + 1


def test_a_row_in_the_place_of_a_micro_batch_does_not_count():
    countdown = Countdown()
    countdown.left = 3
    assert countdown.begin_step([{}, {}]) == [{}, {}]
    assert [countdown.pass_one(), countdown.pass_one()] == [True, True]
    assert countdown.begin_step([{}, {}]) == [{}]
    assert [countdown.pass_one(), countdown.pass_one()] == [True, False]


def test_unsloth_is_refused_and_auto_is_transformers(tmp_path):
    with pytest.raises(TrainingError, match=r"one process; set backend=transformers, or"):
        backends.choose_backend("unsloth", tmp_path, 2)
    chosen = backends.choose_backend("auto", tmp_path, 2)
    assert chosen.name == "transformers"
    assert chosen.description.endswith("in 2 processes")


def test_a_batch_that_cannot_be_divided_is_refused(job):
    undivided = job.model_copy(update={"processes": 3})
    with pytest.raises(TrainingError, match=r"set training\.processes to 1 or 2"):
        trainer.train(undivided, lambda said: None, BY_TRANSFORMERS)


@pytest.mark.slow
def test_the_first_process_reports_and_each_has_a_gpu_of_its_own(play, capfd):
    shown = ["show", ["CUDA_VISIBLE_DEVICES", "WORLD_SIZE"]]
    begun = dict(os.environ)
    streams = [os.fstat(stream).st_ino for stream in (0, 1)]
    said = play(
        [
            ["print", "a banner"],
            shown,
            ["say", {"report": {"step": 1}}],
            ["say", {"answer": ANSWER}],
        ],
        [["print", "[1, 2]"]],
        devices="3,5",
    )
    first = {"CUDA_VISIBLE_DEVICES": "3", "WORLD_SIZE": "2", "micro_batch": "2"}
    assert said == [first, {"step": 1}]
    assert "a banner" in capfd.readouterr().err, "what a library prints is in the log"
    assert {**os.environ, "PLAY": ""} == {**begun, "PLAY": ""}
    assert [os.fstat(stream).st_ino for stream in (0, 1)] == streams
    (second,) = play([["say", {"answer": ANSWER}]], [shown], devices="3,5")
    assert second["CUDA_VISIBLE_DEVICES"] == "5"
    (on_cpu,) = play([["say", {"answer": ANSWER}]], [shown])
    assert on_cpu["CUDA_VISIBLE_DEVICES"] == "-1", "without a GPU, none is looked for"


@pytest.mark.slow
def test_a_process_short_of_memory_ends_all_as_one_would(play):
    with pytest.raises(torch.OutOfMemoryError):
        play([WAIT], [["say", {"short": True}], ["exit", 1]])


LOST = ["say", {"broken": "RuntimeError: Connection closed by peer"}]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            ([WAIT], [["say", {"failed": "the loss is not a number"}], ["exit", 1]]),
            "^the loss is not a number$",
        ),
        (
            ([["say", {"failed": "the first reason"}], WAIT], [["exit", 1]]),
            "^the first reason$",
        ),
        (
            ([WAIT], [["die", 9]]),
            "process 2 of 2 was ended by SIGKILL, which is how a system short of memory.*same comm",
        ),
        (
            ([LOST, ["exit", 1]], [["die", 11]]),
            "process 2 of 2 was ended by SIGSEGV; that ended the training: give the same command",
        ),
        (([["say", {"broken": "KeyError: 'x'"}], ["exit", 1]], [WAIT]), "KeyError: 'x'; give the"),
        (([WAIT], [["exit", 7]]), "process 2 of 2 ended with exit code 7"),
        (([], []), "2 processes ended without an answer"),
    ],
)
@pytest.mark.slow
def test_one_clear_line_says_which_fault_ended_all(play, steps, message):
    with pytest.raises(TrainingError, match=message):
        play(*steps)


@pytest.mark.slow
def test_a_process_is_tried_with_fewer_rows_as_one_would_be(job, monkeypatch):
    tried = []

    def short(one, size, report):
        tried.append(size)
        if size > 1:
            raise torch.OutOfMemoryError("out of memory in one of the processes")
        return TrainingResult(**ANSWER, micro_batch=size)

    monkeypatch.setattr(launch, "train_together", short)
    said: list[Any] = []
    result = trainer.train(job, said.append, BY_TRANSFORMERS)
    assert tried == [4, 2, 1]
    assert result.micro_batch == 1
    assert said[0] == {"message": "no memory for 4 of the longest rows at once"}


def test_an_older_torch_trains_in_one_process(job, monkeypatch):
    """A hosted notebook may have torch 2.9, whose launcher does not know what is needed here."""

    @dataclass
    class OldConfig:
        min_nodes: int
        max_nodes: int
        nproc_per_node: int

    monkeypatch.setattr(launch, "LaunchConfig", OldConfig)
    with pytest.raises(TrainingError, match=r"torch 2\.10.*this is .*training\.processes=1"):
        launch.train_together(job, 2, lambda said: None)


def test_nobody_is_left_when_the_launcher_is_gone(play, tmp_path):
    notes = [tmp_path / "first", tmp_path / "second"]
    launcher = os.fork()
    if launcher == 0:
        os.setsid()
        play(*([["note", str(note)], WAIT] for note in notes))
        os._exit(0)
    deadline = time.monotonic() + 120
    while not all(note.exists() and note.read_text() for note in notes):
        assert time.monotonic() < deadline, "they were never seen"
        time.sleep(0.05)
    os.kill(launcher, signal.SIGKILL)
    os.waitpid(launcher, 0)
    while any(map(is_alive, [int(note.read_text()) for note in notes])):
        assert time.monotonic() < deadline, "they outlive the launcher"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
