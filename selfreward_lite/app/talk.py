"""Ask the models of a run for a reply, a score for a reply, or a verdict on two replies.

Nothing here is written to a run. To a judge, a conversation of several turns is one request with
all turns written out; a single turn is judged with exactly the question that runs use.
"""

import hashlib
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import pstdev

from selfreward_lite.app.library import RunLibrary
from selfreward_lite.data import votes
from selfreward_lite.data.records import Judgment, Prompt, Response
from selfreward_lite.engine.api import Completion, Piece, Request, Sampling
from selfreward_lite.method import comparisons, judgments
from selfreward_lite.method.roles import NO_TEXT_REASONS, Role
from selfreward_lite.method.statistics import mean_or_none
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.models.chat_template import Message
from selfreward_lite.models.hf_folder import find_longest, read_config
from selfreward_lite.system.errors import UserError

INTERVAL = 0.04  # seconds between two updates of a growing reply, for one or two users


@dataclass(frozen=True)
class StreamedReply:
    """A reply so far; `finish` is None until it ends.

    `first` and `seconds` are the times from the question to the first and the newest token, as
    the engine generated them: `first` includes waiting and loading.
    """

    text: str
    tokens: int = 0
    finish: str | None = None
    first: float | None = None
    seconds: float = 0.0
    waits_for: str = ""  # why there is no token yet

    @property
    def speed(self) -> float | None:
        """Tokens per second after the first token; None for fewer than two tokens."""
        spent = self.seconds - (self.first or 0.0)
        return (self.tokens - 1) / spent if self.tokens > 1 and spent > 0 else None


@dataclass(frozen=True)
class Score:
    """A judge's score for a reply so far: the judgments that arrived, of `wanted`."""

    wanted: int
    judgments: tuple[Judgment, ...] = ()
    lost: int = 0  # never made: too long for the context, or the engine crashed
    stopped: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether no more judgments will arrive."""
        return self.stopped or len(self.judgments) + self.lost >= self.wanted

    @property
    def read(self) -> list[float]:
        """The scores that could be read."""
        return [one.score for one in self.judgments if one.score is not None]

    @property
    def forced(self) -> int:
        """How many scores were forced: the judge wrote none that could be read."""
        return sum(one.source == "forced" for one in self.judgments)

    @property
    def mean(self) -> float | None:
        return mean_or_none(self.read)

    @property
    def spread(self) -> float | None:
        """The standard deviation of the scores."""
        return pstdev(self.read) if self.read else None

    @property
    def expected(self) -> float | None:
        """The mean of the expected scores (G-Eval, arXiv 2303.16634)."""
        return mean_or_none(judgments.read_value(one, "expected") for one in self.judgments)


@dataclass(frozen=True)
class PairVerdict:
    """A judge's choice between two replies, and its text for both orders.

    `result` is None where the judge could not be asked. "tie" also stands for a verdict that
    changes with the order, or could not be read.
    """

    result: votes.Side | None = None
    judged_ab: str = ""
    judged_ba: str = ""
    is_final: bool = True
    waits_for: str = ""


class Talk:
    """One caller's access to the models of a run. Raises UserError for a missing run or model."""

    def __init__(self, library: RunLibrary, run: str, caller: str) -> None:
        self.library, self.models, self.caller = library, library.models(run), caller

    def stream_reply(
        self, speaker: str, messages: Sequence[Message], draw: Sampling, seed: int
    ) -> Generator[StreamedReply, None, None]:
        """Yield a model's reply to a conversation as it grows; the last one has a `finish`.

        Yields at least once a second, so that closing the iterator stops the reply.
        """
        role = self._role(speaker, draw)
        request = replace(
            role.make_request("", "reply", ["reply"]),
            tokens=role.chat.prompt_ids(messages),
            seeds=(seed,),
            stream=True,
        )
        reply, asked_at, shown_at = StreamedReply(""), time.monotonic(), 0.0
        with closing(self._ask(request)) as answers:
            for one in answers:
                reply = replace(reply, waits_for=one if isinstance(one, str) else "")
                if isinstance(one, Piece):
                    seconds = (one.at or time.monotonic()) - asked_at
                    reply = replace(
                        reply,
                        text=reply.text + one.text,
                        tokens=reply.tokens + 1,
                        first=reply.first or seconds,
                        seconds=seconds,
                    )
                elif isinstance(one, Completion):
                    reply = replace(
                        reply,
                        text=one.text or reply.text,
                        tokens=len(one.tokens) or reply.tokens,
                        finish=one.finish,
                    )
                    if reply.speed:
                        self.library.last_reply = (
                            f"; last reply: {speaker} of {self.models.run}, "
                            f"{reply.speed:,.0f} tokens/s"
                        )
                if reply.finish or reply.tokens == 1 or self._is_due(shown_at):
                    shown_at = time.monotonic()
                    yield reply

    def count_tokens(self, model: str, messages: Sequence[Message]) -> int:
        """Return the length of a conversation as a model reads it."""
        settings = self.models.settings.judge
        return len(self._role(model, settings.draw).chat.prompt_ids(messages))

    @property
    def longest(self) -> int:
        """The most tokens of a conversation with its reply, whichever model speaks."""
        return find_longest(self.models.settings.engine, _load_shape(self.models.hf_folder))

    def stream_score(
        self, judge: str, messages: Sequence[Message], text: str
    ) -> Generator[Score, None, None]:
        """Yield a model's score for a reply, as the judgments of the run's settings arrive."""
        settings = self.models.settings.judge
        role = self._role(judge, settings.draw)
        prompt = Prompt("prompt", 0, "generated", 0, write_out(messages))
        response = _response(prompt, text)
        # Where the loop asks no judge, it is asked here as often as when it is measured.
        count = settings.count or self.models.settings.evaluation.judgments
        request = judgments.make_judge_request(prompt, response, role, count)
        score, shown_at = Score(count), 0.0
        with closing(self._ask(request)) as answers:
            for one in answers:
                if isinstance(one, Completion) and one.finish in NO_TEXT_REASONS:
                    score = replace(score, lost=score.lost + 1)
                elif isinstance(one, Completion):
                    judgment = judgments.read_judgment(one, response, role, one.sample)
                    score = replace(score, judgments=(*score.judgments, judgment))
                if score.is_complete or self._is_due(shown_at):
                    shown_at = time.monotonic()
                    yield score

    def stream_verdict(
        self, judge: str, prompt: str, texts: tuple[str, str]
    ) -> Generator[PairVerdict, None, None]:
        """Yield a model's verdict on two replies; the last one `is_final`.

        Same question, sampling and reading as the frozen judge of a run's evaluation
        (arXiv 2401.10020, section 3.2).
        """
        role = self._role(judge, self.models.settings.judge.draw)
        asked = Prompt(_text_key(prompt, "\0".join(texts)), 0, "generated", 0, prompt)
        a, b = (_response(asked, text) for text in texts)
        completions: list[Completion] = []
        for request in comparisons.make_comparison_requests(asked, a, b, role):
            with closing(self._ask(request)) as answers:
                for one in answers:
                    if isinstance(one, Completion):
                        completions.append(one)
                    yield PairVerdict(is_final=False, waits_for=one if isinstance(one, str) else "")
        found = comparisons.read_comparison(completions, asked, a, b, role)
        sides: dict[float, votes.Side] = {1: "a", 0: "b"}
        unasked = any(one.finish in NO_TEXT_REASONS for one in completions)
        result = None if unasked else sides.get(found.result, "tie")
        yield PairVerdict(result, found.mine_first_text, found.theirs_first_text)

    def _ask(self, request: Request) -> Generator[Piece | Completion | str | None, None, None]:
        """What the engine answers; before that, why the caller waits; None where nothing is new."""
        with closing(self.library.use_engine(self.models)) as waiting:
            for found in waiting:
                if not isinstance(found, str):
                    yield from found.ask(request, self.caller)
                    return
                yield found

    def _role(self, model: str, draw: Sampling) -> Role:
        run, adapters, settings = self.models.run, self.models.adapters, self.models.settings
        if model not in adapters:
            raise UserError(f"{run} has no model {model!r}; it has {', '.join(adapters)}")
        chat = _load_format(self.models.hf_folder)
        templates, forces = settings.model.templates, settings.judge.close == "force"
        adapter = adapters[model]
        return Role(model, adapter, chat, draw, templates, "talk", settings.seed, 0, forces)

    def _is_due(self, shown_at: float) -> bool:
        """Whether to update the page; each update costs milliseconds per user."""
        interval = min(1.0, INTERVAL * max(1, self.library.engine.users / 2))
        return time.monotonic() - shown_at >= interval


def write_out(messages: Sequence[Message]) -> str:
    """Return a conversation as a judge reads it; with several turns, each names its speaker.

    >>> write_out([{"role": "user", "content": "Hi."}])
    'Hi.'
    >>> write_out([{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes?"},
    ...            {"role": "user", "content": "Bye."}])
    'User: Hi.\\n\\nAssistant: Yes?\\n\\nUser: Bye.'
    """
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(
        f"{message['role'].capitalize()}: {message['content']}" for message in messages
    )


_load_format = lru_cache(maxsize=8)(ChatFormat.load)
_load_shape = lru_cache(maxsize=8)(read_config)


def _response(prompt: Prompt, text: str) -> Response:
    """A reply as a record. Its id, from which seeds derive, depends on the texts alone.

    So the same reply to the same prompt is always judged with the same random draws.
    """
    return Response(_text_key(prompt.text, text), 0, "", prompt.id, 0, text, "stop", 0)


def _text_key(prompt: str, text: str) -> str:
    return hashlib.blake2b(f"{prompt}\0{text}".encode(), digest_size=16).hexdigest()
