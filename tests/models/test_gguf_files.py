"""Broken files and killed exports leave one line and no half file; what parity refuses."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_llama import CORPUS, LISTS, edited, make_model

from selfreward_lite.models import gguf_export
from selfreward_lite.models.gguf_export import adapter_to_gguf, base_to_gguf
from selfreward_lite.models.parity import Parity, check_parity, parity, token_parity
from selfreward_lite.system.errors import EngineError, ExportError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("keep", [0, 5, 300, -100])
def test_truncated_safetensors_are_one_line(
    keep: int, adapter: Path, folders: Any, tmp_path: Path
) -> None:
    for source, file in (
        (adapter, "adapter_model.safetensors"),
        (folders["gqa"], "model.safetensors"),
    ):
        shutil.copytree(source, tmp_path / file)
        broken = tmp_path / file / file
        broken.write_bytes(broken.read_bytes()[:keep])
    for run in (
        lambda: adapter_to_gguf(
            tmp_path / "adapter_model.safetensors", folders["gqa"], tmp_path / "o"
        ),
        lambda: base_to_gguf(
            tmp_path / "model.safetensors", tmp_path / "o", weights="nf4", dtype="f32"
        ),
    ):
        with pytest.raises(ExportError, match="cannot be read") as caught:
            run()
        assert "\n" not in str(caught.value)


def test_missing_files_are_one_line(folders: Any, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="adapter_config.json cannot be read"):
        adapter_to_gguf(tmp_path, folders["gqa"], tmp_path / "o")


def test_an_interrupted_export_leaves_the_old_file(
    folders: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    out = tmp_path / "base.gguf"
    out.write_bytes(b"old")
    encode, seen = gguf_export._encode, []

    def interrupted(*args: Any) -> np.ndarray:
        seen.append(1)
        if len(seen) > 3:
            raise KeyboardInterrupt
        return encode(*args)

    monkeypatch.setattr(gguf_export, "_encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        base_to_gguf(folders["gqa"], out, weights="original", dtype="f32")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [
        ("base.gguf", b"old")
    ]


@pytest.mark.slow
def test_a_killed_export_leaves_no_target(adapter: Path, folders: Any, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from selfreward_lite.models import gguf_export\n"
        "os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)\n"
        "gguf_export.adapter_to_gguf(*map(Path, sys.argv[1:]))"
    )
    out = tmp_path / "a.gguf"
    result = subprocess.run(
        [sys.executable, "-c", code, adapter, folders["gqa"], out],
        check=False,
        cwd=Path(gguf_export.__file__).parents[2],
    )
    assert result.returncode == -9
    assert not out.exists()


def test_a_broken_gguf_is_an_error_not_a_crash(
    folders: Any, bases: Any, adapter: Path, tmp_path: Path
) -> None:
    good = adapter_to_gguf(adapter, folders["gqa"], tmp_path / "good.gguf")
    bad = tmp_path / "bad.gguf"
    for keep in (-100, 200):
        bad.write_bytes(good.read_bytes()[:keep])
        with pytest.raises(EngineError, match="adapter .*bad.gguf does not fit"):
            parity(
                folders["gqa"],
                adapter,
                bases["gqa", "original"],
                bad,
                LISTS[:1],
                weights="original",
            )
    with pytest.raises(EngineError, match="model .*bad.gguf cannot be loaded"):
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
    other = edited(
        folders["gqa"],
        tmp_path / "m",
        "tokenizer.json",
        lambda t: t["model"].update(merges=[], ignore_merges=False),
    )
    with pytest.raises(ExportError, match="llama.cpp reads 'Score: 4' as"):
        token_parity(other, bases["gqa", "original"], ["q", "Score: 4", "the answer"])


@pytest.mark.parametrize("distance", [0.002, float("nan"), float("inf")])
def test_check_parity_refuses(distance: float) -> None:
    check_parity(Parity(0.0009, None, None, 3, 1.0, 0.0))
    with pytest.raises(ExportError, match="over 3 tokens"):
        check_parity(Parity(distance, None, None, 3, 1.0, 0.0))


def test_check_parity_limits_agreement_and_adapter_share() -> None:
    limits = {"limit": 5.0, "agreement": 0.85, "share_error": 0.25}
    check_parity(Parity(0.7, 6.0, 1.2, 3, 0.9, 0.0), **limits)
    check_parity(
        Parity(0.7, 0.5, None, 3, 0.9, 0.0), **limits
    )  # an adapter that changes less than rounding does
    with pytest.raises(
        ExportError,
        match=r"same likeliest token as transformers at 80.0% of the positions, not 85%",
    ):
        check_parity(Parity(0.7, 6.0, 1.0, 3, 0.8, 0.0), **limits)
    for share in (0.66, 1.3, 0.0, -1.0, float("nan")):
        with pytest.raises(ExportError, match="of the adapter's effect in PEFT, not 100 ± 25 %"):
            check_parity(Parity(0.7, 6.0, share, 3, 0.9, 0.0), **limits)


def test_another_vocabulary_is_named(bases: Any, tmp_path: Path) -> None:
    wider = make_model(tmp_path / "m", vocab_size=400)
    with pytest.raises(ExportError, match="has 341 tokens, .* 400"):
        parity(wider, None, bases["gqa", "original"], None, LISTS, weights="original")


def test_parity_refuses_half_a_question(folders: Any, bases: Any) -> None:
    base = bases["gqa", "nf4"]
    for lists, gguf_adapter in (([], None), ([[]], None), (LISTS, base)):
        with pytest.raises(ExportError, match="parity needs"):
            parity(folders["gqa"], None, base, gguf_adapter, lists, weights="nf4")


def test_importing_is_cheap() -> None:
    code = (
        "import sys, selfreward_lite.models.parity\n"
        "assert not {'torch', 'gguf', 'numpy', 'llama_cpp', 'transformers'} & set(sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=Path(gguf_export.__file__).parents[2]
    )
