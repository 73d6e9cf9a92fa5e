"""Random folders in NF4 load like downloaded ones, and are no larger than necessary."""

from dataclasses import replace

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit

from selfreward_lite.models import nf4
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.models.chat_template import user
from selfreward_lite.models.checks import check_folder
from selfreward_lite.models.hf_folder import SHAPES, read_config
from selfreward_lite.models.memory import count_linear_weights
from selfreward_lite.models.random_models import write_folder
from selfreward_lite.system.errors import ConfigError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("packed") / "10m", "10m")


def test_it_is_a_llama_in_nf4_of_its_shape(folder):
    found = read_config(folder)
    assert found.packed
    assert (found.hidden, found.layers, found.vocab) == (
        SHAPES["10m"].hidden,
        SHAPES["10m"].layers,
        SHAPES["10m"].vocab,
    )
    check_folder(folder)
    assert ChatFormat.load(folder).prompt_ids(user("Sort the letters c a b."))


def test_activations_stay_near_one_and_so_do_logits(folder):
    model = nf4.load_model(folder, "nf4", torch.float32, on_gpu=False)
    with torch.no_grad():
        found = model(torch.randint(0, 500, (2, 64)), output_hidden_states=True)
    assert torch.isfinite(found.logits).all()
    assert 0.3 < found.logits.std() < 3
    assert all(0.1 < state.float().std() < 10 for state in found.hidden_states)
    weight = model.model.layers[1].mlp.down_proj.weight
    spread = (
        dequantize_4bit(weight.data, weight.quant_state).float().std() * SHAPES["10m"].ffn ** 0.5
    )
    assert spread == pytest.approx(1.0, abs=0.02)


def test_no_matrix_of_the_blocks_lies_there_in_16_bits(folder):
    shape = SHAPES["10m"]
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert size < 0.6 * count_linear_weights(shape) + 2 * 2 * shape.vocab * shape.hidden + 100_000
    assert not list(folder.parent.glob("*.part"))


def test_a_folder_is_of_the_family_of_its_shape(tmp_path, monkeypatch):
    small = {"hidden": 256, "layers": 2, "ffn": 512, "heads": 4, "kv_heads": 2, "head_dim": 64}
    shape = replace(SHAPES["qwen3-8b"], vocab=4096, **small)
    monkeypatch.setitem(SHAPES, "small", shape)
    found = read_config(write_folder(tmp_path / "m", "small"))
    assert found == replace(shape, packed=True)
    check_folder(tmp_path / "m")


def test_an_unknown_shape_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no shape 7b; choose one of"):
        write_folder(tmp_path / "x", "7b")
