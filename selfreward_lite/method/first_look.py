"""The first hundred judgments of a base: can it judge, and can EFT learn from what it writes?

Hours of asking would find out no more. Every answer of some ranked prompts is judged once.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from selfreward_lite.data.ranked import RankedPrompt
from selfreward_lite.data.records import Judgment, Response
from selfreward_lite.method.metrics import compare_scores
from selfreward_lite.method.statistics import Z, mean_and_error

JUDGMENTS = 100
# Must be of use. A judge that writes 10 % of its scores has fewer in 2 of 100 looks (binomial).
LEAST_SHARE = 0.05
# The 99 % interval: of judges that are right in 60 % of the pairs, the 95 % one stops 1 in 3,000.
STOP_Z = 2.5758293035489004
# Of fewer scores, chance makes all the same, or nearly all pairs wrong, now and then.
ENOUGH_ALIKE, ENOUGH_ORDERED = 20, 40
SAME_SHARE = 0.95  # of the scores one value: nothing is told apart
HELP = (
    "a larger base, another template set (model.templates), an M0 that learns from people's "
    "answers alone (seed_stage.ift_examples, seed_stage.eft=false), or constraints that decide "
    "instead (prompts.constraints, pairs.verify=score) may help"
)


@dataclass(frozen=True)
class FirstLook:
    """What a base's first judgments show.

    `scores` counts those that were read. Of pairs of ranked answers, `accuracy` is the share in
    the humans' order, a tie is one half, with its standard `error` over prompts; `longer` is the
    same of the rule "the longer answer is better", on the same pairs. NaN without pairs.
    """

    judgments: int
    written: int
    forced: int
    scores: Counter[float]
    accuracy: float
    error: float
    longer: float

    @property
    def read(self) -> int:
        """How many have a score, written or forced."""
        return self.scores.total()

    @property
    def low(self) -> float:
        """The lower end of the 95 % interval of the accuracy."""
        return self.accuracy - Z * self.error

    @property
    def high(self) -> float:
        """The upper end."""
        return self.accuracy + Z * self.error

    def summary(self) -> str:
        """Return the numbers as one sentence."""
        text = f"{self.written} of {self.judgments} scores were written as asked"
        if first := self.read - self.written - self.forced:
            text += f", {first} before their reasons"
        if self.forced:
            text += f", {self.forced} forced"
        if math.isnan(self.accuracy):
            return text
        text += f"; {self.accuracy:.0%} of the pairs are in the humans' order"
        if not math.isnan(self.low):
            text += f" (95 %: {self.low:.0%} to {self.high:.0%})"
        return f"{text}, by length alone {self.longer:.0%}"


def choose_prompts(*sources: Iterable[RankedPrompt]) -> list[RankedPrompt]:
    """Return the first ranked prompts whose answers, all of them, are at most JUDGMENTS."""
    chosen: list[RankedPrompt] = []
    left = JUDGMENTS
    for ranked in (one for source in sources for one in source):
        if len(ranked.responses) > left:
            break
        chosen.append(ranked)
        left -= len(ranked.responses)
    return chosen


def look(ranked: Sequence[RankedPrompt], judgments: Sequence[Judgment]) -> FirstLook:
    """Return what one judgment of every answer to some ranked prompts shows."""
    scores = {one.response_id: one.score for one in judgments if one.score is not None}
    judged = [_compare(one.responses, scores) for one in ranked]
    lengths = {a.id: len(a.text) for one in ranked for a in one.responses if a.id in scores}
    by_length = [_compare(one.responses, lengths) for one in ranked]
    accuracy, error = mean_and_error(judged)
    return FirstLook(
        judgments=len(judgments),
        written=sum(one.score is not None and one.source == "written" for one in judgments),
        forced=sum(one.source == "forced" for one in judgments),
        scores=Counter(scores.values()),
        accuracy=accuracy,
        error=error,
        longer=mean_and_error(by_length)[0],
    )


def _compare(answers: Sequence[Response], scores: Mapping[str, float]) -> list[float]:
    """For each pair of answers with scores, best first: 1 in the humans' order, ½ tied, else 0."""
    known = [scores[one.id] for one in answers if one.id in scores]
    return [compare_scores(better, worse) for better, worse in combinations(known, 2)]


def find_faults(seen: FirstLook, *, eft: bool) -> Iterator[str]:
    """Yield why a seed stage must not go on, each with what helps; `eft` if EFT is to follow."""
    usable, what = (seen.written, "written as asked") if eft else (seen.read, "readable")
    if usable < LEAST_SHARE * seen.judgments:
        remedy = (
            "EFT has nothing to learn from. Without it (seed_stage.eft=false) scores are forced "
            "(judge.close=force)"
            if eft
            else "there would be no pairs. judge.close=force gives every judgment a score"
        )
        yield f"{usable} of {seen.judgments} scores were {what}, so {remedy}; {HELP}"
    score, count = (seen.scores.most_common(1) or [(math.nan, 0)])[0]
    if seen.read >= ENOUGH_ALIKE and count >= SAME_SHARE * seen.read:
        yield (
            f"{count} of {seen.read} scores are {score:g}, so the judge tells nothing apart. "
            f"judge.score=expected may; {HELP}"
        )
    if seen.read >= ENOUGH_ORDERED and seen.accuracy + STOP_Z * seen.error < 0.5:
        yield (
            f"the judge puts {seen.accuracy:.0%} (95 %: {seen.low:.0%} to {seen.high:.0%}) of the "
            "pairs of ranked answers in the humans' order, so chance is better. "
            f"{HELP[0].upper()}{HELP[1:]}"
        )


def find_doubts(seen: FirstLook) -> Iterator[str]:
    """Yield what a reader of the judge's scores should know."""
    if seen.low <= 0.5 <= seen.high:
        yield (
            f"{seen.judgments} judgments cannot tell this judge from chance: {seen.accuracy:.0%} "
            f"of the pairs in the humans' order (95 %: {seen.low:.0%} to {seen.high:.0%})"
        )
    if seen.accuracy <= seen.longer:
        yield (
            f"to pick the longer answer is as good as this judge: {seen.longer:.0%} of the pairs, "
            f"the judge {seen.accuracy:.0%}"
        )
