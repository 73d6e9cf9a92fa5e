"""What many tests share: the tiny model's chat format and settings."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # on two busy cores, two threads a small model are slower than one
os.environ.setdefault("HF_HUB_OFFLINE", "1")

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
