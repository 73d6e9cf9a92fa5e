"""Judgment pairs: of the judgments of a response, the strongest is chosen and the weakest rejected.

A chosen judgment above the length limit gives no pair, because a meta-judge prefers long ones
(arXiv 2407.19594, section 2.2). Nor does one that was cut, even if its score could be forced: the
model would learn to stop in the middle of a sentence.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from selfreward_lite.config.settings import Schedule
from selfreward_lite.data.records import (
    Judgment,
    JudgmentPair,
    Outcome,
    Rating,
    group_records,
    make_id,
)


def build_judgment_pairs(
    ratings: Iterable[Rating],
    judgments: Mapping[str, Judgment],
    schedule: Schedule,
    *,
    id_namespace: str,
    iteration: int,
) -> Outcome:
    """Return at most one pair per response; `judgments` maps ids to judgments."""
    by_response = group_records(ratings, lambda rating: rating.response_id)
    pairs: list[JudgmentPair] = []
    drops = Counter[str]()
    for response_id, rated in by_response.items():
        best = max(rated, key=lambda rating: rating.strength)
        worst = min(rated, key=lambda rating: rating.strength)
        chosen, rejected = judgments[best.judgment_id], judgments[worst.judgment_id]
        if chosen.finish != "stop":
            drops["chosen judgment was cut"] += 1
            continue
        limit = schedule.max_chosen_judgment
        if limit is not None and len(chosen.text) > limit:
            drops["chosen judgment too long"] += 1
            continue
        pairs.append(
            JudgmentPair(
                make_id(id_namespace, JudgmentPair, iteration, response_id),
                iteration,
                response_id,
                chosen.id,
                rejected.id,
                best.strength,
                worst.strength,
                len(chosen.text),
                len(rejected.text),
            )
        )
    return Outcome(pairs, drops)
