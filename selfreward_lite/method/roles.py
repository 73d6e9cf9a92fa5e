"""Who speaks in an ask-stage: one model in one role, and how a question to it becomes a request.

Knows: chat format, sampling, adapter, where seeds come from. Does not know: what the answers are for.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from selfreward_lite.data.records import Outcome, seed_for
from selfreward_lite.engine.api import Completion, Probe, Request, Sampling
from selfreward_lite.models.chat_format import ChatFormat, user

# What an ask-stage does with one item: it yields rounds of requests; each round is answered by one list of completions a
# request, in the order of its seeds.
AskGenerator = Generator[list[Request], list[list[Completion]], Outcome]

# Why there is no text to a request, in words.
NO_TEXT_REASONS = {"refused": "does not fit the context", "failed": "the engine died on it"}


@dataclass(frozen=True)
class Role:
    """A model in a role. `model` is its name (base, M0, M1, …), `adapter` the GGUF LoRA that makes it, `run` and `seed`
    are the run's: ids and seeds derive from them. `iteration` is the one that the records belong to."""

    model: str
    adapter: str | None
    chat: ChatFormat
    sampling: Sampling
    templates: str
    id_namespace: str
    seed: int
    iteration: int

    def make_request(
        self,
        content: str,
        key: str,
        seed_keys: Sequence[str],
        continue_with: str = "",
        probe: Probe | None = None,
    ) -> Request:
        """Return the request that asks the user's `content`, one sample for each of `seed_keys`.

        A seed_key names what a sample's seed derives from: parent and index, not the model. So two models that answer the
        same prompt draw the same luck, and differ by what they are.
        """
        return Request(
            key=key,
            tokens=self.chat.prompt_ids(user(content), continue_with),
            seeds=tuple(seed_for(self.seed, seed_key) for seed_key in seed_keys),
            sampling=self.sampling,
            stop=self.chat.stop,
            adapter=self.adapter,
            probe=probe,
        )
