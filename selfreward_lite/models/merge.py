"""A model of the run as one GGUF that runs anywhere: the full-precision base with its adapter merged, and a Modelfile beside it.

Knows: the order of merging, quantising, proving. Does not know: runs, command lines. The base is the original one and not what
4-bit training saw of it: merging into NF4 weights would keep their rounding for ever. So what it says is near what the run
measured, and not the same (`bench bases` says how near). `write` is a task of the workshop.
"""

# An Ollama Modelfile for a full-model GGUF: the chat template in Ollama's language, and the tokens that end a turn.
#
# Knows: that a Llama-family chat template puts something before and after each message, by its role, and something before the
# assistant speaks; it finds those pieces by rendering, and proves that they make up the template. Templates that do more (Llama-3.1
# writes the date) are refused. What a message says is put there as it is; the templates trim it. Does not know: weights, runs.

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import jinja2

from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.models.gguf_export import Dtype, Weights, base_to_gguf
from selfreward_lite.models.hf_folder import read_config, read_vocabulary
from selfreward_lite.models.parity import check_parity, conversation_ids, parity
from selfreward_lite.models.quantize import quantise
from selfreward_lite.system.errors import ExportError

MARK = "\ue000"  # stands for the content of a message, and is in no template
LONGEST_CONTEXT = 8192  # by default Ollama cuts a conversation at fewer
PROOFS = (
    ("user",), ("system", "user"), ("user", "assistant", "user"), ("system", "user", "assistant", "user", "assistant", "user"),
)  # fmt: skip


@dataclass(frozen=True)
class Pieces:
    """What a template writes: at the beginning, around each message by its role, and before the assistant speaks."""

    beginning: str
    around: dict[str, tuple[str, str]]
    turn: str

    def conversation(self, roles: Sequence[str]) -> str:
        """The template's text for messages that all say MARK, up to where the assistant is to speak."""
        return self.beginning + "".join(MARK.join(self.around[role]) for role in roles) + self.turn


def pieces(chat: ChatFormat) -> Pieces:
    """Take a chat template apart. Raises ExportError where it is more than pieces around messages."""

    def render(*roles: str, speak: bool = False) -> str:
        said = [{"role": role, "content": MARK} for role in roles]
        return str(
            chat.template.render(
                messages=said, bos_token=chat.bos_token, add_generation_prompt=speak
            )
        )

    try:
        before, after = render("user").split(MARK)
        beginning = chat.bos_token if before.startswith(chat.bos_token) else ""
        user = before.removeprefix(beginning), after
        assistant = render("user", "assistant").removeprefix(before + MARK + after).split(MARK)
        first, rest = render("system", "user").split(MARK)[:2]
        system = first.removeprefix(beginning), rest.removesuffix(user[0])
        turn = render("user", speak=True).removeprefix(before + MARK + after)
        found = Pieces(
            beginning,
            {"system": system, "user": user, "assistant": (assistant[0], assistant[1])},
            turn,
        )
    except (ValueError, IndexError, jinja2.TemplateError):
        raise ExportError(
            "the chat template leaves out, repeats or refuses a message: write the Modelfile by hand"
        ) from None
    for roles in PROOFS:
        if found.conversation(roles) != render(*roles, speak=True):
            said = ", ".join(roles)
            raise ExportError(
                f"the chat template is not the same around every message ({said}): write the Modelfile by hand"
            )
    return found


def modelfile(chat: ChatFormat, gguf: str, *, adds_bos: bool, context: int) -> str:
    """Return the Modelfile for the GGUF of that name beside it.

    `adds_bos` says whether the GGUF asks for the beginning of text by itself; there must be exactly one.
    """
    found = pieces(chat)
    said = {
        role: (_literal(before), _literal(after)) for role, (before, after) in found.around.items()
    }
    template = "" if adds_bos else _literal(found.beginning)
    template += (
        "{{ range $i, $message := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
    )
    for word, role in (("if", "system"), ("else if", "user"), ("else if", "assistant")):
        before, after = said[role]
        if (
            role == "assistant"
        ):  # a conversation that ends with the assistant's words is to be gone on with
            after = f"{{{{ if not $last }}}}{after}{{{{ end }}}}"
        template += f'{{{{ {word} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
    template += f'{{{{ end }}}}{{{{ if and $last (ne .Role "assistant") }}}}{_literal(found.turn)}{{{{ end }}}}{{{{ end }}}}'
    stops = [stop for token in chat.stop if (stop := chat.tokenizer.id_to_token(token)) is not None]
    lines = [
        f"FROM ./{gguf}",
        f'TEMPLATE """{template}"""',
        f"PARAMETER num_ctx {min(context, LONGEST_CONTEXT)}",
    ]
    return "\n".join(lines + [f'PARAMETER stop "{stop}"' for stop in stops]) + "\n"


def _literal(text: str) -> str:
    """Text as a string in Ollama's template language, which keeps its line ends and braces as they are."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""


DIRECT = get_args(Dtype)  # written as they are; the other types are made by llama.cpp, of float16


def write(
    model_dir: str,
    adapter_dir: str,
    out: str,
    kind: str,
    prove: bool,
    report: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Write the full model as `out` in type `kind`, and `Modelfile` beside it, alone in their folder.

    Returns `tokens`, how many token ids were compared; with `prove`, `difference`, the largest between its logits and those of
    PEFT on the full-precision base, and `agreement`, the share of positions with the same likeliest token: None without, since
    PEFT's side needs four bytes of memory a weight; `no_modelfile`, why there is none, or None. Raises ExportError, and leaves no
    file, where one cannot be written or read back, or differs by more than rounding although it is in float32.
    """
    folder, target = Path(model_dir), Path(out)
    for left in target.parent.glob("*.part"):  # of an attempt that was killed; hidden ones too
        left.unlink()
    text, refused = _modelfile(folder, target)
    write_base(folder, target, kind, adapter=Path(adapter_dir), report=report)
    try:
        ids = conversation_ids(folder, target)
        found = (
            parity(folder, Path(adapter_dir), target, None, ids, weights="original")
            if prove
            else None
        )
        if found and kind == "f32":
            check_parity(found)
    except ExportError:
        target.unlink()
        raise
    if text is not None:
        (target.parent / "Modelfile").write_text(text, encoding="utf-8")
    return {
        "tokens": sum(map(len, ids)),
        "difference": found.max_abs_diff if found else None,
        "agreement": found.agreement if found else None,
        "no_modelfile": refused,
    }


def write_base(
    folder: Path,
    out: Path,
    kind: str,
    weights: Weights = "original",
    adapter: Path | None = None,
    report: Callable[[dict[str, Any]], None] = lambda at: None,
) -> Path:
    """Write a Hugging Face folder, with an adapter merged where one is given, as a GGUF of any type; returns `out`."""
    if kind in DIRECT:
        return base_to_gguf(folder, out, weights=weights, dtype=kind, adapter_dir=adapter)  # type: ignore[arg-type]
    between = out.with_name(f"{out.stem}.f16.part")
    try:
        base_to_gguf(folder, between, weights=weights, dtype="f16", adapter_dir=adapter)
        return quantise(
            between, out, kind, lambda done, total: report({"done": done, "total": total})
        )
    finally:
        between.unlink(missing_ok=True)


def _modelfile(folder: Path, target: Path) -> tuple[str | None, str | None]:
    """The Modelfile, or why there is none: a model is of use without one."""
    llama = read_config(folder)
    adds_bos = read_vocabulary(folder, llama.vocab).add_bos
    try:
        return modelfile(
            ChatFormat.load(folder), target.name, adds_bos=adds_bos, context=llama.context
        ), None
    except ExportError as error:
        return None, str(error)
