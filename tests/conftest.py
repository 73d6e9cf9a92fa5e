"""Shared fixtures: chat format and settings of the tiny model, a role, a run, random Llamas."""

import os

# On two busy cores, a small model is slower with two threads than with one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# As in a user's shell: when set, it hid that a reason was not the last line of a log.
os.environ.pop("PYTHONUNBUFFERED", None)

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from method_records import RUN

from selfreward_lite import config
from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.engine.api import Sampling
from selfreward_lite.method.roles import Role
from selfreward_lite.models.chat_format import ChatFormat

collect_ignore = ["helpers/browser.py", "helpers/screenshots.py"]  # they need playwright

# The duration of an example depends on the machine, so it has no deadline.
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are not in a test's name: packed ones hold the time, and differ between workers."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def chat() -> ChatFormat:
    return ChatFormat.load(TINY_MODEL)


@pytest.fixture(scope="session")
def tiny() -> config.Settings:
    return config.load("tiny")


@pytest.fixture
def role(chat: ChatFormat) -> Role:
    """M0 in a role, in iteration 1 of a run with seed 7."""
    return Role(
        "M0", None, chat, Sampling(temperature=1.0, top_p=1.0, max_tokens=32), "compact", RUN, 7, 1
    )


@pytest.fixture(scope="session")
def scripted_runs(tmp_path_factory) -> Path:
    """A folder with a finished scripted run, `mine`. Do not change it."""
    import scripted_run

    folder = tmp_path_factory.mktemp("runs")
    scripted_run.copy(folder / "mine", **{"prompts.count": "30"})
    return folder


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """A random Llama and a LoRA on it, as folders and as GGUF files in f32. Do not change them."""
    from random_llama import make_model  # loads torch, which most tests do not need

    from selfreward_lite.models.gguf_export import adapter_to_gguf, base_to_gguf
    from selfreward_lite.models.random_models import write_adapter

    folder = tmp_path_factory.mktemp("made")
    make_model(folder / "model", max_position_embeddings=1024)
    write_adapter(folder / "model", folder / "adapter")
    base_to_gguf(folder / "model", folder / "base.gguf", weights="original", dtype="f32")
    adapter_to_gguf(folder / "adapter", folder / "model", folder / "adapter.gguf")
    return folder


@pytest.fixture(scope="session")
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from random_llama import KINDS, make_model

    root = tmp_path_factory.mktemp("models")
    return {kind: make_model(root / kind, **settings) for kind, settings in KINDS.items()}


@pytest.fixture(scope="session")
def bases(folders: dict[str, Path]) -> dict[tuple[str, str], Path]:
    from selfreward_lite.models.gguf_export import base_to_gguf

    return {
        (kind, weights): base_to_gguf(
            folder, folder / f"{weights}.gguf", weights=weights, dtype="f32"
        )
        for kind, folder in folders.items()
        for weights in ("original", "nf4")
    }


@pytest.fixture(scope="session")
def adapter(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from selfreward_lite.models.random_models import write_adapter

    return write_adapter(folders["gqa"], tmp_path_factory.mktemp("adapter"))
