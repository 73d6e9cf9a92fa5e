"""Exported adapters have PEFT's logits within 1e-3 (-s prints how near); others are refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from random_llama import LISTS, edited, value_of
from safetensors.torch import load_file, save_file

from selfreward_lite.models.gguf_export import adapter_to_gguf, base_to_gguf
from selfreward_lite.models.parity import check_parity, parity
from selfreward_lite.models.random_models import write_adapter
from selfreward_lite.system.errors import ExportError

pytestmark = pytest.mark.usefixtures("one_thread")


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
def test_adapter_has_the_logits_of_peft(
    kind: str, settings: Any, weights: str, folders: Any, bases: Any, tmp_path: Path
) -> None:
    adapter_dir = write_adapter(folders[kind], tmp_path / "a", **settings)
    out = adapter_to_gguf(adapter_dir, folders[kind], tmp_path / "a.gguf")
    measured = parity(folders[kind], adapter_dir, bases[kind, weights], out, LISTS, weights=weights)
    print(
        f"\n{kind} {weights} {settings}: {measured.max_abs_diff:.2e}, "
        f"adapter moves {measured.adapter_change:.2f}"
    )
    check_parity(measured, share_error=1e-3)
    assert measured.adapter_change > 0.05
    assert measured.adapter_share == pytest.approx(1.0, abs=1e-3)


def test_rslora_without_its_scale_would_fail(folders: Any, bases: Any, tmp_path: Path) -> None:
    adapter_dir = write_adapter(
        folders["gqa"], tmp_path / "a", r=16, lora_alpha=16, use_rslora=True
    )
    right = adapter_to_gguf(adapter_dir, folders["gqa"], tmp_path / "right.gguf")
    assert value_of(GGUFReader(right), "adapter.lora.alpha") == 16 * 4
    plain = edited(
        adapter_dir, tmp_path / "b", "adapter_config.json", lambda c: c.update(use_rslora=False)
    )
    wrong = adapter_to_gguf(plain, folders["gqa"], tmp_path / "wrong.gguf")
    with pytest.raises(ExportError, match="differs from transformers"):
        check_parity(
            parity(
                folders["gqa"],
                adapter_dir,
                bases["gqa", "original"],
                wrong,
                LISTS,
                weights="original",
            )
        )


def test_adapter_share_shows_through_the_rounding_of_the_base(
    folders: Any, bases: Any, tmp_path: Path
) -> None:
    """A scaled, incomplete or empty adapter has another share, on a quantized base too."""
    adapter_dir = write_adapter(folders["gqa"], tmp_path / "a", r=16, lora_alpha=16)
    rounded = base_to_gguf(folders["gqa"], tmp_path / "q8.gguf", weights="original", dtype="q8_0")

    def share(name: str, change: Callable[[str, Any], Any], base: Path) -> float:
        folder = tmp_path / name
        if not folder.exists():
            shutil.copytree(adapter_dir, folder)
            tensors = load_file(folder / "adapter_model.safetensors")
            save_file(
                {key: change(key, value) for key, value in tensors.items()},
                folder / "adapter_model.safetensors",
            )
        out = adapter_to_gguf(folder, folders["gqa"], tmp_path / f"{name}.gguf")
        found = parity(
            folders["gqa"], adapter_dir, base, out, LISTS, weights="original"
        ).adapter_share
        assert found is not None
        print(f"\n{name} on {base.name}: {found:.3f}")
        return found

    for base in (bases["gqa", "original"], rounded):
        assert share("whole", lambda key, value: value, base) == pytest.approx(1.0, abs=0.03)
        assert (
            share("twice", lambda key, value: value * 2 if "lora_B" in key else value, base) > 1.3
        )
        assert share(
            "nothing", lambda key, value: value * 0 if "lora_B" in key else value, base
        ) == pytest.approx(0.0, abs=0.03)
        assert (
            share(
                "lacking",
                lambda key, value: value * 0 if "layers.0." in key and "lora_B" in key else value,
                base,
            )
            < 0.75
        )


def test_what_rounding_hides_is_not_judged(folders: Any, bases: Any, tmp_path: Path) -> None:
    adapter_dir = write_adapter(folders["gqa"], tmp_path / "a", r=16, lora_alpha=16)
    tensors = load_file(adapter_dir / "adapter_model.safetensors")
    faint = {key: value * 1e-4 if "lora_B" in key else value for key, value in tensors.items()}
    save_file(faint, adapter_dir / "adapter_model.safetensors")
    out = adapter_to_gguf(adapter_dir, folders["gqa"], tmp_path / "a.gguf")
    rounded = base_to_gguf(folders["gqa"], tmp_path / "q8.gguf", weights="original", dtype="q8_0")
    assert (
        parity(folders["gqa"], adapter_dir, rounded, out, LISTS, weights="original").adapter_share
        is None
    )
    assert parity(
        folders["gqa"], adapter_dir, bases["gqa", "original"], out, LISTS, weights="original"
    ).adapter_share


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
    folder = edited(
        adapter, tmp_path / "a", "adapter_config.json", lambda c: c.update(ADAPTER_REFUSALS[words])
    )
    with pytest.raises(ExportError, match=words) as caught:
        adapter_to_gguf(folder, folders["gqa"], tmp_path / "out.gguf")
    assert "\n" not in str(caught.value)


Q0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
TENSOR_REFUSALS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "NaN": lambda t: t[Q0].view(-1)[5:6].fill_(float("nan")),
    "infinity": lambda t: t[Q0].view(-1)[5:6].fill_(float("inf")),
    "lora_A.weight is missing": lambda t: t.pop(Q0),
    "lm_head.lora_A.weight has no place": lambda t: t.update(
        {"base_model.model.lm_head.lora_A.weight": t[Q0].clone()}
    ),
    "embed_tokens.lora_embedding_A has no place": lambda t: t.update(
        {"base_model.model.model.embed_tokens.lora_embedding_A": t[Q0].clone()}
    ),
    "magnitude_vector has no place": lambda t: t.update(
        {Q0.replace("lora_A.weight", "lora_magnitude_vector"): t[Q0].clone()}
    ),
    "layers.7": lambda t: t.update({Q0.replace("layers.0", "layers.7"): t[Q0].clone()}),
    "another base": lambda t: t.update({Q0: t[Q0][:, :32].contiguous()}),
    "no LoRA tensors": lambda t: t.clear(),
}


@pytest.mark.parametrize("words", TENSOR_REFUSALS)
def test_adapter_tensors_refused_by_name(
    words: str, adapter: Path, folders: Any, tmp_path: Path
) -> None:
    shutil.copytree(adapter, tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    TENSOR_REFUSALS[words](tensors)
    save_file(tensors, tmp_path / "a" / "adapter_model.safetensors")
    with pytest.raises(ExportError, match=words):
        adapter_to_gguf(tmp_path / "a", folders["gqa"], tmp_path / "out.gguf")
