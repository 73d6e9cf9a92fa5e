"""QLoRA on every family: a real tokenizer, random weights in 4 bits, SFT, then DPO, then export."""

from collections.abc import Iterator

import pytest
from real_tokenizers import NAMES, tokenizer_folder
from training_jobs import make_job

from selfreward_lite import config
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.models.gguf_export import base_to_gguf
from selfreward_lite.models.parity import conversation_ids, export_adapter
from selfreward_lite.models.random_models import write_family
from selfreward_lite.run.runtime import Runtime, open_runtime

pytestmark = pytest.mark.slow
STEP = {"batch": 8, "micro_batch": 4, "epochs": 1, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with open_runtime() as opened:
        yield opened


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_is_trained_in_4_bits_and_exported(name, runtime, tmp_path):
    model = write_family(tmp_path / "model", name, tokenizer_folder(name))
    chat, tiny, out = ChatFormat.load(model), config.load("tiny"), tmp_path / "M1"
    sft = make_job(tmp_path, tiny, chat, "sft", name="M0", model=model, **STEP)
    dpo = make_job(
        tmp_path, tiny, chat, "dpo", adapter_in=sft.adapter_out, name="M1", model=model, **STEP
    )
    for job in (sft, dpo):
        found = runtime.train(job, tmp_path, lambda _: None)
        assert found.steps == 3
        assert found.moved_share > 0.9
        assert found.first_margin == pytest.approx(0.0, abs=1e-4)
    base = base_to_gguf(model, tmp_path / "base.gguf", weights="nf4", dtype="f32")
    ids = conversation_ids(model, base)[:3]
    parity = export_adapter(model, out, base, tmp_path / "M1.gguf", ids, "nf4")
    assert parity.difference < 1e-3
    assert parity.change > 10 * parity.difference
    assert parity.share == pytest.approx(1.0, abs=0.01)
