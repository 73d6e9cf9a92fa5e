"""A model in one role (actor, judge or meta-judge), and how a question to it becomes a request."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from selfreward_lite.data.records import Outcome, Record, make_id, seed_for
from selfreward_lite.engine.api import Closing, Completion, Probe, Request, Sampling
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.models.chat_template import user

# An asking stage handles one item with such a generator. It yields rounds of requests; for each
# round it receives one list of completions per request, in the order of the request's seeds.
AskGenerator = Generator[list[Request], list[list[Completion]], Outcome]

# Why a request has no text, by the completion's `finish`.
NO_TEXT_REASONS = {"refused": "does not fit the context", "failed": "the engine died on it"}


@dataclass(frozen=True)
class Role:
    """A model in one role, and the run and iteration its records belong to.

    `model` is its name (base, M0, M1, …), `adapter` the LoRA in GGUF that makes it. Record ids
    derive from the run's `id_namespace`, sampling seeds from its `seed`. With `forces`, judgments
    that cannot be read are ended by the engine (judge.close).
    """

    model: str
    adapter: str | None
    chat: ChatFormat
    sampling: Sampling
    templates: str
    id_namespace: str
    seed: int
    iteration: int
    forces: bool = False

    def make_id(self, kind: type[Record], *key: str | int) -> str:
        """Return the id of a record by this model; `key` is the rest of `kind.KEY`."""
        return make_id(self.id_namespace, kind, self.iteration, self.model, *key)

    def make_request(
        self,
        content: str,
        key: str,
        seed_keys: Sequence[str],
        continue_with: str = "",
        probe: Probe | None = None,
        closing: Closing | None = None,
    ) -> Request:
        """Return the request that asks `content` as the user, one sample per seed key.

        A seed key names what a sample's seed derives from: parent and index, not the model. So
        two models that answer the same prompt get the same seeds, and differ only by their weights.
        """
        return Request(
            key=key,
            tokens=self.chat.prompt_ids(user(content), continue_with),
            seeds=tuple(seed_for(self.seed, seed_key) for seed_key in seed_keys),
            sampling=self.sampling,
            stop=self.chat.stop,
            adapter=self.adapter,
            probe=probe,
            closing=closing if self.forces else None,
        )
