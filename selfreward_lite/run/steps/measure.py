"""Measuring a model: it answers the held-out prompts and judges the held-out ranked answers.

What gates may know is `ModelMetrics`. Scores by the exact scorer are stored beside it, for the
report alone.
"""

from dataclasses import dataclass
from statistics import fmean

from selfreward_lite.data.records import (
    BASE,
    Comparison,
    Judgment,
    ModelId,
    Outcome,
    Response,
)
from selfreward_lite.method import comparisons, metrics, responses
from selfreward_lite.method.metrics import JudgeAgreement, judge_agreement
from selfreward_lite.method.statistics import mean_or_none, standard_error
from selfreward_lite.run.context import RunContext
from selfreward_lite.run.steps.reward_hacking import ask_judges, find_signs


@dataclass(frozen=True)
class ModelMetrics:
    """What a model's answers and judgments show: nothing by the exact scorer.

    `mean_length` is in characters, None without answers. `longer` is what "pick the longer answer"
    reaches on the pairs that the model judged.
    """

    agreement: JudgeAgreement
    mean_length: float | None
    answers: metrics.AnswerMetrics
    longer: dict[str, float]

    def stored(self) -> dict[str, float | None]:
        """The metrics by their names in run.sqlite."""
        judge = {f"judge_{name}": value for name, value in self.agreement.metrics().items()}
        return judge | self.longer | vars(self.answers)


def measure_base(run: RunContext, _: int) -> None:
    """The untrained base answers and judges the held-out sets; M0 is compared with it."""
    _ask(run, BASE)
    run.once(0, "base_evaluation", lambda: _store_metrics(run, BASE))


def measure_model(run: RunContext, iteration: int) -> None:
    """M(t) answers the held-out prompts and judges the held-out ranked answers.

    An M0 that was not trained is the base: what the base said is copied, since it would say it
    again.
    """
    if iteration or run.settings.seed_stage.trains:
        _ask(run, ModelId(iteration))
    else:
        run.once(0, "eval_responses", lambda: _copy_from_base(run, Response))
        run.once(0, "eval_judgments", lambda: _copy_from_base(run, Judgment))
    ask_judges(run, iteration)
    if iteration > 0 and metrics.score_exactly(run.held_out(), []) is None:
        _compare_with_seed(run, iteration)
    run.once(iteration, "evaluation", lambda: _store_metrics(run, iteration))


def model_metrics(run: RunContext, model: int) -> ModelMetrics:
    """The metrics of a model, from what it answered and judged."""
    ranked, answers = run.ranked().evaluation, list(run.held_out_answers(model).values())
    ids = {answer.id for one in ranked for answer in one.responses}
    count = run.settings.evaluation.judgments  # a recheck of canaries drew more
    judged = [
        one
        for one in run.store.made_by(Judgment, model)
        if one.response_id in ids and one.index < count
    ]
    return ModelMetrics(
        judge_agreement(ranked, run.score(judged, count)),
        mean_or_none([len(one.text) for one in answers]),
        metrics.measure_answers(run.held_out(), answers, judged),
        metrics.measure_longer(ranked),
    )


def _ask(run: RunContext, model: ModelId) -> None:
    settings, iteration = run.settings.evaluation, model.iteration
    prefix = "base_" if model.is_base else ""
    actor, ranked = run.role(model, settings.draw, iteration), run.ranked().evaluation
    run.ask(
        iteration,
        f"{prefix}eval_responses",
        run.held_out(),
        lambda prompt: responses.ask_for_responses(prompt, actor, 1),
    )
    run.ask_judge(
        iteration,
        f"{prefix}eval_judgments",
        model,
        [answer for one in ranked for answer in one.responses],
        settings.judgments,
    )


def _copy_from_base(run: RunContext, kind: type[Response] | type[Judgment]) -> Outcome:
    """The base's answers to held-out prompts, or its judgments of ranked ones, as those of M0."""
    count = run.settings.evaluation.judgments
    asked = {one.id for one in run.held_out()} if kind is Response else set()
    ranked = {one.id for prompt in run.ranked().evaluation for one in prompt.responses}
    given = [
        one
        for one in run.store.made_by(kind, BASE)
        if (
            one.prompt_id in asked
            if isinstance(one, Response)
            else one.response_id in ranked and one.index < count  # a first look has others
        )
    ]
    return Outcome(run.copy_as_m0(given))


def _store_metrics(run: RunContext, model: int) -> Outcome:
    """Compute the metrics of a model and store them under its number."""
    known = model_metrics(run, model).stored()
    if model != BASE:
        known |= vars(find_signs(run, model))
    known |= _kind_metrics(run, model)
    rates = exact_metrics(run, model) or _win_rate(run, model)
    run.store.measure(model, **known, **rates)
    return Outcome()


def exact_metrics(run: RunContext, model: int) -> dict[str, float | None]:
    """Metrics by the exact scorer, where there is one; only the report reads them."""
    # M0 and the base have no win rate to measure: they are compared with themselves.
    exact, rival = (
        metrics.score_exactly(run.held_out(), list(run.held_out_answers(number).values()))
        for number in (model, min(model, 0))
    )
    if exact is None or rival is None:
        return {}
    rate, error = metrics.exact_win_rate(exact.score, rival.score)
    return {
        "exact_score": fmean(exact.score.values()),
        "exact_score_error": standard_error(list(exact.score.values())),
        "answer_right": fmean(exact.right.values()),
        "answer_right_error": standard_error([float(right) for right in exact.right.values()]),
        "win_rate_vs_seed": rate if model >= 0 else None,
        "win_rate_vs_seed_error": error if model > 0 else None,
    }


def _kind_metrics(run: RunContext, model: int) -> dict[str, float]:
    """Exact scores of answers to held-out prompts with constraints; only the report reads them."""
    answers = list(run.held_out_answers(model).values())
    return metrics.measure_kinds(metrics.score_constraints(run.held_out(), answers))


def _compare_with_seed(run: RunContext, iteration: int) -> None:
    """Where nothing can be scored exactly: M0, frozen, compares M(t)'s answers with its own."""
    mine, seeds = (run.held_out_answers(model) for model in (iteration, 0))
    role = run.judge_role(0, iteration)
    run.ask(
        iteration,
        "comparisons",
        [one for one in run.held_out() if one.id in mine and one.id in seeds],
        lambda prompt: comparisons.ask_for_comparison(
            prompt, mine[prompt.id], seeds[prompt.id], role
        ),
    )


def _win_rate(run: RunContext, model: int) -> dict[str, float | None]:
    """The win rate against M0 by its own comparisons; a missing answer loses."""
    compared = {one.prompt_id: one.result for one in run.store.records(Comparison, iteration=model)}
    if not compared:
        return {"win_rate_vs_seed": 0.5} if model == 0 else {}
    answered, seeds = (run.held_out_answers(number) for number in (model, 0))
    results = [
        compared.get(one.id, metrics.compare_scores(one.id in answered, one.id in seeds))
        for one in run.held_out()
    ]
    return {"win_rate_vs_seed": fmean(results), "win_rate_vs_seed_error": standard_error(results)}
