"""Two models' answers to the same prompts, held against each other: who wins, how surely, and what length has to do with it.

Knows: how a judge is asked in both orders, win rates and their errors. Does not know: where answers come from, who judges.
(arXiv 2401.10020, section 3.2; for length, arXiv 2404.04475.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from selfreward_lite.intervals import bootstrap, standard_error
from selfreward_lite.parsing import parse_verdict
from selfreward_lite.prompts import fill, nonce_for
from selfreward_lite.records import Comparison, Outcome, Prompt, Response, make_id
from selfreward_lite.stages.voice import Asking, Voice

RIDGE = 0.01  # keeps the fit finite where one side wins everything, or length alone decides
CUT = "\n[cut]"
LENGTH_DRAWS = 500  # each of the bootstrap is a fit


def ask_comparison(prompt: Prompt, mine: Response, theirs: Response, voice: Voice) -> Asking:
    """Have a judge compare two answers in both orders.

    A verdict that flips with the order, or cannot be read, is a tie (arXiv 2401.10020, section 3.2).
    """
    record_id = make_id(voice.run, Comparison, voice.iteration, voice.model, mine.id, theirs.id)
    nonce = nonce_for(prompt.id, voice.templates)
    orders = [(mine.text, theirs.text), (theirs.text, mine.text)]
    requests = [
        voice.ask(
            fill(voice.templates, "compare", prompt=prompt.text, response_a=a, response_b=b, nonce=nonce),
            f"{record_id}:{order}", [f"{mine.id}:{theirs.id}:{order}"],
        )
        for order, (a, b) in enumerate(orders)
    ]
    (first,), (second,) = yield requests
    # A cut verdict is none, whatever it says so far; so that whoever reads the text again finds none either.
    texts = [one.text.strip() if one.finish == "stop" else f"{one.text.strip()}{CUT}" for one in (first, second)]
    return Outcome((Comparison(
        record_id, voice.iteration, voice.model, prompt.id, mine.id, theirs.id, result_of(*verdicts(*texts)), *texts
    ),))


def verdicts(mine_first: str, theirs_first: str) -> tuple[str | None, str | None]:
    """Return what a judge's texts say of both orders: "A" for the answer shown first, "B" for the second, None unread."""
    return parse_verdict(mine_first, "Response"), parse_verdict(theirs_first, "Response")


def points(mine: float, theirs: float) -> float:
    """Return 1 where mine is more, 0 where it is less, ½ for a tie.

    >>> points(4, 3), points(3, 4), points(3, 3)
    (1.0, 0.0, 0.5)
    """
    return 0.5 + 0.5 * ((mine > theirs) - (mine < theirs))


def result_of(mine_first: str | None, theirs_first: str | None) -> float:
    """Return 1 where both orders name mine, 0 where both name theirs, else ½.

    >>> result_of("A", "B"), result_of("B", "A"), result_of("A", "A"), result_of("A", None)
    (1.0, 0.0, 0.5, 0.5)
    """
    return {("A", "B"): 1.0, ("B", "A"): 0.0}.get((mine_first or "", theirs_first or ""), 0.5)


@dataclass(frozen=True)
class Met:
    """Two answers to one prompt: 1 if mine won, 0 if it lost, ½ for a tie; their characters; what a judge said of both orders
    (see `verdicts`), None where none was asked."""

    result: float
    mine_length: int
    their_length: int
    orders: tuple[str | None, str | None] | None = None


def head_to_head(met: Sequence[Met]) -> dict[str, float]:
    """Return how a model fared against another over many prompts, by name; NaN for what there is nothing of.

    `win_rate` counts ties as half, with its standard error and the 95 % bootstrap interval over prompts. Of the judge:
    `flip_rate`, the share of prompts on which both verdicts could be read and named the same place; `first_share`, the share of
    verdicts read that named the answer shown first (½ is unbiased); `unread_share`, of all verdicts.
    """
    results = np.array([one.result for one in met], dtype=float)
    gaps = np.array([one.mine_length - one.their_length for one in met], dtype=float)
    low, high = bootstrap(len(met), lambda drawn: float(results[drawn].mean()))
    lc_low, lc_high = bootstrap(len(met), lambda drawn: length_controlled(results[drawn], gaps[drawn]), LENGTH_DRAWS)
    asked = [one.orders for one in met if one.orders is not None]
    read = [verdict for orders in asked for verdict in orders if verdict is not None]
    return {
        "prompts": len(met),
        "won": int((results == 1).sum()), "tied": int((results == 0.5).sum()), "lost": int((results == 0).sum()),
        "win_rate": float(results.mean()) if len(met) else math.nan,
        "win_rate_error": standard_error(results.tolist()), "win_rate_low": low, "win_rate_high": high,
        "length_controlled_win_rate": length_controlled(results, gaps) if len(met) else math.nan,
        "length_controlled_low": lc_low, "length_controlled_high": lc_high,
        "flip_rate": fmean(orders[0] is not None and orders[0] == orders[1] for orders in asked) if asked else math.nan,
        "first_share": read.count("A") / len(read) if read else math.nan,
        "unread_share": 1 - len(read) / (2 * len(asked)) if asked else math.nan,
        "mine_length": fmean(one.mine_length for one in met) if met else math.nan,
        "their_length": fmean(one.their_length for one in met) if met else math.nan,
    }


def length_controlled(results: np.ndarray, gaps: np.ndarray) -> float:
    """Return the win rate that is left when both answers are equally long: σ(θ) of the fit P(mine wins) = σ(θ + φ·tanh(Δ/s)).

    `results` [prompts] are 1, ½ or 0, `gaps` [prompts] are Δ, mine less theirs, in characters; s is their standard deviation.
    AlpacaEval 2's length-controlled win rate (arXiv 2404.04475, section 3) is the mean of σ(θ + φ·0 + ψ·γ_x), with a
    difficulty γ_x of every prompt that was fitted on many models' answers. Such difficulties exist for its own prompts alone,
    so this is the form without them, fitted by maximum likelihood with a ridge of RIDGE/2·(θ² + φ²): to be compared with
    itself only, never with AlpacaEval's figures. Swapping the two sides gives one minus it.
    """
    from scipy import optimize, special  # half a second that a chat need not wait for

    spread = gaps.std(ddof=1) if len(gaps) > 1 else 0.0
    length = np.tanh(gaps / spread) if spread > 0 else np.zeros_like(gaps)
    features = np.stack([np.ones_like(length), length])

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        scores = weights @ features
        wrong = special.expit(scores) - results
        value = -(results * special.log_expit(scores) + (1 - results) * special.log_expit(-scores)).sum()
        return value + RIDGE / 2 * weights @ weights, features @ wrong + RIDGE * weights

    return float(special.expit(optimize.minimize(loss, np.zeros(2), jac=True, method="BFGS").x[0]))
