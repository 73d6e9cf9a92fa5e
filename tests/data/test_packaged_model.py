"""SmolLM2 in a Python package: found without an import, never downloaded."""

import importlib
import importlib.util
import re
import sys
from pathlib import Path

import pytest

from selfreward_lite.data import hub
from selfreward_lite.system.errors import UserError


def test_a_packaged_model_is_found_without_importing_its_package(tmp_path, monkeypatch):
    package, file = hub.PACKAGE
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("raise ImportError('it needs other packages')")
    (tmp_path / package / file).write_bytes(b"GGUF")
    importlib.invalidate_caches()
    assert hub.find_local("smollm2", "model") == tmp_path / package / file
    assert hub.find_local("./smollm2", "model") == Path("smollm2")
    assert package not in sys.modules


@pytest.mark.parametrize("found", [None, importlib.util.find_spec("json")], ids=["none", "no file"])
def test_a_missing_package_is_one_line_with_the_command(monkeypatch, found):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    with pytest.raises(UserError, match=re.escape(hub.INSTALL_PACKAGE)) as error:
        hub.find_local("smollm2", "model")
    assert "\n" not in str(error.value)
