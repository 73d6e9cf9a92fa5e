"""A GGUF is unpacked to the model that it was made from, or refused by name and next step."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, quants
from random_llama import LISTS
from safetensors.numpy import load_file
from small_chat_models import MAKERS, make_small

from selfreward_lite.data import hub
from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.models import gguf_folder, parity
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.models.chat_template import user
from selfreward_lite.models.checks import check_folder
from selfreward_lite.models.gguf_export import adapter_to_gguf, base_to_gguf
from selfreward_lite.models.gguf_folder import find_base, find_shape, unpack_gguf
from selfreward_lite.models.hf_folder import list_tensors, read_config
from selfreward_lite.run.prepare import refuse_base
from selfreward_lite.system.errors import ConfigError, UserError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="session")
def small(tmp_path_factory: Any) -> Path:
    """A folder and a GGUF in f32 of every kind in MAKERS. Do not change them."""
    root = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        for kind in MAKERS:
            make_small(kind, root / kind, patch)
            base_to_gguf(root / kind, root / f"{kind}.gguf", weights="original", dtype="f32")
    return root


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: Any) -> Path:
    monkeypatch.setattr(hub, "home", lambda: tmp_path / "home")
    return tmp_path / "home" / "unpacked"


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    return {
        name: array
        for file in folder.glob("*.safetensors")
        for name, array in load_file(file).items()
    }


Change = Callable[[dict[str, Any], dict[str, Any]], Any]


def rewrite(source: Path, target: Path, change: Change) -> Path:
    """Copy a GGUF after `change` of its fields (value, type, type of items) and tensors."""
    reader = GGUFReader(source)
    fields: dict[str, Any] = {
        key: (field.contents(), field.types[0], field.types[-1])
        for key, field in reader.fields.items()
        if not key.startswith("GGUF.")
    }
    tensors = {
        tensor.name: (np.array(tensor.data), tensor.tensor_type) for tensor in reader.tensors
    }
    change(fields, tensors)
    writer = GGUFWriter(target, fields.pop("general.architecture")[0])
    for key, (value, kind, item) in fields.items():
        writer.add_key_value(key, value, kind, item if kind == GGUFValueType.ARRAY else None)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.mark.parametrize("kind", MAKERS)
def test_a_gguf_is_unpacked_to_its_own_model(kind: str, small: Path, cache: Path) -> None:
    file = small / f"{kind}.gguf"
    found = find_base(str(file))
    check_folder(found)
    assert found.parent == cache
    expected, tensors = read_tensors(small / kind), read_tensors(found)
    assert tensors.keys() == {tensor.source for tensor in list_tensors(read_config(found))}
    for name, array in tensors.items():
        np.testing.assert_allclose(array, expected[name], rtol=2**-10, atol=2**-12, err_msg=name)
    before, after = (vars(read_config(folder)) for folder in (small / kind, found))
    assert after.pop("eps") == pytest.approx(before.pop("eps"))
    assert after.pop("rope") == pytest.approx(before.pop("rope"))
    assert after == before
    assert vars(find_shape(str(file))) == vars(read_config(found))
    ours, theirs = (ChatFormat.load(folder) for folder in (found, small / kind))
    assert ours.template.source == theirs.template.source
    assert (ours.stop, ours.pad, ours.special) == (theirs.stop, theirs.pad, theirs.special)
    assert parity.conversation_ids(found, file) == parity.conversation_ids(small / kind, file)
    assert parity.token_parity(found, file, parity.TOKEN_PROBES) > 50


@pytest.mark.parametrize("kind", MAKERS)
def test_the_unpacked_model_computes_the_same(kind: str, small: Path, cache: Path) -> None:
    found = find_base(str(small / f"{kind}.gguf"))
    again = base_to_gguf(found, cache / "again.gguf", weights="original", dtype="f32")
    parity.check_parity(parity.parity(found, None, again, None, LISTS, weights="original"))
    measured = parity.parity(
        found, None, small / f"{kind}.gguf", None, LISTS, weights="original"
    )  # of 16-bit weights with 32-bit ones
    assert measured.max_abs_diff < 0.02
    assert measured.agreement > 0.95


@pytest.mark.parametrize("dtype", ["f16", "q8_0"])
def test_smaller_types_are_unpacked(dtype: Any, small: Path, tmp_path: Path) -> None:
    """Exported again in 16 bits, the values are those of the first file."""
    first = base_to_gguf(small / "llama", tmp_path / "a.gguf", weights="original", dtype=dtype)
    found = unpack_gguf(first, tmp_path / "folder")
    expected = {tensor.name: tensor for tensor in GGUFReader(first).tensors}
    again = base_to_gguf(found, tmp_path / "b.gguf", weights="original", dtype="f16")
    for tensor in GGUFReader(again).tensors:
        values = quants.dequantize(expected[tensor.name].data, expected[tensor.name].tensor_type)
        np.testing.assert_allclose(tensor.data, values, rtol=2**-10, atol=1e-6)


# Where a block of each type has its scales, in half precision.
PACKED = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}


def pack(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random bytes of a type, with scales of 0.01."""
    block, size = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (shape[0], shape[1] // block, size), np.uint8)
    for place in PACKED[kind]:
        data[..., place : place + 2] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
    return data.reshape(shape[0], -1)


@pytest.mark.parametrize("kind", PACKED)
def test_packed_types_are_unpacked(kind: str, small: Path, tmp_path: Path) -> None:
    name, packed = "blk.1.ffn_down.weight", (pack(kind, (64, 256)), GGMLQuantizationType[kind])
    file = rewrite(
        small / "llama.gguf",
        tmp_path / "packed.gguf",
        lambda _, stored: stored.update({name: packed}),
    )
    found = read_tensors(unpack_gguf(file, tmp_path / "folder"))
    array = found["model.layers.1.mlp.down_proj.weight"]
    np.testing.assert_allclose(array, quants.dequantize(*packed), rtol=2**-10, atol=1e-6)


def test_a_second_call_uses_what_is_unpacked(small: Path, cache: Path, monkeypatch: Any) -> None:
    found = find_base(str(small / "llama.gguf"))
    monkeypatch.setattr(gguf_folder, "unpack_gguf", None)
    monkeypatch.chdir(small)
    assert find_base("llama.gguf") == found
    assert find_base("./llama.gguf") == found


def test_a_changed_file_is_unpacked_anew(small: Path, cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    shutil.copy(small / "qwen2_5.gguf", file)
    first = find_base(str(file))
    shutil.copy(small / "qwen3.gguf", file)
    second = find_base(str(file))
    assert first != second
    assert read_config(first).family.name == "Qwen2.5"
    assert read_config(second).family.name == "Qwen3"


def test_a_gguf_without_the_ending_is_one_too(small: Path, cache: Path, tmp_path: Path) -> None:
    """Ollama names its files by their digests."""
    shutil.copy(small / "qwen3.gguf", tmp_path / "sha256-0123")
    assert read_config(find_base(str(tmp_path / "sha256-0123"))).family.name == "Qwen3"


def test_all_who_ask_at_once_get_the_same_folder(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One unpacks; the others wait for longer than for other locks."""
    unpacked: list[Path] = []
    unpack = gguf_folder.unpack_gguf

    def unpack_slowly(path: Path, folder: Path) -> Path:
        unpacked.append(path)
        time.sleep(1)
        return unpack(path, folder)

    monkeypatch.setattr(hub, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(hub, "PATIENCE", 0.1)
    monkeypatch.setattr(gguf_folder, "unpack_gguf", unpack_slowly)
    with ThreadPoolExecutor(3) as pool:
        (found,) = set(pool.map(find_base, [str(small / "llama.gguf")] * 3))
    assert len(unpacked) == 1
    check_folder(found)


def test_a_killed_unpacking_leaves_nothing_whole(small: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib\n"
        "from selfreward_lite.models import gguf_folder\n"
        "from selfreward_lite.data import hub\n"
        "hub.home = lambda: pathlib.Path(sys.argv[2])\n"
        "save = gguf_folder.save_file\n"
        "def stop(*arguments, **options):\n"
        "    save(*arguments, **options)\n"
        "    print('written', flush=True)\n"
        "    time.sleep(600)\n"
        "gguf_folder.save_file = stop\n"
        "gguf_folder.find_base(sys.argv[1])\n"
    )
    file, home = str(small / "llama.gguf"), tmp_path / "home"
    command = [sys.executable, "-c", code, file, str(home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "written\n"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hub, "home", lambda: home)
            patch.setattr(gguf_folder, "WAIT", 0.1)
            with pytest.raises(UserError, match="another command is unpacking"):
                find_base(file)
        os.kill(child.pid, signal.SIGKILL)
    assert [path.name for path in (home / "unpacked").glob("[!.]*") if path.is_dir()] == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub, "home", lambda: home)
        found = find_base(file)
    check_folder(found)
    left = [path for path in found.parent.iterdir() if path.suffix != ".lock"]
    assert left == [found]


def put(key: str, value: Any, kind: GGUFValueType) -> Change:
    return lambda fields, _: fields.update({key: (value, kind, kind)})


def drop(name: str) -> Change:
    return lambda fields, tensors: (fields.pop(name, None), tensors.pop(name, None))


def put_tensor(name: str, *shape: int, dtype: Any = np.float32, value: float = 0.5) -> Change:
    kind = GGMLQuantizationType.I32 if dtype == np.int32 else GGMLQuantizationType.F32
    return lambda _, tensors: tensors.update({name: (np.full(shape, value, dtype), kind)})


STRING, UINT32, FLOAT32 = GGUFValueType.STRING, GGUFValueType.UINT32, GGUFValueType.FLOAT32
REFUSALS: dict[str, Change] = {
    "gpt2 is no family that is supported; choose a model of one of these: Llama 3": put(
        "general.architecture", "gpt2", STRING
    ),
    "splits words as 'gpt-2' of 'gpt2'; supported are tokenizers as of Llama 3": put(
        "tokenizer.ggml.pre", "gpt-2", STRING
    ),
    "of 'bert'; supported": put("tokenizer.ggml.model", "bert", STRING),
    "lacks tokenizer.chat_template; use a GGUF of a chat model": drop("tokenizer.chat_template"),
    "lacks tokenizer.ggml.eos_token_id": drop("tokenizer.ggml.eos_token_id"),
    "lacks tokenizer.ggml.tokens; use a GGUF of a chat model": drop("tokenizer.ggml.tokens"),
    "tokens, and uses others; download it again": put("tokenizer.ggml.bos_token_id", 10**6, UINT32),
    "lacks llama.block_count": drop("llama.block_count"),
    "asks the assistant to speak": put(
        "tokenizer.chat_template", "{% for m in messages %}{{ m['content'] }}{% endfor %}", STRING
    ),
    "one part of a split GGUF; join the parts with `llama-gguf-split --merge`": put(
        "split.count", 2, UINT32
    ),
    "rope.scaling.type is yarn, not none; choose the plain model": put(
        "llama.rope.scaling.type", "yarn", STRING
    ),
    "rope.scaling.factor is 4.0, not 1.0": put("llama.rope.scaling.factor", 4.0, FLOAT32),
    "rope.dimension_count is 8, not 16": put("llama.rope.dimension_count", 8, UINT32),
    "attention.value_length is 8, not 16": put("llama.attention.value_length", 8, UINT32),
    "attention.sliding_window is 4096, not 0": put("llama.attention.sliding_window", 4096, UINT32),
    "layers is 0, not a count: download it again": put("llama.block_count", 0, UINT32),
    "kv_heads is 'two', not a count": put("llama.attention.head_count_kv", "two", STRING),
    "has a number of a wrong kind": lambda fields, _: fields.update(
        {f"llama.attention.{name}": (0, UINT32, UINT32) for name in ("key_length", "head_count")}
    ),
    "expert_count is 8, not 0; choose the plain model": put("llama.expert_count", 8, UINT32),
    "final_logit_softcapping is 30.0": put("llama.final_logit_softcapping", 30.0, FLOAT32),
    "rope_freqs.weight scales the rotation in another way": put_tensor("rope_freqs.weight", 8),
    "rope_freqs.weight scales the rotation": put_tensor("rope_freqs.weight", 4, value=1.0),
    "tensor blk.0.attn_q.bias is not part of such a model; choose the plain one": put_tensor(
        "blk.0.attn_q.bias", 64
    ),
    "tensor blk.0.ffn_gate_inp.weight is not part": put_tensor("blk.0.ffn_gate_inp.weight", 8, 64),
    "blk.1.attn_v.weight is missing; download it again": drop("blk.1.attn_v.weight"),
    "blk.1.ffn_up.weight has another shape": put_tensor("blk.1.ffn_up.weight", 64, 256),
    "blk.0.ffn_up.weight is of type I32, which cannot be unpacked; choose a GGUF in": put_tensor(
        "blk.0.ffn_up.weight", 256, 64, dtype=np.int32
    ),
    "blk.0.ffn_up.weight holds NaN, infinity or values above 65504": put_tensor(
        "blk.0.ffn_up.weight", 256, 64, value=1e5
    ),
    "output_norm.weight holds NaN": put_tensor("output_norm.weight", 64, value=np.nan),
}


@pytest.fixture
def refused(cache: Path) -> Iterator[Callable[[Path], str]]:
    def ask(file: Path) -> str:
        with pytest.raises(ConfigError) as caught, refuse_base(file):
            find_base(str(file))
        text = str(caught.value)
        assert str(file) in text
        assert "\n" not in text
        left = [path.name for path in cache.glob("*") if path.suffix != ".lock"]
        assert left == [], "nothing stays"
        return text

    return ask


@pytest.mark.parametrize("words", REFUSALS)
def test_a_gguf_is_refused_by_name(words: str, small: Path, tmp_path: Path, refused: Any) -> None:
    file = rewrite(small / "llama.gguf", tmp_path / "bad.gguf", REFUSALS[words])
    assert words in refused(file)


def test_every_end_of_a_turn_is_kept(small: Path, tmp_path: Path) -> None:
    """Llama 3.1 may end a message to a tool with a token of its own."""
    plain = gguf_folder.load_chat(small / "qwen3.gguf")
    end, other = plain.special["<|im_end|>"], plain.special["<|im_start|>"]
    change = put("tokenizer.ggml.eom_token_id", other, UINT32)
    file = rewrite(small / "qwen3.gguf", tmp_path / "two.gguf", change)
    assert (plain.stop, gguf_folder.load_chat(file).stop) == ((end,), (end, other))


def test_no_text_becomes_a_control_token(small: Path, tmp_path: Path) -> None:
    """SentencePiece's scores would allow "<eo" and "s>" to become the end of a text."""

    def add(fields: dict[str, Any], _: Any) -> None:
        tokens, scores = (fields[f"tokenizer.ggml.{name}"][0] for name in ("tokens", "scores"))
        pieces = ("<", "e", "o", "s", ">", "<e", "<eo", "s>")
        unused = [index for index in range(262, len(tokens)) if tokens[index] not in pieces]
        missing = [piece for piece in pieces if piece not in tokens]
        for index, piece in zip(unused, missing, strict=False):
            tokens[index] = piece
        for piece in ("<e", "<eo", "s>"):  # before every other merge
            scores[tokens.index(piece)] = 1.0

    chat = gguf_folder.load_chat(rewrite(small / "gemma3.gguf", tmp_path / "odd.gguf", add))
    assert chat.special["<eos>"] == 1
    assert len(chat.text_ids("<eos>")) == 2
    assert not set(chat.text_ids("<eos>")) & set(chat.special.values())


@pytest.mark.parametrize(("kind", "read"), [("CONTROL", "▁the"), ("USER_DEFINED", "▁▁the")])
def test_mistral_puts_no_space_before_a_text(
    kind: str, read: str, small: Path, tmp_path: Path
) -> None:
    """GGUFs of llama.cpp's converter do not say so; `[INST]` tells, if it is a token of its own."""

    def change(fields: dict[str, Any], _: Any) -> None:
        fields.pop("tokenizer.ggml.add_space_prefix")
        tokens, kinds = (fields[f"tokenizer.ggml.{name}"][0] for name in ("tokens", "token_type"))
        tokens[-1], kinds[-1] = "[INST]", gguf_folder.TOKEN_KINDS.index(kind)

    chat = gguf_folder.load_chat(rewrite(small / "gemma3.gguf", tmp_path / "mistral.gguf", change))
    assert "".join(map(chat.tokenizer.id_to_token, chat.text_ids(" the"))) == read


def test_errors_of_a_judge_name_its_file(small: Path, tmp_path: Path) -> None:
    file = tmp_path / "judge.gguf"
    rewrite(small / "llama.gguf", file, put("tokenizer.chat_template", "{{ messages }}", STRING))
    with pytest.raises(ConfigError, match="the chat template repeats or leaves out") as caught:
        gguf_folder.load_chat(file)
    assert str(caught.value).startswith(f"{file}: ")


def test_another_window_pattern_is_refused(small: Path, tmp_path: Path, refused: Any) -> None:
    change = put("gemma3.attention.sliding_window_pattern", 2, UINT32)
    file = rewrite(small / "gemma3.gguf", tmp_path / "bad.gguf", change)
    assert "attention.sliding_window_pattern is 2, not 6" in refused(file)


def test_other_files_are_refused(made: Path, tmp_path: Path, refused: Any) -> None:
    adapter = tmp_path / "adapter.gguf"
    adapter_to_gguf(made / "adapter", made / "model", adapter)
    assert "holds no model but an adapter; use a GGUF of a chat model" in refused(adapter)
    for name, data in (("empty.gguf", b""), ("text.gguf", b"some words " * 99)):
        (tmp_path / name).write_bytes(data)
        assert "is no GGUF that can be read" in refused(tmp_path / name)
    with pytest.raises(UserError, match=r"none\.gguf: no such file; fix model\.base"):
        find_base(str(tmp_path / "none.gguf"))


def test_a_value_that_is_no_text_is_refused(small: Path, tmp_path: Path, refused: Any) -> None:
    file, name = tmp_path / "bad.gguf", b"general.architecture"
    head, tail = (small / "llama.gguf").read_bytes().split(name, 1)
    file.write_bytes(head + name + tail.replace(b"llama", b"ll\x80ma", 1))
    assert f"{file}: general.architecture is no text; download it again" in refused(file)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.03, 0.1, 0.5, 0.9, 0.9999])
def test_a_cut_file_is_refused(share: float, small: Path, tmp_path: Path, refused: Any) -> None:
    data = (small / "llama.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[: int(share * len(data))])
    assert "is no GGUF that can be read" in refused(tmp_path / "cut.gguf")


def test_a_part_of_a_split_gguf_is_refused_by_its_name() -> None:
    for name in ("llama-00001-of-00002.gguf", "a/b/llama-00001-of-00002.gguf@main"):
        with pytest.raises(ConfigError, match="llama-gguf-split --merge"):
            gguf_folder.refuse_split(name)
    gguf_folder.refuse_split("llama-3.1-00001.gguf")
    gguf_folder.refuse_split(None)


def test_a_full_disk_is_noticed_first(small: Path, cache: Path, monkeypatch: Any) -> None:
    from selfreward_lite.system import files

    monkeypatch.setattr(files, "free_bytes", lambda path: 1000)
    with pytest.raises(UserError, match=r"llama\.gguf needs .* or set HF_HOME elsewhere"):
        find_base(str(small / "llama.gguf"))
    assert [path for path in cache.glob("*") if path.suffix != ".lock"] == []


# -- the chat alone, of a judge in a file of its own ----------


def test_a_ggufs_chat_is_that_of_its_folder(tmp_path):
    judge = base_to_gguf(TINY_MODEL, tmp_path / "judge.gguf", dtype="f16", weights="original")
    (unpacked := tmp_path / "unpacked").mkdir()
    gguf_folder.unpack_tokenizer(judge, unpacked)
    folder, file = ChatFormat.load(TINY_MODEL), ChatFormat.load(unpacked)
    for text in (
        *parity.TOKEN_PROBES,
        "Sort the letters c a b.\n <|eot_id|> é 12",
        "I'LL pay 12345.\n\n\nNo?",
    ):
        assert file.prompt_ids(user(text)) == folder.prompt_ids(user(text))
    assert (file.stop, file.pad, file.answer) == (folder.stop, folder.pad, folder.answer)


def test_a_gguf_that_is_no_chat_model_is_refused(tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ConfigError, match=r"broken\.gguf"):
        gguf_folder.unpack_tokenizer(broken, tmp_path)
