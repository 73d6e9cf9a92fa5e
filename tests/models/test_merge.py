"""Base and adapter merged into one GGUF, quantized by llama.cpp, with an Ollama Modelfile."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from random_llama import KINDS, TEMPLATE, make_model

from selfreward_lite import config
from selfreward_lite.cli import export
from selfreward_lite.data.store import Store
from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.models import merge, quantize
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.models.chat_template import ChatTemplate
from selfreward_lite.models.gguf_export import base_to_gguf
from selfreward_lite.models.parity import Parity
from selfreward_lite.models.random_models import write_adapter, write_gguf
from selfreward_lite.system.errors import ExportError, UserError

pytestmark = pytest.mark.slow  # models written and loaded again, a quarter of a minute
ROOT = Path(__file__).parents[2]


def write(
    made: Path, out: Path, kind: str, adapter: Path | None = None, prove: bool = True
) -> dict:
    said: list[dict] = []
    found = merge.write_model(
        made / "model", adapter or made / "adapter", out, kind, prove, said.append
    )
    return {**asdict(found), "said": said}


# -- merging ----------


@pytest.mark.parametrize(
    "more", [{}, {"use_rslora": True, "r": 9}, {"target_modules": ["q_proj", "down_proj"]}]
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_model_is_the_adapted_one(tmp_path, kind, more):
    make_model(tmp_path / "model", max_position_embeddings=1024, **KINDS[kind])
    write_adapter(tmp_path / "model", tmp_path / "adapter", **more)
    assert write(tmp_path, tmp_path / "out.gguf", "f32")["difference"] < 1e-3


def test_another_adapter_merged_is_far_away(made, tmp_path):
    write_adapter(made / "model", tmp_path / "other", r=8)
    base_to_gguf(
        made / "model",
        tmp_path / "out.gguf",
        weights="original",
        dtype="f32",
        adapter_dir=tmp_path / "other",
    )
    ids = merge.conversation_ids(made / "model", tmp_path / "out.gguf")
    assert (
        merge.parity(
            made / "model", made / "adapter", tmp_path / "out.gguf", None, ids, weights="original"
        ).max_abs_diff
        > 0.1
    )


def test_quantized_merge_reports_difference_and_progress(made, tmp_path):
    half, small = (
        write(made, tmp_path / "half" / "m.gguf", "f16"),
        write(made, tmp_path / "small" / "m.gguf", "q4_k_m"),
    )
    assert half["difference"] < 0.05 < small["difference"]
    assert half["agreement"] > 0.98
    assert small["said"][-1]["done"] == small["said"][-1]["total"] > 10
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == [
        "Modelfile",
        "m.gguf",
    ], "what was between is gone"
    assert (tmp_path / "small" / "m.gguf").stat().st_size < (
        tmp_path / "half" / "m.gguf"
    ).stat().st_size / 1.5


def test_without_the_proof_token_ids_are_proved_all_the_same(made, tmp_path):
    found = write(made, tmp_path / "m.gguf", "q8_0", prove=False)
    assert (found["difference"], found["agreement"]) == (None, None)
    assert found["tokens"] > 100


def test_merge_refuses_an_unknown_adapter_and_writes_nothing(made, tmp_path):
    shutil.copytree(made / "adapter", tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps({**settings, "use_dora": True})
    )
    with pytest.raises(ExportError, match="use_dora"):
        write(made, tmp_path / "out" / "m.gguf", "f16", adapter=tmp_path / "adapter")
    assert not (tmp_path / "out").exists()


def test_a_model_that_came_out_different_is_not_left_there(made, tmp_path, monkeypatch):
    monkeypatch.setattr(merge, "parity", lambda *_, **__: Parity(0.5, None, None, 100, 0.9, 0.1))
    with pytest.raises(ExportError, match=r"differs from transformers by 0\.5"):
        write(made, tmp_path / "m.gguf", "f32")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_attempt_left_is_removed(made, tmp_path):
    for name in (".m.gguf.77.part", "m.f16.part", ".m.f16.part.77.part"):
        (tmp_path / name).write_text("half")
    write(made, tmp_path / "m.gguf", "q4_k_m", prove=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Modelfile", "m.gguf"]


def test_unusual_template_costs_the_modelfile_only(made, tmp_path):
    shutil.copytree(made / "model", tmp_path / "model")
    numbered = TEMPLATE.replace(
        "{{ message['content']", "{{ loop.index if message.role == 'user' }}{{ message['content']"
    )
    for path in (tmp_path / "model").glob("chat_template.jinja"):
        path.write_text(numbered)
    shutil.copytree(made / "adapter", tmp_path / "adapter")
    found = write(tmp_path, tmp_path / "out" / "m.gguf", "f16")
    assert "write the Modelfile by hand" in found["no_modelfile"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["m.gguf"]


# -- quantising ----------


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """A file whose rows are long enough for every type: 256 wide, in float16."""
    folder = tmp_path_factory.mktemp("wide")
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_key_value_heads": 2}
    return base_to_gguf(
        make_model(folder / "model", **sizes), folder / "f16.gguf", weights="original", dtype="f16"
    )


@pytest.mark.parametrize("kind", quantize.KINDS)
def test_size_is_known_before(wide, tmp_path, kind):
    wanted = quantize.estimate(wide, tmp_path / "out.gguf", kind)
    assert not (tmp_path / "out.gguf").exists(), "asking writes nothing"
    size = quantize.quantize(wide, tmp_path / "out.gguf", kind)
    assert size == (tmp_path / "out.gguf").stat().st_size == pytest.approx(wanted.size, rel=0.01)
    assert wanted.seconds > 0
    assert re.fullmatch(r"[\d.]+ MB, about \d+ s; the disk has [\d.]+ [MG]B free", str(wanted))


def test_quantize_refuses_too_small_a_disk_with_numbers(wide, tmp_path, monkeypatch):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9 - 10**5, 10**5)
    )
    with pytest.raises(
        UserError,
        match=r"has 0\.1 MB free and the new file needs [\d.]+ MB \(file [\d.]+ MB, and a tenth",
    ) as e:
        export.quantize_file(wide, tmp_path / "new" / "out.gguf", "q8_0")
    assert "write it elsewhere" in str(e.value)
    assert list(tmp_path.iterdir()) == []


def test_a_merge_needs_room_for_what_stands_between_too(tmp_path, monkeypatch, wide):
    needed = []

    def refuse(path: Path, needs: dict, *_: str) -> None:
        needed.append(needs)
        raise UserError("no room")

    with Store.write(tmp_path / "run") as store:
        store.state("settings", config.load("tiny").model_dump(mode="json"))
    for path in (tmp_path / "run" / export.BASE_GGUF, tmp_path / "run" / "M3" / "adapter.gguf"):
        path.parent.mkdir()
        path.write_bytes(wide.read_bytes())
    monkeypatch.setattr(export, "check_disk", refuse)
    for kind in ("q4_k_m", "f16"):
        with pytest.raises(UserError, match="no room"):
            export.merged("run", tmp_path, 3, kind, tmp_path / "exported", True)
    assert (
        needed[0]["float16 while it is made"]
        == 2 * quantize.count_weights(wide)
        > needed[0]["file"]
        > 0
    )
    assert needed[1]["float16 while it is made"] == 0
    assert not (tmp_path / "exported").exists()


def test_what_cannot_be_quantized_is_one_line_and_leaves_nothing(wide, tmp_path):
    (tmp_path / "cut.gguf").write_bytes(wide.read_bytes()[:100_000])
    (tmp_path / "words.gguf").write_text("not a model")
    twice = write_gguf(tmp_path / "small.gguf", "10m", "q8_0")
    for source, reason in (
        (tmp_path / "cut.gguf", "corrupted or incomplete"),
        (tmp_path / "words.gguf", "failed to load"),
        (tmp_path / "none.gguf", "does not exist"),
        (twice, "requantizing from type q8_0 is disabled"),
    ):
        with pytest.raises((ExportError, UserError), match=reason) as caught:
            quantize.quantize(source, tmp_path / "out.gguf", "q4_k_m")
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="q9 is no type of a GGUF here: choose one of f16, q8_0"):
        quantize.estimate(wide, tmp_path / "out.gguf", "q9")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cut.gguf",
        "small.gguf",
        "words.gguf",
    ]


def test_a_full_disk_is_told_from_a_bad_source(wide, tmp_path):
    """A file that may not grow as large as the type needs: the reason is the disk."""
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from selfreward_lite.models import quantize\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "try: quantize.quantize(Path(sys.argv[1]), Path(sys.argv[2]), 'q8_0')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, wide, tmp_path / "out.gguf"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    ).stdout
    assert re.match(r"ExportError .* took no more \(.*GB free\): free space", said), said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["none.gguf", "out.gguf"], 2, "none.gguf is no file"),
        (["none.gguf", "f16.gguf"], 2, "none.gguf is no file"),
        (["folder", "out.gguf"], 2, "folder is no file"),
        (["f16.gguf", "words.gguf/out.gguf"], 2, "words.gguf is not a folder"),
        (["f16.gguf", "pipe"], 2, "pipe is not a file"),
        (["small.gguf", "new/out.gguf"], 2, "small.gguf is quantized already (Q8_0)"),
        (["f16.gguf", "f16.gguf"], 2, "f16.gguf is the source itself"),
        (["f16.gguf", "folder"], 2, "folder is not a file"),
        (["f16.gguf", "out.gguf", "--type", "q9"], 2, "q9 is no type of a GGUF here"),
        (["words.gguf", "out.gguf"], 1, "words.gguf is no complete GGUF file"),
    ],
)
def test_mistakes_in_the_command_are_one_line(wide, tmp_path, arguments, code, says):
    shutil.copy(wide, tmp_path / "f16.gguf")
    (tmp_path / "folder").mkdir()
    (tmp_path / "words.gguf").write_text("not a model")
    os.mkfifo(tmp_path / "pipe")
    quantize.quantize(wide, tmp_path / "small.gguf", "q8_0")
    ended = command(tmp_path, *arguments)
    assert ended.returncode == code, ended.stderr
    assert says in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "f16.gguf",
        "folder",
        "pipe",
        "small.gguf",
        "words.gguf",
    ]


def test_the_command_says_what_it_will_take_and_what_it_took(wide, tmp_path):
    (tmp_path / f".out.gguf.{10**7}.part").write_text("of an attempt that was killed")
    ended = command(tmp_path, str(wide), "out.gguf", "--type", "q5_k_m")
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"out\.gguf in q5_k_m: [\d.]+ MB, about \d+ s; the disk has", ended.stderr)
    said = json.loads(ended.stdout.splitlines()[-1])
    assert (
        said["bytes"]
        == (tmp_path / "out.gguf").stat().st_size
        == pytest.approx(said["expected_bytes"], rel=0.01)
    )
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    called = [sys.executable, "-m", "selfreward_lite", "export", "quantise", *arguments]
    return subprocess.run(
        called,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


# -- the Modelfile ----------


def test_the_modelfile_says_template_stops_and_context(chat):
    lines = merge.build_modelfile(chat, "m.gguf", adds_bos=False, context=1024).splitlines()
    assert lines[0] == "FROM ./m.gguf"
    assert lines[2:] == ["PARAMETER num_ctx 1024", 'PARAMETER stop "<|eot_id|>"']
    header = '"%s<|start_header_id|>%s<|end_header_id|>\\n\\n"'
    end = "<|eot_id|>"
    assert lines[1] == (
        'TEMPLATE """{{ "<|begin_of_text|>" }}'
        "{{ $before := " + header % ("", "user") + " }}"
        "{{ $before_system := " + header % ("", "system") + " }}"
        '{{ $system := "" }}{{ $has_system := false }}'
        "{{ range $i, $message := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        '{{ if eq .Role "system" }}'
        "{{ $system = .Content }}{{ $has_system = true }}{{ $before = $before_system }}"
        '{{ else if eq .Role "user" }}{{ $before }}'
        "{{ if $has_system }}{{ $system }}{{ " + header % (end, "user") + " }}"
        "{{ $has_system = false }}{{ end }}{{ .Content }}"
        "{{ if $last }}{{ " + header % (end, "assistant") + " }}{{ end }}"
        '{{ else if eq .Role "assistant" }}'
        "{{ if $last }}{{ " + header % (end, "assistant") + " }}{{ .Content }}"
        "{{ else }}{{ " + header % (end, "assistant") + " }}{{ .Content }}"
        "{{ $before = " + header % (end, "user") + " }}"
        "{{ $before_system = " + header % (end, "system") + ' }}{{ end }}{{ end }}{{ end }}"""'
    )


def test_modelfile_adds_no_second_beginning_of_text(chat):
    assert "begin_of_text" not in merge.build_modelfile(
        chat, "m.gguf", adds_bos=True, context=10**6
    )
    assert "num_ctx 8192" in merge.build_modelfile(chat, "m.gguf", adds_bos=True, context=10**6)


def test_every_token_that_ends_a_turn_is_a_stop(chat):
    more = replace(
        chat, stop=(chat.stop[0], chat.tokenizer.token_to_id("<|begin_of_text|>"), 10**6)
    )
    said = merge.build_modelfile(more, "m.gguf", adds_bos=False, context=512)
    assert said.count("PARAMETER stop") == 2, "and none for an id that is no token"


def templated(source: str) -> ChatFormat:
    chat = ChatFormat.load(TINY_MODEL)
    template = ChatTemplate.parse(source, chat.template.tokens, TINY_MODEL)
    return replace(chat, template=template)


SYSTEM_FIRST = (  # as in Llama-3.1: a system turn with a date, also where there is none
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nToday is {{ date_string }}.\n\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}"
    "{% set messages = messages[1:] %}{% endif %}<|eot_id|>"
    + TEMPLATE.removeprefix("{{ bos_token }}")
)
IN_USER = TEMPLATE.replace(  # as in Gemma: no system turn
    "{% for message in messages %}",
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n' %}"
    "{% set messages = messages[1:] %}{% endif %}{% for message in messages %}",
).replace("{{ message['content']", "{{ system if PLACE }}{{ message['content']")


@pytest.mark.parametrize(
    "template",
    [
        TEMPLATE,
        SYSTEM_FIRST,
        IN_USER.replace("PLACE", "loop.first"),
        IN_USER.replace("PLACE", "loop.last"),
        TEMPLATE.replace("{% if add_generation_prompt %}", "{% if true %}"),
    ],
)
def test_pieces_of_a_template_make_up_the_template(template):
    chat = templated(template)
    found = merge.split_template(chat)
    assert found.beginning == "<|begin_of_text|>"
    assert found.ask.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")
    for roles in map(str.split, merge.PROOFS):
        said = [{"role": role, "content": merge.MARKS[role]} for role in roles]
        assert found.conversation(roles) == chat.template.render(said, ask=True)


@pytest.mark.parametrize("template", [TEMPLATE, SYSTEM_FIRST])
def test_a_later_system_text_keeps_its_turn(template):
    chat, roles = templated(template), ["user", "assistant", "system", "user"]
    said = [{"role": role, "content": merge.MARKS[role]} for role in roles]
    assert merge.split_template(chat).conversation(roles) == chat.template.render(said, ask=True)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0]['content'] }}{{ messages[0]['content'] }}",
        "nothing of what is said",
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + TEMPLATE,
        TEMPLATE.replace(
            "{{ message['content'] | trim }}", "{{ loop.index }}{{ message['content'] }}"
        ),
        TEMPLATE + "{% if messages | length > 2 %}And so on{% endif %}",
    ],
)
def test_a_template_that_is_more_than_pieces_is_refused(template):
    with pytest.raises(ExportError, match="write the Modelfile by hand"):
        merge.split_template(templated(template))


# -- which base is nearest ----------
