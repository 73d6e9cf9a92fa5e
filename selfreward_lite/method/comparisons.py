"""Two models' answers to the same prompts, held against each other: who wins, how surely, and what length has to do with it.

Knows: how a judge is asked in both orders, win rates and their errors. Does not know: where answers come from, who judges.
(arXiv 2401.10020, section 3.2; for length, arXiv 2404.04475.)
"""

from __future__ import annotations

from selfreward_lite.data.records import Comparison, Outcome, Prompt, Response, make_id
from selfreward_lite.method.parsing import parse_verdict
from selfreward_lite.method.roles import AskGenerator, Role
from selfreward_lite.method.templates import fill_template, make_nonce

CUT = "\n[cut]"


def ask_for_comparison(
    prompt: Prompt, mine: Response, theirs: Response, role: Role
) -> AskGenerator:
    """Have a judge compare two answers in both orders.

    A verdict that flips with the order, or cannot be read, is a tie (arXiv 2401.10020, section 3.2).
    """
    record_id = make_id(
        role.id_namespace, Comparison, role.iteration, role.model, mine.id, theirs.id
    )
    nonce = make_nonce(prompt.id, role.templates)
    orders = [(mine.text, theirs.text), (theirs.text, mine.text)]
    requests = [
        role.make_request(
            fill_template(
                role.templates,
                "compare",
                prompt=prompt.text,
                response_a=a,
                response_b=b,
                nonce=nonce,
            ),
            f"{record_id}:{order}",
            [f"{mine.id}:{theirs.id}:{order}"],
        )
        for order, (a, b) in enumerate(orders)
    ]
    (first,), (second,) = yield requests
    # A cut verdict is none, whatever it says so far; so that whoever reads the text again finds none either.
    texts = [
        one.text.strip() if one.finish == "stop" else f"{one.text.strip()}{CUT}"
        for one in (first, second)
    ]
    return Outcome(
        (
            Comparison(
                record_id,
                role.iteration,
                role.model,
                prompt.id,
                mine.id,
                theirs.id,
                combine_verdicts(*read_verdicts(*texts)),
                *texts,
            ),
        )
    )


def read_verdicts(mine_first: str, theirs_first: str) -> tuple[str | None, str | None]:
    """Return what a judge's texts say of both orders: "A" for the answer shown first, "B" for the second, None unread."""
    return parse_verdict(mine_first, "Response"), parse_verdict(theirs_first, "Response")


def combine_verdicts(mine_first: str | None, theirs_first: str | None) -> float:
    """Return 1 where both orders name mine, 0 where both name theirs, else ½.

    >>> combine_verdicts("A", "B"), combine_verdicts("B", "A"), combine_verdicts("A", "A"), combine_verdicts("A", None)
    (1.0, 0.0, 0.5, 0.5)
    """
    return {("A", "B"): 1.0, ("B", "A"): 0.0}.get((mine_first or "", theirs_first or ""), 0.5)
