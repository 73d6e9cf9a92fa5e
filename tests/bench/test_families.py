"""Parity of every family on random weights with real tokenizers, and what the command says."""

import pytest
from real_tokenizers import NAMES, tokenizer_folder
from typer.testing import CliRunner

from selfreward_lite.bench.families import FamilyParity, build_table, measure_family
from selfreward_lite.cli.main import app
from selfreward_lite.models.random_models import FAMILY_MODELS
from selfreward_lite.system.errors import UserError

LIMIT = 1e-3  # of a logit, in float32
FEATURES = {
    "llama3": [],
    "llama3_1": ["scaled rotation"],
    "smollm2": ["tied embeddings"],
    "mistral": ["SentencePiece"],
    "qwen2_5": ["biases", "tied embeddings"],
    "qwen3": ["QK-norm", "tied embeddings"],
    "gemma3": ["QK-norm", "sliding window", "tied embeddings", "SentencePiece"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_llama_cpp_computes_the_same_as_transformers(name, tmp_path):
    found = measure_family(name, tokenizer_folder(name), tmp_path)
    assert found.features == FEATURES[name]
    assert found.tokens > 250
    assert max(found.base, found.adapter, found.nf4, found.merged) < LIMIT
    assert found.share == pytest.approx(1.0, abs=LIMIT)
    assert found.agreement == 1.0
    assert found.unpacked < 0.05, "weights in float16"
    assert found.no_modelfile is None


def test_every_family_has_a_tokenizer_to_try():
    assert set(NAMES) == set(FAMILY_MODELS) == set(FEATURES)


def test_the_table_has_every_measured_value():
    row = FamilyParity(
        "qwen3", "Qwen3", ["QK-norm"], 354, 1e-5, 2e-5, 0.99996, 1.0, 3e-5, 4e-5, 5e-3, None
    )
    *_, last = build_table([row]).splitlines()
    assert last == (
        "| `qwen3` | QK-norm | 354 equal | 1.0e-05 | 2.0e-05 | 1.0000 | 3.0e-05 | 4.0e-05 "
        "| 5.0e-03 | yes |"
    )


def test_a_folder_without_tokenizers_is_one_line(tmp_path):
    ended = CliRunner().invoke(app, ["bench", "families", str(tmp_path)])
    assert isinstance(ended.exception, UserError)
    assert str(ended.exception).startswith(f"{tmp_path} holds no tokenizer; put tokenizer.json")
