"""A model of a run as one GGUF, base and adapter merged, with an Ollama Modelfile beside it.

The base is the original one in full precision, not what 4-bit training saw of it: merging into NF4
weights would keep their rounding for ever. So its answers are near those that the run measured, and
not the same.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.models.chat_template import Message
from selfreward_lite.models.gguf_export import Dtype, base_to_gguf
from selfreward_lite.models.hf_folder import read_config
from selfreward_lite.models.parity import check_parity, conversation_ids, parity
from selfreward_lite.models.quantize import Report, quantize
from selfreward_lite.models.vocabulary import read_vocabulary
from selfreward_lite.system.errors import ConfigError, EngineError, ExportError

DIRECT = get_args(Dtype)  # types written without llama.cpp; it makes the others from float16
MARKS = {"system": "\ue000", "user": "\ue001", "assistant": "\ue002"}  # stand for contents
MAX_CONTEXT = 8192  # Ollama's own default cuts a conversation earlier
PROOFS = (
    "user",
    "system user",
    "user assistant user",
    "system user assistant user",
    "user assistant user assistant user",
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
    shape, text, refused = read_config(model_dir), None, None
    adds_bos = read_vocabulary(model_dir, shape.vocab).add_bos
    chat = ChatFormat.load(model_dir)
    try:
        text = build_modelfile(chat, out.name, adds_bos=adds_bos, context=shape.context)
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

# Go's template language; @names@ are filled with strings of TemplatePieces.
OLLAMA = (
    "{{ @beginning@ }}{{ $before := @first@ }}{{ $before_system := @system@ }}"
    '{{ $system := "" }}{{ $has_system := false }}'
    "{{ range $i, $message := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
    '{{ if eq .Role "system" }}'
    "{{ $system = .Content }}{{ $has_system = true }}{{ $before = $before_system }}"
    '{{ else if eq .Role "user" }}{{ $before }}'
    "{{ if @has_system@ }}{{ $system }}{{ @to_user@ }}{{ $has_system = false }}{{ end }}"
    "{{ .Content }}{{ if $last }}{{ @ask@ }}{{ end }}"
    '{{ else if eq .Role "assistant" }}'
    "{{ if $last }}{{ @continue@ }}{{ .Content }}"
    "{{ else }}{{ @answer@ }}{{ .Content }}"
    "{{ $before = @later@ }}{{ $before_system = @later_system@ }}{{ end }}{{ end }}{{ end }}"
)


@dataclass(frozen=True)
class TemplatePieces:
    """What a chat template writes before, between and after the contents of messages.

    A user's content follows `first` in the first turn, and `later` after an answer. `ask` makes the
    assistant speak; `answer` stands between a user's content and an answer that has been given. A
    system's content follows `system`, or `later_system` after an answer; `to_user` leads on to the
    user's content behind it, which is the next one, or the last if `system_last`.
    """

    beginning: str
    first: str
    later: str
    ask: str
    answer: str
    system: str
    later_system: str
    to_user: str
    system_last: bool

    def conversation(self, roles: Sequence[str]) -> str:
        """The template's text for a conversation of MARKS, up to the assistant's turn."""
        text, has_system = self.beginning, False
        before, before_system = self.first, self.system
        for number, role in enumerate(roles, start=1):
            if role == "system":
                before, has_system = before_system, True
            elif role == "user":
                is_last = number == len(roles)
                text += before
                if has_system and (is_last or not self.system_last):
                    text, has_system = text + MARKS["system"] + self.to_user, False
                text += MARKS["user"] + self.ask * is_last
            elif role == "assistant":
                text += self.answer + MARKS["assistant"]
                before, before_system = self.later, self.later_system
        return text


def split_template(chat: ChatFormat) -> TemplatePieces:
    """Split a chat template into pieces, and prove that they make up the template.

    Raises ExportError where it is more than pieces around contents.
    """

    def split(roles: str) -> list[str]:
        return re.split("|".join(MARKS.values()), render(roles))

    def render(roles: str) -> str:
        messages = [Message(role=role, content=MARKS[role]) for role in roles.split()]
        return chat.template.render(messages, ask=True)

    try:
        first, ask = split("user")
        _, answer, later, _ = split("user assistant user")
        system, to_user, _ = split("system user")
        with_system = render("system user assistant user")
        later_system = _find_later_system(split, later, to_user)
    except (ValueError, ConfigError):
        raise ExportError(
            "the chat template leaves out, repeats or refuses a message: "
            "write the Modelfile by hand"
        ) from None
    bos = chat.template.tokens.get("bos_token", "")
    beginning = bos if first.startswith(bos) else ""
    found = TemplatePieces(
        beginning=beginning,
        first=first.removeprefix(beginning),
        later=later,
        ask=ask,
        answer=answer,
        system=system.removeprefix(beginning),
        later_system=later_system,
        to_user=to_user,
        system_last=with_system.find(MARKS["system"]) > with_system.find(MARKS["assistant"]),
    )
    for proof in PROOFS:
        if found.conversation(proof.split()) != render(proof):
            raise ExportError(
                "the chat template is not the same around every message "
                f"({proof.replace(' ', ', ')}): write the Modelfile by hand"
            )
    return found


def _find_later_system(split: Callable[[str], list[str]], later: str, to_user: str) -> str:
    """What leads from an answer to a system's content, which `/set system` of Ollama puts there.

    Where a template takes none there, the text stands in the user's turn.
    """
    try:
        _, _, found, after, _ = split("user assistant system user")
    except (ValueError, ConfigError):
        return later
    return found if after == to_user else later


def build_modelfile(chat: ChatFormat, gguf: str, *, adds_bos: bool, context: int) -> str:
    """The Modelfile for a GGUF of that name in the same folder.

    `adds_bos` tells whether llama.cpp adds the beginning of text to this GGUF by itself; there must
    be exactly one. A conversation that ends with an assistant's text is to be continued.
    """
    found = split_template(chat)
    texts = {field.name: getattr(found, field.name) for field in fields(found)}
    texts["continue"] = found.ask + chat.answer.before
    if adds_bos:
        texts["beginning"] = ""
    values = {name: json.dumps(text, ensure_ascii=False) for name, text in texts.items()}
    values["has_system"] = "and $has_system $last" if found.system_last else "$has_system"
    template = re.sub("@([a-z_]+)@", lambda name: values[name[1]], OLLAMA)
    stops = [stop for token in chat.stop if (stop := chat.tokenizer.id_to_token(token)) is not None]
    lines = [
        f"FROM ./{gguf}",
        f'TEMPLATE """{template}"""',
        f"PARAMETER num_ctx {min(context, MAX_CONTEXT)}",
        *(f'PARAMETER stop "{stop}"' for stop in stops),
    ]
    return "\n".join(lines) + "\n"
