"""The one place where messages become token ids, for every engine and for the trainers alike.

The template's own tokens are special; the content of a message never is: `<|eot_id|>` typed by a
user or written by a model is seven ordinary characters here. So no text can close its own turn or
speak in another role.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from tokenizers import AddedToken, Tokenizer
from tokenizers.pre_tokenizers import Metaspace

from selfreward_lite.engine.api import TokenIds
from selfreward_lite.models.chat_template import ChatTemplate, Message, read_template, user
from selfreward_lite.system.errors import ConfigError
from selfreward_lite.system.files import Json

MARK = re.compile("\ue000([0-9]+)\ue001")  # stands for a message while the template is rendered
ROLE_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
# Names of tokens that no text uses, in models whose own padding token ends a turn.
SPARE_TOKENS = ("<|finetune_right_pad_id|>", "<|reserved_special_token_0|>", "<|endoftext|>")


class Answer(NamedTuple):
    """What a template writes around an answer: blank text before and after it, then its end.

    `end` is the token that ends an assistant's turn. `before` follows what makes the assistant
    speak; `[/INST]` asks in Mistral's, and a space follows. `lead` is the plain text, after the
    last special token, in which that question to speak ends.
    """

    before: str
    after: str
    end: str
    lead: str


@dataclass(frozen=True, eq=False)  # equal only to itself, so that a cache can use it as a key
class ChatFormat:
    """A tokenizer together with its chat template.

    `special` are the ids of the tokens that only the template may write, `any_special` finds them.
    `stop` holds every id that ends an assistant's turn (Llama-3 has two), first the template's own;
    `pad` is not that one.
    """

    tokenizer: Tokenizer
    template: ChatTemplate
    special: dict[str, int]
    any_special: re.Pattern[str]
    answer: Answer
    stop: TokenIds
    pad: int

    @classmethod
    def load(cls, model_dir: Path) -> Self:
        """Read `tokenizer.json`, `tokenizer_config.json` and the chat template of a folder.

        Raises ConfigError where one of them is missing or broken, or where the template asks nobody
        to speak, does not keep a question apart from its answer, or does not end an answer.
        """
        settings = _read_settings(model_dir / "tokenizer_config.json")
        tokenizer = _load_tokenizer(model_dir / "tokenizer.json")
        names = {role: token_text(settings.get(role)) for role in ROLE_TOKENS}
        template = ChatTemplate.parse(
            read_template(model_dir, settings),
            {role: name for role, name in names.items() if name},
            model_dir,
        )
        special = _guard_special(tokenizer, template)
        any_special = compile_special(special)
        answer = find_answer(template, any_special, model_dir)
        stop = _unique([special[answer.end], *_ends_in_files(model_dir, names, tokenizer)])
        pad = _find_pad(names["pad_token"], special, stop, model_dir)
        return cls(tokenizer, template, special, any_special, answer, stop, pad)

    def prompt_ids(self, messages: Sequence[Message], continue_with: str = "") -> TokenIds:
        """The ids of a conversation, up to where the assistant's turn begins.

        `continue_with` is the beginning of that turn, to be continued by the model. Raises
        ConfigError where the template refuses the conversation or repeats a message.
        """
        ids = self._encode(messages)
        if continue_with:
            ids += self._answer_ids(self.answer.before + continue_with)
        return tuple(ids)

    def completion_ids(self, text: str) -> TokenIds:
        """The ids of an assistant's turn without blanks around it, and the token that ends it."""
        inside = self.answer.before + text + self.answer.after
        return (*self._answer_ids(inside), self.end_of_turn)

    def text_ids(self, text: str) -> list[int]:
        """The ids of plain text; nothing in it is special."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids if text else []

    def _answer_ids(self, text: str) -> list[int]:
        """The ids of plain text where the assistant speaks.

        SentencePiece puts a space before a text, and none inside of one; so the text is read after
        the one that leads to it, unless their ends are one token.
        """
        lead = self.text_ids(self.answer.lead)
        ids = self.text_ids(self.answer.lead + text)
        return ids[len(lead) :] if ids[: len(lead)] == lead else self.text_ids(text)

    @property
    def end_of_turn(self) -> int:
        """The id that ends an assistant's turn in the template."""
        return self.stop[0]

    def fill(self, messages: Sequence[Message]) -> str:
        """The text of a conversation, made as its ids are: rendered with marks, then filled."""
        return _fill(self._render(messages), messages)

    def _encode(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation, in which only the template's text can be special.

        Text between two special tokens is encoded at once, as transformers does: a template's line
        end and a content's may be one token.
        """
        ids: list[int] = []
        for part in filter(None, self.any_special.split(self._render(messages))):
            if part in self.special:
                ids.append(self.special[part])
            else:
                ids += self.text_ids(_fill(part, messages))
        return ids

    def _render(self, messages: Sequence[Message]) -> str:
        """Render with marks for contents.

        A mark has the spaces around its content: what the template trims is trimmed.
        """
        text = self.template.render(
            [
                {**message, "content": _mark(message["content"], index)}
                for index, message in enumerate(messages)
            ],
            ask=True,
        )
        if sorted(map(int, MARK.findall(text))) != list(range(len(messages))):
            raise ConfigError(
                "the chat template repeats or leaves out a message; use that of a chat model"
            )
        return text


def _fill(text: str, messages: Sequence[Message]) -> str:
    """A rendered text with contents instead of their marks."""
    return MARK.sub(lambda mark: messages[int(mark[1])]["content"].strip(), text)


def _mark(content: str, index: int) -> str:
    """What stands for a content: a mark between the content's own leading and trailing spaces."""
    inner = content.strip()
    before, after = content.split(inner, 1) if inner else (content, "")
    return f"{before}\ue000{index}\ue001{after}"


def compile_special(special: Iterable[str]) -> re.Pattern[str]:
    """What finds special tokens in a template's text, for `split`.

    It is made once: Gemma has thousands of them.
    """
    longest_first = sorted(special, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")


def _guard_special(tokenizer: Tokenizer, template: ChatTemplate) -> dict[str, int]:
    """Make a tokenizer read the template's tokens as plain text; return their ids by name.

    Those are the special ones, those with a role, and others that the template names, such as
    Qwen3's `<think>`.
    """
    added = tokenizer.get_added_tokens_decoder()
    roles = set(template.tokens.values())
    special = {
        token.content: index
        for index, token in added.items()
        if token.special
        or token.content in roles
        or (token.content.strip() and token.content in template.source)
    }
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in special]
    )
    tokenizer.encode_special_tokens = True
    return special


def find_answer(template: ChatTemplate, any_special: re.Pattern[str], place: Path) -> Answer:
    """What the template writes around an answer, found by rendering one.

    Raises ConfigError where it does not say that the assistant is to speak, leaves it in a thought,
    has no special token between question and answer, or does not end the answer with one.
    """
    question = user(_mark("", 0))
    asked = template.render(question, ask=True)
    told = template.render([*question, Message(role="assistant", content=_mark("", 1))], ask=False)
    advice = "use the template of a chat model"
    if told.count(_mark("", 1)) != 1:
        raise ConfigError(f"{place}: the chat template repeats or leaves out an answer; {advice}")
    head, tail = told.split(_mark("", 1))
    between = head.rpartition(_mark("", 0))[2]
    after, end, *_ = [*any_special.split(tail), ""]
    # A template without thinking may write an empty thought where it asks, and none in an answer.
    before = head.removeprefix(asked) if not asked.startswith(head) else ""
    if asked.count("<think>") > asked.count("</think>"):
        raise ConfigError(
            f"{place}: the chat template always begins a thought, so there is no answer; use a "
            "model that can answer without thinking"
        )
    if before.strip() or between.strip() == end:
        raise ConfigError(
            f"{place}: the chat template writes nothing that asks the assistant to speak "
            f"(add_generation_prompt); {advice}"
        )
    if not any_special.search(between):
        raise ConfigError(
            f"{place}: the chat template has no special token between a question and its answer, "
            f"so any text could end the question; {advice}"
        )
    if after.strip() or not end:
        raise ConfigError(
            f"{place}: the chat template ends an answer without a special token; {advice}"
        )
    return Answer(before, after, end, any_special.split(asked)[-1])


def token_text(token: str | Json | None) -> str | None:
    """The text of a special token as tokenizer_config.json writes it."""
    return str(token["content"]) if isinstance(token, dict) else token


def _ends_in_files(
    model_dir: Path, names: dict[str, str | None], tokenizer: Tokenizer
) -> Iterator[int | None]:
    """The ends of a text in the model's own files."""
    yield tokenizer.token_to_id(names["eos_token"] or "")
    for file in ("generation_config.json", "config.json"):
        path = model_dir / file
        eos = _read_settings(path).get("eos_token_id") if path.exists() else None
        yield from eos if isinstance(eos, list) else [eos]


def _unique(tokens: Iterable[int | None]) -> TokenIds:
    return tuple(dict.fromkeys(token for token in tokens if token is not None))


def _find_pad(own: str | None, special: dict[str, int], stop: TokenIds, model_dir: Path) -> int:
    """The pad token's id, which ends no turn: collators mask pads, so no end would be learned.

    It is special, so no text holds it. One that only ends a text, as Qwen's, is the second choice.
    """
    known = [special[name] for name in (own, *SPARE_TOKENS) if name in special]
    unused = [token for token in special.values() if token not in stop]
    for token in (*(one for one in known if one not in stop), *known[:1], *unused):
        if token != stop[0]:
            return token
    raise ConfigError(
        f"{model_dir}: no padding token apart from the stop tokens; "
        "set pad_token in tokenizer_config.json"
    )


def _load_tokenizer(path: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_buffer(_read(path))
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read ({error}); download it again") from None
    # Both are kept in the file, and transformers too ignores them: no text is cut or filled up.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    splitter = tokenizer.pre_tokenizer
    if isinstance(splitter, Metaspace) and splitter.prepend_scheme == "first":
        # Parts of a conversation are encoded one by one, and a template's own token is first.
        splitter.prepend_scheme = "never"
        tokenizer.pre_tokenizer = splitter
    return tokenizer


def _read_settings(path: Path) -> Json:
    try:
        settings = json.loads(_read(path))
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read ({error}); download it again") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} holds no JSON object; download it again")
    return settings


def _read(path: Path) -> bytes:
    if not path.exists():
        raise ConfigError(
            f"{path} is missing; the base model must be a complete Hugging Face folder"
        )
    return path.read_bytes()
