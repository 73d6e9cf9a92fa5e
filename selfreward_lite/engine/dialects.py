"""How two kinds of servers are asked for the same: vLLM, and llama.cpp's llama-server as a router.

Both get token ids and return token ids. What does not fit what was asked is a ServerUnfit: a
server that counts other tokens, or cuts an answer, would change a run without a word.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from selfreward_lite.engine import presets
from selfreward_lite.engine.answers import (
    Answer,
    Place,
    check_logprobs,
    check_prompt,
    check_tokens,
    cut_at_stop,
)
from selfreward_lite.engine.api import Sampling, TokenIds
from selfreward_lite.engine.http_client import (
    Client,
    NotJson,
    Refusal,
    ServerFault,
    ServerUnfit,
    show,
)
from selfreward_lite.system.files import Json

TOP = 100  # likeliest tokens asked of llama-server at first; all, if one that is wanted is missing
KINDS = {"vllm": "vLLM", "llamacpp": "llama-server"}


class Listed(BaseModel):
    """An entry of GET /v1/models."""

    id: str
    owned_by: str = ""
    max_model_len: int | None = None
    parent: str | None = None
    status: Json | None = None


class Models(BaseModel):
    data: list[Listed]


@dataclass(frozen=True)
class Paths:
    """Where a run's files are, here and for the servers; `prefix` begins the names of its models.

    One lock guards the presets, which several servers may read.
    """

    base: Path
    prefix: str
    seen_from: Path
    seen_as: Path
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def presets(self) -> Path:
        """llama-server's file of models."""
        return self.base.parent.parent / presets.PRESETS

    def seen(self, path: Path) -> str:
        """A path as the servers see it."""
        return str(self.seen_as / path.relative_to(self.seen_from))


def list_models(client: Client) -> list[Listed]:
    """What a server serves; raises ServerUnfit where there is no server of a known kind."""
    try:
        listed = client.ask("/v1/models", Models).data
    except (Refusal, NotJson) as error:
        raise ServerUnfit(
            f"{client.url} is neither vLLM nor llama-server: GET /v1/models gives {error}; check "
            "engine.servers, and the key if it wants one"
        ) from None
    if not listed:
        raise ServerUnfit(f"{client.url} serves no model; start it as `doctor --servers RUN` says")
    if listed[0].owned_by not in KINDS:
        raise ServerUnfit(
            f"{client.url} is of a kind that is not known ({show(listed[0].owned_by)!r}); use "
            "vLLM or llama-server"
        )
    return listed


# -- vLLM ----------


class _Logprobs(BaseModel):
    top_logprobs: list[dict[str, float]]


class _Choice(BaseModel):
    token_ids: list[int]
    finish_reason: str | None
    logprobs: _Logprobs | None = None


class _Details(BaseModel):
    cached_tokens: int | None = None


class _Usage(BaseModel):
    prompt_tokens: int
    prompt_tokens_details: _Details | None = None


class _Completion(BaseModel):
    choices: list[_Choice]
    usage: _Usage


class Vllm:
    """A vLLM server; adapters are loaded from PEFT's folders, under names."""

    mixes = False  # whether the base may be asked while an adapter is

    def __init__(self, client: Client, listed: list[Listed], slots: int, vocab: int) -> None:
        bases = [one for one in listed if one.parent is None]
        if not bases or bases[0].max_model_len is None:
            raise ServerUnfit(f"{client.url} does not name its base and context; update vLLM")
        self._client, self._vocab = client, vocab
        self.base = bases[0].id
        self.context = bases[0].max_model_len
        self.slots = slots

    def find_fault(self) -> str | None:
        """What keeps adapters from being loaded, asked without one; None if nothing does."""
        try:
            self._client.ask_text("/v1/load_lora_adapter", {"lora_name": "", "lora_path": ""})
        except Refusal as refusal:
            if refusal.status in (404, 405):
                return f"it has no route to load adapters ({refusal})"
        return None

    def load_base(self) -> str:
        """The name of the base, which was loaded when the server started."""
        return self.base

    def weights_of(self, adapter: Path) -> Path:
        """The file whose hash is part of the name of an adapter."""
        return adapter.with_suffix("") / "adapter_model.safetensors"

    def load_adapter(self, name: str, adapter: Path, paths: Paths) -> None:
        """Load an adapter under a name that it alone has."""
        folder = paths.seen(adapter.with_suffix(""))
        try:
            self._client.ask_text("/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder})
        except Refusal as refusal:
            if refusal.status == 400 and "already" in refusal.line:
                return
            if refusal.status in (404, 405) and "adapter" not in refusal.line:
                raise ServerUnfit(
                    f"{self._client.url} has no route to load adapters ({refusal}); start it with "
                    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora"
                ) from None
            raise ServerUnfit(
                f"{self._client.url} cannot load the adapter {folder} ({refusal}); it must see the "
                "folder of the runs there: share it, or set engine.shared to its path"
            ) from None
        except ServerFault as fault:
            if "max_lora_rank" not in str(fault):
                raise
            raise ServerUnfit(f"{fault}; start it as `doctor --servers RUN` says") from None

    def has_forgotten(self, refusal: Refusal) -> bool:
        """Whether a model that was there is not, as after a restart."""
        return refusal.status == 404

    def generate(
        self,
        model: str,
        prompt: Sequence[int],
        sampling: Sampling,
        seed: int,
        stop: TokenIds,
        watch: TokenIds,
        slot: int,
    ) -> Answer:
        """Draw a sample."""
        most = sampling.max_tokens
        choice, computed = self._complete(
            model,
            prompt,
            watch,
            max_tokens=most,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=seed,
            stop_token_ids=list(stop),
        )
        tokens, ended = choice.token_ids, choice.finish_reason
        if ended not in ("stop", "length"):  # "abort", as while it shuts down
            raise ServerFault(
                f"{self._client.url} gave a sample up (finish_reason {show(ended or '')!r})"
            )
        is_stopped = cut_at_stop(self._client.url, tokens, stop, most, is_stopped=ended == "stop")
        watched = self._read_watched(choice, watch) if watch else None
        return Answer(tokens, "stop" if is_stopped else "length", computed, watched)

    def next_token(
        self, model: str, prompt: Sequence[int], wanted: TokenIds, slot: int
    ) -> tuple[Place, int]:
        """What follows a prompt, and how many tokens of it were computed."""
        choice, computed = self._complete(model, prompt, wanted, max_tokens=1, temperature=0)
        if len(choice.token_ids) != 1:
            raise ServerUnfit(
                f"{self._client.url} answered with {len(choice.token_ids)} tokens, not 1; check "
                "its version"
            )
        return Place(choice.token_ids[0], self._read_watched(choice, wanted)[0]), computed

    def _complete(
        self, model: str, prompt: Sequence[int], watch: TokenIds, **sampling: Any
    ) -> tuple[_Choice, int]:
        """The one choice of a completion, and how many prompt tokens were computed."""
        body = {
            "model": model,
            "prompt": list(prompt),
            "ignore_eos": True,  # the tokens that end are given
            "return_token_ids": True,
            # Named, because a generation_config.json beside the model may change them.
            "repetition_penalty": 1.0,
            "min_p": 0.0,
            **sampling,
        }
        if watch:
            body |= {
                "logprobs": 0,
                "logprob_token_ids": list(watch),
                "return_tokens_as_token_ids": True,
            }
        answer = self._client.ask("/v1/completions", _Completion, body)
        usage, url = answer.usage, self._client.url
        check_prompt(url, usage.prompt_tokens, len(prompt))
        if len(answer.choices) != 1:
            raise ServerUnfit(
                f"{url} gave {len(answer.choices)} samples where 1 was asked for; check its version"
            )
        check_tokens(url, answer.choices[0].token_ids, self._vocab)
        details = usage.prompt_tokens_details
        cached = (details.cached_tokens or 0) if details else 0
        return answer.choices[0], max(0, usage.prompt_tokens - cached)

    def _read_watched(self, choice: _Choice, watch: TokenIds) -> list[tuple[float, ...]]:
        """The log-probabilities of the tokens watched, at every place."""
        given = choice.logprobs.top_logprobs if choice.logprobs else []
        if len(given) < len(choice.token_ids):
            raise ServerUnfit(
                f"{self._client.url} gave log-probabilities at {len(given)} of "
                f"{len(choice.token_ids)} places; vLLM must know logprob_token_ids (0.32 does)"
            )
        found = []
        for place in given:
            missing = [token for token in watch if f"token_id:{token}" not in place]
            if missing:
                raise ServerUnfit(
                    f"{self._client.url} gave no log-probability of token {missing[0]}; vLLM must "
                    "know logprob_token_ids (0.32 does)"
                )
            values = tuple(place[f"token_id:{token}"] for token in watch)
            check_logprobs(self._client.url, values)
            found.append(values)
        return found


# -- llama-server ----------


class _Timings(BaseModel):
    prompt_n: int


class _TopToken(BaseModel):
    id: int
    logprob: float


class _Probabilities(BaseModel):
    top_logprobs: list[_TopToken]


class _Drawn(BaseModel):
    tokens: list[int]
    stop_type: str
    truncated: bool
    tokens_evaluated: int
    timings: _Timings
    completion_probabilities: list[_Probabilities] = []


class _Generation(BaseModel):
    n_ctx: int


class _Props(BaseModel):
    default_generation_settings: _Generation
    total_slots: int


class _Lora(BaseModel):
    path: str
    scale: float


class LlamaRouter:
    """llama-server with --models-preset; every adapter is a model with the base and its own name.

    Its answers are those of the engine in process, sample by sample, with the same seeds.
    """

    mixes = True

    def __init__(
        self,
        client: Client,
        listed: list[Listed],
        base: str,
        paths: Paths,
        pieces: Sequence[bytes],
    ) -> None:
        if all(one.status is None for one in listed):
            raise ServerUnfit(
                f"{client.url} is llama-server with one model, which cannot change adapters; start "
                "it with --models-preset, as `doctor --servers RUN` says"
            )
        self._client, self._paths, self._vocab = client, paths, len(pieces)
        self._whole = next(token for token, piece in enumerate(pieces) if piece.isalnum())
        self.base = base
        self._add(base, None)
        props = self._first(f"/props?model={base}", _Props)
        self.context = props.default_generation_settings.n_ctx
        self.slots = props.total_slots

    def find_fault(self) -> str | None:
        """None: that adapters can be loaded was seen when it was made."""
        return None

    def load_base(self) -> str:
        """The name of the base; raises ServerUnfit if that model has an adapter."""
        self._check_adapters(self.base, [])
        return self.base

    def weights_of(self, adapter: Path) -> Path:
        """The file whose hash is part of the name of an adapter."""
        return adapter

    def load_adapter(self, name: str, adapter: Path, paths: Paths) -> None:
        """Load an adapter under a name that it alone has."""
        self._add(name, adapter)
        self._check_adapters(name, [_Lora(path=paths.seen(adapter), scale=1.0)])

    def has_forgotten(self, refusal: Refusal) -> bool:
        """Whether a model that was there is not."""
        return refusal.status in (400, 404) and "not found" in refusal.line

    def generate(
        self,
        model: str,
        prompt: Sequence[int],
        sampling: Sampling,
        seed: int,
        stop: TokenIds,
        watch: TokenIds,
        slot: int,
    ) -> Answer:
        """Draw a sample; a slot keeps the prompt of its last one."""
        url, most = self._client.url, sampling.max_tokens
        answer = self._complete(
            model,
            prompt,
            slot,
            n_predict=most,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=seed % 0xFFFFFFFF,  # the largest means one drawn there
        )
        is_stopped = answer.stop_type == "eos"
        if not is_stopped and answer.stop_type != "limit":
            raise ServerUnfit(
                f"{url} ended a sample for a reason that was not asked for "
                f"({show(answer.stop_type)!r}); check its version"
            )
        is_stopped = cut_at_stop(url, answer.tokens, stop, most, is_stopped=is_stopped)
        return Answer(answer.tokens, "stop" if is_stopped else "length", answer.timings.prompt_n)

    def next_token(
        self, model: str, prompt: Sequence[int], wanted: TokenIds, slot: int
    ) -> tuple[Place, int]:
        """What follows a prompt, and how many tokens of it were computed.

        A token that is drawn in the middle of a character has no probabilities there, so a letter
        is made to be drawn. That does not touch the probabilities: they are those before sampling.
        """
        computed = 0
        force = {"temperature": 0, "logit_bias": [[self._whole, 1e4]]}
        for count in (TOP, self._vocab):
            answer = self._complete(
                model, prompt, slot, n_predict=1, n_probs=min(count, self._vocab), **force
            )
            computed += answer.timings.prompt_n
            if not answer.completion_probabilities:
                raise ServerUnfit(
                    f"{self._client.url} gave no probabilities where n_probs={count} was asked "
                    "for; check its version"
                )
            listed = answer.completion_probabilities[0].top_logprobs
            known = {one.id: one.logprob for one in listed}
            if known and all(token in known for token in wanted):
                check_logprobs(self._client.url, tuple(known.values()))
                top = max(known, key=known.__getitem__)
                return Place(top, tuple(known[token] for token in wanted)), computed
        raise ServerUnfit(
            f"{self._client.url} gave the probabilities of {len(known)} tokens, and not those "
            f"asked for, of {self._vocab}; it holds another model"
        )

    def _complete(self, model: str, prompt: Sequence[int], slot: int, **sampling: Any) -> _Drawn:
        body = {
            "model": model,
            "prompt": list(prompt),
            "id_slot": slot,
            "cache_prompt": True,
            "return_tokens": True,
            "min_p": 0.0,
            "samplers": ["top_k", "temperature", "top_p"],
            **sampling,
        }
        answer = self._client.ask("/completion", _Drawn, body)
        url = self._client.url
        check_prompt(url, answer.tokens_evaluated, len(prompt))
        if answer.truncated:
            raise ServerUnfit(
                f"{url} cut a text of {len(prompt)} tokens and up to {sampling['n_predict']} more "
                f"at its context of {self.context}; raise c in {self._paths.presets}"
            )
        check_tokens(url, answer.tokens, self._vocab)
        return answer

    def _add(self, name: str, adapter: Path | None) -> None:
        """Make the server know a model, which it loads at its first use."""
        paths = self._paths
        with paths.lock:
            presets.add_section(
                paths.presets,
                name,
                paths.seen(paths.base),
                paths.seen(adapter) if adapter else None,
            )
        try:
            listed = self._client.ask("/models?reload=1", Models).data
        except Refusal as refusal:
            raise ServerUnfit(f"{self._client.url} cannot reload its models: {refusal}") from None
        if name not in [one.id for one in listed]:
            raise ServerUnfit(
                f"{self._client.url} does not know {name} after reloading its models; start it "
                f"with --models-preset {paths.seen(paths.presets)}"
            )

    def _check_adapters(self, name: str, expected: list[_Lora]) -> None:
        """Raise ServerUnfit unless a model has exactly the adapters that it should have."""
        found = self._first(f"/lora-adapters?model={name}", list[_Lora])
        if found != expected:
            shown = show(", ".join(f"{one.path} at {one.scale:g}" for one in found)) or "none"
            wanted = ", ".join(f"{one.path} at {one.scale:g}" for one in expected) or "none"
            raise ServerUnfit(
                f"{self._client.url} has adapters {shown} in {name}, not {wanted}; start it anew "
                f"with --models-preset {self._paths.seen(self._paths.presets)}"
            )

    def _first(self, path: str, kind: Any) -> Any:
        """Ask a model for the first time, which loads it."""
        try:
            return self._client.ask(path, kind)
        except ServerFault as fault:
            if "failed to load" not in str(fault):
                raise
            raise ServerUnfit(
                f"{fault}: it must see {self._paths.seen(self._paths.base)} and the adapters "
                "beside it, and have memory for them; its own log says more"
            ) from None
        except Refusal as refusal:
            raise ServerUnfit(f"{self._client.url}{path}: {refusal}; check its version") from None


Dialect = Vllm | LlamaRouter
