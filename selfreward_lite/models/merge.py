"""A model of a run as one GGUF, base and adapter merged, with an Ollama Modelfile beside it.

The base is the original one in full precision, not what 4-bit training saw of it: merging into NF4
weights would keep their rounding for ever. So its answers are near those that the run measured, and
not the same.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import jinja2

from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.models.gguf_export import Dtype, base_to_gguf
from selfreward_lite.models.hf_folder import read_config, read_vocabulary
from selfreward_lite.models.parity import check_parity, conversation_ids, parity
from selfreward_lite.models.quantize import Report, quantize
from selfreward_lite.system.errors import EngineError, ExportError

DIRECT = get_args(Dtype)  # types written without llama.cpp; it makes the others from float16
MARK = "\ue000"  # stands for the content of a message; no template contains it
MAX_CONTEXT = 8192  # Ollama's own default cuts a conversation earlier
PROOFS = (
    "user",
    "system user",
    "user assistant user",
    "system user assistant user assistant user",
)


@dataclass(frozen=True)
class MergedModel:
    """A full model that was written: what was proved, and why there is no Modelfile if so.

    `tokens` counts the compared token ids, `difference` is the largest difference of a logit from
    PEFT on the full-precision base, `agreement` the share of positions with the same likeliest
    token.
    """

    tokens: int
    difference: float | None
    agreement: float | None
    no_modelfile: str | None


def write_model(
    model_dir: Path,
    adapter_dir: Path,
    out: Path,
    kind: str,
    prove: bool,
    report: Report = lambda at: None,
) -> MergedModel:
    """Write the full model as `out` in type `kind`, and `Modelfile` beside it.

    `prove` compares its logits with PEFT's, which needs four bytes of memory a weight. Raises
    EngineError, and leaves no file, where one cannot be written or read back, or is in float32 and
    differs by more than rounding.
    """
    for left in out.parent.glob("*.part"):  # of an attempt that was killed; hidden ones too
        left.unlink()
    llama, text, refused = read_config(model_dir), None, None
    adds_bos = read_vocabulary(model_dir, llama.vocab).add_bos
    chat = ChatFormat.load(model_dir)
    try:
        text = build_modelfile(chat, out.name, adds_bos=adds_bos, context=llama.context)
    except ExportError as error:  # a model is useful without one
        refused = str(error)
    direct = kind in DIRECT
    wide = out if direct else out.with_name(f"{out.stem}.f16.part")
    dtype: Any = kind if direct else "f16"
    base_to_gguf(model_dir, wide, weights="original", dtype=dtype, adapter_dir=adapter_dir)
    if not direct:
        try:
            quantize(wide, out, kind, report)
        finally:
            wide.unlink()
    try:
        ids = conversation_ids(model_dir, out)
        found = (
            parity(model_dir, adapter_dir, out, None, ids, weights="original") if prove else None
        )
        if found and kind == "f32":
            check_parity(found)
    except EngineError:
        out.unlink()
        raise
    if text is not None:
        (out.parent / "Modelfile").write_text(text, encoding="utf-8")
    return MergedModel(
        tokens=sum(map(len, ids)),
        difference=found.max_abs_diff if found else None,
        agreement=found.agreement if found else None,
        no_modelfile=refused,
    )


# -- Ollama's Modelfile ----------


@dataclass(frozen=True)
class TemplatePieces:
    """What a chat template writes: first, around each message by role, before the next turn."""

    beginning: str
    around: dict[str, tuple[str, str]]
    turn: str

    def conversation(self, roles: Sequence[str]) -> str:
        """The template's text for messages that are all MARK, up to the assistant's turn."""
        return self.beginning + "".join(MARK.join(self.around[role]) for role in roles) + self.turn


def split_template(chat: ChatFormat) -> TemplatePieces:
    """Split a chat template into pieces, and prove that they make up the template.

    Raises ExportError where it is more than pieces around messages, as in Llama-3.1, which writes
    the date.
    """

    def render(*roles: str, speak: bool = False) -> str:
        messages = [{"role": role, "content": MARK} for role in roles]
        return chat.template.render(
            messages=messages, bos_token=chat.bos_token, add_generation_prompt=speak
        )

    try:
        before, after = render("user").split(MARK)
        first_turn = before + MARK + after
        beginning = chat.bos_token if before.startswith(chat.bos_token) else ""
        user = before.removeprefix(beginning), after
        assistant = render("user", "assistant").removeprefix(first_turn).split(MARK)
        first, rest = render("system", "user").split(MARK)[:2]
        system = first.removeprefix(beginning), rest.removesuffix(user[0])
        around = {"system": system, "user": user, "assistant": (assistant[0], assistant[1])}
        turn = render("user", speak=True).removeprefix(first_turn)
    except (ValueError, IndexError, jinja2.TemplateError):
        raise ExportError(
            "the chat template leaves out, repeats or refuses a message: "
            "write the Modelfile by hand"
        ) from None
    found = TemplatePieces(beginning, around, turn)
    for proof in PROOFS:
        roles = proof.split()
        if found.conversation(roles) != render(*roles, speak=True):
            raise ExportError(
                f"the chat template is not the same around every message ({', '.join(roles)}): "
                "write the Modelfile by hand"
            )
    return found


def build_modelfile(chat: ChatFormat, gguf: str, *, adds_bos: bool, context: int) -> str:
    """The Modelfile for a GGUF of that name in the same folder.

    `adds_bos` tells whether llama.cpp adds the beginning of text to this GGUF by itself; there must
    be exactly one.
    """
    found = split_template(chat)
    template = "" if adds_bos else _literal(found.beginning)
    template += (
        "{{ range $i, $message := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
    )
    for word, role in (("if", "system"), ("else if", "user"), ("else if", "assistant")):
        before, after = map(_literal, found.around[role])
        if role == "assistant":  # a conversation that ends with its text is to be continued
            after = f"{{{{ if not $last }}}}{after}{{{{ end }}}}"
        template += f'{{{{ {word} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
    template += (
        f'{{{{ end }}}}{{{{ if and $last (ne .Role "assistant") }}}}{_literal(found.turn)}'
        "{{ end }}{{ end }}"
    )
    stops = [stop for token in chat.stop if (stop := chat.tokenizer.id_to_token(token)) is not None]
    lines = [
        f"FROM ./{gguf}",
        f'TEMPLATE """{template}"""',
        f"PARAMETER num_ctx {min(context, MAX_CONTEXT)}",
        *(f'PARAMETER stop "{stop}"' for stop in stops),
    ]
    return "\n".join(lines) + "\n"


def _literal(text: str) -> str:
    """Text as a string in Ollama's template language, with its line ends and braces."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""
