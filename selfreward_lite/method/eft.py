"""Seed stage: judgments that agree with human ranks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from selfreward_lite.config.settings import Settings
from selfreward_lite.data.ranked import RankedPrompt
from selfreward_lite.data.records import Drop, Judgment, Outcome, Prompt, Response
from selfreward_lite.engine.api import Completion
from selfreward_lite.method import judgments
from selfreward_lite.method.judgments import build_judge_question
from selfreward_lite.method.roles import AskGenerator, Role


@dataclass(frozen=True)
class EftExample:
    """One EFT example: the judge's question, and the judgment that agreed with the humans."""

    question: str
    judgment: Judgment


def find_agreeing_judgments(
    one: RankedPrompt, judgments: Mapping[str, Sequence[Judgment]], *, strict: bool = False
) -> list[Judgment] | None:
    """Return the first set of judgments, one a response, whose scores agree with the human ranking.

    Try number i takes the i-th judgment of each response. A set agrees if no pair of scores is inverted (`strict`: or equal)
    and the best response scores above the worst. None if no try does. The paper leaves ties open (SR 3.1).
    """
    columns = [judgments.get(response.id, ()) for response in one.responses]
    for tried in zip(*columns, strict=False):
        scores = [judgment.score for judgment in tried]
        read = [score for score in scores if score is not None]
        if len(read) < len(scores) or read[0] <= read[-1]:
            continue
        if all(
            better > worse or (better == worse and not strict)
            for better, worse in combinations(read, 2)
        ):
            return list(tried)
    return None


def ask_for_ranked_judgments(
    one: RankedPrompt, decoys: Sequence[Response], role: Role, attempts: int, strict: bool
) -> AskGenerator:
    """Have a prompt's ranked answers judged, and its decoys where the judge agrees with the humans: others bring none along."""
    judged = yield from _judged(one.prompt, one.responses, role, attempts)
    drawn = defaultdict(list)
    for record in judged.records:
        if isinstance(record, Judgment):
            drawn[record.response_id].append(record)
    if not decoys or find_agreeing_judgments(one, drawn, strict=strict) is None:
        return judged
    more = yield from _judged(one.prompt, decoys, role, attempts)
    return Outcome((*judged.records, *more.records), (*judged.drops, *more.drops))


def _judged(
    prompt: Prompt, responses: Sequence[Response], role: Role, attempts: int
) -> AskGenerator:
    """The judgments stage on several responses at once."""
    askings = [
        judgments.ask_for_judgments(prompt, response, role, attempts) for response in responses
    ]
    replies = yield [request for asking in askings for request in next(asking)]
    outcomes = [_end(asking, reply) for asking, reply in zip(askings, replies, strict=True)]
    return Outcome(
        tuple(record for outcome in outcomes for record in outcome.records),
        tuple(drop for outcome in outcomes for drop in outcome.drops),
    )


def _end(asking: AskGenerator, reply: list[Completion]) -> Outcome:
    try:
        asking.send([reply])
    except StopIteration as stop:
        return stop.value
    raise RuntimeError("a judgment asks once")


def build_eft_examples(
    prompts: Sequence[RankedPrompt],
    decoys: Mapping[str, Sequence[Response]],
    judgments: Mapping[str, Sequence[Judgment]],
    settings: Settings,
) -> tuple[list[EftExample], Outcome]:
    """Return the EFT set, at most `train_examples`, and by reason how many judgments were left out.

    A prompt whose judgments agree with the humans brings those of its `decoys` along, each with the first that gives it no
    more than the worst human answer got. The papers have no decoys; why there are some is in LOG.md.
    """
    examples: list[EftExample] = []
    drops: Counter[str] = Counter()
    for one in prompts:
        agreed = find_agreeing_judgments(one, judgments, strict=settings.seed_stage.strict)
        if agreed is None:
            drops["no set of judgments agrees with the ranking"] += len(one.responses)
            continue
        examples += [
            EftExample(
                build_judge_question(one.prompt, response, settings.model.templates), judgment
            )
            for response, judgment in zip(one.responses, agreed, strict=True)
        ]
        for decoy in decoys.get(one.prompt.id, ()):
            seen = _seen_through(judgments.get(decoy.id, ()), agreed)
            drops["no judgment sees through the decoy"] += seen is None
            if seen is not None:
                examples.append(
                    EftExample(
                        build_judge_question(one.prompt, decoy, settings.model.templates), seen
                    )
                )
    if settings.seed_stage.cap_most_common:
        examples, thinned = _thinned(examples)
        drops["most common score"] += thinned
    drops["above train_examples"] += max(0, len(examples) - settings.seed_stage.train_examples)
    kept = examples[: settings.seed_stage.train_examples]
    return kept, Outcome(
        drops=tuple(Drop(reason, count) for reason, count in drops.items() if count)
    )


def _seen_through(judgments: Sequence[Judgment], agreed: Sequence[Judgment]) -> Judgment | None:
    """The first judgment of a decoy that gives it no more than the worst human answer got."""
    limit = agreed[-1].score
    assert limit is not None
    return next((one for one in judgments if one.score is not None and one.score <= limit), None)


def _thinned(examples: list[EftExample]) -> tuple[list[EftExample], int]:
    """Leave out examples of the most common score until it is no more common than the second."""
    counts = Counter(example.judgment.score for example in examples).most_common(2)
    if len(counts) < 2:
        return examples, 0
    (common, count), (_, second) = counts
    kept, seen = [], 0
    for example in examples:
        seen += example.judgment.score == common
        if example.judgment.score != common or seen <= second:
            kept.append(example)
    return kept, count - second
