"""Exported bases have transformers' logits within 1e-3 (-s prints how near); others are refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from random_llama import KINDS, LISTS, TEMPLATE, edited, make_model, value_of
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.models import gguf_export
from selfreward_lite.models.gguf_export import base_to_gguf
from selfreward_lite.models.parity import check_parity, parity
from selfreward_lite.system.errors import ExportError
from selfreward_lite.system.files import hash_file
from selfreward_lite.training.tiny_base.tokenizer import BOS, EOT, PAD, SPECIAL_TOKENS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("weights", ["original", "nf4"])
@pytest.mark.parametrize("kind", KINDS)
def test_base_has_the_logits_of_transformers(
    kind: str, weights: str, folders: Any, bases: Any
) -> None:
    measured = parity(folders[kind], None, bases[kind, weights], None, LISTS, weights=weights)
    print(f"\n{kind} {weights}: {measured.max_abs_diff:.2e}")
    check_parity(measured)
    assert measured.tokens == sum(map(len, LISTS))
    assert measured.adapter_change is None


@pytest.mark.parametrize("kind", ["gqa", "mha"])
def test_without_the_permutation_parity_fails(
    kind: str, folders: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(gguf_export, "_permute", lambda weight, heads: weight)
    wrong = base_to_gguf(folders[kind], tmp_path / "wrong.gguf", weights="original", dtype="f32")
    with pytest.raises(ExportError, match="differs from transformers"):
        check_parity(parity(folders[kind], None, wrong, None, LISTS, weights="original"))


def test_without_rope_factors_parity_fails(folders: Any, tmp_path: Path) -> None:
    plain = edited(
        folders["llama3"],
        tmp_path / "plain",
        "config.json",
        lambda c: c["rope_parameters"].update(rope_type="default"),
    )
    wrong = base_to_gguf(plain, tmp_path / "wrong.gguf", weights="original", dtype="f32")
    measured = parity(folders["llama3"], None, wrong, None, LISTS, weights="original")
    assert measured.max_abs_diff > 0.05


def test_transformers_4_writes_the_same_rope_elsewhere(
    folders: Any, bases: Any, tmp_path: Path
) -> None:
    def as_in_4(config: dict[str, Any]) -> None:
        rope = config.pop("rope_parameters")
        config.update(rope_theta=rope.pop("rope_theta"), rope_scaling=rope)

    old = edited(folders["llama3"], tmp_path / "old", "config.json", as_in_4)
    again = base_to_gguf(old, tmp_path / "b.gguf", weights="original", dtype="f32")
    assert hash_file(again) == hash_file(bases["llama3", "original"])


def test_nf4_base_of_the_original_is_another_model(folders: Any, bases: Any) -> None:
    measured = parity(folders["gqa"], None, bases["gqa", "nf4"], None, LISTS, weights="original")
    assert measured.max_abs_diff > 0.05


def test_nf4_weights_equal_the_loaded_model_bit_for_bit(folders: Any, tmp_path: Path) -> None:
    from bitsandbytes.functional import dequantize_4bit
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    out = base_to_gguf(folders["gqa"], tmp_path / "b.gguf", weights="nf4", dtype="f32")
    stored = {
        tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in GGUFReader(out).tensors
    }
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    model = AutoModelForCausalLM.from_pretrained(
        folders["gqa"],
        quantization_config=config,
        device_map={"": "cpu"},
        dtype=torch.float32,
    )
    quantized = 0
    for tensor in gguf_export.list_tensors(gguf_export.read_config(folders["gqa"])):
        held = model.get_parameter(tensor.source)
        if hasattr(held, "quant_state"):
            quantized += 1
            held = dequantize_4bit(held.data, held.quant_state)
        held = held.detach().float()
        held = gguf_export._permute(held, tensor.heads) if tensor.heads else held
        assert torch.equal(stored[tensor.name], held), tensor.source
    assert quantized == 14


def test_smaller_dtypes_stay_close(folders: Any, tmp_path: Path) -> None:
    outs = [
        base_to_gguf(folders["gqa"], tmp_path / kind, weights="nf4", dtype=kind)
        for kind in ("f32", "f16", "q8_0")
    ]
    distances = [
        parity(folders["gqa"], None, out, None, LISTS, weights="nf4").max_abs_diff for out in outs
    ]
    print("\nnf4 as f32, f16, q8_0:", distances)
    assert distances[0] < 1e-3 and distances[1] < 0.1 and distances[2] < 1.0
    assert outs[0].stat().st_size > outs[1].stat().st_size > outs[2].stat().st_size


def test_tied_embeddings_are_written_once(bases: Any) -> None:
    names = {
        kind: {tensor.name for tensor in GGUFReader(bases[kind, "original"]).tensors}
        for kind in KINDS
    }
    assert "output.weight" not in names["mha"]
    assert "output.weight" in names["gqa"]
    assert "rope_freqs.weight" in names["llama3"] and "rope_freqs.weight" not in names["gqa"]


def test_settings_and_vocabulary_are_those_of_the_folder(folders: Any, bases: Any) -> None:
    reader = GGUFReader(bases["gqa", "nf4"])
    tokenizer = Tokenizer.from_file(str(folders["gqa"] / "tokenizer.json"))
    tokens, kinds = (
        value_of(reader, "tokenizer.ggml.tokens"),
        value_of(reader, "tokenizer.ggml.token_type"),
    )
    for role, token in (("bos", BOS), ("eos", EOT), ("eot", EOT), ("padding", PAD)):
        assert value_of(reader, f"tokenizer.ggml.{role}_token_id") == tokenizer.token_to_id(token)
    assert tokens[:-5] == [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
    assert [tokens[i] for i, kind in enumerate(kinds) if kind == 3] == list(SPECIAL_TOKENS)
    assert kinds[-5:] == [5] * 5
    assert value_of(reader, "tokenizer.chat_template") == TEMPLATE
    assert value_of(reader, "tokenizer.ggml.add_bos_token") is False
    assert value_of(reader, "llama.attention.head_count_kv") == 2
    assert value_of(reader, "llama.context_length") == 256
    assert value_of(reader, "selfreward.weights") == "nf4"


def test_shards_give_the_same_file(folders: Any, bases: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    shards = tmp_path / "gqa"
    shutil.copytree(
        folders["gqa"], shards, ignore=shutil.ignore_patterns("*.safetensors", "*.gguf")
    )
    AutoModelForCausalLM.from_pretrained(folders["gqa"]).save_pretrained(
        shards, max_shard_size="100KB"
    )
    assert len(list(shards.glob("*.safetensors"))) > 1
    again = base_to_gguf(shards, tmp_path / "s.gguf", weights="original", dtype="f32")
    assert hash_file(again) == hash_file(bases["gqa", "original"])
    next(shards.glob("*.safetensors")).unlink()
    with pytest.raises(ExportError, match="cannot be read"):
        base_to_gguf(shards, tmp_path / "t.gguf", weights="original", dtype="f32")


BASE_REFUSALS = {
    "GPT2LMHeadModel is no family": {"architectures": ["GPT2LMHeadModel"]},
    "attention_bias": {"attention_bias": True},
    "mlp_bias": {"mlp_bias": True},
    "sliding_window": {"sliding_window": 128},
    "hidden_act": {"hidden_act": "gelu"},
    "quantization_config": {"quantization_config": {"quant_method": "bitsandbytes"}},
    "rope scaling 'yarn'": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
    "rope scaling 'linear'": {
        "rope_parameters": None,
        "rope_scaling": {"type": "linear", "factor": 2.0},
    },
    "partial_rotary_factor": {
        "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}
    },
    "config.json says": {"intermediate_size": 256},
    "not part of such a model": {"num_hidden_layers": 1},
    "are missing": {"num_hidden_layers": 3},
    "do not fit vocab_size": {"vocab_size": 100},
}


@pytest.mark.parametrize("words", BASE_REFUSALS)
def test_base_refuses_by_name(words: str, folders: Any, tmp_path: Path) -> None:
    folder = edited(
        folders["gqa"], tmp_path / "m", "config.json", lambda c: c.update(BASE_REFUSALS[words])
    )
    with pytest.raises(ExportError, match=words) as caught:
        base_to_gguf(folder, tmp_path / "out.gguf", weights="original", dtype="f32")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.glob("*gguf*")) == []


TOKENIZER_REFUSALS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "not BPE": lambda t: t["model"].update(type="Unigram"),
    "normalizes": lambda t: t.update(normalizer={"type": "NFC"}),
    "ignore_merges": lambda t: t["model"].update(ignore_merges=False),
    "byte_fallback": lambda t: t["model"].update(byte_fallback=True),
    "pre-tokenizer": lambda t: t["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(
        Regex=r"\p{N}| ?\p{L}+"
    ),
    "swallows spaces": lambda t: t["added_tokens"][0].update(lstrip=True),
}


@pytest.mark.parametrize("words", TOKENIZER_REFUSALS)
def test_tokenizer_refuses_by_name(words: str, folders: Any, tmp_path: Path) -> None:
    folder = edited(folders["gqa"], tmp_path / "m", "tokenizer.json", TOKENIZER_REFUSALS[words])
    with pytest.raises(ExportError, match=words):
        base_to_gguf(folder, tmp_path / "out.gguf", weights="original", dtype="f32")


def test_special_tokens_must_exist(folders: Any, tmp_path: Path) -> None:
    folder = edited(
        folders["gqa"], tmp_path / "m", "tokenizer_config.json", lambda c: c.pop("eos_token")
    )
    with pytest.raises(ExportError, match="eos_token None is no token"):
        base_to_gguf(folder, tmp_path / "out.gguf", weights="original", dtype="f32")


def test_rows_that_do_not_fit_q8_0_are_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", hidden_size=48, num_key_value_heads=2)
    with pytest.raises(ExportError, match="rows of 48 do not fit q8_0"):
        base_to_gguf(folder, tmp_path / "out.gguf", weights="original", dtype="q8_0")


@pytest.mark.parametrize(
    ("value", "words"), [(float("nan"), "NaN or infinity"), (1e5, "above 65504")]
)
def test_base_numbers_that_do_not_fit_are_refused(
    value: float, words: str, folders: Any, tmp_path: Path
) -> None:
    shutil.copytree(folders["gqa"], tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = value
    save_file(tensors, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match=words):
        base_to_gguf(tmp_path / "m", tmp_path / "out.gguf", weights="original", dtype="f16")


@pytest.mark.parametrize("wrong", [{"weights": "nfx"}, {"dtype": "q4_k_m"}])
def test_unknown_weights_or_type_are_refused(tmp_path, wrong):
    out = tmp_path / "base.gguf"
    with pytest.raises(ExportError, match="choose one of"):
        base_to_gguf(TINY_MODEL, out, **{"weights": "original", "dtype": "f32", **wrong})
    assert not out.exists()
