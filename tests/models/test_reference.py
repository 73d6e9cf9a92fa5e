"""The reference of a model: what PEFT says at a few places, with and without the adapter."""

import pytest

from selfreward_lite.engine import reference
from selfreward_lite.engine.answers import Place
from selfreward_lite.engine.reference import compare, find_fault, load
from selfreward_lite.models.reference import LIKELIEST, write_reference
from selfreward_lite.system.errors import EngineError

LISTS = [[256, *range(40, 60)], [256, 7]]


@pytest.fixture(scope="module")
def found(made, tmp_path_factory):
    out = tmp_path_factory.mktemp("reference") / "reference.json"
    assert write_reference(made / "model", made / "adapter", out, LISTS, "original") == 10
    return load(out).places


def test_the_engine_here_agrees_with_it(made, found):
    from contextlib import closing

    from selfreward_lite.engine.api import LlamaSpec
    from selfreward_lite.engine.llama import LlamaEngine

    def ask(engine, one, lora):
        logits = engine.logits(list(one.tokens), lora)[-1].astype(float)
        import numpy as np

        values = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        return Place(int(values.argmax()), tuple(values[list(one.ids)].tolist()))

    spec = LlamaSpec(model=made / "base.gguf", parallel=4, context=256, batch=32, exact=True)
    with closing(LlamaEngine(spec)) as engine:
        base = [ask(engine, one, None) for one in found]
        adapted = [ask(engine, one, str(made / "adapter.gguf")) for one in found]
    same = compare(found, base, adapted)
    assert same.agreement == 1.0
    assert same.share == pytest.approx(1.0, abs=1e-2)
    assert find_fault(same) is None
    assert "ignores the adapter" in find_fault(compare(found, base, base))
    assert {len(one.ids) for one in found} == {LIKELIEST}
    assert found[-1].tokens == (256, 7)


def test_what_is_not_finite_is_a_fault(found):
    broken = [Place(one.base_top, (float("nan"),) * len(one.ids)) for one in found]
    assert "not finite" in find_fault(compare(found, broken))


def test_a_base_has_no_adapter(made, tmp_path):
    write_reference(made / "model", None, tmp_path / "r.json", LISTS[1:], "original")
    (first, last) = load(tmp_path / "r.json").places
    assert (first.adapter, last.adapter_top) == (None, None)


def test_a_missing_or_damaged_reference_is_one_line(tmp_path):
    with pytest.raises(EngineError, match="is missing, so no server can be checked"):
        load(tmp_path / reference.REFERENCE)
    (tmp_path / reference.REFERENCE).write_text("{")
    with pytest.raises(EngineError, match="is damaged; remove it"):
        load(tmp_path / reference.REFERENCE)
