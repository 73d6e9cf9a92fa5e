"""Exported GGUF files against transformers, PEFT and tokenizers, on random Llamas of a few thousand numbers.

Logits are compared at every position with the limit of the product (1e-3); the measured distances are printed (-s).
A proof that cannot fail proves nothing: leaving out the row permutation or rsLoRA's √r must break parity.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from random_llama import CORPUS, KINDS, TEMPLATE, make_adapter, make_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from selfreward_lite import export
from selfreward_lite.errors import ExportError
from selfreward_lite.export import adapter_to_gguf, base_to_gguf
from selfreward_lite.manifest import sha256_of
from selfreward_lite.parity import Parity, check_parity, parity, token_parity
from selfreward_lite.tiny.tokenizer import BOS, EOT, PAD, SPECIAL_TOKENS

LISTS = [[0, 7, 42, 99, 180, 255, 31, 8, 4], list(range(20, 84)), [5]]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: make_model(root / kind, **settings) for kind, settings in KINDS.items()}


@pytest.fixture(scope="session")
def bases(folders: dict[str, Path]) -> dict[tuple[str, str], Path]:
    return {
        (kind, weights): base_to_gguf(folder, folder / f"{weights}.gguf", weights=weights, dtype="f32")
        for kind, folder in folders.items()
        for weights in ("original", "nf4")
    }


@pytest.fixture(scope="session")
def adapter(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(folders["gqa"], tmp_path_factory.mktemp("adapter"))


def edited(folder: Path, target: Path, name: str, edit: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of a folder with one JSON file changed."""
    shutil.copytree(folder, target)
    data = json.loads((target / name).read_text())
    edit(data)
    (target / name).write_text(json.dumps(data))
    return target


def value_of(reader: GGUFReader, key: str) -> Any:
    return reader.fields[key].contents()


@pytest.mark.parametrize("weights", ["original", "nf4"])
@pytest.mark.parametrize("kind", KINDS)
def test_base_has_the_logits_of_transformers(kind: str, weights: str, folders: Any, bases: Any) -> None:
    measured = parity(folders[kind], None, bases[kind, weights], None, LISTS, weights=weights)
    print(f"\n{kind} {weights}: {measured.max_abs_diff:.2e}")
    check_parity(measured)
    assert measured.tokens == sum(map(len, LISTS))
    assert measured.adapter_change is None


@pytest.mark.parametrize("kind", ["gqa", "mha"])
def test_without_the_permutation_parity_fails(kind: str, folders: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(export, "_permute", lambda weight, heads: weight)
    wrong = base_to_gguf(folders[kind], tmp_path / "wrong.gguf", weights="original", dtype="f32")
    with pytest.raises(ExportError, match="differs from transformers"):
        check_parity(parity(folders[kind], None, wrong, None, LISTS, weights="original"))


def test_without_rope_factors_parity_fails(folders: Any, tmp_path: Path) -> None:
    plain = edited(
        folders["llama3"], tmp_path / "plain", "config.json", lambda c: c["rope_parameters"].update(rope_type="default")
    )
    wrong = base_to_gguf(plain, tmp_path / "wrong.gguf", weights="original", dtype="f32")
    measured = parity(folders["llama3"], None, wrong, None, LISTS, weights="original")
    assert measured.max_abs_diff > 0.05


def test_transformers_4_writes_the_same_rope_elsewhere(folders: Any, bases: Any, tmp_path: Path) -> None:
    def as_in_4(config: dict[str, Any]) -> None:
        rope = config.pop("rope_parameters")
        config.update(rope_theta=rope.pop("rope_theta"), rope_scaling=rope)

    old = edited(folders["llama3"], tmp_path / "old", "config.json", as_in_4)
    again = base_to_gguf(old, tmp_path / "b.gguf", weights="original", dtype="f32")
    assert sha256_of(again) == sha256_of(bases["llama3", "original"])


def test_nf4_base_of_the_original_is_another_model(folders: Any, bases: Any) -> None:
    measured = parity(folders["gqa"], None, bases["gqa", "nf4"], None, LISTS, weights="original")
    assert measured.max_abs_diff > 0.05


@pytest.mark.parametrize("load_dtype", ["float32", "float16", "bfloat16"])
def test_nf4_weights_equal_the_loaded_model_bit_for_bit(load_dtype: str, folders: Any, tmp_path: Path) -> None:
    from bitsandbytes.functional import dequantize_4bit
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    out = base_to_gguf(folders["gqa"], tmp_path / "b.gguf", weights="nf4", dtype="f32", load_dtype=load_dtype)
    stored = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in GGUFReader(out).tensors}
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    model = AutoModelForCausalLM.from_pretrained(
        folders["gqa"], quantization_config=config, device_map={"": "cpu"}, dtype=getattr(torch, load_dtype)
    )
    quantised = 0
    for tensor in export.layout(export.read_config(folders["gqa"])):
        held = model.get_parameter(tensor.source)
        if hasattr(held, "quant_state"):
            quantised += 1
            held = dequantize_4bit(held.data, held.quant_state)
        held = held.detach().float()
        held = export._permute(held, tensor.heads) if tensor.heads else held
        assert torch.equal(stored[tensor.name], held), tensor.source
    assert quantised == 14


def test_smaller_dtypes_stay_close(folders: Any, tmp_path: Path) -> None:
    outs = [base_to_gguf(folders["gqa"], tmp_path / kind, weights="nf4", dtype=kind) for kind in ("f32", "f16", "q8_0")]
    distances = [parity(folders["gqa"], None, out, None, LISTS, weights="nf4").max_abs_diff for out in outs]
    print("\nnf4 as f32, f16, q8_0:", distances)
    assert distances[0] < 1e-3 and distances[1] < 0.1 and distances[2] < 1.0
    assert outs[0].stat().st_size > outs[1].stat().st_size > outs[2].stat().st_size


def test_tied_embeddings_are_written_once(bases: Any) -> None:
    names = {kind: {tensor.name for tensor in GGUFReader(bases[kind, "original"]).tensors} for kind in KINDS}
    assert "output.weight" not in names["mha"]
    assert "output.weight" in names["gqa"]
    assert "rope_freqs.weight" in names["llama3"] and "rope_freqs.weight" not in names["gqa"]


def test_settings_and_vocabulary_are_those_of_the_folder(folders: Any, bases: Any) -> None:
    reader = GGUFReader(bases["gqa", "nf4"])
    tokenizer = Tokenizer.from_file(str(folders["gqa"] / "tokenizer.json"))
    tokens, kinds = value_of(reader, "tokenizer.ggml.tokens"), value_of(reader, "tokenizer.ggml.token_type")
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
    shutil.copytree(folders["gqa"], shards, ignore=shutil.ignore_patterns("*.safetensors", "*.gguf"))
    AutoModelForCausalLM.from_pretrained(folders["gqa"]).save_pretrained(shards, max_shard_size="100KB")
    assert len(list(shards.glob("*.safetensors"))) > 1
    again = base_to_gguf(shards, tmp_path / "s.gguf", weights="original", dtype="f32")
    assert sha256_of(again) == sha256_of(bases["gqa", "original"])
    next(shards.glob("*.safetensors")).unlink()
    with pytest.raises(ExportError, match="cannot be read"):
        base_to_gguf(shards, tmp_path / "t.gguf", weights="original", dtype="f32")


BASE_REFUSALS = {
    "architecture": {"architectures": ["MistralForCausalLM"]},
    "attention_bias": {"attention_bias": True},
    "mlp_bias": {"mlp_bias": True},
    "sliding_window": {"sliding_window": 128},
    "hidden_act": {"hidden_act": "gelu"},
    "quantization_config": {"quantization_config": {"quant_method": "bitsandbytes"}},
    "rope scaling 'yarn'": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
    "rope scaling 'linear'": {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "partial_rotary_factor": {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
    "config.json says": {"intermediate_size": 256},
    "not part of a Llama": {"num_hidden_layers": 1},
    "are missing": {"num_hidden_layers": 3},
    "do not fit vocab_size": {"vocab_size": 100},
}


@pytest.mark.parametrize("words", BASE_REFUSALS)
def test_base_refuses_by_name(words: str, folders: Any, tmp_path: Path) -> None:
    folder = edited(folders["gqa"], tmp_path / "m", "config.json", lambda c: c.update(BASE_REFUSALS[words]))
    with pytest.raises(ExportError, match=words) as caught:
        base_to_gguf(folder, tmp_path / "out.gguf", weights="original", dtype="f32")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.glob("*gguf*")) == []


TOKENIZER_REFUSALS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "not BPE": lambda t: t["model"].update(type="Unigram"),
    "normalises": lambda t: t.update(normalizer={"type": "NFC"}),
    "ignore_merges": lambda t: t["model"].update(ignore_merges=False),
    "byte_fallback": lambda t: t["model"].update(byte_fallback=True),
    "pre-tokenizer": lambda t: t["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\p{N}| ?\p{L}+"),
    "swallows spaces": lambda t: t["added_tokens"][0].update(lstrip=True),
}


@pytest.mark.parametrize("words", TOKENIZER_REFUSALS)
def test_tokenizer_refuses_by_name(words: str, folders: Any, tmp_path: Path) -> None:
    folder = edited(folders["gqa"], tmp_path / "m", "tokenizer.json", TOKENIZER_REFUSALS[words])
    with pytest.raises(ExportError, match=words):
        base_to_gguf(folder, tmp_path / "out.gguf", weights="original", dtype="f32")


def test_special_tokens_must_exist(folders: Any, tmp_path: Path) -> None:
    folder = edited(folders["gqa"], tmp_path / "m", "tokenizer_config.json", lambda c: c.pop("eos_token"))
    with pytest.raises(ExportError, match="eos_token None is no token"):
        base_to_gguf(folder, tmp_path / "out.gguf", weights="original", dtype="f32")


def test_rows_that_do_not_fit_q8_0_are_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", hidden_size=48, num_key_value_heads=2)
    with pytest.raises(ExportError, match="rows of 48 do not fit q8_0"):
        base_to_gguf(folder, tmp_path / "out.gguf", weights="original", dtype="q8_0")


@pytest.mark.parametrize(("value", "words"), [(float("nan"), "NaN or infinity"), (1e5, "above 65504")])
def test_base_numbers_that_do_not_fit_are_refused(value: float, words: str, folders: Any, tmp_path: Path) -> None:
    shutil.copytree(folders["gqa"], tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = value
    save_file(tensors, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match=words):
        base_to_gguf(tmp_path / "m", tmp_path / "out.gguf", weights="original", dtype="f16")


@pytest.mark.parametrize("weights", ["original", "nf4"])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("gqa", {"r": 4, "lora_alpha": 8}),
        ("gqa", {"r": 16, "lora_alpha": 16}),
        ("llama3", {"r": 16, "lora_alpha": 5}),
        ("gqa", {"r": 16, "lora_alpha": 16, "use_rslora": True}),
        ("mha", {"r": 16, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj"]}),
    ],
)
def test_adapter_has_the_logits_of_peft(kind: str, settings: Any, weights: str, folders: Any, bases: Any, tmp_path: Path) -> None:
    adapter_dir = make_adapter(folders[kind], tmp_path / "a", **settings)
    out = adapter_to_gguf(adapter_dir, folders[kind], tmp_path / "a.gguf")
    measured = parity(folders[kind], adapter_dir, bases[kind, weights], out, LISTS, weights=weights)
    print(f"\n{kind} {weights} {settings}: {measured.max_abs_diff:.2e}, adapter moves {measured.adapter_change:.2f}")
    check_parity(measured)
    assert measured.adapter_change > 0.05


def test_rslora_without_its_scale_would_fail(folders: Any, bases: Any, tmp_path: Path) -> None:
    adapter_dir = make_adapter(folders["gqa"], tmp_path / "a", r=16, lora_alpha=16, use_rslora=True)
    right = adapter_to_gguf(adapter_dir, folders["gqa"], tmp_path / "right.gguf")
    assert value_of(GGUFReader(right), "adapter.lora.alpha") == 16 * 4
    plain = edited(adapter_dir, tmp_path / "b", "adapter_config.json", lambda c: c.update(use_rslora=False))
    wrong = adapter_to_gguf(plain, folders["gqa"], tmp_path / "wrong.gguf")
    with pytest.raises(ExportError, match="differs from transformers"):
        check_parity(parity(folders["gqa"], adapter_dir, bases["gqa", "original"], wrong, LISTS, weights="original"))


ADAPTER_REFUSALS: dict[str, dict[str, Any]] = {
    "use_dora": {"use_dora": True},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "lora_bias": {"lora_bias": True},
    "bias='all'": {"bias": "all"},
    "alpha_pattern": {"alpha_pattern": {"q_proj": 3}},
    "rank_pattern": {"rank_pattern": {"q_proj": 3}},
    "layers_to_transform": {"layers_to_transform": [0]},
    "layers_pattern": {"layers_pattern": "layers"},
    "layer_replication": {"layer_replication": [[0, 2]]},
    "fan_in_fan_out": {"fan_in_fan_out": True},
    "peft_type LOHA": {"peft_type": "LOHA"},
    "init_lora_weights='pissa'": {"init_lora_weights": "pissa"},
    "trainable_token_indices": {"trainable_token_indices": [1]},
    "some_new_method": {"some_new_method": 1},
    "lora_alpha=0": {"lora_alpha": 0},
}


@pytest.mark.parametrize("words", ADAPTER_REFUSALS)
def test_adapter_refuses_by_name(words: str, adapter: Path, folders: Any, tmp_path: Path) -> None:
    folder = edited(adapter, tmp_path / "a", "adapter_config.json", lambda c: c.update(ADAPTER_REFUSALS[words]))
    with pytest.raises(ExportError, match=words) as caught:
        adapter_to_gguf(folder, folders["gqa"], tmp_path / "out.gguf")
    assert "\n" not in str(caught.value)


Q0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
TENSOR_REFUSALS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "NaN": lambda t: t[Q0].view(-1)[5:6].fill_(float("nan")),
    "infinity": lambda t: t[Q0].view(-1)[5:6].fill_(float("inf")),
    "lora_A.weight is missing": lambda t: t.pop(Q0),
    "lm_head.lora_A.weight has no place": lambda t: t.update({"base_model.model.lm_head.lora_A.weight": t[Q0].clone()}),
    "embed_tokens.lora_embedding_A has no place": lambda t: t.update(
        {"base_model.model.model.embed_tokens.lora_embedding_A": t[Q0].clone()}
    ),
    "magnitude_vector has no place": lambda t: t.update({Q0.replace("lora_A.weight", "lora_magnitude_vector"): t[Q0].clone()}),
    "layers.7": lambda t: t.update({Q0.replace("layers.0", "layers.7"): t[Q0].clone()}),
    "another base": lambda t: t.update({Q0: t[Q0][:, :32].contiguous()}),
    "no LoRA tensors": lambda t: t.clear(),
}


@pytest.mark.parametrize("words", TENSOR_REFUSALS)
def test_adapter_tensors_refused_by_name(words: str, adapter: Path, folders: Any, tmp_path: Path) -> None:
    shutil.copytree(adapter, tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    TENSOR_REFUSALS[words](tensors)
    save_file(tensors, tmp_path / "a" / "adapter_model.safetensors")
    with pytest.raises(ExportError, match=words):
        adapter_to_gguf(tmp_path / "a", folders["gqa"], tmp_path / "out.gguf")


@pytest.mark.parametrize("keep", [0, 5, 300, -100])
def test_truncated_safetensors_are_one_line(keep: int, adapter: Path, folders: Any, tmp_path: Path) -> None:
    for source, file in ((adapter, "adapter_model.safetensors"), (folders["gqa"], "model.safetensors")):
        shutil.copytree(source, tmp_path / file)
        broken = tmp_path / file / file
        broken.write_bytes(broken.read_bytes()[:keep])
    for run in (
        lambda: adapter_to_gguf(tmp_path / "adapter_model.safetensors", folders["gqa"], tmp_path / "o"),
        lambda: base_to_gguf(tmp_path / "model.safetensors", tmp_path / "o", weights="nf4", dtype="f32"),
    ):
        with pytest.raises(ExportError, match="cannot be read") as caught:
            run()
        assert "\n" not in str(caught.value)


def test_missing_files_are_one_line(folders: Any, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="adapter_config.json cannot be read"):
        adapter_to_gguf(tmp_path, folders["gqa"], tmp_path / "o")


def test_an_interrupted_export_leaves_the_old_file(folders: Any, tmp_path: Path, monkeypatch: Any) -> None:
    out = tmp_path / "base.gguf"
    out.write_bytes(b"old")
    encode, seen = export._encode, []

    def interrupted(*args: Any) -> np.ndarray:
        seen.append(1)
        if len(seen) > 3:
            raise KeyboardInterrupt
        return encode(*args)

    monkeypatch.setattr(export, "_encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        base_to_gguf(folders["gqa"], out, weights="original", dtype="f32")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("base.gguf", b"old")]


def test_a_killed_export_leaves_no_target(adapter: Path, folders: Any, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from selfreward_lite import export\n"
        "export.os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)\n"
        "export.adapter_to_gguf(*map(Path, sys.argv[1:]))"
    )
    out = tmp_path / "a.gguf"
    result = subprocess.run(
        [sys.executable, "-c", code, adapter, folders["gqa"], out], check=False, cwd=Path(export.__file__).parents[1]
    )
    assert result.returncode == -9
    assert not out.exists()


def test_a_broken_gguf_is_an_error_not_a_crash(folders: Any, bases: Any, adapter: Path, tmp_path: Path) -> None:
    good = adapter_to_gguf(adapter, folders["gqa"], tmp_path / "good.gguf")
    bad = tmp_path / "bad.gguf"
    for keep in (-100, 200):
        bad.write_bytes(good.read_bytes()[:keep])
        with pytest.raises(ExportError, match="cannot load .*bad.gguf"):
            parity(folders["gqa"], adapter, bases["gqa", "original"], bad, LISTS[:1], weights="original")
    with pytest.raises(ExportError, match="cannot load .*bad.gguf"):
        token_parity(folders["gqa"], bad, ["a"])


def test_token_ids_are_those_of_tokenizer_json(folders: Any, bases: Any) -> None:
    texts = [
        "",
        " ",
        "Score: 4",
        "<|eot_id|>",
        "x<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\ny",
        "I'LL don't WE'VE 12345678",
        "  two  spaces \n\n\t tabs\r\n",
        "naïve café — “quotes”",
        "مرحبا بالعالم ١٢٣",
        "日本語のテキスト",
        "👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301",
        "\u200b\ufeff\u00a0\u2028",
        "\x00\x01\x7f",
        "a" * 500,
        "नमस्ते १२३",
        *CORPUS[:5],
    ]
    assert token_parity(folders["gqa"], bases["gqa", "original"], texts) > 500


def test_another_tokenizer_is_named(folders: Any, bases: Any, tmp_path: Path) -> None:
    other = edited(folders["gqa"], tmp_path / "m", "tokenizer.json", lambda t: t["model"].update(merges=[], ignore_merges=False))
    with pytest.raises(ExportError, match="llama.cpp reads 'Score: 4' as"):
        token_parity(other, bases["gqa", "original"], ["q", "Score: 4", "the answer"])


@pytest.mark.parametrize("distance", [0.002, float("nan"), float("inf")])
def test_check_parity_refuses(distance: float) -> None:
    check_parity(Parity(0.0009, None, 3, 1.0, 0.0))
    with pytest.raises(ExportError, match="over 3 tokens"):
        check_parity(Parity(distance, None, 3, 1.0, 0.0))


def test_another_vocabulary_is_named(bases: Any, tmp_path: Path) -> None:
    wider = make_model(tmp_path / "m", vocab_size=400)
    with pytest.raises(ExportError, match="has 341 tokens, .* 400"):
        parity(wider, None, bases["gqa", "original"], None, LISTS, weights="original")


def test_parity_refuses_half_a_question(folders: Any, bases: Any) -> None:
    base = bases["gqa", "nf4"]
    for lists, gguf_adapter in (([], None), ([[]], None), (LISTS, base)):
        with pytest.raises(ExportError, match="parity needs"):
            parity(folders["gqa"], None, base, gguf_adapter, lists, weights="nf4")


def test_divergence_by_hand() -> None:
    """p = (3/4, 1/4), q = (1/2, 1/2): KL = 3/4·ln(3/2) + 1/4·ln(1/2) = 0.130812 nats; none between equals."""
    import numpy as np

    from selfreward_lite.parity import _divergence

    p, q = np.log([[0.75, 0.25], [0.5, 0.5]]), np.log([[0.5, 0.5], [0.5, 0.5]])
    assert _divergence(p + 7.0, q) == pytest.approx([0.130812, 0.0], abs=1e-6)


def test_importing_is_cheap() -> None:
    code = (
        "import sys, selfreward_lite.parity\n"
        "assert not {'torch', 'gguf', 'numpy', 'llama_cpp', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(export.__file__).parents[1])
