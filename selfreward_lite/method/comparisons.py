"""Comparisons: a judge names the better of two models' answers (arXiv 2401.10020, section 3.2)."""

from collections.abc import Iterable

from selfreward_lite.data.records import Comparison, Outcome, Prompt, Response
from selfreward_lite.engine.api import Completion, Request
from selfreward_lite.method.closing import make_verdict_closing
from selfreward_lite.method.parsing import Verdict, parse_verdict
from selfreward_lite.method.roles import AskGenerator, Role
from selfreward_lite.method.templates import fill_template, make_nonce
from selfreward_lite.method.verdicts import read_verdict

OLD_CUT_MARK = "\n[cut]"  # behind a text that was cut, in runs whose records have no verdicts


def ask_for_comparison(
    prompt: Prompt, mine: Response, theirs: Response, role: Role
) -> AskGenerator:
    """Have a judge compare two answers in both orders."""
    replies = yield make_comparison_requests(prompt, mine, theirs, role)
    completions = [completion for (completion,) in replies]
    return Outcome([read_comparison(completions, prompt, mine, theirs, role)])


def make_comparison_requests(
    prompt: Prompt, mine: Response, theirs: Response, role: Role
) -> list[Request]:
    """Return the questions which of two answers is better: mine shown first, then theirs."""
    record_id = role.make_id(Comparison, mine.id, theirs.id)
    nonce = make_nonce(prompt.id, role.templates)
    questions = [
        fill_template(
            role.templates, "compare", prompt=prompt.text, response_a=a, response_b=b, nonce=nonce
        )
        for a, b in ((mine.text, theirs.text), (theirs.text, mine.text))
    ]
    return [
        role.make_request(
            question,
            f"{record_id}:{order}",
            [f"{mine.id}:{theirs.id}:{order}"],
            closing=make_verdict_closing(role.chat, "Response"),
        )
        for order, question in enumerate(questions)
    ]


def read_comparison(
    completions: Iterable[Completion], prompt: Prompt, mine: Response, theirs: Response, role: Role
) -> Comparison:
    """Return the result of both orders; a verdict that flips, or cannot be read, is a tie."""
    record_id = role.make_id(Comparison, mine.id, theirs.id)
    judged = f"{mine.text}\n{theirs.text}"
    mine_first, theirs_first = (
        read_verdict(completion, "Response", judged, role, f"{record_id}:{order}")
        for order, completion in enumerate(completions)
    )
    return Comparison(
        record_id,
        role.iteration,
        role.model,
        prompt.id,
        mine.id,
        theirs.id,
        combine_verdicts(mine_first.winner, theirs_first.winner),
        mine_first.text,
        theirs_first.text,
        f"{mine_first.winner or '-'}{theirs_first.winner or '-'}",
        mine_first.is_forced + theirs_first.is_forced,
    )


def read_verdicts(compared: Comparison) -> tuple[Verdict | None, Verdict | None]:
    """Return the verdicts in both orders: "A" is the answer shown first, None is unread."""
    if not compared.verdicts:  # of an older run
        return _read_again(compared.mine_first_text), _read_again(compared.theirs_first_text)
    sides: dict[str, Verdict | None] = {"A": "A", "B": "B"}
    return sides.get(compared.verdicts[0]), sides.get(compared.verdicts[1])


def _read_again(text: str) -> Verdict | None:
    return None if text.endswith(OLD_CUT_MARK) else parse_verdict(text, "Response")


def combine_verdicts(mine_first: Verdict | None, theirs_first: Verdict | None) -> float:
    """Return 1 if both orders name mine, 0 if both name theirs, else ½.

    >>> orders = ("A", "B"), ("B", "A"), ("A", "A"), ("A", None)
    >>> [combine_verdicts(*verdicts) for verdicts in orders]
    [1.0, 0.0, 0.5, 0.5]
    """
    return {("A", "B"): 1.0, ("B", "A"): 0.0}.get((mine_first or "", theirs_first or ""), 0.5)
