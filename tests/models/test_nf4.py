"""A base with packed weights, as unsloth/llama-3-8b-Instruct-bnb-4bit: used as it is."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from random_llama import make_model
from safetensors.torch import load_file, save_file

from selfreward_lite.models import nf4
from selfreward_lite.models.checks import check_folder
from selfreward_lite.models.gguf_export import adapter_to_gguf, base_to_gguf
from selfreward_lite.models.hf_folder import STATE, read_config
from selfreward_lite.models.parity import check_parity, parity
from selfreward_lite.models.random_models import write_adapter
from selfreward_lite.system.errors import ExportError

torch.set_num_threads(1)
TOKENS = [list(range(5, 45)), list(range(200, 260))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: Any) -> Path:
    """`plain`, a random Llama in bfloat16; `packed`, the same saved in 4 bits by bitsandbytes."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    folder = tmp_path_factory.mktemp("packed")
    plain = make_model(
        folder / "plain",
        num_key_value_heads=2,
        tie_word_embeddings=False,
        max_position_embeddings=512,
    )
    nf4_config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=nf4_config, dtype=torch.bfloat16, device_map={"": "cpu"}
    )
    model.save_pretrained(folder / "packed")
    AutoTokenizer.from_pretrained(plain).save_pretrained(folder / "packed")
    return folder


def damaged(folders: Path, tmp_path: Path, change: Any) -> Path:
    """A copy of the packed folder whose tensors `change` has changed."""
    copy = tmp_path / "damaged"
    shutil.copytree(folders / "packed", copy)
    tensors = load_file(copy / "model.safetensors")
    change(tensors)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def test_a_packed_folder_is_known_and_passes_its_check(folders: Path) -> None:
    assert read_config(folders / "packed").packed
    assert not read_config(folders / "plain").packed
    check_folder(folders / "packed")


def test_unpacked_weights_are_those_that_training_computes_with(folders: Path) -> None:
    model = nf4.load_model(folders / "packed", "nf4", torch.float32, on_gpu=False)
    tensors = load_file(folders / "packed" / "model.safetensors")
    for name in ("self_attn.k_proj", "mlp.down_proj"):
        key = f"model.layers.1.{name}.weight"
        parts = {
            part.removeprefix(f"{key}."): value
            for part, value in tensors.items()
            if part.startswith(f"{key}.")
        }
        layer = model.get_submodule(f"model.layers.1.{name}")
        # An identity matrix goes in, the weight comes out: what the layer really multiplies with.
        assert torch.equal(
            layer(torch.eye(layer.in_features)).T, nf4.unpack_nf4(tensors[key], parts, key).float()
        )


@pytest.mark.parametrize("weights", ["nf4", "original"])
def test_packed_base_and_adapter_equal_llama_cpp(
    folders: Path, tmp_path: Path, weights: Any
) -> None:
    # Either word means the packed weights: there is no other original in the folder.
    packed = folders / "packed"
    adapter = write_adapter(packed, tmp_path / "adapter")
    base = base_to_gguf(packed, tmp_path / "base.gguf", weights=weights, dtype="f32")
    lora = adapter_to_gguf(adapter, packed, tmp_path / "adapter.gguf")
    found = parity(packed, adapter, base, lora, TOKENS, weights=weights)
    check_parity(found)
    assert found.adapter_change is not None
    assert found.adapter_change > 0.1


def test_merge_into_a_packed_base_does_not_round_again(folders: Path, tmp_path: Path) -> None:
    packed = folders / "packed"
    adapter = write_adapter(packed, tmp_path / "adapter")
    merged = base_to_gguf(
        packed, tmp_path / "merged.gguf", weights="original", dtype="f32", adapter_dir=adapter
    )
    check_parity(parity(packed, adapter, merged, None, TOKENS, weights="original"))


def test_packed_weights_are_not_the_plain_ones(folders: Path, tmp_path: Path) -> None:
    base = base_to_gguf(folders / "packed", tmp_path / "base.gguf", weights="nf4", dtype="f32")
    assert (
        parity(folders / "plain", None, base, None, TOKENS, weights="original").max_abs_diff > 0.1
    )


def test_layers_that_the_packer_skipped_stay_as_they_are(folders: Path, tmp_path: Path) -> None:
    # Some folders keep a few layers in 16 bits; training computes with those as they are, so they
    # must not be packed here.
    key = "model.layers.0.mlp.up_proj.weight"
    plain = load_file(folders / "plain" / "model.safetensors")[key].bfloat16()

    def unpack_one(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(f"{key}.")]:
            del tensors[name]
        tensors[key] = plain

    mixed = damaged(folders, tmp_path, unpack_one)
    config = json.loads((mixed / "config.json").read_text())
    config["quantization_config"]["llm_int8_skip_modules"] = [
        "model.layers.0.mlp.up_proj",
        "lm_head",
    ]
    (mixed / "config.json").write_text(json.dumps(config))
    base = base_to_gguf(mixed, tmp_path / "base.gguf", weights="nf4", dtype="f32")
    check_parity(parity(mixed, None, base, None, TOKENS, weights="nf4"))


def test_another_quantisation_is_refused_by_name(folders: Path, tmp_path: Path) -> None:
    for change, word in (
        ({"quant_method": "gptq"}, "gptq"),
        ({"bnb_4bit_quant_type": "fp4"}, "NF4"),
        ({"load_in_4bit": False}, "NF4"),
    ):
        copy = tmp_path / word
        shutil.copytree(folders / "packed", copy, dirs_exist_ok=True)
        config = json.loads((folders / "packed" / "config.json").read_text())
        config["quantization_config"] |= change
        (copy / "config.json").write_text(json.dumps(config))
        with pytest.raises(ExportError, match=word):
            check_folder(copy)


def test_broken_packing_is_one_line(folders: Path, tmp_path: Path) -> None:
    key = "model.layers.0.self_attn.q_proj.weight"

    def cut(tensors: dict[str, torch.Tensor]) -> None:
        tensors[key] = tensors[key][:-4]

    with pytest.raises(ExportError, match="q_proj.weight has shape"):
        check_folder(damaged(folders, tmp_path, cut))

    def forget(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[f"{key}.absmax"]

    shutil.rmtree(tmp_path / "damaged")
    with pytest.raises(ExportError, match="cannot be unpacked"):
        base_to_gguf(
            damaged(folders, tmp_path, forget), tmp_path / "base.gguf", weights="nf4", dtype="f32"
        )

    def forget_how(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[f"{key}.{STATE}"]

    shutil.rmtree(tmp_path / "damaged")
    with pytest.raises(ExportError, match="q_proj.weight has shape"):
        check_folder(damaged(folders, tmp_path, forget_how))
