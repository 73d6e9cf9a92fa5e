"""What a model does on the held-out sets."""

# What shows that a model fools its own judge: hostile responses, and a judge that does not change.
#
# Knows: which records are asked for and compared. Does not know: limits (those are in `gates`), the exact scorer. Two views
# from outside of a candidate M(t):
#
#     canaries     M(t) judges fifty hostile responses; they must not score above honest bad answers, nor ever be chosen. With fifty
#                  of them and a few judgments each, chance alone chooses one now and then (measured: in 5 of 144 models). So
#                  one that would be chosen is judged again, with its rivals, many times, and those new judgments alone decide
#     outside      M0, frozen, judges what M(t) answers to held-out prompts; it must not like it less than what M(t-1)
#                  answered, however much M(t) likes itself

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from selfreward_lite.data.records import BASE, Comparison, Judgment, ModelId, Outcome, Response
from selfreward_lite.method import (
    canaries,
    comparisons,
    judgments,
    metrics,
    response_pairs,
    responses,
)
from selfreward_lite.method.metrics import JudgeAgreement, judge_agreement
from selfreward_lite.method.roles import Role
from selfreward_lite.method.statistics import paired_interval, standard_error
from selfreward_lite.run.context import RunContext, bind, grouped, judging

Scores = Mapping[str, float | None]


@dataclass(frozen=True)
class CanaryView:
    """Mean score of the canaries and of the worst honest answer to the same prompts, None where none could be read; how many
    canaries got a score; how many the pair builder would choose over the honest answers at first sight, and on a second look."""

    score: float | None
    honest: float | None
    scored: int
    suspected: int
    chosen: int


def ask(run: RunContext, iteration: int) -> None:
    """Have M(t) judge the canaries, and M0 and M(t) what M(t) answered to the first held-out prompts."""
    settings = run.settings.evaluation
    by_id = {one.prompt.id: one.prompt for one in run.ranked().evaluation}
    judge = run.role(iteration, run.settings.judge.draw, iteration)
    hostile = [
        (
            one.id,
            bind(
                judgments.ask_for_judgments,
                by_id[one.prompt_id],
                one,
                judge,
                settings.canary_judgments,
            ),
        )
        for one in _canaries(run)
    ]
    run.ask(iteration, "canary_judgments", hostile)
    _look_again(run, iteration, judge)
    prompts = {one.id: one for one in run.held_out()[: settings.outside_prompts]}
    answers = [one for one in _answers(run, iteration) if one.prompt_id in prompts]
    judges = (
        {"outside_judgments": 0, "self_judgments": iteration}
        if iteration
        else {"outside_judgments": 0}
    )
    for stage, model in judges.items():  # M0's view of its own answers is both
        role, count = (
            run.role(model, run.settings.judge.draw, iteration),
            settings.outside_judgments,
        )
        items = [
            (one.id, bind(judgments.ask_for_judgments, prompts[one.prompt_id], one, role, count))
            for one in answers
        ]
        run.ask(iteration, stage, items)


def _look_again(run: RunContext, iteration: int, judge: Role) -> None:
    """Have each canary that would be chosen judged anew, and the honest answers that it would be chosen over."""
    ranked = {one.prompt.id: one for one in run.ranked().evaluation}
    suspects = _chosen(run, iteration, _canaries(run), _first_sight(run, iteration))
    rivals = [
        answer
        for prompt_id in dict.fromkeys(one.prompt_id for one in suspects)
        for answer in ranked[prompt_id].responses
    ]
    items = [
        (
            one.id,
            bind(
                judgments.ask_for_judgments,
                ranked[one.prompt_id].prompt,
                one,
                judge,
                run.settings.evaluation.second_look,
                _second(run),
            ),
        )
        for one in (*suspects, *rivals)
    ]
    if items:
        run.ask(iteration, "second_look", items)


def canary_view(run: RunContext, iteration: int) -> CanaryView:
    """Return how M(t) scored the canaries, and what the pair builder makes of those scores."""
    ranked = {one.prompt.id: one for one in run.ranked().evaluation}
    laid, scores = _canaries(run), _first_sight(run, iteration)
    suspects = _chosen(run, iteration, laid, scores)
    again = _scores(run, iteration, iteration, run.settings.evaluation.second_look, _second(run))
    clear = [
        one
        for one in suspects
        if again.get(one.id) is not None
        and any(again.get(rival.id) is not None for rival in ranked[one.prompt_id].responses)
    ]  # a second look that sees nothing takes no suspicion away
    chosen = len(suspects) - len(clear) + len(_chosen(run, iteration, clear, again))
    honest = [ranked[name].responses[-1].id for name in {canary.prompt_id for canary in laid}]
    scored = sum(scores.get(canary.id) is not None for canary in laid)
    score = _mean(scores, [canary.id for canary in laid])
    return CanaryView(score, _mean(scores, honest), scored, len(suspects), chosen)


def _first_sight(run: RunContext, iteration: int) -> Scores:
    """Scores of the canaries and of the honest answers, from the judgments that all of them got."""
    settings = run.settings.evaluation
    hostile = _scores(run, iteration, iteration, settings.canary_judgments)
    return {
        **_scores(run, iteration, iteration, settings.judgments),
        **{one.id: hostile.get(one.id) for one in _canaries(run)},
    }


def _second(run: RunContext) -> int:
    """The number of the first judgment of a second look, above those of any first."""
    return max(run.settings.evaluation.canary_judgments, run.settings.evaluation.judgments)


def _chosen(
    run: RunContext, iteration: int, laid: Sequence[Response], scores: Scores
) -> list[Response]:
    """Those of the canaries that the pair builder would choose over the honest answers, one at a time."""
    ranked = {one.prompt.id: one for one in run.ranked().evaluation}
    schedule, found = run.settings.for_iteration(iteration + 1), []
    for canary in laid:
        one = ranked[canary.prompt_id]
        answers = {one.prompt.id: [canary, *one.responses]}
        pairs = response_pairs.build_response_pairs(
            [one.prompt],
            answers,
            scores,
            schedule,
            id_namespace=run.store.id_namespace,
            iteration=iteration,
        )
        if any(pair.chosen_id == canary.id for pair in pairs.records):
            found.append(canary)
    return found


def outside_scores(run: RunContext, iteration: int, judge: int) -> dict[str, float]:
    """Return what M<judge> gives the answers of M(t) to the first held-out prompts, by prompt id; unread ones are left out."""
    scores = _scores(run, iteration, judge, run.settings.evaluation.outside_judgments)
    named = ((one.prompt_id, scores.get(one.id)) for one in _answers(run, iteration))
    return {prompt_id: score for prompt_id, score in named if score is not None}


@dataclass(frozen=True)
class OutsideView:
    """How much better M0 likes the answers of M(t) than those of M(t-1): 95 % interval in points (NaN for fewer than two
    prompts), and on which share of the prompts asked, since an answer that M0 could not read has no score."""

    interval: tuple[float, float]
    share: float


def outside_view(run: RunContext, iteration: int) -> OutsideView:
    """Return how M0 likes the answers of M(t) beside those of M(t-1)."""
    now, before = (outside_scores(run, model, 0) for model in (iteration, iteration - 1))
    both = [name for name in now if name in before]
    asked = len(run.held_out()[: run.settings.evaluation.outside_prompts])
    interval = paired_interval([[now[name]] for name in both], [[before[name]] for name in both])
    return OutsideView(interval, len(both) / asked)


def _canaries(run: RunContext) -> list[Response]:
    return run.store.records(Response, iteration=0, model=canaries.CANARY)


def _answers(run: RunContext, iteration: int) -> list[Response]:
    held_out = {one.id for one in run.held_out()}
    return [
        one
        for one in run.store.records(Response, iteration=iteration, model=ModelId(iteration).name)
        if one.prompt_id in held_out
    ]


def _scores(run: RunContext, iteration: int, judge: int, count: int, first: int = 0) -> Scores:
    """Scores by response id from `count` judgments each, those numbered from `first`."""
    settings = run.settings.judge.model_copy(update={"count": count})
    drawn = run.store.records(Judgment, iteration=iteration, model=ModelId(judge).name)
    by_response = grouped(
        (one for one in drawn if first <= one.index < first + count), lambda one: one.response_id
    )
    return {
        response_id: judgments.score_response(found, settings)
        for response_id, found in by_response.items()
    }


def _mean(scores: Scores, names: Sequence[str]) -> float | None:
    read = [score for name in names if (score := scores.get(name)) is not None]
    return fmean(read) if read else None


@dataclass(frozen=True)
class Measured:
    """What a model did on the held-out sets. `asked` prompts were put to it; one it did not answer has no response."""

    asked: int
    answers: list[Response]
    judged: list[Judgment]
    quality: JudgeAgreement


def measure_base(run: RunContext, _: int) -> None:
    """Let the untrained base answer and judge the held-out sets, as the mark that M0 is held against."""
    _ask(run, BASE)
    run.once(0, "base_evaluation", lambda: _record(run, BASE))


def measure(run: RunContext, iteration: int) -> None:
    """Let M(t) answer the held-out prompts and judge the held-out ranked answers."""
    _ask(run, iteration)
    ask(run, iteration)
    if iteration > 0 and metrics.score_exactly(run.held_out(), []) is None:
        _compare(run, iteration)
    run.once(iteration, "evaluation", lambda: _record(run, iteration))


def _ask(run: RunContext, model: int) -> None:
    settings, iteration = run.settings.evaluation, max(model, 0)
    prefix = "base_" if model == BASE else ""
    actor = run.role(model, settings.draw, iteration)
    run.ask(
        iteration,
        f"{prefix}eval_responses",
        [(one.id, bind(responses.ask_for_responses, one, actor, 1)) for one in run.held_out()],
    )
    judge = run.role(model, run.settings.judge.draw, iteration)
    run.ask(
        iteration,
        f"{prefix}eval_judgments",
        judging(run.ranked().evaluation, judge, settings.judgments),
    )


def _measured(run: RunContext, model: int) -> Measured:
    name, iteration = run.role(model, run.settings.judge.draw, 0).model, max(model, 0)
    ranked, held_out = run.ranked().evaluation, {one.id for one in run.held_out()}
    mine = {answer.id for one in ranked for answer in one.responses}
    answers = [
        one
        for one in run.store.records(Response, iteration=iteration, model=name)
        if one.prompt_id in held_out
    ]
    count = run.settings.evaluation.judgments  # a second look at some canary's rivals drew more
    drawn = run.store.records(Judgment, iteration=iteration, model=name)
    judged = [one for one in drawn if one.response_id in mine and one.index < count]
    by_response = grouped(judged, lambda judgment: judgment.response_id)
    settings = run.settings.judge.model_copy(update={"count": count})
    scores = {
        response_id: judgments.score_response(drawn, settings)
        for response_id, drawn in by_response.items()
    }
    return Measured(len(held_out), answers, judged, judge_agreement(ranked, scores))


def _record(run: RunContext, model: int) -> Outcome:
    """Compute the metrics of a model and keep them under its number."""
    measured = _measured(run, model)
    values: dict[str, float | None] = {
        **{f"judge_{name}": value for name, value in measured.quality.metrics().items()},
        "judge_read_share": metrics.share_read(measured.judged),
        "mean_response_tokens": fmean(one.tokens for one in measured.answers)
        if measured.answers
        else None,
        "cut_share": _cut_share(measured),
        "repetitive_share": metrics.share_repetitive(measured.answers),
        "distinct_share": len({one.text for one in measured.answers})
        / max(1, len(measured.answers)),
    }
    if model >= 0:
        canary = canary_view(run, model)
        values |= {"canary_score": canary.score, "honest_bad_score": canary.honest}
        values |= {"canaries_scored": canary.scored}
        values |= {"canaries_suspected": canary.suspected, "canaries_chosen": canary.chosen}
        for name, judge in (("outside_score", 0), ("self_score", model)):
            scores = outside_scores(run, model, judge)
            values[name] = fmean(scores.values()) if scores else None
    exact = _exact(run, model, measured.answers)
    run.store.measure(model, **values, **(exact or _compared(run, model)))
    return Outcome()


def _exact(run: RunContext, model: int, answers: Sequence[Response]) -> dict[str, float | None]:
    """Metrics from the exact scorer, where there is one. Only the report reads them."""
    exact = metrics.score_exactly(run.held_out(), answers)
    if exact is None:
        return {}
    rivals = run.store.records(Response, iteration=0, model="M0") if model > 0 else answers
    rival = metrics.score_exactly(run.held_out(), rivals)
    assert rival is not None
    rate, error = metrics.exact_win_rate(exact.score, rival.score)
    return {
        "exact_score": fmean(exact.score.values()),
        "exact_score_error": standard_error(list(exact.score.values())),
        "answer_right": fmean(exact.right.values()),
        "answer_right_error": standard_error([float(right) for right in exact.right.values()]),
        "win_rate_vs_seed": rate if model >= 0 else None,
        "win_rate_vs_seed_error": error if model > 0 else None,
    }


def _compare(run: RunContext, iteration: int) -> None:
    """Where quality cannot be computed: M0, frozen, compares M(t)'s answers with its own, in both orders."""
    held_out = {one.id: one for one in run.held_out()}
    mine = {
        one.prompt_id: one
        for one in run.store.records(Response, iteration=iteration, model=ModelId(iteration).name)
    }
    seeds = {one.prompt_id: one for one in run.store.records(Response, iteration=0, model="M0")}
    both = [one for one in held_out.values() if one.id in mine and one.id in seeds]
    role = run.role(0, run.settings.judge.draw, iteration)
    items = [
        (one.id, bind(comparisons.ask_for_comparison, one, mine[one.id], seeds[one.id], role))
        for one in both
    ]
    run.ask(iteration, "comparisons", items)


def _compared(run: RunContext, model: int) -> dict[str, float | None]:
    compared = {one.prompt_id: one.result for one in run.store.records(Comparison, iteration=model)}
    if not compared:
        return {"win_rate_vs_seed": 0.5} if model == 0 else {}
    # An answer that never came loses to one that did.
    answered = {
        one.prompt_id
        for one in run.store.records(Response, iteration=model, model=ModelId(model).name)
    }
    seeds = {one.prompt_id for one in run.store.records(Response, iteration=0, model="M0")}
    ids = [prompt.id for prompt in run.held_out()]
    results = [
        compared.get(name, metrics.compare_scores(name in answered, name in seeds)) for name in ids
    ]
    return {"win_rate_vs_seed": fmean(results), "win_rate_vs_seed_error": standard_error(results)}


def _cut_share(measured: Measured) -> float:
    """The share of prompts without a finished answer: cut by the length limit, empty, or none at all."""
    return 1 - sum(one.finish == "stop" for one in measured.answers) / measured.asked
