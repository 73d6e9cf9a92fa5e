"""Vocabularies: which tokenizers are supported, and the way to a GGUF's terms and back."""

import copy
import json
from pathlib import Path

import pytest
from chat_folders import CHATML, CHATML_TOKENS, make_pieces
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from selfreward_lite.models.vocabulary import (
    KINDS,
    Vocabulary,
    build_merges,
    find_kind,
    read_vocabulary,
    write_tokenizer,
)
from selfreward_lite.system.errors import ExportError

NAMES = [kind.name for kind in KINDS]
PLACE = Path("tokenizer.json")


def make_vocabulary(name: str) -> Vocabulary:
    """A small vocabulary of a kind, with a token that is in use and not special."""
    (kind,) = (one for one in KINDS if one.name == name)
    if kind.model == "llama":
        return make_pieces(name, CHATML_TOKENS, CHATML)
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, "th", "the", "\u0120the", "<think>", "<|end|>", *CHATML_TOKENS]
    size = len(letters)
    return Vocabulary(
        kind=kind,
        tokens=tokens,
        kinds=["NORMAL"] * (size + 3) + ["USER_DEFINED"] + ["CONTROL"] * 3,
        merges=["t h", "th e", "\u0120 the"],
        roles={"bos": size + 4, "eos": size + 6, "pad": size + 4, "eot": size + 6},
        add_bos=False,
        template=CHATML,
    )


def write_spec(folder: Path, name: str) -> dict:
    """The tokenizer.json of a small vocabulary of a kind."""
    folder.mkdir(exist_ok=True)
    write_tokenizer(folder, make_vocabulary(name))
    return json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_find_kind_knows_what_write_tokenizer_writes(name, tmp_path):
    spec = write_spec(tmp_path, name)
    assert find_kind(spec, PLACE).name == name
    Tokenizer.from_str(json.dumps(spec))


@pytest.mark.parametrize("name", NAMES)
def test_find_kind_ignores_what_changes_no_token(name, tmp_path):
    text = json.dumps(write_spec(tmp_path, name))
    spec = json.loads(text.replace('"trim_offsets": true', '"trim_offsets": false'))
    spec |= {"decoder": None, "post_processor": None, "truncation": {"max_length": 4}}
    assert find_kind(spec, PLACE).name == name


def test_the_kinds_differ_in_what_find_kind_sees():
    seen = [json.dumps([kind.splitter, kind.normalizer], sort_keys=True) for kind in KINDS]
    assert len(set(seen)) == len(KINDS)


@pytest.mark.parametrize("name", NAMES)
def test_a_vocabulary_comes_back_from_its_folder(name, tmp_path):
    written = make_vocabulary(name)
    write_tokenizer(tmp_path, written)
    read = read_vocabulary(tmp_path, len(written.tokens) + 3)
    added = [f"[PAD{number}]" for number in range(3)]
    assert read.tokens == written.tokens + added
    assert read.kinds == [k.replace("UNKNOWN", "CONTROL") for k in written.kinds] + ["UNUSED"] * 3
    assert read.merges == written.merges
    assert read.kind == written.kind
    assert read.template == written.template
    assert read.add_bos == written.add_bos
    assert read.roles == written.roles | {"eot": written.tokens.index("<|im_end|>")}


def test_scores_rank_tokens_as_their_merges_do(tmp_path):
    written = make_vocabulary("Gemma")
    write_tokenizer(tmp_path, written)
    read = read_vocabulary(tmp_path, len(written.tokens))
    made = {merge.replace(" ", "") for merge in written.merges}
    scores = dict(zip(read.tokens, read.scores, strict=True))
    old = dict(zip(written.tokens, written.scores, strict=True))
    assert sorted(made, key=scores.get) == sorted(made, key=old.get)
    assert max(scores[token] for token in made) == -1
    assert all(score == 0 for token, score in scores.items() if token not in made)


# -- refusals ----------


def set_model(**values):
    return lambda spec: spec["model"].update(values)


def set_added(**values):
    return lambda spec: spec["added_tokens"][-1].update(values)


def drop(name):
    return lambda spec: spec.pop(name)


STRIPPING = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Strip"}]}
EVERY = {
    "it is not BPE": [
        set_model(type="Unigram"),
        set_model(type="WordPiece"),
        drop("model"),
        lambda spec: spec.update(model=None),
    ],
    "it uses dropout or affixes": [
        set_model(dropout=0.1),
        set_model(continuing_subword_prefix="##"),
        set_model(end_of_word_suffix="</w>"),
    ],
    "an added token swallows spaces": [
        set_added(lstrip=True),
        set_added(rstrip=True),
        set_added(single_word=True),
    ],
    "its pre-tokenizer splits text in another way": [
        lambda spec: spec.update(pre_tokenizer={"type": "Whitespace"}),
        lambda spec: spec.update(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True}),
        lambda spec: spec.update(pre_tokenizer={"type": "Sequence", "pretokenizers": []}),
    ],
    "it normalizes text in another way": [
        lambda spec: spec.update(normalizer={"type": "NFKC"}),
        lambda spec: spec.update(normalizer={"type": "Lowercase"}),
        lambda spec: spec.update(normalizer=STRIPPING),
    ],
}


@pytest.mark.parametrize("words", EVERY)
@pytest.mark.parametrize("name", NAMES)
def test_find_kind_names_what_differs(name, words, tmp_path):
    good = write_spec(tmp_path, name)
    for edit in EVERY[words]:
        spec = copy.deepcopy(good)
        edit(spec)
        with pytest.raises(ExportError, match=words) as caught:
            find_kind(spec, PLACE)
        text = str(caught.value)
        assert text.startswith("tokenizer.json: ")
        assert "; supported are tokenizers as of Llama 3, Qwen, " in text
        assert "\n" not in text


@pytest.mark.parametrize("part", ["ignore_merges", "byte_fallback"])
@pytest.mark.parametrize("name", NAMES)
def test_find_kind_names_another_rule_of_the_model(name, part, tmp_path):
    spec = write_spec(tmp_path, name)
    right = spec["model"][part]
    spec["model"][part] = not right
    words = f"{part} is not {right}, as in tokenizers of {name}; supported"
    with pytest.raises(ExportError, match=words):
        find_kind(spec, PLACE)


def test_digits_by_threes_and_alone_are_two_kinds(tmp_path):
    spec = write_spec(tmp_path, "Llama 3")
    spec["pre_tokenizer"] = write_spec(tmp_path / "q", "Qwen")["pre_tokenizer"]
    with pytest.raises(ExportError, match="it normalizes text in another way"):
        find_kind(spec, PLACE)


@pytest.mark.parametrize(
    ("edit", "size", "words"),
    [
        (lambda spec: None, -1, "do not fit vocab_size"),
        (set_added(id=5000), 0, "do not fit vocab_size"),
        (set_added(id=0), 0, "do not fit vocab_size"),
        (lambda spec: spec["model"]["vocab"].pop("a"), 0, "do not fit vocab_size"),
    ],
)
def test_ids_with_holes_or_beyond_the_embedding_are_refused(edit, size, words, tmp_path):
    spec = write_spec(tmp_path, "Qwen")
    edit(spec)
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    with pytest.raises(ExportError, match=words):
        read_vocabulary(tmp_path, len(make_vocabulary("Qwen").tokens) + size)


@pytest.mark.parametrize(
    ("role", "token"),
    [("bos", "<s>"), ("eos", None), ("eos", "the"), ("bos", "the"), ("pad", "[P]"), ("unk", "?!")],
)
def test_a_role_without_a_token_is_refused(role, token, tmp_path):
    write_spec(tmp_path, "Qwen")
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {f"{role}_token": token}))
    words = f"tokenizer_config.json: {role}_token {token!r} is no token: name one of the added"
    with pytest.raises(ExportError) as caught:
        read_vocabulary(tmp_path, 500)
    assert words in str(caught.value)


def test_a_token_with_a_role_is_a_control_token(tmp_path):
    spec = write_spec(tmp_path, "Qwen")
    for token in spec["added_tokens"]:
        token["special"] = token["content"] == "<|im_start|>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    vocabulary = read_vocabulary(tmp_path, 500)
    kinds = dict(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
    assert kinds["<|im_end|>"] == kinds["<|end|>"] == kinds["<|im_start|>"] == "CONTROL"
    assert kinds["<think>"] == "USER_DEFINED"


def test_a_folder_without_template_has_no_end_of_turn(tmp_path):
    write_spec(tmp_path, "Qwen")
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": None}))
    vocabulary = read_vocabulary(tmp_path, 500)
    assert vocabulary.template is None
    assert "eot" not in vocabulary.roles


# -- merges from scores ----------


def test_build_merges_by_hand():
    """abc is made of a and bc, or of ab and c; the best score comes first."""
    tokens = ["a", "b", "c", "bc", "ab", "abc", "xy"]
    scores = [0.0, 0.0, 0.0, -2.0, -1.0, -3.0, -4.0]
    assert build_merges(tokens, scores) == ["a b", "b c", "a bc", "ab c"]
    assert build_merges([], []) == []


def split_by_scores(text: str, scores: dict[str, float]) -> list[str]:
    """SentencePiece's rule: of all neighbors, join those whose token has the best score."""
    parts = list(text)
    while True:
        joined = [a + b for a, b in zip(parts, parts[1:], strict=False)]
        known = [(-scores[one], i) for i, one in enumerate(joined) if one in scores]
        if not known:
            return parts
        _, first = min(known)
        parts[first : first + 2] = [joined[first]]


@given(
    st.lists(st.text("abc", min_size=2, max_size=4), unique=True, max_size=12),
    st.text("abc", max_size=20),
)
def test_merges_split_text_as_scores_do(words, text):
    from tokenizers import models

    tokens = ["a", "b", "c", *words]
    scores = dict(zip(tokens, map(float, range(0, -len(tokens), -1)), strict=True))
    merges = [tuple(merge.split()) for merge in build_merges(tokens, list(scores.values()))]
    ids = {token: number for number, token in enumerate(tokens)}
    found = Tokenizer(models.BPE(vocab=ids, merges=merges)).encode(text).tokens
    assert found == split_by_scores(text, scores)
