"""Battles: the model as meta-judge names the better of two judgments of one response.

Every pair is asked in both orders (arXiv 2407.19594, section 2.2).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations
from statistics import pvariance

from selfreward_lite.data.records import Battle, Judgment, Outcome, Prompt, Response, seed_for
from selfreward_lite.method.closing import make_verdict_closing
from selfreward_lite.method.roles import AskGenerator, Role
from selfreward_lite.method.templates import fill_template, make_nonce
from selfreward_lite.method.verdicts import read_verdict

VERDICTS = {"A": 1, "B": -1, None: 0}  # how a battle stores the label that the meta-judge named


def most_contested(
    responses: Iterable[Response], judgments: Mapping[str, Sequence[Judgment]], seed: int
) -> Response | None:
    """Return the response whose judgments (given by response id) vary most in score.

    Ties are drawn by `seed`. Only readable judgments count, and two of them must differ as texts:
    equal texts can be told apart by their position alone. None if no response qualifies.
    """
    variances = {}
    for response in responses:
        group = judgments.get(response.id, ())
        if len(find_readable(group)) >= 2:
            scores = [judgment.score for judgment in group if judgment.score is not None]
            tie_breaker = seed_for(seed, f"tie {response.id}")
            variances[response] = round(pvariance(scores), 9), tie_breaker
    return max(variances, key=variances.__getitem__, default=None)


def find_readable(judgments: Sequence[Judgment]) -> list[Judgment]:
    """Return the judgments that have a score, each text once."""
    first: dict[str, Judgment] = {}
    for judgment in judgments:
        if judgment.score is not None:
            first.setdefault(judgment.text, judgment)
    return list(first.values())


def ask_for_battles(
    prompt: Prompt, response: Response, judgments: Sequence[Judgment], role: Role
) -> AskGenerator:
    """Ask about every ordered pair of the readable judgments of `response`."""
    nonce = make_nonce(response.id, role.templates)
    pairs = list(permutations(find_readable(judgments), 2))
    replies = yield [
        role.make_request(
            fill_template(
                role.templates,
                "meta_judge",
                prompt=prompt.text,
                response=response.text,
                nonce=nonce,
                judgment_a=first.text,
                judgment_b=second.text,
            ),
            role.make_id(Battle, first.id, second.id),
            [f"{first.id}:{second.id}"],
            closing=make_verdict_closing(role.chat, "Judgement"),
        )
        for first, second in pairs
    ]
    battles = []
    for (first, second), (completion,) in zip(pairs, replies, strict=True):
        record_id = role.make_id(Battle, first.id, second.id)
        judged = f"{response.text}\n{first.text}\n{second.text}"
        verdict = read_verdict(completion, "Judgement", judged, role, record_id)
        battles.append(
            Battle(
                record_id,
                role.iteration,
                role.model,
                response.id,
                first.id,
                second.id,
                VERDICTS[verdict.winner],
                verdict.text,
                "forced" if verdict.is_forced else "written",
            )
        )
    return Outcome(battles, Counter("undecided" for battle in battles if battle.verdict == 0))
