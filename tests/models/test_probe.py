"""The probes in real children: on the CPU they do their work, and say what is missing."""

from importlib.util import find_spec

import pytest

from selfreward_lite.models import probe
from selfreward_lite.system import probes
from selfreward_lite.system.gpu import list_gpus

HAS_GPU = bool(list_gpus())


def test_llama_cpp_decodes_a_prompt_on_the_cpu():
    found = probes.ask("llama", "0")
    assert found["error"] is None
    assert (found["offloaded"], found["difference"]) == (None, None)


@pytest.mark.slow
def test_four_bit_weights_multiply_on_the_cpu():
    found = probes.ask("four_bit", "0")
    assert found.get("error") is None
    assert 0.08 < found["packing"] < 0.11, "NF4 of normal weights"
    assert found["product"] < 1e-5
    assert found["gradient"] < 1e-5
    assert found["adapter"] is None


@pytest.mark.slow
def test_peft_refuses_the_torchao_that_hosted_notebooks_bring(tmp_path, monkeypatch):
    """Colab has 0.10.0, and PEFT raises for it, with every training."""
    (tmp_path / "torchao-0.10.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: torchao\nVersion: 0.10.0\n"
    (tmp_path / "torchao-0.10.0.dist-info" / "METADATA").write_text(metadata)
    (tmp_path / "torchao").mkdir()
    (tmp_path / "torchao" / "__init__.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = probes.ask("four_bit", "0")
    assert found["adapter"].startswith("ImportError: Found an incompatible version of torchao")
    assert found["product"] < 1e-5


@pytest.mark.slow
def test_torch_is_asked_for_a_sum():
    found = probes.ask("torch")
    assert found["fault"] is None
    assert bool(found["cards"]) == HAS_GPU


@pytest.mark.parametrize("kind", ["triton", "unsloth"])
def test_a_library_that_is_not_there_is_an_answer(kind):
    if find_spec(kind) is not None:
        pytest.skip(f"{kind} is installed")
    assert probes.ask(kind) == {"error": f"ModuleNotFoundError: No module named '{kind}'"}


@pytest.mark.skipif(not HAS_GPU, reason="no GPU")
@pytest.mark.parametrize("arguments", [("triton",), ("four_bit", "1"), ("llama", "-1")])
def test_every_probe_does_its_work_on_the_gpu(arguments):
    assert probes.ask(*arguments).get("error") is None


def test_an_error_is_its_first_line_and_the_original_one():
    text = (
        "\n SETUP ERROR: Missing dependency: libx.so \n\nTo fix this\nOriginal error: libx.so: no\n"
    )
    found = probe.describe(RuntimeError(text))
    assert (
        found
        == "RuntimeError: SETUP ERROR: Missing dependency: libx.so Original error: libx.so: no"
    )
    assert probe.describe(AssertionError()) == "AssertionError: "
    assert len(probe.describe(ValueError("x" * 999))) == probe.LINE
