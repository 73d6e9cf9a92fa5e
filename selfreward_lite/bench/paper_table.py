"""The papers' comparisons in the tiny world: the arms, and what is measured of them.

All arms of a seed start from a copy of one seed stage, except those that change it. They have the
same prompts and as many judgments.
"""

import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np

from selfreward_lite import config
from selfreward_lite.bench import Say
from selfreward_lite.bench.seeds import Arm, ModelRow, Start, run_arms
from selfreward_lite.data.records import (
    BASE,
    Battle,
    Judgment,
    ModelId,
    Prompt,
    Response,
    ResponsePair,
)
from selfreward_lite.data.store import Store
from selfreward_lite.data.tiny import tasks
from selfreward_lite.data.tiny.score import score_answer
from selfreward_lite.method import metrics
from selfreward_lite.method.judgments import SCORE_TOLERANCE, group_by_response
from selfreward_lite.method.statistics import mean_or_none
from selfreward_lite.report import plots, summary
from selfreward_lite.run import loop, prepare
from selfreward_lite.run.ask import Watch
from selfreward_lite.run.runtime import Runtime
from selfreward_lite.system.errors import UserError

ITERATIONS = 3
SIZES = {  # an arm takes at most 90 s on two cores (docs/log/paper-table.md)
    "gates.mode": "report",
    "prompts.count": "80",
    "evaluation.prompts": "500",
    "seed_stage.eval_prompts": "60",
}
OF_SUMMARY = (
    "seconds",
    "exact_score",
    "answer_right",
    "pair_yield",
    "tie_rate",
    "response_pairs",
)


def _all(**settings: str) -> dict[str, str]:
    """The same settings in every iteration."""
    return {
        f"schedule.{place}.{name}": value
        for name, value in settings.items()
        for place in range(ITERATIONS)
    }


SELF, NO_CONTROL = _all(judgment_pairs="false"), _all(rho="0")

# A world whose judge was taught to mark short answers down, with the paper's strength of length
# control (arXiv 2407.19594, section 3).
BIASED = {"seed_stage.length_bias": "0.8"}
CONTROL = {"schedule.0.rho": "0", "schedule.1.rho": "0.32", "schedule.2.rho": "0.32"}

# Where the epochs differ from the preset's (DPO 1, SFT 2), the arm makes as many training steps as
# Meta-Rewarding, within one.
ARMS = (
    Arm("Self-Rewarding", SELF | NO_CONTROL),
    Arm("Self-Rewarding + length control", SELF),
    Arm("Self-Rewarding + length control, 1.5 epochs", SELF | {"dpo.epochs": "1.5"}),
    Arm("Meta-Rewarding", {}),
    Arm("Meta-Rewarding, no length control", NO_CONTROL),
    Arm("Meta-Rewarding, judgment pairs always", _all(judgment_pairs="true")),
    Arm("Meta-Rewarding, no SFT anchor", {"dpo.anchor": "0"}),
    Arm("Meta-Rewarding, expected score", {"judge.score": "expected"}),
    Arm("positive examples only", SELF | _all(train_on="positive")),
    Arm("positive examples only, 7 epochs", SELF | _all(train_on="positive") | {"sft.epochs": "7"}),
    Arm("Meta-Rewarding, no EFT", {}, {"seed_stage.eft": "false"}),
    *(
        Arm(f"biased: {name}", change, BIASED, own_m0=True)
        for name, change in {
            "Self-Rewarding": SELF | NO_CONTROL,
            "Self-Rewarding + length control": SELF | CONTROL,
            "Self-Rewarding + length control, 1.5 epochs": SELF | CONTROL | {"dpo.epochs": "1.5"},
            "Meta-Rewarding": CONTROL,
            "Meta-Rewarding, no length control": NO_CONTROL,
        }.items()
    ),
)


def run_table(
    folder: Path,
    seeds: Sequence[int],
    watch: Watch,
    say: Say,
    arms: Sequence[Arm] = ARMS,
    settings: Mapping[str, str] = SIZES,
) -> list[ModelRow]:
    """Run or resume every arm with every seed; gates only report.

    `settings` override the tiny preset for all arms.
    """

    def start(arm: Arm, seed: int, runtime: Runtime) -> Start:
        place = folder / f"seed-{seed}"

        def run_seed_stage(change: Mapping[str, str]) -> Path:
            """The folder of the seed stage with this change; it is run if it is not there yet."""
            changes = (f"{key.removeprefix('seed_stage.')}={change[key]}" for key in change)
            stage = place / " ".join(["seed-stage", *changes])
            chosen = {"seed": str(seed), "iterations": "0", **settings, **change}
            with Store.write(stage) as store:
                # Refuses a seed stage that was started with other settings.
                checked = prepare.load_or_create_settings(store, chosen, "tiny")
                if store.newest() is None:
                    loop.run(store, checked, runtime, watch)
            return stage

        own = run_seed_stage(arm.seed_stage)
        m0 = own if arm.own_m0 else run_seed_stage({})
        _branch(own, place / arm.name, {**arm.change, "iterations": str(ITERATIONS)})
        return Start(place / arm.name, m0, {"gates.mode": "report"})

    trials = run_arms(arms, seeds, start, measure_models, watch, say)
    return [row for trial in trials for row in trial.rows]


def _branch(start: Path, folder: Path, change: dict[str, str]) -> None:
    """Copy a run after its seed stage, with other settings for what follows, once.

    Raises UserError if the copy was started with other settings.
    """
    with Store.read(start) as store:
        settings = config.override(store.fact("settings"), change)
    if folder.exists():
        with Store.read(folder) as store:
            # Parsed: a setting that is newer than the run has its default.
            if store.settings() != settings:
                raise UserError(
                    f"{folder} was started with other settings; move it away, or give another "
                    "--runs-dir"
                )
        return
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(start, part)
    with Store.write(part) as store:
        store.state("settings", settings.model_dump(mode="json"))
    part.rename(folder)


# -- what is measured of an arm --------------------------------------------------------------------


def measure_models(store: Store, m0: Path) -> Iterator[summary.ModelFigures]:
    """The figures of each model of a run, the base first; compared with M0 of the run `m0`."""
    prompts = store.records(Prompt, origin="held_out")
    hard = set()
    for one in prompts:
        task = tasks.parse_task(one.text)
        assert task is not None
        if len(task.letters) == tasks.MAX_LETTERS:
            hard.add(one.id)
    biases = {(row["judge"], row["what"]): row["value"] for row in plots.meta_judge_bias(store)}
    with Store.read(m0) as compared:
        seed_answers = previous = _load_answers(prompts, compared, 0)
    yield _judge_metrics(store, BASE)
    for iteration, row in enumerate(summary.summarize_run(store)["iterations"]):
        answers = _load_answers(prompts, store, iteration)
        author = ModelId(iteration - 1).name
        win_rate, length_controlled = _compare(answers, seed_answers)
        yield {
            "win_rate": win_rate,
            "length_controlled_win_rate": length_controlled,
            "win_rate_vs_previous": _compare(answers, previous)[0],
            "length": fmean(one.length for one in answers.values()),
            "hard_score": fmean(answers[name].score for name in hard),
            "first_share": biases.get((author, "shown first")),
            "higher_share": biases.get((author, "higher score")),
            **(measure_data(store, iteration) if iteration else {}),
            **{name: row[name] for name in OF_SUMMARY},
            **_judge_metrics(store, iteration),
        }
        previous = answers


def _judge_metrics(store: Store, model: int) -> summary.ModelFigures:
    known = summary.load_metrics(store, model)
    return {name: value for name, value in known.items() if name.startswith(("judge_", "longer_"))}


def measure_data(store: Store, iteration: int) -> summary.ModelFigures:
    """How right M<iteration>'s training data is, by the exact scorer; and its training steps.

    Responses to prompts that are no task do not count.
    """
    texts = {one.id: one.text for one in store.records(Prompt, iteration=iteration)}
    responses = [
        one
        for one in store.made_by(Response, iteration - 1, iteration)
        if tasks.parse_task(texts[one.prompt_id])
    ]
    exact = {one.id: score_answer(texts[one.prompt_id], one.text).score for one in responses}
    judgments = store.made_by(Judgment, iteration - 1, iteration)
    scores = [
        (exact[one.chosen_id], exact[one.rejected_id])
        for one in store.records(ResponsePair, iteration=iteration)
        if one.chosen_id in exact
    ]
    return {
        "pair_accuracy": mean_or_none(
            chosen > rejected for chosen, rejected in scores if chosen != rejected
        ),
        "tie_accuracy": _tie_accuracy(responses, judgments, exact),
        "meta_accuracy": _meta_accuracy(
            store.records(Battle, iteration=iteration), judgments, exact
        ),
        "training_steps": store.metrics(iteration).get("training_steps"),
    }


def _tie_accuracy(
    responses: Sequence[Response], judgments: Sequence[Judgment], exact: Mapping[str, int]
) -> float | None:
    """Of pairs that tie by mean sampled score: the share that the expected score orders rightly.

    Pairs with equal exact or equal expected scores do not count.
    """
    judged, by_prompt = group_by_response(judgments), defaultdict(list)
    for one in responses:
        read = [
            (each.score, each.expected_score)
            for each in judged.get(one.id, ())
            if each.score is not None and each.expected_score is not None
        ]
        if read:
            sampled, expected = map(fmean, zip(*read, strict=True))
            by_prompt[one.prompt_id].append((sampled, expected, exact[one.id]))
    return mean_or_none(
        [
            (a[1] > b[1]) == (a[2] > b[2])
            for scored in by_prompt.values()
            for a, b in combinations(scored, 2)
            if abs(a[0] - b[0]) <= SCORE_TOLERANCE and a[2] != b[2] and a[1] != b[1]
        ]
    )


def _meta_accuracy(
    battles: Sequence[Battle], judgments: Sequence[Judgment], exact: Mapping[str, int]
) -> float | None:
    """Of decided battles: the share won by the judgment that is nearer to the exact score."""
    scores = {one.id: one.score for one in judgments}
    right = []
    for one in battles:
        first, second = scores[one.first_id], scores[one.second_id]
        best = exact.get(one.response_id)
        if one.verdict and first is not None and second is not None and best is not None:
            lead = abs(second - best) - abs(first - best)
            right += [(lead > 0) == (one.verdict > 0)] if lead else []
    return mean_or_none(right)


class _Answer(NamedTuple):
    """The exact score and the characters of a held-out answer; a missing one has none."""

    score: int
    length: int


def _load_answers(prompts: Sequence[Prompt], store: Store, iteration: int) -> dict[str, _Answer]:
    """The held-out answers of a model, by prompt."""
    given = store.made_by(Response, iteration)
    texts = {one.id: "" for one in prompts} | {one.prompt_id: one.text for one in given}
    return {
        one.id: _Answer(score_answer(one.text, texts[one.id]).score, len(texts[one.id]))
        for one in prompts
    }


def _compare(mine: Mapping[str, _Answer], theirs: Mapping[str, _Answer]) -> tuple[float, float]:
    """The win rate, and what it would be for equally long answers."""
    pairs = [(mine[name], theirs[name]) for name in mine]
    results = np.array([metrics.compare_scores(a.score, b.score) for a, b in pairs])
    gaps = np.array([a.length - b.length for a, b in pairs], dtype=float)
    return float(results.mean()), metrics.length_controlled_win_rate(results, gaps)
