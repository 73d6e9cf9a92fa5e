"""A run that is written, for tests of odd machines."""

import pytest

from selfreward_lite import config
from selfreward_lite.data.store import Store


@pytest.fixture
def store(tmp_path):
    """The records of a run that has just begun; its folder is `mine`."""
    with Store.write(tmp_path / "mine") as store:
        store.state("settings", config.load("tiny").model_dump(mode="json"))
        store.begin_stage(0, "ranked", 1)
        yield store
