"""Models out of a run: base and adapter merged into one GGUF, quantised by llama.cpp, with a Modelfile that Ollama can follow."""

import json
import re
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import jinja2
import pytest
from random_llama import KINDS, TEMPLATE, make_adapter, make_model

from selfreward_lite import full_model, ollama, quantise
from selfreward_lite.bench.synthetic import write_model
from selfreward_lite.chat import ChatFormat
from selfreward_lite.config import TINY_MODEL
from selfreward_lite.errors import ExportError
from selfreward_lite.export import base_to_gguf


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A random Llama, a LoRA on it, and the base as GGUF."""
    folder = tmp_path_factory.mktemp("made")
    make_model(folder / "model", max_position_embeddings=1024)
    make_adapter(folder / "model", folder / "adapter")
    base_to_gguf(folder / "model", folder / "base.gguf", weights="original", dtype="f16")
    return folder


def write(made: Path, out: Path, kind: str, adapter: Path | None = None, prove: bool = True) -> dict:
    said: list[dict] = []
    found = full_model.write(str(made / "model"), str(adapter or made / "adapter"), str(out), kind, prove, said.append)
    return {**found, "said": said}


# -- merging ----------


@pytest.mark.parametrize("more", [{}, {"use_rslora": True, "r": 9}, {"target_modules": ["q_proj", "down_proj"]}])
@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_model_is_the_adapted_one(tmp_path, kind, more):
    make_model(tmp_path / "model", max_position_embeddings=1024, **KINDS[kind])
    make_adapter(tmp_path / "model", tmp_path / "adapter", **more)
    assert write(tmp_path, tmp_path / "out.gguf", "f32")["difference"] < 1e-3


def test_another_adapter_merged_is_far_away(made, tmp_path):
    make_adapter(made / "model", tmp_path / "other", r=8)
    base_to_gguf(made / "model", tmp_path / "out.gguf", weights="original", dtype="f32", adapter_dir=tmp_path / "other")
    ids = full_model.conversation_ids(made / "model", tmp_path / "out.gguf")
    assert (
        full_model.parity(made / "model", made / "adapter", tmp_path / "out.gguf", None, ids, weights="original").max_abs_diff
        > 0.1
    )


def test_a_quantised_merge_says_how_near_it_is_and_how_far_it_has_come(made, tmp_path):
    half, small = write(made, tmp_path / "half" / "m.gguf", "f16"), write(made, tmp_path / "small" / "m.gguf", "q4_k_m")
    assert half["difference"] < 0.05 < small["difference"]
    assert half["agreement"] > 0.98
    assert small["said"][-1]["done"] == small["said"][-1]["total"] > 10
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == ["Modelfile", "m.gguf"], "what was between is gone"
    assert (tmp_path / "small" / "m.gguf").stat().st_size < (tmp_path / "half" / "m.gguf").stat().st_size / 1.5


def test_without_the_proof_token_ids_are_proved_all_the_same(made, tmp_path):
    found = write(made, tmp_path / "m.gguf", "q8_0", prove=False)
    assert (found["difference"], found["agreement"]) == (None, None)
    assert found["tokens"] > 100


def test_an_adapter_that_cannot_be_merged_is_refused_and_nothing_is_written(made, tmp_path):
    shutil.copytree(made / "adapter", tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({**settings, "use_dora": True}))
    with pytest.raises(ExportError, match="use_dora"):
        write(made, tmp_path / "out" / "m.gguf", "f16", adapter=tmp_path / "adapter")
    assert not (tmp_path / "out").exists()


# -- quantising ----------


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """A file whose rows are long enough for every type: 256 wide, in float16."""
    folder = tmp_path_factory.mktemp("wide")
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_key_value_heads": 2}
    return base_to_gguf(make_model(folder / "model", **sizes), folder / "f16.gguf", weights="original", dtype="f16")


@pytest.mark.parametrize("kind", quantise.KINDS)
def test_size_is_known_before(wide, tmp_path, kind):
    wanted = quantise.before(wide, tmp_path / "out.gguf", kind)
    assert not (tmp_path / "out.gguf").exists(), "asking writes nothing"
    made = quantise.quantise(wide, tmp_path / "out.gguf", kind)
    assert made.stat().st_size == pytest.approx(wanted.size, rel=0.01)
    assert wanted.seconds > 0
    assert re.fullmatch(r"[\d.]+ MB, about \d+ s; the disk has [\d.]+ [MG]B free", str(wanted))


def test_a_disk_that_is_too_small_is_refused_with_the_numbers(wide, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 0, 10**6))
    with pytest.raises(ExportError, match=r"would take [\d.]+ MB; its disk has 1\.00 MB free"):
        quantise.before(wide, tmp_path / "out.gguf", "f16")
    assert quantise.before(wide, tmp_path / "out.gguf", "q2_k").size < 10**6
    with pytest.raises(ExportError, match=r"and 1\.00 MB while it is made"):
        quantise.before(wide, tmp_path / "out.gguf", "q2_k", besides=10**6)


def test_what_cannot_be_quantised_is_one_line_and_leaves_nothing(wide, tmp_path):
    (tmp_path / "cut.gguf").write_bytes(wide.read_bytes()[:100_000])
    (tmp_path / "words.gguf").write_text("not a model")
    twice = write_model(tmp_path / "small.gguf", "10m", "q8_0")
    for source, reason in (
        (tmp_path / "cut.gguf", "corrupted or incomplete"),
        (tmp_path / "words.gguf", "failed to load"),
        (tmp_path / "none.gguf", "does not exist"),
        (twice, "requantizing from type q8_0 is disabled"),
    ):
        with pytest.raises(ExportError, match=reason) as caught:
            quantise.quantise(source, tmp_path / "out.gguf", "q4_k_m")
        assert "\n" not in str(caught.value)
    with pytest.raises(ExportError, match="q9: choose of f16, q8_0"):
        quantise.before(wide, tmp_path / "out.gguf", "q9")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.gguf", "small.gguf", "words.gguf"]


# -- the Modelfile ----------


def test_the_modelfile_says_template_stops_and_context(chat):
    lines = ollama.modelfile(chat, "m.gguf", adds_bos=False, context=1024).splitlines()
    assert lines[0] == "FROM ./m.gguf"
    assert lines[2:] == ["PARAMETER num_ctx 1024", 'PARAMETER stop "<|eot_id|>"']
    header = '{{ "<|start_header_id|>%s<|end_header_id|>\\n\\n" }}'
    system, user, assistant = (header % role for role in ("system", "user", "assistant"))
    end, said = '{{ "<|eot_id|>" }}', "{{ .Content }}"
    assert lines[1] == (
        'TEMPLATE """{{ "<|begin_of_text|>" }}'
        "{{ range $i, $message := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        '{{ if eq .Role "system" }}' + system + said + end + '{{ else if eq .Role "user" }}' + user + said + end +
        '{{ else if eq .Role "assistant" }}' + assistant + said + "{{ if not $last }}" + end + "{{ end }}"
        '{{ end }}{{ if and $last (ne .Role "assistant") }}' + assistant + '{{ end }}{{ end }}"""'
    )  # fmt: skip


def test_a_file_that_begins_the_text_itself_has_no_second_beginning(chat):
    assert "begin_of_text" not in ollama.modelfile(chat, "m.gguf", adds_bos=True, context=10**6)
    assert "num_ctx 8192" in ollama.modelfile(chat, "m.gguf", adds_bos=True, context=10**6)


def test_every_token_that_ends_a_turn_is_a_stop(chat):
    two = replace(chat, stop=(chat.stop[0], chat.tokenizer.token_to_id("<|begin_of_text|>")))
    said = ollama.modelfile(two, "m.gguf", adds_bos=False, context=512)
    assert said.count("PARAMETER stop") == 2


def templated(template: str) -> ChatFormat:
    return replace(ChatFormat.load(TINY_MODEL), template=jinja2.Environment().from_string(template))


def test_pieces_of_a_template_make_up_the_template():
    found = ollama.pieces(templated(TEMPLATE))
    assert found.beginning == "<|begin_of_text|>"
    assert found.around["user"] == ("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>")
    assert found.turn == "<|start_header_id|>assistant<|end_header_id|>\n\n"
    for roles in ollama.PROOFS:
        said = [{"role": role, "content": ollama.MARK} for role in roles]
        whole = (
            jinja2.Environment()
            .from_string(TEMPLATE)
            .render(messages=said, bos_token="<|begin_of_text|>", add_generation_prompt=True)
        )
        assert found.conversation(roles) == whole


@pytest.mark.parametrize("template", [
    "{{ messages[0]['content'] }}{{ messages[0]['content'] }}",
    "nothing of what is said",
    TEMPLATE.replace("{{ message['content'] | trim }}", "{{ loop.index }}{{ message['content'] }}"),
    TEMPLATE + "{% if messages | length > 2 %}And so on{% endif %}",
])  # fmt: skip
def test_a_template_that_is_more_than_pieces_is_refused(template):
    with pytest.raises(ExportError, match="write the Modelfile by hand"):
        ollama.pieces(templated(template))
