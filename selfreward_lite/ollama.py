"""An Ollama Modelfile for a full-model GGUF: the chat template in Ollama's language, and the tokens that end a turn.

Knows: that a Llama-family chat template puts something before and after each message, by its role, and something before the
assistant speaks; it finds those pieces by rendering, and proves that they make up the template. Templates that do more (Llama-3.1
writes the date) are refused. What a message says is put there as it is; the templates trim it. Does not know: weights, runs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import jinja2

from selfreward_lite.chat import ChatFormat
from selfreward_lite.errors import ExportError

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
        return str(chat.template.render(messages=said, bos_token=chat.bos_token, add_generation_prompt=speak))

    try:
        before, after = render("user").split(MARK)
        beginning = chat.bos_token if before.startswith(chat.bos_token) else ""
        user = before.removeprefix(beginning), after
        assistant = render("user", "assistant").removeprefix(before + MARK + after).split(MARK)
        first, rest = render("system", "user").split(MARK)[:2]
        system = first.removeprefix(beginning), rest.removesuffix(user[0])
        turn = render("user", speak=True).removeprefix(before + MARK + after)
        found = Pieces(beginning, {"system": system, "user": user, "assistant": (assistant[0], assistant[1])}, turn)
    except (ValueError, IndexError, jinja2.TemplateError):
        raise ExportError("the chat template leaves out, repeats or refuses a message: write the Modelfile by hand") from None
    for roles in PROOFS:
        if found.conversation(roles) != render(*roles, speak=True):
            said = ", ".join(roles)
            raise ExportError(f"the chat template is not the same around every message ({said}): write the Modelfile by hand")
    return found


def modelfile(chat: ChatFormat, gguf: str, *, adds_bos: bool, context: int) -> str:
    """Return the Modelfile for the GGUF of that name beside it.

    `adds_bos` says whether the GGUF asks for the beginning of text by itself; there must be exactly one.
    """
    found = pieces(chat)
    said = {role: (_literal(before), _literal(after)) for role, (before, after) in found.around.items()}
    template = "" if adds_bos else _literal(found.beginning)
    template += "{{ range $i, $message := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
    for word, role in (("if", "system"), ("else if", "user"), ("else if", "assistant")):
        before, after = said[role]
        if role == "assistant":  # a conversation that ends with the assistant's words is to be gone on with
            after = f"{{{{ if not $last }}}}{after}{{{{ end }}}}"
        template += f'{{{{ {word} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
    template += f'{{{{ end }}}}{{{{ if and $last (ne .Role "assistant") }}}}{_literal(found.turn)}{{{{ end }}}}{{{{ end }}}}'
    stops = [stop for token in chat.stop if (stop := chat.tokenizer.id_to_token(token)) is not None]
    lines = [f"FROM ./{gguf}", f'TEMPLATE """{template}"""', f"PARAMETER num_ctx {min(context, LONGEST_CONTEXT)}"]
    return "\n".join(lines + [f'PARAMETER stop "{stop}"' for stop in stops]) + "\n"


def _literal(text: str) -> str:
    """Text as a string in Ollama's template language, which keeps its line ends and braces as they are."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""
