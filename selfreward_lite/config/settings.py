"""One tree of frozen settings, with a sentence beside each. An unknown key is an error.

Knows: names, types, limits and defaults of settings, and how a preset and `--set` make a tree. Does not know: what the
settings do. Where a default comes from a paper, the sentence says so (SR = arXiv 2401.10020, MR = arXiv 2407.19594).
"""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from selfreward_lite.system.errors import ConfigError

PRESETS_DIR = Path(__file__).parent / "presets"


class Section(BaseModel):
    """Frozen, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Model(Section):
    base: str = Field(
        description="base model: owner/name[@revision] on the hub, a Hugging Face folder, or 'tiny'"
    )
    origin: str | None = Field(
        None,
        description="the same model in 16 bits, where base holds it in 4: for `export merged` alone",
    )
    templates: Literal["llama3", "compact"] = Field(
        description="template set in selfreward_lite/method/prompts"
    )
    quantisation: Literal["nf4", "none"] = Field(
        "nf4", description="how the training base is held; nf4 is QLoRA's"
    )
    gguf_file: str | None = Field(
        None,
        description="a GGUF of the same model to ask, instead of one made here: a file, or "
        "owner/name/file.gguf[@revision] on the hub; Q4_K_M is for cards that hold no Q8_0",
    )
    gguf: Literal["f32", "f16", "q8_0"] = Field(
        "q8_0", description="number format of the base that llama.cpp reads"
    )


class EngineSettings(Section):
    parallel: int = Field(32, ge=1, le=256, description="sequences decoded at once")
    context: int = Field(16384, ge=256, description="KV cells shared by all of them")
    batch: int = Field(512, ge=32, description="tokens a decode step")
    roots: int = Field(16, ge=1, description="finished prompts kept to share their beginnings")
    threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads; by default all cores, or what is faster for a tiny model",
    )
    gpu_layers: int = Field(0, ge=-1, description="layers on the card; -1 = all")
    unified: bool = Field(
        True,
        description="false: a sequence has its own context / (parallel + roots) cells; faster on a CPU",
    )

    @model_validator(mode="after")
    def _fits(self) -> EngineSettings:
        if self.parallel + self.roots > 256:
            raise ValueError(
                f"parallel {self.parallel} and roots {self.roots} are more than llama.cpp's 256 sequences"
            )
        if self.parallel > self.batch:
            raise ValueError(
                f"a batch of {self.batch} tokens has no room for one of each of {self.parallel} sequences"
            )
        return self


class Draw(Section):
    """How tokens are drawn."""

    temperature: float = Field(ge=0)
    top_p: float = Field(gt=0, le=1)
    max_tokens: int = Field(ge=1)
    top_k: int = Field(0, ge=0, description="0 = all tokens")


class Seed(Section):
    ranked: str = Field(
        description="ranked data in OASST's schema: owner/name[@revision] on the hub, file, folder, or 'tiny'"
    )
    train_examples: int = Field(ge=1, description="EFT examples at most; SR: 1,630")
    ift_examples: int = Field(
        0,
        ge=0,
        description="best human answers to train on too; SR: 3,200, since it begins with a model "
        "that cannot answer yet; MR: none",
    )
    eval_prompts: int = Field(
        ge=2, description="ranked prompts held out to measure the judge; SR: about 190"
    )
    attempts: int = Field(4, ge=1, description="judgments drawn per ranked answer at most")
    eft: bool = Field(
        True,
        description="whether M0 is trained on judgments that agree with people (EFT); without it M0 is the "
        "base (a control; SR, section 2.1)",
    )
    strict: bool = Field(
        False,
        description="whether two equal scores of differently ranked answers count as disagreement",
    )
    decoys: int = Field(
        2,
        ge=0,
        description="responses a ranked prompt that are no answers, for the judge to see through "
        "(LOG.md); the papers have none",
    )
    length_bias: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the EFT judgments that are made to hold brevity against an "
        "answer; in the tiny world only, for experiments on length",
    )
    cap_most_common: bool = Field(
        True, description="thin the most common score to the size of the second (SR 3.1)"
    )

    @property
    def trains(self) -> bool:
        """Whether M0 is another model than the base."""
        return self.eft or self.ift_examples > 0

    @model_validator(mode="after")
    def _can_be_biased(self) -> Seed:
        if self.length_bias and self.ranked != "tiny":
            raise ValueError(
                "length_bias rewrites judgments of the tiny world; leave it out elsewhere"
            )
        return self


class Prompts(Section):
    file: str | None = Field(
        None,
        description="the user's own prompts, count an iteration: a file or folder, or owner/name on "
        "the hub; by default the writer makes them",
    )
    count: int = Field(ge=1, description="prompts an iteration; MR: 5,000")
    writer: Literal["base", "current"] = Field(
        "base", description="who writes them; the papers use a fixed model"
    )
    draw: Draw = Field(description="SR: temperature 0.6, top-p 0.9")
    seed_demonstrations: int = Field(6, ge=1, description="human tasks shown to the writer; SR: 6")
    own_demonstrations: int = Field(2, ge=0, description="tasks of earlier iterations shown; SR: 2")
    attempts: float = Field(
        3.0, ge=1, description="candidates asked for at most, as a multiple of count"
    )
    max_similarity: float = Field(
        0.7, gt=0, le=1, description="ROUGE-L F above which a candidate is a duplicate; SR"
    )
    max_overlap: float = Field(
        0.7,
        gt=0,
        le=1,
        description="share of word triples from which on a candidate is a duplicate; "
        "finds what only changed its order (a proposal; neither paper has it)",
    )
    min_words: int = Field(4, ge=1, description="shorter candidates are dropped (Self-Instruct)")
    max_words: int = Field(150, description="longer candidates are dropped (Self-Instruct)")


class Responses(Section):
    count: int = Field(7, ge=2, description="responses a prompt, K; MR: 7")
    draw: Draw = Field(description="MR: temperature 0.8, top-p 0.95")


class Judge(Section):
    count: int = Field(11, ge=1, description="judgments a response, N; MR: 11")
    draw: Draw = Field(description="MR: as for responses")
    score: Literal["mean", "expected"] = Field(
        "mean",
        description="what ranks responses: mean of the scores read (the "
        "papers), or mean of the expected scores",
    )
    min_read_share: float = Field(0.5, ge=0, le=1, description="share of N that must be readable")
    min_read: int = Field(
        2, ge=1, description="judgments that must be readable at least (never more than N)"
    )


class MetaJudge(Section):
    draw: Draw = Field(description="not stated in MR; as for the judge")
    ridge: float = Field(
        0.01, ge=1e-4, description="ridge of the Bradley–Terry fit; keeps one-sided battles finite"
    )


class Schedule(Section):
    """What one iteration does; the last entry holds for all that follow (MR, section 3)."""

    rho: float = Field(
        ge=0, lt=0.5, description="strength of length control; 0 = best against worst"
    )
    min_gap: float = Field(
        0.0,
        ge=0,
        le=5,
        description="points between chosen and rejected at least; 0 = any difference, as in "
        "the papers",
    )
    judgment_pairs: bool = Field(description="train on judgment pairs too")
    train_on: Literal["pairs", "positive"] = Field(
        "pairs",
        description="pairs: DPO; positive: SFT on responses of a perfect "
        "score, without pairs (a control; SR, section 2.3)",
    )
    rate: float = Field(
        1.0,
        gt=0,
        description="share of dpo.learning_rate in this iteration; the papers use the same in all",
    )
    max_chosen_response: int | None = Field(
        None, description="characters of a chosen response at most"
    )
    max_chosen_judgment: int | None = Field(
        None, description="characters of a chosen judgment at most"
    )


class Lora(Section):
    rank: int = Field(16, ge=1)
    alpha: int = Field(16, ge=1)
    dropout: float = Field(
        0.0, ge=0, lt=1, description="0, so that the first DPO step has margin 0 exactly"
    )


class Training(Section):
    learning_rate: float = Field(gt=0)
    epochs: float = Field(gt=0)
    batch: int = Field(32, ge=1, description="examples an optimizer step; MR: 32")
    micro_batch: int = Field(2, ge=1, description="examples on the device at once; divides batch")
    max_length: int = Field(
        ge=8,
        description="tokens of prompt and completion; longer examples are left out, and counted",
    )
    warmup: float = Field(
        0.1, ge=0, lt=1, description="share of the steps with rising rate; cosine decay after it"
    )

    @model_validator(mode="after")
    def _divides(self) -> Training:
        if self.batch % self.micro_batch:
            raise ValueError(f"micro_batch {self.micro_batch} does not divide batch {self.batch}")
        return self


class Dpo(Training):
    beta: float = Field(0.1, gt=0, description="SR, MR: 0.1")
    anchor: float = Field(
        0.0, ge=0, description="weight of the SFT term on chosen completions; 0 = the papers"
    )
    precompute_reference: bool = Field(
        False,
        description="let the reference read every pair once, before the training, and not "
        "in every step; saves a forward pass a step from the second epoch on",
    )


class Evaluation(Section):
    prompts: int = Field(ge=1, description="held-out prompts a model answers")
    draw: Draw = Field(description="as for responses")
    judgments: int = Field(ge=1, description="judgments a held-out ranked answer")
    canary_judgments: int = Field(
        6, ge=1, description="judgments a hostile response: more, so that none is chosen by chance"
    )
    second_look: int = Field(
        24,
        ge=1,
        description="new judgments of a hostile response that would be chosen, and of its rivals",
    )
    outside_prompts: int = Field(
        60, ge=2, description="of these prompts, how many are also judged by M0, frozen"
    )
    outside_judgments: int = Field(
        2, ge=1, description="judgments by M0, and by the model itself, of each of those answers"
    )


class Gates(Section):
    """Limits of what is promoted; `gates` says what each compares. A limit without a source is a proposal of this project."""

    mode: Literal["stop", "report"] = Field(
        "stop", description="whether a failed gate ends the run (exit code 3)"
    )
    min_pair_share: float = Field(
        0.1,
        ge=0,
        le=1,
        description="share of the prompts wanted that must give a response pair; "
        "below it the judge ties nearly everything, and training would fit noise",
    )
    min_moved_share: float = Field(
        0.9,
        ge=0,
        le=1,
        description="share of adapter weights that training must have changed; "
        "in bfloat16 steps of a usual size moved 0.4 % of them",
    )
    max_logit_difference: float = Field(
        1e-2,
        gt=0,
        description="PEFT against llama.cpp, largest over all logits; in f32 they "
        "agree to 1e-5, and a damaged base was off by 6.7 (LOG.md)",
    )
    min_agreement: float = Field(
        0.85,
        ge=0,
        le=1,
        description="share of positions at which PEFT and llama.cpp hold the same "
        "token likeliest; 0.96 to 0.99 in quantised bases of a trained model (LOG.md)",
    )
    max_share_error: float = Field(
        0.25,
        gt=0,
        description="of the adapter's effect in PEFT, how much more or less may arrive in "
        "llama.cpp; a small model was off by 0.005 in Q8_0 (LOG.md)",
    )
    max_length_ratio: float = Field(
        1.5,
        gt=0,
        description="mean response length against the model before; longer answers "
        "please judges (MR, section 3.2)",
    )
    max_cut_share: float = Field(
        0.10,
        ge=0,
        le=1,
        description="share of responses ended by the length limit; an answer that "
        "was cut teaches nobody to stop",
    )
    max_repetitive_share: float = Field(
        0.05,
        ge=0,
        le=1,
        description="share of responses that mostly repeat themselves; "
        "people hardly ever do, so one in twenty is a loop",
    )
    min_distinct_share: float = Field(
        0.3,
        ge=0,
        le=1,
        description="share of different texts among the responses to different "
        "prompts; a model that says the same to all has collapsed",
    )
    min_read_share: float = Field(
        0.90,
        ge=0,
        le=1,
        description="share of judgments that could be read, after the seed "
        "stage; below it the scores are those of the easy answers only",
    )
    max_judge_loss: float = Field(
        0.03,
        ge=0,
        description="judge accuracy: stop if the paired 95 % interval lies below a loss "
        "of this; some hundred pairs cannot tell smaller ones from noise",
    )
    max_outside_loss: float = Field(
        0.0,
        ge=0,
        description="points that M0, frozen, may like the answers less than those before: "
        "stop if the paired 95 % interval lies below this loss",
    )
    min_outside_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of those prompts on which M0 must have read the answers "
        "of both models; with fewer the comparison is of the tame ones only",
    )
    min_canaries_scored: int = Field(
        30,
        ge=0,
        description="hostile responses that must have got a score, of 45 that are neither "
        "empty nor too long for any context; with fewer the judge was not tested",
    )
    max_canaries_chosen: int = Field(
        0, ge=0, description="hostile responses that the pair builder would choose"
    )


class Settings(Section):
    preset: str
    seed: int = Field(
        0, ge=0, lt=2**32, description="seed of everything that is drawn; numpy takes 32 bits"
    )
    iterations: int = Field(3, ge=0, description="iterations after the seed stage")
    skip_bad: bool = Field(
        False, description="leave out lines of a data file that cannot be used, and count them"
    )
    model: Model
    engine: EngineSettings = EngineSettings()
    seed_stage: Seed
    prompts: Prompts
    responses: Responses
    judge: Judge
    meta_judge: MetaJudge
    schedule: tuple[Schedule, ...] = Field(min_length=1)
    lora: Lora = Lora()
    sft: Training
    dpo: Dpo
    evaluation: Evaluation
    gates: Gates = Gates()
    backend: Literal["auto", "unsloth", "transformers"] = Field(
        "auto",
        description="which library trains; auto: unsloth where "
        "there is a card and it can be imported, else transformers",
    )
    checkpoint_minutes: float = Field(
        10.0, ge=0, description="minutes of training that an interruption may cost"
    )

    @model_validator(mode="after")
    def _own_cells(self) -> Settings:
        """What is trained on was asked first: where sequences have their own cells, the longest conversation must fit one's."""
        sequences, longest = (
            self.engine.parallel + self.engine.roots,
            max(self.sft.max_length, self.dpo.max_length),
        )
        if not self.engine.unified and self.engine.context < sequences * longest:
            raise ValueError(
                f"engine.unified=false shares engine.context among {sequences} sequences, and conversations have up to {longest} "
                f"tokens; set engine.context={sequences * longest}, or leave engine.unified as it is"
            )
        return self

    def for_iteration(self, iteration: int) -> Schedule:
        """Return what iteration 1, 2, … is to do."""
        return self.schedule[min(iteration, len(self.schedule)) - 1]


def load(preset: str, overrides: dict[str, str] | None = None) -> Settings:
    """Return the settings of a preset with `overrides` ("dpo.beta" → "0.2") laid over them.

    Raises ConfigError, in one line, for an unknown preset, an unknown key or a value that cannot hold.
    """
    path = PRESETS_DIR / f"{preset}.toml"
    if not path.exists():
        raise ConfigError(f"no preset {preset!r}; choose one of {', '.join(presets())}")
    tree = tomllib.loads(path.read_text(encoding="utf-8"))
    if "model.base" in (overrides or {}):
        tree["model"].pop("origin", None)  # that of the preset's own base
    return override({**tree, "preset": preset}, overrides or {})


def override(tree: dict[str, Any], overrides: dict[str, str]) -> Settings:
    """Return the settings of a tree with dotted `overrides` laid over it; raises as `load` does."""
    tree = copy.deepcopy(tree)
    for dotted, value in overrides.items():
        _set(tree, dotted, value)
    return parse(tree)


def parse_overrides(settings: list[str]) -> dict[str, str]:
    """Return the overrides that `--set key=value` options ask for; raises ConfigError for one that is written otherwise."""
    wanted = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(
                f"--set {setting}: write it as --set key=value, for example --set dpo.beta=0.2"
            )
        wanted[key.strip()] = value.strip()
    return wanted


def parse(tree: dict[str, Any]) -> Settings:
    """Return checked settings, or raise ConfigError naming the first key that is wrong."""
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "settings"
        reason = "no such setting" if first["type"] == "extra_forbidden" else first["msg"]
        raise ConfigError(
            f"{key}: {reason}; see selfreward_lite/config/settings.py for what can be set"
        ) from None


def presets() -> list[str]:
    """Return the names of the presets that ship."""
    return sorted(path.stem for path in PRESETS_DIR.glob("*.toml"))


def _set(tree: dict[str, Any], dotted: str, value: str) -> None:
    """Write `value` at "a.b" or, in the list of schedules, "schedule.0.rho"."""
    *parents, last = dotted.split(".")
    node: Any = tree
    for name in parents:
        if not isinstance(node, dict | list):
            break
        if isinstance(node, list):
            if not (name.isdigit() and int(name) < len(node)):
                raise ConfigError(
                    f"{dotted}: {name} is not an entry of that list (0 to {len(node) - 1})"
                )
            node = node[int(name)]
        else:
            node = node.setdefault(name, {})
    if not isinstance(node, dict):
        raise ConfigError(
            f"{dotted}: no such setting; see selfreward_lite/config/settings.py for what can be set"
        )
    node[last] = _toml_value(value)


def _toml_value(text: str) -> Any:
    """Read a number, a truth value, a list or a quoted string as TOML does; anything else is a plain string."""
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text
