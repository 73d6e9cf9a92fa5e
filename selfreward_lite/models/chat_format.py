"""The one place where messages become token ids, for every engine and for the trainers alike.

The template's own tokens are special; the content of a message never is: `<|eot_id|>` typed by a
user or written by a model is seven ordinary characters here. So no text can close its own turn or
speak in another role.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self, TypedDict

import jinja2.sandbox
from tokenizers import Regex, Tokenizer, pre_tokenizers

from selfreward_lite.engine.api import TokenIds
from selfreward_lite.system.errors import ConfigError
from selfreward_lite.system.files import Json

# Llama-3.1's and 3.2's templates write a date into the system's turn: this one by default, and
# today's where transformers renders. A run must send the same text on every day, so it is given
# everywhere.
DATE = "26 Jul 2024"

# How text is split into words before they become tokens, by its name in GGUF: Llama-3's way, and
# Qwen's.
WORD_SPLITS = {
    name: r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    + digits
    + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for name, digits in (("llama-bpe", r"\p{N}{1,3}"), ("qwen2", r"\p{N}"))
}
# Llama-3, ChatML, Gemma, Phi
_ENDS_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>")


# What transformers raises for a file that it cannot read.
GGUF_ERRORS = (ValueError, LookupError, OSError, NotImplementedError, AttributeError)


class Message(TypedDict):
    """One turn: `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, eq=False)  # equal only to itself, so that a cache can use it as a key
class ChatFormat:
    """A tokenizer together with its chat template.

    `stop` holds every id that ends an assistant's turn (Llama-3 has two); `pad` is none of them.
    """

    tokenizer: Tokenizer
    template: jinja2.Template
    bos_token: str
    stop: TokenIds
    pad: int

    @classmethod
    def load(cls, model_dir: Path) -> Self:
        """Read `tokenizer.json`, `tokenizer_config.json` and the chat template of a folder.

        Raises ConfigError where one of them is missing or the pad token would end a turn.
        """
        settings: Json = json.loads(_read(model_dir / "tokenizer_config.json"))
        tokenizer = Tokenizer.from_buffer(_read(model_dir / "tokenizer.json"))
        tokenizer.encode_special_tokens = True
        stop = _stop_ids(model_dir, settings, tokenizer)
        return cls(
            tokenizer,
            _parse_template(read_template(model_dir, settings), model_dir),
            token_text(settings.get("bos_token")) or "",
            stop,
            _pad_id(settings, tokenizer, stop, model_dir),
        )

    @classmethod
    def from_gguf(cls, path: Path) -> Self:
        """Read tokenizer and chat template from a GGUF file, with the help of transformers.

        Raises ConfigError where the file has none, or of a kind that is not supported.
        """
        from gguf import GGUFReader
        from transformers import AutoTokenizer

        try:
            fields = GGUFReader(path).fields
            tokenizer: Any = AutoTokenizer.from_pretrained(
                str(path.parent), gguf_file=path.name
            ).backend_tokenizer
        except GGUF_ERRORS as error:
            raise ConfigError(
                f"{path}: its tokenizer cannot be read ({error}); use a GGUF of a chat model"
            ) from None

        def read(name: str) -> Any:
            field = fields.get(f"tokenizer.{name}")
            return field and field.contents()

        kind = read("ggml.pre")
        if kind not in WORD_SPLITS:
            raise ConfigError(
                f"{path}: its tokenizer splits words as {kind!r}; use a judge with one of "
                f"{', '.join(WORD_SPLITS)}"
            )
        # transformers splits words as GPT-2 does, whatever the file says, and cannot know
        # ignore_merges.
        tokenizer.pre_tokenizer = build_pre_tokenizer(kind)
        tokenizer.model.ignore_merges = kind == "llama-bpe"
        tokenizer.encode_special_tokens = True
        text = read("chat_template")
        template = _parse_template(text, path)
        ends = [
            *(tokenizer.token_to_id(token) for token in _ENDS_OF_TURN),
            *(read(f"ggml.{name}_token_id") for name in ("eot", "eos")),
        ]
        bos = read("ggml.bos_token_id")
        return cls(
            tokenizer,
            template,
            "" if bos is None or "bos_token" not in text else tokenizer.id_to_token(bos),
            _unique(ends),
            read("ggml.padding_token_id") or 0,
        )

    def prompt_ids(self, messages: Sequence[Message], continue_with: str = "") -> TokenIds:
        """The ids of a conversation, up to where the assistant's turn begins.

        `continue_with` is the beginning of that turn, to be continued by the model.
        """
        ids = self._render(messages) + self.text_ids(continue_with)
        bos: Any = self.tokenizer.token_to_id(self.bos_token)
        if self.bos_token and ids.count(bos) != 1:
            raise ConfigError(
                f"the chat template must begin a conversation with exactly one {self.bos_token}"
            )
        return tuple(ids)

    def completion_ids(self, text: str) -> TokenIds:
        """The ids of an assistant's turn, with the token that ends it."""
        return (*self.text_ids(text), self.end_of_turn)

    def text_ids(self, text: str) -> list[int]:
        """The ids of plain text; nothing in it is special."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    @property
    def end_of_turn(self) -> int:
        """The id that ends an assistant's turn in the template."""
        return self.stop[0]

    def _render(self, messages: Sequence[Message]) -> list[int]:
        """Render with placeholders for contents, so only the template's text can be special."""
        marks = [f"\ue000{index}\ue001" for index in range(len(messages))]
        text = self.template.render(
            messages=[
                {**message, "content": mark} for message, mark in zip(messages, marks, strict=True)
            ],
            bos_token=self.bos_token,
            add_generation_prompt=True,
            date_string=DATE,
        )
        ids: list[int] = []
        for message, mark in zip(messages, marks, strict=True):
            if text.count(mark) != 1:
                raise ConfigError(
                    "the chat template repeats or leaves out a message; use a Llama-family template"
                )
            before, text = text.split(mark)
            ids += self._template_ids(before) + self.text_ids(message["content"].strip())
        return ids + self._template_ids(text)

    @lru_cache(maxsize=256)  # noqa: B019 - a process has one or two of these
    def _template_ids(self, text: str) -> list[int]:
        self.tokenizer.encode_special_tokens = False
        try:
            return self.tokenizer.encode(text, add_special_tokens=False).ids
        finally:
            self.tokenizer.encode_special_tokens = True


def build_pre_tokenizer(kind: str) -> pre_tokenizers.Sequence:
    """What splits text into words of bytes, in one of WORD_SPLITS."""
    words = pre_tokenizers.Split(Regex(WORD_SPLITS[kind]), "isolated")
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([words, whole])


def user(content: str) -> list[Message]:
    """A conversation of one turn, a user's message."""
    return [Message(role="user", content=content)]


def read_template(model_dir: Path, settings: Json) -> Any:
    """The chat template in a folder's own file, else in `settings`, its tokenizer_config.json."""
    file = model_dir / "chat_template.jinja"
    return file.read_text(encoding="utf-8") if file.exists() else settings.get("chat_template")


def token_text(token: str | Json | None) -> str | None:
    """The text of a special token as tokenizer_config.json writes it."""
    return str(token["content"]) if isinstance(token, dict) else token


def _parse_template(text: Any, place: Path) -> jinja2.Template:
    if not isinstance(text, str):
        raise ConfigError(f"{place} has no chat template; use an instruct (chat) model")
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(text)


def _stop_ids(model_dir: Path, settings: Json, tokenizer: Tokenizer) -> TokenIds:
    """The template's end-of-turn token first, then the ends of a text in the model's own files."""
    named = ["<|eot_id|>", token_text(settings.get("eos_token"))]
    ids = [tokenizer.token_to_id(token) for token in named if token]
    for file in ("generation_config.json", "config.json"):
        path = model_dir / file
        eos = json.loads(_read(path)).get("eos_token_id") if path.exists() else None
        ids += eos if isinstance(eos, list) else [eos]
    if not (stop := _unique(ids)):
        raise ConfigError(f"{model_dir}: no end-of-turn token in its files; name one as eos_token")
    return stop


def _unique(tokens: list[int | None]) -> TokenIds:
    return tuple(dict.fromkeys(token for token in tokens if token is not None))


def _pad_id(settings: Json, tokenizer: Tokenizer, stop: TokenIds, model_dir: Path) -> int:
    """The pad token's id. Not a stop token: collators mask pads, so no stop would be learned."""
    own = token_text(settings.get("pad_token"))
    for name in (own, "<|finetune_right_pad_id|>", "<|reserved_special_token_0|>"):
        token: int | None = tokenizer.token_to_id(name) if name else None
        if token is not None and token not in stop:
            return token
    raise ConfigError(
        f"{model_dir}: no padding token apart from the stop tokens; "
        "set pad_token in tokenizer_config.json"
    )


def _read(path: Path) -> bytes:
    if not path.exists():
        raise ConfigError(
            f"{path} is missing; the base model must be a complete Hugging Face folder"
        )
    return path.read_bytes()
