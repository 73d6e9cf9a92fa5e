"""Ratings: how strong each judgment of a response is, from the battles between them.

The model is Bradley–Terry (arXiv 2407.19594, section 2.2, equations 1 to 3). The maximum-likelihood
fit does not depend on the order of the battles. A ridge keeps judgments finite that always win or
always lose, and centers the strengths at 0.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from selfreward_lite.data.records import Battle, Outcome, Rating, group_records, make_id

MIN_SPREAD = 1e-6  # strengths closer than this say nothing


def rate_judgments(
    battles: Sequence[Battle], ridge: float, *, id_namespace: str, iteration: int
) -> Outcome:
    """Return a rating of every judgment, and how many responses have no decisive battles."""
    first_weight, second_weight = compute_position_weights([battle.verdict for battle in battles])
    by_response = group_records(battles, lambda battle: battle.response_id)
    ratings: list[Rating] = []
    drops = Counter[str]()
    for response_id, group in by_response.items():
        names = sorted({name for battle in group for name in (battle.first_id, battle.second_id)})
        verdicts = [
            (names.index(battle.first_id), names.index(battle.second_id), battle.verdict)
            for battle in group
        ]
        wins = build_battle_matrix(verdicts, len(names), first_weight, second_weight)
        strengths = fit_strengths(wins, ridge)
        if np.ptp(strengths) < MIN_SPREAD:
            drops["all judgments equally strong" if wins.any() else "no battle decided"] += 1
            continue
        ratings += [
            Rating(
                make_id(id_namespace, Rating, iteration, name),
                iteration,
                name,
                response_id,
                strength,
                first_weight,
                second_weight,
                ridge,
            )
            for name, strength in zip(names, strengths.tolist(), strict=True)
        ]
    return Outcome(ratings, drops)


def compute_position_weights(verdicts: Sequence[int]) -> tuple[float, float]:
    """Return (ω₁, ω₂), the weights of a win from first and from second place.

    The favored place counts less: ω₁ = wins from second / all wins, ω₂ = wins from first / all
    wins; both ½ if nothing was decided.

    >>> compute_position_weights([1, -1, 1, 1, 1, 0])
    (0.2, 0.8)
    """
    first, second = verdicts.count(1), verdicts.count(-1)
    if first + second == 0:
        return 0.5, 0.5
    return second / (first + second), first / (first + second)


def build_battle_matrix(
    verdicts: Iterable[tuple[int, int, int]], size: int, first_weight: float, second_weight: float
) -> np.ndarray:
    """Return the weighted wins B [size, size].

    B[m, n] = ω₁·[m beat n from first place] + ω₂·[m beat n from second place]. `verdicts` are
    (shown first, shown second, +1 | −1 | 0). The two orders count separately.
    """
    wins = np.zeros((size, size))
    for first, second, verdict in verdicts:
        if verdict == 1:
            wins[first, second] += first_weight
        elif verdict == -1:
            wins[second, first] += second_weight
    return wins


def fit_strengths(wins: np.ndarray, ridge: float) -> np.ndarray:
    """Return the Bradley–Terry strengths ε [size], by Newton's method.

    They maximize Σ B[m,n]·log σ(ε_m − ε_n) − ridge/2·Σ ε_m². Strictly concave for ridge > 0, so the
    result is unique and finite; it does not depend on the order of battles.
    """
    strengths = np.zeros(len(wins))
    for _ in range(100):
        gap = strengths[:, None] - strengths[None, :]
        chance = 1 / (1 + np.exp(-gap))
        pull = wins * (1 - chance)
        gradient = pull.sum(1) - pull.sum(0) - ridge * strengths
        weight = (wins + wins.T) * chance * (1 - chance)
        curvature = np.diag(weight.sum(1) + ridge) - weight
        step = np.linalg.solve(curvature, gradient)
        # A full Newton step can overshoot where the likelihood is flat, so a step is at most two
        # units of log-odds.
        strengths += step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-300))
        if np.abs(step).max() < 1e-10:
            return strengths
    raise ArithmeticError("the Bradley–Terry fit did not converge")
