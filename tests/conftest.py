"""What many tests share: the tiny model's chat format and settings."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # on two busy cores, two threads a small model are slower than one
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from selfreward_lite import config
from selfreward_lite.chat import ChatFormat
from selfreward_lite.config import TINY_MODEL

# How long an example takes is the machine's affair, not the test's.
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


@pytest.fixture(scope="session")
def chat() -> ChatFormat:
    return ChatFormat.load(TINY_MODEL)


@pytest.fixture(scope="session")
def tiny() -> config.Settings:
    return config.load("tiny")


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """A random Llama and a LoRA on it, as folders and as GGUF files in f32. Not to be changed."""
    from random_llama import make_adapter, make_model  # loads torch, which most tests do without

    from selfreward_lite.export import adapter_to_gguf, base_to_gguf

    folder = tmp_path_factory.mktemp("made")
    make_model(folder / "model", max_position_embeddings=1024)
    make_adapter(folder / "model", folder / "adapter")
    base_to_gguf(folder / "model", folder / "base.gguf", weights="original", dtype="f32")
    adapter_to_gguf(folder / "adapter", folder / "model", folder / "adapter.gguf")
    return folder
