"""What a run gives its trainer where several processes train."""

from dataclasses import replace

import pytest
from machines import RTX
from scripted_run import SMALL
from scripted_runtime import scripted_runtime

from selfreward_lite.data.store import Store
from selfreward_lite.run import loop
from selfreward_lite.run.prepare import load_or_create_settings
from selfreward_lite.run.steps import training


@pytest.mark.parametrize(("gpus", "devices"), [([], None), ([RTX, RTX, RTX], "2,0")])
def test_a_trainer_knows_its_processes_and_their_gpus(tmp_path, chat, monkeypatch, gpus, devices):
    monkeypatch.setattr(training, "list_gpus", lambda: gpus)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 0,1")
    runtime, jobs = scripted_runtime(chat), []

    def train(job, folder, report):
        jobs.append(job)
        return runtime.train(job, folder, report)

    wanted = {**SMALL, "iterations": "0", "training.processes": "2"}
    with Store.write(tmp_path / "run") as store:
        settings = load_or_create_settings(store, wanted, "tiny")
        loop.run(store, settings, replace(runtime, train=train), lambda at: None)
    (job,) = jobs
    assert (job.processes, job.devices) == (2, devices)
