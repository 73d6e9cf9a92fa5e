"""What many tests share: the tiny model's chat format and settings."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # on two busy cores, two threads a small model are slower than one
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

from selfreward_lite import config
from selfreward_lite.chat import ChatFormat
from selfreward_lite.config import TINY_MODEL


@pytest.fixture(scope="session")
def chat() -> ChatFormat:
    return ChatFormat.load(TINY_MODEL)


@pytest.fixture(scope="session")
def tiny() -> config.Settings:
    return config.load("tiny")
