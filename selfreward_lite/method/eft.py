"""Seed stage: judgments that agree with human ranks become examples for fine-tuning the judge.

This is evaluation fine-tuning (EFT; arXiv 2401.10020, section 3.1).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from selfreward_lite.config.settings import Settings
from selfreward_lite.data.ranked import RankedPrompt
from selfreward_lite.data.records import Judgment, Outcome, Response
from selfreward_lite.method.judgments import (
    ask_for_judgments,
    build_judge_question,
    group_by_response,
)
from selfreward_lite.method.roles import AskGenerator, Role


@dataclass(frozen=True)
class EftExample:
    """The judge's question, and a judgment that agreed with the humans."""

    question: str
    judgment: Judgment


def ask_for_ranked_judgments(
    ranked: RankedPrompt, decoys: Sequence[Response], role: Role, attempts: int, strict: bool
) -> AskGenerator:
    """Have ranked answers judged, and decoys too if a set of judgments agrees with the humans."""
    judged = yield from ask_for_judgments(ranked.prompt, ranked.responses, role, attempts)
    by_response = group_by_response(one for one in judged.records if isinstance(one, Judgment))
    if not decoys or find_agreeing_judgments(ranked, by_response, strict=strict) is None:
        return judged
    more = yield from ask_for_judgments(ranked.prompt, decoys, role, attempts)
    return Outcome([*judged.records, *more.records], judged.drops + more.drops)


def find_agreeing_judgments(
    ranked: RankedPrompt, judgments: Mapping[str, Sequence[Judgment]], *, strict: bool = False
) -> list[Judgment] | None:
    """Return the first set of judgments, one per response, that agrees with the human ranking.

    Try number i takes the i-th judgment of each response. Only scores written behind the reasons
    count: a forced one would teach no format. A set agrees if no pair of scores is
    inverted (`strict`: or equal) and the best response scores above the worst. None if no try does.
    The paper leaves ties open (section 3.1).
    """
    columns = [judgments.get(response.id, ()) for response in ranked.responses]
    for tried in zip(*columns, strict=False):
        scores = [score for one in tried if (score := written_score(one)) is not None]
        if (
            len(scores) == len(tried)
            and scores[0] > scores[-1]
            and all(
                better > worse or (better == worse and not strict)
                for better, worse in combinations(scores, 2)
            )
        ):
            return list(tried)
    return None


def written_score(judgment: Judgment) -> float | None:
    """Return the score that a judge wrote behind its reasons, as EFT is to teach it; else None."""
    return judgment.score if judgment.source == "written" else None


def build_eft_examples(
    prompts: Sequence[RankedPrompt],
    decoys: Mapping[str, Sequence[Response]],
    judgments: Mapping[str, Sequence[Judgment]],
    settings: Settings,
) -> tuple[list[EftExample], Counter[str]]:
    """Return the EFT set, at most `train_examples`, and by reason how many judgments were left out.

    If a prompt's judgments agree with the humans, its `decoys` become examples too: each with its
    first judgment that scores it no higher than the worst human answer. The papers have no decoys;
    docs/log/judging.md says why there are some here.
    """
    limit, templates = settings.seed_stage.train_examples, settings.model.templates
    examples: list[EftExample] = []
    drops = Counter[str]()
    for ranked in prompts:
        agreed = find_agreeing_judgments(ranked, judgments, strict=settings.seed_stage.strict)
        if agreed is None:
            drops["no set of judgments agrees with the ranking"] += len(ranked.responses)
            continue
        chosen, worst = list(zip(ranked.responses, agreed, strict=True)), agreed[-1].score
        assert worst is not None  # a judgment that agrees has a score
        for decoy in decoys.get(ranked.prompt.id, ()):
            drawn = judgments.get(decoy.id, ())
            scored = [(one, written_score(one)) for one in drawn]
            low = [one for one, score in scored if score is not None and score <= worst]
            chosen += [(decoy, one) for one in low[:1]]
            drops["no judgment sees through the decoy"] += not low
        examples += [
            EftExample(build_judge_question(ranked.prompt, response, templates), judgment)
            for response, judgment in chosen
        ]
    if settings.seed_stage.cap_most_common:
        capped = _cap_most_common(examples)
        drops["most common score"] += len(examples) - len(capped)
        examples = capped
    drops["above train_examples"] += max(0, len(examples) - limit)
    return examples[:limit], +drops


def _cap_most_common(examples: list[EftExample]) -> list[EftExample]:
    """Leave out examples of the most common score until it is no more common than the second."""
    counts = Counter(example.judgment.score for example in examples).most_common(2)
    if len(counts) < 2:
        return examples
    (common, _), (_, limit) = counts
    kept, seen = [], 0
    for example in examples:
        seen += example.judgment.score == common
        if example.judgment.score != common or seen <= limit:
            kept.append(example)
    return kept
