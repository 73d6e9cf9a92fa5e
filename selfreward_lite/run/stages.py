"""The one table of a run's stages: their names in the store, in order, and the work of each.

The steps of `loop` do them. `plan` and `budget` compute hours from this table, and a run refuses a
stage that is not in it.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from selfreward_lite.config.settings import Sampling, Settings
from selfreward_lite.data.task_sets import SETS
from selfreward_lite.method import canaries, first_look
from selfreward_lite.method.task_answers import count_samples

Text = Literal["candidate", "response", "judgment", "battle"]

# Assumed of texts until a run has measured them: tokens in the mean, before the limit cuts them,
# and the spread of their logarithm. Llama-3-8B-Instruct answers AlpacaEval in 1,899 characters
# (arXiv 2407.19594), about 420 tokens; a judgment has a hundred words and a score. The rest is a
# guess.
TEXTS: dict[Text, tuple[float, float]] = {
    "candidate": (50, 0.5),
    "response": (420, 0.7),
    "judgment": (150, 0.4),
    "battle": (250, 0.4),
}
# The tiny world's texts, as shares of their limits.
COMPACT: dict[Text, float] = {"candidate": 0.2, "response": 0.4, "judgment": 0.5, "battle": 0.5}
PROMPT_TOKENS = 60
JUDGE_TOKENS = 400  # of the judge's question, apart from prompt and response
PAIR_SHARE = 0.6  # of the prompts give a response pair; the others tie (published judge logs)
JUDGMENT_PAIR_SHARE = 0.8
ANSWERS = 2.85  # ranked answers a prompt of OASST1 (arXiv 2401.10020)
EFT_DRAWN = 2.0  # ranked answers judged for every EFT example that is kept
CANDIDATES = 1.5  # asked for, for every prompt that is kept

Piece = Literal[Text, "sft", "dpo", "start", "base", "export"]


# Seconds of one piece of each kind; of `sft` and `dpo`, of a token trained on; `start` is all that
# a training does before its first step.
Costs = dict[Piece, float]
# What a stage does: the kind of its pieces and their number; None if it takes too little time.
Work = tuple[Piece, float] | None


@dataclass(frozen=True)
class Lengths:
    """Tokens assumed of each kind of text."""

    candidate: float
    response: float
    judgment: float
    battle: float

    @property
    def answered(self) -> float:
        """Tokens of a prompt with its response."""
        return PROMPT_TOKENS + self.response

    @property
    def judged(self) -> float:
        """Tokens of a judgment with its question."""
        return JUDGE_TOKENS + self.answered + self.judgment


def list_limits(settings: Settings) -> dict[Text, Sampling]:
    """How each kind of text is drawn."""
    return {
        "candidate": settings.prompts.draw,
        "response": settings.responses.draw,
        "judgment": settings.judge.draw,
        "battle": settings.meta_judge.draw,
    }


def assume_lengths(settings: Settings) -> Lengths:
    """The lengths that follow from the limits that are set."""
    return Lengths(**{text: assume_moment(settings, text) for text in TEXTS})


def assume_moment(settings: Settings, text: Text, power: int = 1) -> float:
    """The mean of a text's tokens, to a power, where those above the limit are cut there.

    Lengths before the cut are log-normal: E[min(X, L)ⁿ] = exp(nμ + n²σ²/2) Φ(z − nσ) + Lⁿ Φ(−z),
    z = (ln L − μ)/σ.
    """
    limit = list_limits(settings)[text].max_tokens
    if settings.model.templates == "compact":
        return (COMPACT[text] * limit) ** power
    mean, spread = TEXTS[text]
    middle, below = math.log(mean) - spread**2 / 2, NormalDist().cdf
    z = (math.log(limit) - middle) / spread
    uncut = math.exp(power * middle + (power * spread) ** 2 / 2)
    return uncut * below(z - power * spread) + limit**power * below(-z)


def list_stages(settings: Settings, iteration: int) -> dict[str, Work]:
    """The stages of an iteration (0 is the seed stage) and their work, in order.

    Some never begin: `comparisons` where there is an exact scorer, `prompts_file` without a file.
    """
    lengths, seed, asked = assume_lengths(settings), settings.seed_stage, settings.evaluation
    prompts, responses = settings.prompts.count, settings.responses.count
    judgments = settings.judge.count
    ranked: Work = "judgment", seed.eval_prompts * ANSWERS * asked.judgments
    outside: Work = "judgment", asked.outside_prompts * asked.outside_judgments
    answered: Work = "response", count_task_answers(settings)
    tasks, base_tasks = (
        {name: answered} if asked.tasks else {} for name in ("task_answers", "base_task_answers")
    )
    pairs: Work = "judgment", settings.gates.judge_set_prompts * ANSWERS * asked.judgments
    judged = {"judge_set": pairs} if settings.gates.judge_set else {}
    canary_judgments = len(canaries.load_hostile_texts(canaries.CANARY)) * asked.canary_judgments
    # Every new model is exported and measured.
    measuring: dict[str, Work] = {
        "export": ("export", 1),
        "eval_responses": ("response", asked.prompts),
        "eval_judgments": ranked,
        "canary_judgments": ("judgment", canary_judgments),
        "second_look": None,
        "outside_judgments": outside,
    }
    if iteration == 0:
        eft_judgments = EFT_DRAWN * seed.train_examples * seed.attempts * seed.eft
        rows = seed.train_examples * lengths.judged * seed.eft
        rows += seed.ift_examples * lengths.answered
        if not seed.trains:  # M0 is the base, and is not asked again
            measuring |= {"eval_responses": None, "eval_judgments": None}
            tasks = dict.fromkeys(tasks)
        return {
            "ranked": None,
            "prompts_file": None,
            "canaries": None,
            "base": ("base", 1),
            "first_judgments": ("judgment", first_look.JUDGMENTS),
            "first_look": None,
            "base_eval_responses": ("response", asked.prompts),
            "base_eval_judgments": ranked,
            "base_evaluation": None,
            **base_tasks,
            "decoys": None,
            "eft_judgments": ("judgment", eft_judgments),
            "eft_yield": None,
            "eft_examples": None,
            "training": ("sft", settings.sft.epochs * rows),
            **measuring,
            "evaluation": None,
            **tasks,
            **judged,
            "gates": None,
        }
    battles, tokens = 0, PAIR_SHARE * 2 * lengths.answered
    if settings.for_iteration(iteration).judgment_pairs:
        battles = prompts * judgments * (judgments - 1)
        tokens += JUDGMENT_PAIR_SHARE * 2 * lengths.judged
    return {
        "candidates": ("candidate", 0 if settings.prompts.file else CANDIDATES * prompts),
        "prompts": None,
        "responses": ("response", prompts * responses),
        "judgments": ("judgment", prompts * responses * judgments),
        "response_pairs": None,
        "battles": ("battle", battles),
        "ratings": None,
        "judgment_pairs": None,
        "data_gates": None,
        "training": ("dpo", settings.dpo.epochs * prompts * tokens),
        **measuring,
        "self_judgments": outside,
        "comparisons": ("battle", 2 * asked.prompts),
        "evaluation": None,
        **tasks,
        **judged,
        "gates": None,
    }


def count_task_answers(settings: Settings) -> int:
    """The answers of one model to task sets."""
    asked = settings.evaluation
    prompts = (SETS[name].prompts for name in asked.tasks)
    samples = count_samples(asked.draw.temperature, asked.task_samples)
    return samples * sum(min(asked.task_prompts or count, count) for count in prompts)


def seconds_by_stage(
    settings: Settings, iteration: int, costs: Costs, after: str | None = None
) -> dict[str, float]:
    """Seconds of every stage that takes time, in order; of those behind stage `after` if given."""
    listed = list_stages(settings, iteration)
    names = list(listed)
    later = names if after is None else names[names.index(after) + 1 :]
    spent = {name: work[1] * costs[work[0]] for name in later if (work := listed[name])}
    if spent.get("training"):
        spent["training"] += costs["start"]
    return spent
