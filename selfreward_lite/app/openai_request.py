"""What programs ask of OpenAI's chat API, checked: what would change a reply is used or refused."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from selfreward_lite.app.texts import refuse_half_characters, show_name
from selfreward_lite.config.wording import explain_fault, name_place
from selfreward_lite.models.chat_template import Message
from selfreward_lite.system.errors import EngineError, SelfRewardError, UserError
from selfreward_lite.system.files import Json

# What other programs send although it asks for nothing: the value that changes no reply. A value
# of ANY is for OpenAI's own bookkeeping.
ANY = object()
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repeat_penalty": (1,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (ANY,),
    "metadata": (ANY,),
    "store": (ANY,),
    "user": (ANY,),
    "safety_identifier": (ANY,),
    "prompt_cache_key": (ANY,),
    "service_tier": (ANY,),
    "cache_prompt": (ANY,),
    "keep_alive": (ANY,),
}
NEUTRAL_IN_MESSAGE: Mapping[str, tuple[Any, ...]] = {
    "tool_calls": ([],),
    "function_call": (),
    "refusal": (),
    "audio": (),
    "annotations": ([],),
    "reasoning_content": ("",),
}


PICTURES = ("image_url", "input_image", "image")  # types of parts
OTHER_TEXTS = ("input_text", "output_text")  # the same in OpenAI's other API
MAX_STOPS = 4


def _read_content(given: Any) -> str:
    """The text of a message, whole or in parts. Raises ValueError for all else."""
    if isinstance(given, str):
        return given
    if given is None:
        raise ValueError("null is no text: give one")
    if not isinstance(given, list):
        raise ValueError("give a text, or a list of parts of the type text")
    return "\n".join(_read_part(number, part) for number, part in enumerate(given))


def _read_part(number: int, part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in PICTURES:
        raise ValueError(f"part {number} is a picture ({kind}), and only text is served here")
    if kind in OTHER_TEXTS:
        raise ValueError(
            f"part {number} has the type {kind} of another API: write it as "
            '{"type": "text", "text": …}'
        )
    if kind != "text":
        named = f"has the type {show_name(kind)}" if isinstance(kind, str) else "has no type"
        raise ValueError(f"part {number} {named}, and only text is served here")
    if other := [name for name in part if name not in ("type", "text")]:
        raise ValueError(
            f"part {number}: {show_name(other[0])} is not supported here: leave it out"
        )
    if not isinstance(part.get("text"), str):
        raise ValueError(f"part {number}: its text is no text")
    return str(part["text"])


def _read_stops(given: Any) -> list[str]:
    """The texts that end a reply. Raises ValueError for what is none, and for too many."""
    found = [given] if isinstance(given, str) else [] if given is None else given
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ValueError(f"give a text, or a list of {MAX_STOPS} at most")
    if len(found) > MAX_STOPS:
        raise ValueError(f"{len(found)} texts: give {MAX_STOPS} at most")
    return found


class Turn(BaseModel):
    """A message as programs send it."""

    model_config = ConfigDict(strict=True, extra="allow")
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_read_content)]

    def to_message(self, place: int) -> Message:
        """Return it as a turn of a conversation. Raises UserError for what is not supported."""
        _refuse_unsupported(self.model_extra or {}, NEUTRAL_IN_MESSAGE, f"messages[{place}].")
        role = "system" if self.role == "developer" else self.role
        return Message(role=role, content=self.content)


class StreamOptions(BaseModel):
    """What a stream tells beside the reply."""

    model_config = ConfigDict(strict=True, extra="ignore")  # include_obfuscation changes no reply
    include_usage: bool = False


class Asked(BaseModel):
    """A request for a reply, as programs send it."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
    model: str
    messages: Annotated[list[Turn], Field(min_length=1)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    stop: Annotated[list[str], BeforeValidator(_read_stops)] = []
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def conversation(self) -> list[Message]:
        """The messages as turns. Raises UserError for what is not supported."""
        if self.messages[-1].role != "user":
            raise UserError("messages: the last one must be the user's")
        return [one.to_message(place) for place, one in enumerate(self.messages)]

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end a reply; they are no part of it."""
        return tuple(filter(None, self.stop))

    @property
    def limit(self) -> int | None:
        """The tokens asked for at most, None if that is left to the server."""
        return self.max_completion_tokens or self.max_tokens


class Refused(Exception):
    """An answer other than a reply: its HTTP status, and one line."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code

    def to_json(self) -> Json:
        """The error as OpenAI's clients read it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}


@contextmanager
def errors_as_refusals() -> Iterator[None]:
    """Turn errors that the caller can correct, and those of the engine, into answers."""
    try:
        yield
    except EngineError as error:
        raise Refused(503, str(error)) from None
    except SelfRewardError as error:
        raise Refused(400, str(error)) from None


def read_request(body: bytes) -> Asked:
    """Return the request in a body. Raises Refused, with the name of the field at fault."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "the request is not JSON") from None
    if not isinstance(document, dict):
        raise Refused(400, "the request is no JSON object")
    with errors_as_refusals():
        refuse_half_characters(document)
    try:
        asked = Asked.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise Refused(400, explain_fault(name_place(first["loc"]), first)) from None
    with errors_as_refusals():
        _refuse_unsupported(asked.model_extra or {}, NEUTRAL, "")
    return asked


def _refuse_unsupported(
    given: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]], place: str
) -> None:
    """Raise UserError for the first field that would change a reply and is not supported."""
    for name, value in given.items():
        allowed = neutral.get(name, ())
        if value is not None and ANY not in allowed and value not in allowed:
            raise UserError(f"{place}{show_name(name)} is not supported here: leave it out")
