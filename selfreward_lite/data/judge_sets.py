"""Sets of ranked answers that measure a judge, as pairs whose better answer is known.

A pinned set (LLMBar, PandaLM, OASST1) or ranked data in OASST's schema. Its prompts are in an order
that is always the same and has nothing to do with that of the file, so that a limit keeps a fair
sample, and a higher one the same prompts and more.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from itertools import combinations
from typing import Self

from selfreward_lite.data.ranked import HUMAN, RankedPrompt
from selfreward_lite.data.records import Prompt, Response, make_id, seed_for
from selfreward_lite.data.task_sets import ADVERSARIAL, SETS, RankedPair

FACT = "passports"  # the fact in a store that holds what judges reached on each set
OWN = "the run's own evaluation prompts"
VOTES = "votes"  # of the app
PARTS = ("Natural", "adversarial", *ADVERSARIAL)  # of LLMBar, in the order in which they are shown
PAIR_SETS = ("llmbar", "pandalm")  # pinned sets in schemas of their own
# What a user may write, and the pinned set that it means.
NAMES = {"llmbar": "llmbar", "pandalm": "pandalm", "oasst": "oasst1", "oasst1": "oasst1"}


@dataclass(frozen=True)
class JudgeSet:
    """Ranked answers, best first, and the parts of the set that each entry belongs to.

    Entries may share a prompt, and answers with it. `name` is how the user wrote the set, `title`
    how it is shown: never a path. `left_out` counts what is not asked, by reason; `notes` are
    sentences about the file that the set was read from.
    """

    name: str
    title: str
    ranked: tuple[RankedPrompt, ...]
    parts: tuple[tuple[str, ...], ...]
    left_out: dict[str, int]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, name: str, title: str, ranked: Sequence[RankedPrompt], left_out: dict[str, int]
    ) -> Self:
        """Return the set of ranked prompts, each with a prompt of its own, without parts."""
        entries = tuple(sorted(ranked, key=_place))
        return cls(name, title, entries, ((),) * len(entries), left_out)

    @classmethod
    def of_pairs(
        cls, name: str, pairs: Sequence[RankedPair], namespace: str, left_out: dict[str, int]
    ) -> Self:
        """Return the set of a pinned one's pairs; equal texts of one prompt are one answer."""
        content = json.dumps([astuple(pair) for pair in pairs]).encode()
        namespace += f", {hashlib.blake2b(content, digest_size=8).hexdigest()}"
        prompts: dict[str, Prompt] = {}
        answers: dict[str, dict[str, Response]] = {}
        found = []
        for pair in pairs:
            text = pair.prompt
            prompt = prompts.setdefault(
                text, Prompt.make(namespace, 0, "ranked", len(prompts), text)
            )
            known = answers.setdefault(text, {})
            for answer in (pair.better, pair.worse):
                if answer not in known:
                    known[answer] = _make_response(namespace, prompt, len(known), answer)
            entry = RankedPrompt(prompt, (known[pair.better], known[pair.worse]))
            found.append((entry, _list_parts(pair)))
        found.sort(key=lambda one: _place(one[0]))
        entries, parts = zip(*found, strict=True) if found else ((), ())
        return cls(name, SETS[name].title, tuple(entries), tuple(parts), left_out)

    @property
    def prompts(self) -> int:
        """The number of different prompts."""
        return len({one.prompt.id for one in self.ranked})

    @property
    def digest(self) -> str:
        """A text that differs where the prompts or answers do, for the names of stages."""
        ids = [response.id for one in self.ranked for response in one.responses]
        return hashlib.blake2b("\0".join(ids).encode(), digest_size=6).hexdigest()

    def first(self, limit: int | None) -> Self:
        """Return the set with `limit` prompts at most."""
        kept = {*[*dict.fromkeys(one.prompt.id for one in self.ranked)][:limit]}
        both = zip(self.ranked, self.parts, strict=True)
        chosen = [(one, parts) for one, parts in both if one.prompt.id in kept]
        return replace(
            self,
            ranked=tuple(one for one, _ in chosen),
            parts=tuple(parts for _, parts in chosen),
        )

    def answers(self) -> list[tuple[Prompt, Response]]:
        """Return every answer once, with its prompt."""
        found = {answer.id: (one.prompt, answer) for one in self.ranked for answer in one.responses}
        return [*found.values()]

    def pairs(self) -> list[tuple[Prompt, Response, Response]]:
        """Return the pairs that are to be compared, each once: a better and a worse answer."""
        found = {
            (better.id, worse.id): (one.prompt, better, worse)
            for one in self.ranked
            for better, worse in combinations(one.responses, 2)
        }
        return [*found.values()]


def _place(one: RankedPrompt) -> tuple[int, str]:
    return seed_for(0, one.prompt.text), one.prompt.text


def _make_response(namespace: str, prompt: Prompt, index: int, text: str) -> Response:
    record_id = make_id(namespace, Response, 0, HUMAN, prompt.id, index)
    return Response(record_id, 0, HUMAN, prompt.id, index, text, "stop", 0)


def _list_parts(pair: RankedPair) -> tuple[str, ...]:
    if pair.set != "llmbar":
        return ()
    return ("adversarial", pair.part) if pair.part in ADVERSARIAL else (pair.part,)
