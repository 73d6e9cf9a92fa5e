"""The door for a base: config.json as transformers reads it, and every refusal by name."""

import json

import pytest
from chat_folders import CHATML, byte_folder, edit_json
from random_llama import make_model

from selfreward_lite.models.checks import check_files, check_folder
from selfreward_lite.models.families import FAMILIES, UNSUPPORTED
from selfreward_lite.models.hf_folder import NF4_CONFIG, list_tensors, read_config
from selfreward_lite.models.random_models import FAMILY_MODELS, FAMILY_SIZE
from selfreward_lite.system.errors import ConfigError, ExportError

GEMMA, LLAMA3 = "gemma3", "llama3_1"
PACKED = NF4_CONFIG | {"llm_int8_skip_modules": ["lm_head"]}


@pytest.fixture(scope="module")
def configs():
    """What transformers writes as config.json, by name in FAMILY_MODELS."""
    from transformers import AutoConfig

    found = {}
    for name, (kind, shape) in FAMILY_MODELS.items():
        (family,) = (one for one in FAMILIES.values() if one.model_type == kind)
        config = AutoConfig.for_model(
            kind, **FAMILY_SIZE | shape, vocab_size=100, architectures=[family.architecture]
        )
        found[name] = json.loads(config.to_json_string())
    return found


def write(folder, config):
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def their_shape(folder):
    """The facts of a config.json as transformers reads them, by their names in ModelShape."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    rope = config.rope_parameters
    full, local = rope.get("full_attention", rope), rope.get("sliding_attention", {})
    return {
        "hidden": config.hidden_size,
        "layers": config.num_hidden_layers,
        "ffn": config.intermediate_size,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "head_dim": getattr(config, "head_dim", None)
        or config.hidden_size // config.num_attention_heads,
        "vocab": config.vocab_size,
        "tied": config.tie_word_embeddings,
        "context": config.max_position_embeddings,
        "eps": config.rms_norm_eps,
        "theta": full["rope_theta"],
        "window": getattr(config, "sliding_window", None),
        "window_theta": local.get("rope_theta"),
    }


@pytest.mark.parametrize("name", FAMILY_MODELS)
def test_read_config_agrees_with_transformers_on_defaults(name, configs, tmp_path):
    """Whatever key is missing: it is refused, or read as transformers reads it."""
    refused = set()
    for key in (None, *configs[name]):
        write(tmp_path, {k: v for k, v in configs[name].items() if k != key})
        try:
            shape = read_config(tmp_path)
        except ExportError:
            refused.add(key)
            continue
        expected = their_shape(tmp_path)
        assert {field: getattr(shape, field) for field in expected} == expected, key
    needed = {"architectures", "model_type", "hidden_size", "num_hidden_layers", "vocab_size"}
    assert needed <= refused
    assert not refused & {None, "tie_word_embeddings", "rope_parameters"}


@pytest.mark.parametrize("name", FAMILY_MODELS)
def test_list_tensors_names_what_transformers_has(name, configs, tmp_path):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = read_config(write(tmp_path, configs[name]))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    expected = {key: tuple(value.shape) for key, value in model.named_parameters()}
    assert {one.source: one.shape for one in list_tensors(shape)} == expected


def test_older_files_say_the_same_in_other_keys(configs, tmp_path):
    """Transformers 4 writes the rotation and the window's pattern elsewhere."""
    for name in (LLAMA3, GEMMA):
        config = dict(configs[name])
        expected = read_config(write(tmp_path, config))
        rope = config.pop("rope_parameters")
        full = dict(rope.get("full_attention", rope))
        config["rope_theta"] = full.pop("rope_theta")
        if name == GEMMA:
            config.pop("layer_types")
            config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
            config["sliding_window_pattern"] = 6
        else:
            config["rope_scaling"] = full
        assert read_config(write(tmp_path, config)) == expected


@pytest.mark.parametrize(
    ("named", "words"),
    [
        (["GPT2LMHeadModel"], "GPT2LMHeadModel is no family"),
        (["LlamaForCausalLM", "X"], "LlamaForCausalLM, X is no family"),
        (["Gemma3ForConditionalGeneration"], "Gemma3ForConditionalGeneration is no family"),
        (["Qwen3MoeForCausalLM"], "Qwen3MoeForCausalLM is no family"),
        ("Phi3ForCausalLM", "Phi3ForCausalLM is no family"),
        ([["a"]], r"\['a'\] is no family"),
        ([], "llama is no family"),
        (None, "llama is no family"),
    ],
)
def test_an_unknown_architecture_is_named(named, words, configs, tmp_path):
    write(tmp_path, configs["llama3"] | {"architectures": named})
    with pytest.raises(ExportError, match=words) as caught:
        read_config(tmp_path)
    text = str(caught.value)
    for family in FAMILIES.values():
        assert family.name in text
    assert "choose a model of one of these" in text
    assert "\n" not in text


UNSUPPORTED_VALUES = {
    "attention_bias": True,
    "mlp_bias": True,
    "partial_rotary_factor": 0.5,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "num_experts": 8,
    "num_local_experts": 8,
    "use_bidirectional_attention": True,
}


@pytest.mark.parametrize("name", FAMILY_MODELS)
@pytest.mark.parametrize("key", UNSUPPORTED)
def test_a_setting_that_changes_the_result_is_refused(key, name, configs, tmp_path):
    for value in (None, UNSUPPORTED[key]):
        read_config(write(tmp_path, configs[name] | {key: value}))
    write(tmp_path, configs[name] | {key: UNSUPPORTED_VALUES[key]})
    with pytest.raises(ExportError, match=f"{key} is not .*: choose the plain model"):
        read_config(tmp_path)


def rope(kind, **more):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4} | more}


def window(**kinds):
    both = {"full_attention": {"rope_type": "default"}, "sliding_attention": {}}
    return {"rope_parameters": both | kinds}


FIVE_OF_SIX = "layers with a sliding window are not five of six: choose the plain model"
REFUSALS = [
    ("llama3", {"model_type": "llama4_text"}, "model_type llama4_text is not llama, as for Llama"),
    ("qwen3", {"model_type": "qwen2"}, "model_type qwen2 is not qwen3"),
    ("llama3", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not silu: choose the plain model"),
    (GEMMA, {"hidden_activation": "silu"}, "hidden_act 'silu' is not gelu_pytorch_tanh"),
    ("qwen2_5", rope("yarn", factor=4.0), "rope scaling 'yarn' cannot be exported: choose none or"),
    ("qwen3", rope("dynamic", factor=2.0), "rope scaling 'dynamic' cannot be exported"),
    ("llama3", {"rope_scaling": {"type": "linear", "factor": 2}}, "rope scaling 'linear' cannot"),
    (GEMMA, {"rope_scaling": {"rope_type": "linear", "factor": 8}}, "rope scaling 'linear' cannot"),
    (GEMMA, window(sliding_attention={"rope_type": "linear"}), "'linear' of layers with a window"),
    ("llama3", rope("llama3", factor=8.0), r"config.json lacks 'low_freq_factor': save it again"),
    ("mistral", {"sliding_window": 4096}, "sliding_window is set, which cannot be exported"),
    ("qwen2_5", {"sliding_window": 64, "use_sliding_window": True}, "sliding_window is set"),
    ("qwen3", {"sliding_window": 64, "use_sliding_window": True}, "sliding_window is set"),
    (GEMMA, {"layer_types": ["full_attention"] * 7}, FIVE_OF_SIX),
    (GEMMA, {"layer_types": None, "sliding_window_pattern": 4}, FIVE_OF_SIX),
    (GEMMA, {"sliding_window": None}, "window is None, not a count"),
    (GEMMA, {"query_pre_attn_scalar": 24}, "query_pre_attn_scalar is not head_dim"),
    ("llama3", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "names gptq, not NF4"),
    (
        "qwen3",
        {"quantization_config": PACKED | {"bnb_4bit_quant_type": "fp4"}},
        "bitsandbytes, not",
    ),
    (
        "qwen3",
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        "not",
    ),
    ("llama3", {"num_attention_heads": 0}, "heads is 0, not a count"),
    ("llama3", {"num_attention_heads": 0, "head_dim": None}, "has a value of a wrong kind .*zero"),
    ("llama3", {"num_hidden_layers": "2"}, "layers is '2', not a count: download it again"),
    ("llama3", {"vocab_size": -1}, "vocab is -1, not a count"),
    ("llama3", {"rope_parameters": ["default"]}, "config.json has a value of a wrong kind"),
    ("llama3", {"quantization_config": "nf4"}, "config.json has a value of a wrong kind"),
    ("llama3", {"rms_norm_eps": "small"}, "config.json has a value of a wrong kind .*small"),
    ("llama3", {"num_attention_heads": 5}, "5 heads of .* 2 kv heads: download it again"),
    ("llama3", {"head_dim": 15}, "heads of 15"),
]


@pytest.mark.parametrize(("name", "change", "words"), REFUSALS, ids=lambda one: str(one)[:30])
def test_read_config_refuses_by_name(name, change, words, configs, tmp_path):
    with pytest.raises(ExportError, match=words) as caught:
        read_config(write(tmp_path, configs[name] | change))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_read_config_takes_a_base_in_nf4(configs, tmp_path):
    assert not read_config(write(tmp_path, configs["qwen3"])).packed
    assert read_config(write(tmp_path, configs["qwen3"] | {"quantization_config": PACKED})).packed


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_read_config_names_a_broken_file(text, tmp_path):
    if text:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ExportError, match=r"config\.json .*give a folder written by"):
        read_config(tmp_path)


# -- the whole door ----------


@pytest.fixture
def folder(tmp_path, configs):
    """The small files of a Llama whose tokenizer is of Llama 3's kind; no weights."""
    place = byte_folder(tmp_path / "m", CHATML)
    return write(place, configs["llama3"] | {"vocab_size": 400})


def test_check_files_needs_no_weights(folder):
    assert check_files(folder) == read_config(folder)
    assert not list(folder.glob("*.safetensors"))


def test_check_files_names_what_is_missing(folder):
    for file, error in {
        "tokenizer_config.json": ExportError,
        "tokenizer.json": ExportError,
        "config.json": ExportError,
    }.items():
        (folder / file).unlink()
        with pytest.raises(error, match=file):
            check_files(folder)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("config.json", {"vocab_size": 300}, "token ids .* do not fit vocab_size 300"),
        ("config.json", {"architectures": ["X"]}, "X is no family"),
        ("tokenizer.json", {"normalizer": {"type": "NFKC"}}, "normalizes text in another way"),
        ("tokenizer_config.json", {"bos_token": "<s>"}, "bos_token '<s>' is no token: name one"),
        ("tokenizer_config.json", {"eos_token": "the"}, "eos_token 'the' is no token: name one"),
        ("tokenizer_config.json", {"chat_template": None}, "no chat template; use an instruct"),
        ("tokenizer_config.json", {"chat_template": "{% if %}"}, "template cannot be read"),
        ("tokenizer_config.json", {"chat_template": "x"}, "repeats or leaves out an answer"),
        (
            "tokenizer_config.json",
            {"chat_template": CHATML.replace("m['content']", "m['content'][:0]")},
            "repeats or leaves out",
        ),
        (
            "tokenizer_config.json",
            {"chat_template": CHATML.replace("m['content']", "m['content'] | replace('b', 'B')")},
            "changes the text of a message",
        ),
        (
            "tokenizer_config.json",
            {"chat_template": "{{ bos_token }}{{ bos_token }}" + CHATML},
            "begins with two <|begin_of_text|>",
        ),
    ],
)
def test_check_files_refuses_before_any_weights(file, change, words, folder):
    edit_json(folder / file, lambda data: data.update(change))
    with pytest.raises((ExportError, ConfigError), match=words) as caught:
        check_files(folder)
    assert "\n" not in str(caught.value)


def test_check_folder_compares_every_shape(tmp_path):
    place = make_model(tmp_path / "m", tie_word_embeddings=False, num_key_value_heads=2)
    check_folder(place)
    edit_json(place / "config.json", lambda config: config.update(intermediate_size=256))
    with pytest.raises(ExportError, match=r"mlp.* has shape \(.*config.json says \(.*download"):
        check_folder(place)
    edit_json(place / "config.json", lambda c: c.update(intermediate_size=128, num_hidden_layers=3))
    with pytest.raises(ExportError, match=r"9 tensors are missing, first model\.layers\.2\."):
        check_folder(place)
