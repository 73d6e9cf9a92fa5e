"""A large model is not trained on the CPU of a machine whose GPU torch does not see."""

import json

import pytest
import torch
from machines import OLD_DRIVER
from training_jobs import BY_TRANSFORMERS, make_job

from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.models.hf_folder import SHAPES, build_config
from selfreward_lite.system.errors import TrainingError
from selfreward_lite.training import trainer


@pytest.fixture(autouse=True)
def blind(monkeypatch):
    """A torch that sees no GPU beside a GPU that the driver knows."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(trainer, "list_gpus", lambda: [OLD_DRIVER])


@pytest.fixture
def large(tmp_path, tiny, chat):
    """A job for a model of Llama-3-8B's shape, of which only config.json is there."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(build_config(SHAPES["llama-3-8b"])))
    return make_job(tmp_path, tiny, chat, "sft", model=folder)


def test_a_large_model_is_refused_before_it_is_loaded(large):
    with pytest.raises(TrainingError) as refused:
        trainer.train(large, lambda said: pytest.fail("a report"), BY_TRANSFORMERS)
    text = str(refused.value)
    assert "does not see NVIDIA GeForce RTX 3090 (driver 570.133.20); 8.0 billion weights" in text
    assert "`python -m selfreward_lite doctor` says how to fix it" in text


def test_a_small_model_may_train_on_the_cpu(large):
    trainer._refuse_slow_cpu(TINY_MODEL)


def test_a_large_one_may_where_no_gpu_is_known_or_torch_sees_it(large, monkeypatch):
    with monkeypatch.context() as there:
        there.setattr(torch.cuda, "is_available", lambda: True)
        trainer._refuse_slow_cpu(large.model_dir)
    monkeypatch.setattr(trainer, "list_gpus", list)
    monkeypatch.setattr(trainer, "explain_missing_gpu", lambda: None)
    trainer._refuse_slow_cpu(large.model_dir)
    monkeypatch.setattr(trainer, "explain_missing_gpu", lambda: "nvidia-smi fails: no answer")
    with pytest.raises(TrainingError, match="nvidia-smi fails: no answer; 8.0 billion weights"):
        trainer._refuse_slow_cpu(large.model_dir)
