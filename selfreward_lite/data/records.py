"""The records of a run, plain values in the order in which they are made.

An id is derived from a record's key (run, kind, iteration, model, parent, index), never from its
text: equal texts are two records, and a resumed run finds the records that it made before. The
content hash shows whether a text was changed later. Pairs and ratings repeat the scores and lengths
they were made from, so that they can be explained.

    Candidate → Prompt → Response → Judgment → ResponsePair
                                       └→ Battle → Rating → JudgmentPair
    Prompt → Comparison        a prompt of a task set → TaskAnswer
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal, Self, TypeVar, get_args


class ModelId(int):
    """A model's number in a run: -1 is the untrained base, 0 is M0 (after the seed stage)."""

    @property
    def name(self) -> str:
        """The name in records, folders and tables: "base", "M0", "M1", …"""
        return "base" if self.is_base else f"M{int(self)}"

    @property
    def is_base(self) -> bool:
        """Whether this is the untrained base."""
        return self < 0

    @property
    def iteration(self) -> int:
        """The iteration in which it is measured: its own number, 0 for the base."""
        return max(self, 0)


def added(default: str | float | None) -> Any:
    """Return a field that older runs do not have; they are read as if it had this default.

    While a record has the default, its content hash leaves the field out, as it did before.
    """
    return field(default=default, metadata={"added": True})


BASE = ModelId(-1)
Source = Literal["written", "first", "forced"]
Origin = Literal["generated", "imported", "ranked", "held_out"]


@dataclass(frozen=True)
class Candidate:
    """A new prompt as a model wrote it, before any filter."""

    KEY: ClassVar = ("iteration", "model", "index")
    id: str
    iteration: int
    model: str
    index: int
    text: str
    finish: str


@dataclass(frozen=True)
class Prompt:
    """A user's request. Those of origin "held_out" are for evaluation only.

    `constraints` is what a program checks in its answers, as `data.checkable.kinds` writes it; it
    is empty for most prompts.
    """

    KEY: ClassVar = ("iteration", "origin", "index")
    id: str
    iteration: int
    origin: Origin
    index: int
    text: str
    constraints: str = added("")

    @classmethod
    def make(
        cls,
        namespace: str,
        iteration: int,
        origin: Origin,
        index: int,
        text: str,
        constraints: str = "",
    ) -> Self:
        """Return a prompt with the id that follows from its key."""
        record_id = make_id(namespace, cls, iteration, origin, index)
        return cls(record_id, iteration, origin, index, text, constraints)


@dataclass(frozen=True)
class Response:
    """An answer to a prompt. `tokens` counts generated tokens (0 for a person's answer); `rank` is
    what people gave it, 0 for the best."""

    KEY: ClassVar = ("iteration", "model", "prompt_id", "index")
    id: str
    iteration: int
    model: str
    prompt_id: str
    index: int
    text: str
    finish: str
    tokens: int
    rank: int | None = None


@dataclass(frozen=True)
class Judgment:
    """A judgment of a response. `score` is read from its text, None if that failed.

    `expected_score` is the mean of all six scores, weighted by the model's probabilities for the
    score token. `source` says who wrote the score: the judge at the end ("written"), or before its
    reasons ("first"), or the engine, with the judge's probabilities ("forced").
    """

    KEY: ClassVar = ("iteration", "model", "response_id", "index")
    id: str
    iteration: int
    model: str
    response_id: str
    index: int
    text: str
    finish: str
    tokens: int
    score: float | None
    expected_score: float | None
    source: Source = added("written")


@dataclass(frozen=True)
class ResponsePair:
    """A chosen and a rejected response to one prompt; lengths in characters."""

    KEY: ClassVar = ("iteration", "prompt_id")
    id: str
    iteration: int
    prompt_id: str
    chosen_id: str
    rejected_id: str
    chosen_score: float
    rejected_score: float
    chosen_length: int
    rejected_length: int
    rho: float


@dataclass(frozen=True)
class Battle:
    """Two judgments of one response, compared by the meta-judge.

    `verdict` is +1 if the judgment shown first won, −1 if the second did, 0 if undecided. `source`
    as in a judgment.
    """

    KEY: ClassVar = ("iteration", "model", "first_id", "second_id")
    id: str
    iteration: int
    model: str
    response_id: str
    first_id: str
    second_id: str
    verdict: int
    text: str
    source: Source = added("written")


@dataclass(frozen=True)
class Rating:
    """A judgment's Bradley–Terry strength (natural log), with the position weights of the fit."""

    KEY: ClassVar = ("iteration", "judgment_id")
    id: str
    iteration: int
    judgment_id: str
    response_id: str
    strength: float
    first_weight: float
    second_weight: float
    ridge: float


@dataclass(frozen=True)
class JudgmentPair:
    """A chosen and a rejected judgment of one response; lengths in characters."""

    KEY: ClassVar = ("iteration", "response_id")
    id: str
    iteration: int
    response_id: str
    chosen_id: str
    rejected_id: str
    chosen_strength: float
    rejected_strength: float
    chosen_length: int
    rejected_length: int


@dataclass(frozen=True)
class Comparison:
    """A frozen judge's comparison of two models' answers to a held-out prompt.

    `result` is 1 if `mine` won, 0 if it lost, ½ for a tie or if the verdict flips with the order.
    `verdicts` are what the judge named when `mine` and when `theirs` was shown first: "A" for the
    answer shown first, "B" for the other, "-" for none; older runs have only the texts. `forced`
    counts those that the engine had to close.
    """

    KEY: ClassVar = ("iteration", "model", "mine_id", "theirs_id")
    id: str
    iteration: int
    model: str
    prompt_id: str
    mine_id: str
    theirs_id: str
    result: float
    mine_first_text: str
    theirs_first_text: str
    verdicts: str = added("")
    forced: int = added(0)


@dataclass(frozen=True)
class TaskAnswer:
    """An answer to a prompt of a task set, scored by a program.

    Of its `parts` (instructions; 1 where the answer is a number) it did `strict`; `loose` counts in
    the loose reading. `faults` are checks that ended with an error, and count as not followed.
    """

    KEY: ClassVar = ("iteration", "model", "task_set", "task", "index")
    id: str
    iteration: int
    model: str
    task_set: str
    task: str
    index: int
    text: str
    finish: str
    tokens: int
    parts: int
    strict: int
    loose: int
    faults: int = 0


Record = (
    Candidate
    | Prompt
    | Response
    | Judgment
    | ResponsePair
    | Battle
    | Rating
    | JudgmentPair
    | Comparison
    | TaskAnswer
)
R = TypeVar("R", bound=Record)
KINDS: tuple[type[Record], ...] = get_args(Record)


def group_records(records: Iterable[R], key: Callable[[R], str]) -> dict[str, list[R]]:
    """Group records by `key`, each group in the order of sample numbers."""
    groups: dict[str, list[R]] = defaultdict(list)
    for record in sorted(records, key=lambda one: getattr(one, "index", 0)):
        groups[key(record)].append(record)
    return dict(groups)


def index_records(records: Iterable[R]) -> dict[str, R]:
    """The records by id."""
    return {record.id: record for record in records}


def make_id(namespace: str, kind: type[Record], *key: str | int) -> str:
    """Return the id of the record of `kind` with this key (the values of `kind.KEY`, in order)."""
    return _hash([namespace, kind.__name__, *key])


def derive_id(namespace: str, record: Record) -> str:
    """Return the id that `record` must have in the run of this namespace."""
    return make_id(namespace, type(record), *(getattr(record, field) for field in record.KEY))


def content_hash(record: Record) -> str:
    """Return a hash over the fields of a record; an added one counts if it has another value."""
    values = asdict(record)
    for one in fields(record):
        if one.metadata.get("added") and values[one.name] == one.default:
            del values[one.name]
    return _hash(values)


def _hash(value: list[str | int] | dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=10).hexdigest()


def seed_for(run_seed: int, record_id: str) -> int:
    """Return the 32-bit sampling seed of a record, the same in every attempt and on every machine.

    Never 2³²−1, with which llama.cpp draws a random seed.
    """
    digest = hashlib.blake2b(f"{run_seed}:{record_id}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % 0xFFFFFFFF


@dataclass(frozen=True)
class Outcome:
    """What one item of a stage made, or a stage without items.

    `drops` counts what was left out, by reason.
    """

    records: Sequence[Record] = ()
    drops: Counter[str] = field(default_factory=Counter)
