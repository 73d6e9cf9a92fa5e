"""What programs ask of OpenAI's chat API, checked: what would change a reply is used or refused."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

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


class Part(BaseModel):
    """A part of a message's content; only text is served."""

    model_config = ConfigDict(strict=True, extra="forbid")
    type: Literal["text"]
    text: str


class Turn(BaseModel):
    """A message as programs send it."""

    model_config = ConfigDict(strict=True, extra="allow")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    def to_message(self, place: int) -> Message:
        """Return it as a turn of a conversation. Raises UserError for what is not supported."""
        _refuse_unsupported(self.model_extra or {}, NEUTRAL_IN_MESSAGE, f"messages[{place}].")
        text = self.content if isinstance(self.content, str) else _join(self.content)
        return Message(role="system" if self.role == "developer" else self.role, content=text)


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
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
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
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(filter(None, given))

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
    try:
        asked = Asked.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the request"
        raise Refused(400, f"{place}: {first['msg']}") from None
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
            raise UserError(f"{place}{name[:80]} is not supported here: leave it out")


def _join(parts: list[Part]) -> str:
    return "\n".join(one.text for one in parts)
