"""The one table of a run's stages: name in the store, the step that does it, amount of work.

`loop` has the order of the steps. `plan` and `budget` compute hours from this table, and a run
refuses a stage that is not in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from selfreward_lite.config.settings import Settings
from selfreward_lite.method import canaries

# Assumed of texts until a run has measured them: shares of the length limits, and tokens.
# Llama-3-8B-Instruct answers AlpacaEval in 1,899 characters (arXiv 2407.19594), about 420 tokens.
RESPONSE_SHARE = 0.4
JUDGMENT_SHARE = 0.5  # a hundred words and a score
BATTLE_SHARE = 0.5
CANDIDATE_SHARE = 0.2
PROMPT_TOKENS = 60
JUDGE_TOKENS = 400  # of the judge's question, apart from prompt and response
PAIR_SHARE = 0.6  # of the prompts give a response pair; the others tie (published judge logs)
JUDGMENT_PAIR_SHARE = 0.8
ANSWERS = 2.85  # ranked answers a prompt of OASST1 (arXiv 2401.10020)
EFT_DRAWN = 2.0  # ranked answers judged for every EFT example that is kept
CANDIDATES = 1.5  # asked for, for every prompt that is kept

Piece = Literal["candidate", "response", "judgment", "battle", "sft", "dpo", "base", "export"]


@dataclass(frozen=True)
class StageCosts:
    """Seconds of one piece of each kind: for `sft` and `dpo`, a token trained on."""

    candidate: float
    response: float
    judgment: float
    battle: float
    sft: float
    dpo: float
    base: float
    export: float
    source: str


@dataclass(frozen=True)
class Stage:
    """A stage: `amount` pieces of work, done by the function named `step`.

    Without a `piece` it takes too little time to count.
    """

    name: str
    step: str
    piece: Piece | None = None
    amount: Callable[[Settings, int], float] = lambda settings, iteration: 1

    def seconds(self, settings: Settings, iteration: int, costs: StageCosts) -> float:
        """Seconds that the stage of an iteration takes."""
        if self.piece is None:
            return 0.0
        price: float = getattr(costs, self.piece)
        return self.amount(settings, iteration) * price


@dataclass(frozen=True)
class Lengths:
    """Tokens assumed of each kind of text."""

    candidate: float
    response: float
    judgment: float
    battle: float

    @classmethod
    def of(cls, settings: Settings) -> Lengths:
        """The lengths that follow from the limits that are set."""
        return cls(
            CANDIDATE_SHARE * settings.prompts.draw.max_tokens,
            RESPONSE_SHARE * settings.responses.draw.max_tokens,
            JUDGMENT_SHARE * settings.judge.draw.max_tokens,
            BATTLE_SHARE * settings.meta_judge.draw.max_tokens,
        )

    @property
    def answered(self) -> float:
        """Tokens of a prompt with its response."""
        return PROMPT_TOKENS + self.response

    @property
    def judged(self) -> float:
        """Tokens of a judgment with its question."""
        return JUDGE_TOKENS + self.answered + self.judgment


def _eft_judgments(settings: Settings, _: int) -> float:
    return EFT_DRAWN * settings.seed_stage.train_examples * settings.seed_stage.attempts


def _sft_tokens(settings: Settings, _: int) -> float:
    lengths, seed = Lengths.of(settings), settings.seed_stage
    rows = seed.train_examples * lengths.judged + seed.ift_examples * lengths.answered
    return settings.sft.epochs * rows


def _dpo_tokens(settings: Settings, iteration: int) -> float:
    lengths = Lengths.of(settings)
    tokens = PAIR_SHARE * 2 * lengths.answered
    if settings.for_iteration(iteration).judgment_pairs:
        tokens += JUDGMENT_PAIR_SHARE * 2 * lengths.judged
    return settings.dpo.epochs * settings.prompts.count * tokens


def _battles(settings: Settings, iteration: int) -> float:
    if not settings.for_iteration(iteration).judgment_pairs:
        return 0
    return settings.prompts.count * settings.judge.count * (settings.judge.count - 1)


def _held_out(settings: Settings, _: int) -> float:
    return settings.evaluation.prompts


def _ranked_judgments(settings: Settings, _: int) -> float:
    return settings.seed_stage.eval_prompts * ANSWERS * settings.evaluation.judgments


def _canary_judgments(settings: Settings, _: int) -> float:
    return len(canaries.load_canaries()) * settings.evaluation.canary_judgments


def _outside_judgments(settings: Settings, _: int) -> float:
    return settings.evaluation.outside_prompts * settings.evaluation.outside_judgments


# Every new model is exported and measured.
_MEASURING = (
    Stage("export", "export_adapter", "export"),
    Stage("eval_responses", "measure_model", "response", _held_out),
    Stage("eval_judgments", "measure_model", "judgment", _ranked_judgments),
    Stage("canary_judgments", "measure_model", "judgment", _canary_judgments),
    Stage("second_look", "measure_model"),
    Stage("outside_judgments", "measure_model", "judgment", _outside_judgments),
)
_DECIDING = (Stage("evaluation", "measure_model"), Stage("gates", "pass_gates"))

SEED_STAGE_WORK: tuple[Stage, ...] = (
    Stage("ranked", "read_ranked"),
    Stage("prompts_file", "read_prompts"),
    Stage("canaries", "add_canaries"),
    Stage("base", "export_base", "base"),
    Stage("base_eval_responses", "measure_base", "response", _held_out),
    Stage("base_eval_judgments", "measure_base", "judgment", _ranked_judgments),
    Stage("base_evaluation", "measure_base"),
    Stage("decoys", "add_decoys"),
    Stage("eft_judgments", "judge_ranked", "judgment", _eft_judgments),
    Stage("eft_examples", "judge_ranked"),
    Stage("training", "train_seed", "sft", _sft_tokens),
    *_MEASURING,
    *_DECIDING,
)

ITERATION_WORK: tuple[Stage, ...] = (
    Stage(
        "candidates",
        "write_prompts",
        "candidate",
        lambda settings, _: 0 if settings.prompts.file else CANDIDATES * settings.prompts.count,
    ),
    Stage("prompts", "write_prompts"),
    Stage(
        "responses",
        "answer_prompts",
        "response",
        lambda settings, _: settings.prompts.count * settings.responses.count,
    ),
    Stage(
        "judgments",
        "judge_responses",
        "judgment",
        lambda settings, _: (
            settings.prompts.count * settings.responses.count * settings.judge.count
        ),
    ),
    Stage("response_pairs", "pair_responses"),
    Stage("battles", "run_battles", "battle", _battles),
    Stage("ratings", "rate_judgments"),
    Stage("judgment_pairs", "pair_judgments"),
    Stage("data_gates", "pass_data_gates"),
    Stage("training", "train_model", "dpo", _dpo_tokens),
    *_MEASURING,
    Stage("self_judgments", "measure_model", "judgment", _outside_judgments),
    Stage("comparisons", "measure_model", "battle", lambda settings, _: 2 * _held_out(settings, _)),
    *_DECIDING,
)


def of_iteration(iteration: int) -> tuple[Stage, ...]:
    """The stages of an iteration; 0 is the seed stage."""
    return ITERATION_WORK if iteration else SEED_STAGE_WORK


def check_name(iteration: int, name: str) -> None:
    """Raise LookupError for a stage not in the table: plan and budget would not count it."""
    if all(stage.name != name for stage in of_iteration(iteration)):
        raise LookupError(f"stage {name!r} of iteration {iteration} is not in run/stages.py")


def seconds_by_stage(settings: Settings, iteration: int, costs: StageCosts) -> dict[str, float]:
    """Seconds of every stage of an iteration that takes time, in order."""
    return {
        stage.name: stage.seconds(settings, iteration, costs)
        for stage in of_iteration(iteration)
        if stage.piece
    }


def with_prompts(settings: Settings, count: int) -> Settings:
    """The same settings with another number of prompts an iteration."""
    return settings.model_copy(
        update={"prompts": settings.prompts.model_copy(update={"count": count})}
    )
