"""What is said before the first step of a training, which is silent while kernels are compiled."""

import pytest
import torch
from training_jobs import BY_TRANSFORMERS, make_job

from selfreward_lite.training import backends, trainer

torch.set_num_threads(1)


def test_minutes_of_compiling_are_announced_before_the_first_step(
    tmp_path, tiny, chat, monkeypatch
):
    """With unsloth on a GPU the first step is silent for minutes; nothing else compiles."""
    job = make_job(tmp_path, tiny, chat, "sft", epochs=1)
    quiet: list[dict] = []
    trainer.train(job, quiet.append, BY_TRANSFORMERS)
    assert trainer.COMPILES not in [one.get("message") for one in quiet]
    monkeypatch.setattr(trainer, "_compiles", lambda backend: True)
    said: list[dict] = []
    trainer.train(job, said.append, BY_TRANSFORMERS)
    assert [one.get("message", "a step") for one in said][1:3] == [trainer.COMPILES, "a step"]


@pytest.mark.parametrize(
    ("library", "gpu", "compiles"),
    [("unsloth", True, True), ("unsloth", False, False), ("transformers", True, False)],
)
def test_unsloth_alone_compiles_and_on_a_gpu_alone(library, gpu, compiles, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert trainer._compiles(backends.Backend(library, library)) == compiles
