"""Before an adapter is exported it must be the one that was trained."""

import shutil

import pytest
from error_text import one_line
from scripted_world import run_world

from selfreward_lite.system.errors import ExportError, UserError


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_an_adapter_that_is_not_the_trained_one_is_refused(tmp_path, chat, damage):
    """One that is torn or filled with zeros may load, and would be exported as it is."""

    def fail(*_):
        raise ExportError("the exporter died")

    with pytest.raises(ExportError):
        run_world(tmp_path / "run", chat, export_adapter=fail)
    adapter = tmp_path / "run" / "M0" / "adapter"
    if damage == "missing":
        shutil.rmtree(adapter)
    else:
        path = adapter / "adapter_model.safetensors"
        path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(UserError, match="missing, or differs from what was trained") as error:
        run_world(tmp_path / "run", chat)
    one_line(error)
