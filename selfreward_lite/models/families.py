"""The families of models that are supported: one table, in the terms of transformers and of GGUF.

Everything that differs between families stands here; nothing elsewhere asks for a family by name.
llama.cpp loads many models that it computes in another way, so whatever is not here is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from selfreward_lite.system.files import Json

# Of layers with a window: one in so many sees everything.
WINDOW_PATTERN = 6


def _two_norms() -> Mapping[str, str]:
    return {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}


@dataclass(frozen=True)
class Family:
    """Models of one `architecture` and `model_type` (config.json), which GGUF calls `gguf`.

    `permuted`: llama.cpp reorders the rows of the query and key projections. `biased` names the
    projections of attention that have a bias. `head_norms`: queries and keys are normalized, a head
    at a time. `norms` are a block's others, with their names in GGUF; `norm_offset` is added to all
    in GGUF. `window`: layers but one in WINDOW_PATTERN see only so many tokens back. `defaults` are
    what transformers takes where config.json says nothing.
    """

    name: str
    architecture: str
    model_type: str
    gguf: str
    permuted: bool = False
    biased: tuple[str, ...] = ()
    head_norms: bool = False
    norms: Mapping[str, str] = field(default_factory=_two_norms)
    norm_offset: float = 0.0
    activation: str = "silu"
    window: bool = False
    defaults: Json = field(default_factory=dict)


LLAMA = Family("Llama 3, SmolLM2", "LlamaForCausalLM", "llama", "llama", permuted=True)
QWEN3 = Family(
    "Qwen3",
    "Qwen3ForCausalLM",
    "qwen3",
    "qwen3",
    head_norms=True,
    defaults={"use_sliding_window": False, "num_key_value_heads": 32, "head_dim": 128},
)

FAMILIES = {
    family.architecture: family
    for family in (
        LLAMA,
        Family(
            "Mistral 7B",
            "MistralForCausalLM",
            "mistral",
            "llama",
            permuted=True,
            defaults={"sliding_window": 4096, "num_key_value_heads": 8},
        ),
        Family(
            "Qwen2.5",
            "Qwen2ForCausalLM",
            "qwen2",
            "qwen2",
            biased=("q_proj", "k_proj", "v_proj"),
            defaults={"use_sliding_window": False, "num_key_value_heads": 32},
        ),
        QWEN3,
        Family(
            "Gemma 3 (text)",
            "Gemma3ForCausalLM",
            "gemma3_text",
            "gemma3",
            head_norms=True,
            norms={
                "input_layernorm": "attn_norm",
                "post_attention_layernorm": "post_attention_norm",
                "pre_feedforward_layernorm": "ffn_norm",
                "post_feedforward_layernorm": "post_ffw_norm",
            },
            norm_offset=1.0,
            activation="gelu_pytorch_tanh",
            window=True,
            defaults={
                "num_key_value_heads": 4,
                "head_dim": 256,
                "query_pre_attn_scalar": 256,
                "sliding_window": 4096,
                "sliding_window_pattern": WINDOW_PATTERN,
                "rope_theta": 1e6,
                "tie_word_embeddings": True,
            },
        ),
    )
}

# Keys of config.json that change what is computed, and the values at which they do not.
UNSUPPORTED: Json = {
    "attention_bias": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "num_experts": None,
    "num_local_experts": None,
    "use_bidirectional_attention": False,
}


def list_families() -> str:
    """The families by name, for messages."""
    return ", ".join(family.name for family in FAMILIES.values())
