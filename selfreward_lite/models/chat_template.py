"""A model's chat template, rendered as transformers renders it, but with one date for every day.

A template is a program from a download: it runs in Jinja's sandbox and sees messages and the names
of special tokens, nothing else.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, Self, TypedDict

import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
from jinja2.parser import Parser

from selfreward_lite.system.errors import ConfigError
from selfreward_lite.system.files import Json

# Templates write a date into the system's turn, mostly today's. A run must send the same text on
# every day. This one is the default of Llama-3.1's and 3.2's templates.
DAY = datetime(2024, 7, 26, tzinfo=UTC)

# What templates may ask for beside messages. Qwen3 answers without thinking aloud first: a judge's
# and an actor's token limits are for the answer.
OPTIONS: dict[str, Any] = {
    "tools": None,
    "documents": None,
    "date_string": f"{DAY:%d %b %Y}",
    "strftime_now": DAY.strftime,
    "enable_thinking": False,
}


class Message(TypedDict):
    """One turn: `role` is system, user or assistant."""

    role: str
    content: str


def user(content: str) -> list[Message]:
    """A conversation of one turn, a user's message."""
    return [Message(role="user", content=content)]


class GenerationTag(jinja2.ext.Extension):
    """`{% generation %}`, around what an assistant wrote; it changes nothing in the text."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[jinja2.nodes.Node]:
        """The statements between the tags; what they set is unknown outside, as in transformers."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return [jinja2.nodes.Scope(body, lineno=line)]


@dataclass(frozen=True, eq=False)
class ChatTemplate:
    """A compiled template with the texts of the special tokens that it may write, by role."""

    source: str
    compiled: jinja2.Template
    tokens: Mapping[str, str]

    @classmethod
    def parse(cls, source: Any, tokens: Mapping[str, str], place: Path) -> Self:
        """A template from its text, or from a list of named ones, of which `default` is taken.

        Raises ConfigError, naming the place, where there is none or it is no valid template.
        """
        if isinstance(source, list):
            source = _find_default(source, place)
        if not isinstance(source, str):
            raise ConfigError(f"{place} has no chat template; use an instruct (chat) model")
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationTag, jinja2.ext.loopcontrols],
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        try:
            return cls(source, environment.from_string(source), tokens)
        except (jinja2.TemplateError, RecursionError) as error:
            raise ConfigError(
                f"{place}: its chat template cannot be read ({_one_line(error)}); download it again"
            ) from None

    def render(self, messages: Sequence[Message], *, ask: bool) -> str:
        """The text of a conversation; `ask` adds what makes the assistant speak next.

        Raises ConfigError where the template refuses the conversation.
        """
        try:
            return self.compiled.render(
                messages=messages, add_generation_prompt=ask, **self.tokens, **OPTIONS
            )
        except Exception as error:  # noqa: BLE001 - a downloaded program may raise anything
            roles = ", ".join(message["role"] for message in messages)
            raise ConfigError(
                f"the model's chat template refuses a conversation of {roles} "
                f"({_one_line(error)}); leave a role out, or use another model"
            ) from None


def read_template(model_dir: Path, settings: Json) -> Any:
    """The chat template in a folder's own file, else in `settings`, its tokenizer_config.json."""
    file = model_dir / "chat_template.jinja"
    if not file.exists():
        return settings.get("chat_template")
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read ({error}); download it again") from None


def _find_default(entries: list[Any], place: Path) -> Any:
    """The template named `default` in a list of named ones."""
    named = {
        entry.get("name"): entry.get("template") for entry in entries if isinstance(entry, dict)
    }
    if "default" not in named:
        raise ConfigError(
            f"{place} has chat templates named {', '.join(map(str, named)) or 'nothing'}, and none "
            "named default; write the one to use to chat_template.jinja in that folder"
        )
    return named["default"]


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it: Jinja's own filter escapes for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _one_line(error: BaseException) -> str:
    """What a template or Jinja says of an error, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
