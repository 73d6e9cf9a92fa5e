"""A base as a folder of plain weights: those that 4-bit training computes with, to the bit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from random_llama import LISTS, make_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from selfreward_lite.models import hf_export, hf_folder, nf4
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.models.checks import check_folder
from selfreward_lite.models.hf_export import write_folder
from selfreward_lite.models.hf_folder import list_tensors, read_config
from selfreward_lite.system.errors import ExportError
from selfreward_lite.system.files import find_manifest_faults, read_manifest_fact

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "plain"
    return make_model(folder, num_key_value_heads=2, tie_word_embeddings=False)


def logits(model) -> list[torch.Tensor]:
    with torch.no_grad():
        return [model(torch.tensor([ids])).logits for ids in LISTS]


def load(folder: Path):
    """What a server loads: the weights as they are, in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_it_computes_what_training_in_4_bits_computes(plain, tmp_path):
    count = write_folder(plain, tmp_path / "out", "nf4", "float32")
    shape = read_config(tmp_path / "out")
    assert count == len(list_tensors(shape))
    assert not shape.packed
    trained = logits(nf4.load_model(plain, "nf4", torch.float32, on_gpu=False))
    served = logits(load(tmp_path / "out"))
    original = logits(load(plain))
    for ours, theirs, before in zip(trained, served, original, strict=True):
        assert (ours - theirs).abs().max() < 1e-5
        assert (ours - before).abs().max() > 1e-2


def test_a_folder_is_whole_and_lists_its_files(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(hf_folder, "SHARD", 100_000)
    write_folder(plain, tmp_path / "out", "nf4", "bfloat16")
    out = tmp_path / "out"
    check_folder(out)
    assert len(list(out.glob("*.safetensors"))) > 1
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert find_manifest_faults(out) == []
    assert read_manifest_fact(out, "weights") == "nf4"
    size = sum(
        value.nbytes for file in out.glob("*.safetensors") for value in load_file(file).values()
    )
    assert size == hf_export.count_bytes(read_config(out), "bfloat16")
    assert ChatFormat.load(out).stop == ChatFormat.load(plain).stop
    (out / "tokenizer.json").write_text("{}")
    assert find_manifest_faults(out)


def test_16_bits_are_the_rounded_weights_and_original_ones_stay(plain, tmp_path):
    write_folder(plain, tmp_path / "wide", "nf4", "float32")
    write_folder(plain, tmp_path / "short", "nf4", "bfloat16")
    write_folder(plain, tmp_path / "original", "original", "float32")
    wide, short, kept = (
        load_file(tmp_path / name / "model-00001.safetensors")
        for name in ("wide", "short", "original")
    )
    before = load_file(plain / "model.safetensors")
    for name, value in wide.items():
        assert torch.equal(short[name], value.bfloat16()), name
        assert torch.equal(kept[name], before[name].float()), name
    key = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(wide[key], before[key].float())


def test_what_does_not_fit_leaves_no_folder(plain, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(plain, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float() * 0 + 70_000
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match=r"model\.norm\.weight in float16 holds NaN or infinity"):
        write_folder(broken, tmp_path / "out", "nf4", "float16")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]
