"""Which library trains: chosen by what is installed, described, and never too late."""

import sys
from types import ModuleType

import pytest

from selfreward_lite.system.errors import TrainingError
from selfreward_lite.system.gpu import Gpu
from selfreward_lite.training import backends

CARD = Gpu("NVIDIA GeForce RTX 4090", "580.1", (8, 9), 23 * 2**30, 24 * 2**30)


@pytest.fixture
def place(monkeypatch, tmp_path):
    """`choose_backend` in a process with or without a GPU, unsloth, an early transformers."""

    def made(
        wanted: str, *, card: bool = True, installed: bool = True, early: bool = True, imports=None
    ):
        monkeypatch.setattr(backends, "list_gpus", lambda: [CARD] if card else [])
        monkeypatch.setattr(backends, "find_spec", lambda name: name if installed else None)
        monkeypatch.setattr(backends, "version", lambda name: f"1.0 of {name}")
        for name in ("transformers", "trl", "peft"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        if not early:
            monkeypatch.setitem(sys.modules, "transformers", ModuleType("transformers"))
        monkeypatch.setitem(sys.modules, "unsloth", imports)
        monkeypatch.setenv("UNSLOTH_COMPILE_LOCATION", "")
        monkeypatch.setenv("UNSLOTH_DISABLE_STATISTICS", "")
        return backends.choose_backend(wanted, tmp_path)

    return made


def test_unsloth_trains_where_there_is_a_card_and_it_imports(place):
    chosen = place("auto", imports=ModuleType("unsloth"))
    assert (chosen.name, chosen.description) == ("unsloth", "unsloth 1.0 of unsloth")


def test_without_a_card_transformers_train(place):
    assert place("auto", card=False).name == "transformers"
    assert "bitsandbytes 1.0" in place("auto", card=False).description


def test_without_unsloth_transformers_train_with_the_reason(place):
    chosen = place("auto", installed=False)
    assert chosen.name == "transformers"
    assert "unsloth is not installed (pip install -r requirements-gpu.txt)" in chosen.description


def test_broken_unsloth_is_reported_and_not_used(place):
    chosen = place("auto", imports=None)  # None in sys.modules: import raises
    assert chosen.name == "transformers"
    assert "unsloth cannot be imported (ModuleNotFoundError" in chosen.description
    with pytest.raises(TrainingError, match="unsloth cannot be imported.*set backend=transformers"):
        place("unsloth", imports=None)


def test_unsloth_after_transformers_is_refused(place):
    for wanted in ("auto", "unsloth"):
        with pytest.raises(TrainingError, match="unsloth must be imported before transformers"):
            place(wanted, early=False, imports=ModuleType("unsloth"))


def test_transformers_can_be_asked_for(place):
    assert place("transformers", early=False, imports=ModuleType("unsloth")).name == "transformers"
