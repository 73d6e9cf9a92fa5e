"""Processes that train: what they can divide, and what an old run's settings mean."""

import pytest

from selfreward_lite import config
from selfreward_lite.system.errors import ConfigError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"training.processes": "3"},
            "training.processes=3 do not divide sft.batch 32 into micro-batches of 8: set "
            "training.processes to 1, 2 or 4",
        ),
        (
            {"training.processes": "8"},
            "set training.processes to 1, 2 or 4, or sft.micro_batch to 1, 2 or 4",
        ),
        (  # found without counting to a billion
            {"training.processes": "3", "sft.batch": "4000000000"},
            "62500000, 100000000, 125000000, 250000000 or 500000000",
        ),
        (
            {"training.processes": "2", "dpo.micro_batch": "32"},
            "dpo.batch 32 into micro-batches of 32: set training.processes to 1, or "
            "dpo.micro_batch to 1, 2, 4, 8 or 16",
        ),
        (
            {"training.processes": "2", "backend": "unsloth"},
            "set backend=transformers, or training.processes=1",
        ),
        ({"training.processes": "0"}, "training.processes=0: give a number of at least 1"),
    ],
)
def test_what_processes_cannot_do_is_refused_with_what_works(changes, message):
    with pytest.raises(ConfigError) as raised:
        config.load("tiny", changes)
    assert message in str(raised.value)


def test_several_processes_divide_every_preset():
    for preset in config.presets():
        assert config.load(preset, {"training.processes": "2"}).training.processes == 2


def test_a_run_that_knows_of_no_processes_had_one():
    stored = config.load("tiny").model_dump(mode="json")
    del stored["training"]
    assert config.parse(config.complete(stored)).training.processes == 1
