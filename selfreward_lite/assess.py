"""The last steps of an iteration: measure the candidate M(t), let the gates decide, promote it or stop.

Knows: which records measure which model. Does not know: how a metric is computed (`evaluate`) or a limit chosen
(`gates`). The gates are handed only what needs no exact score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from selfreward_lite import evaluate, gates, pairwise, tripwires
from selfreward_lite.errors import GateStop, UserError
from selfreward_lite.intervals import paired_interval, standard_error
from selfreward_lite.judge_quality import JudgeQuality, judge_quality
from selfreward_lite.manifest import manifest_faults
from selfreward_lite.records import BASE, Comparison, Judgment, Outcome, Prompt, Response, ResponsePair
from selfreward_lite.run import Run, bind, grouped
from selfreward_lite.runner import NO_TIME
from selfreward_lite.stages import judgments, responses
from selfreward_lite.steps import judging
from selfreward_lite.store import Store


@dataclass(frozen=True)
class Measured:
    """What a model did on the held-out sets. `asked` prompts were put to it; one it did not answer has no response."""

    asked: int
    answers: list[Response]
    judged: list[Judgment]
    quality: JudgeQuality


def measure_base(run: Run, _: int) -> None:
    """Let the untrained base answer and judge the held-out sets, as the mark that M0 is held against."""
    _ask(run, BASE)
    run.once(0, "base_evaluation", lambda: _record(run, BASE))


def measure(run: Run, iteration: int) -> None:
    """Let M(t) answer the held-out prompts and judge the held-out ranked answers."""
    _ask(run, iteration)
    tripwires.ask(run, iteration)
    if iteration > 0 and evaluate.exact_scores(run.held_out(), []) is None:
        _compare(run, iteration)
    run.once(iteration, "evaluation", lambda: _record(run, iteration))


def pass_data_gates(run: Run, iteration: int) -> None:
    """Before a training: do the judgments say anything, and could they be read? A night is too long to find out after."""
    pairs = run.store.count(ResponsePair, iteration=iteration)
    answered = {one.id for one in run.store.records(Response, iteration=iteration, model=f"M{iteration - 1}")}
    drawn = run.store.records(Judgment, iteration=iteration, model=f"M{iteration - 1}")
    read = evaluate.share_read([one for one in drawn if one.response_id in answered])
    # Of the prompts wanted: a writer that wrote a handful of them must not pass because all of those gave a pair. A file's
    # last share is as short as it is.
    own = run.settings.prompts.file is not None
    wanted = run.store.count(Prompt, iteration=iteration) if own else run.prompts_wanted(iteration)
    if any(NO_TIME in run.store.drops(iteration, stage) for stage in ("responses", "judgments")):
        judged = {one.response_id for one in drawn}
        answers = run.store.records(Response, iteration=iteration, model=f"M{iteration - 1}")
        wanted = len({one.prompt_id for one in answers if one.id in judged})
    data = gates.Data(pairs / wanted if wanted else 0.0, read if drawn else 0.0)
    _pass(run, iteration, "data_gates", list(gates.check_data(data, run.settings.gates)))


def pass_gates(run: Run, iteration: int) -> None:
    """Ask every gate, keep the answers, and raise GateStop if one refuses and gates are to stop the run."""
    if not run.store.is_done(iteration, "gates"):
        _pass(run, iteration, "gates", list(gates.check(_evidence(run, iteration), run.settings.gates)))


def _pass(run: Run, iteration: int, stage: str, answers: Sequence[gates.Answer]) -> None:
    if run.store.is_done(iteration, stage):
        return
    for answer in answers:
        run.store.record_gate(iteration, answer.gate, answer.passed, answer.reason)
    refused = [f"{answer.gate}: {answer.reason}" for answer in answers if not answer.passed]
    if refused and run.settings.gates.mode == "stop":
        newest, folder = run.store.newest(), run.store.model_dir(iteration)
        stays = f"The newest model stays {'the base' if newest is None else f'M{newest}'}"
        by_hand = "Promote it by hand with `accept`, go" if stage == "gates" else "Go"
        what = f"the candidate is in {folder}" if stage == "gates" else "nothing was trained"
        raise GateStop(
            f"M{iteration} was refused ({' | '.join(refused)}). {stays}; {what}. "
            f"{by_hand} on with --gates report, past every gate of that command, or start a new --name with other settings."
        )
    run.once(iteration, stage, Outcome)


def accept(store: Store) -> int:
    """Promote the refused candidate by hand and return its number. Raises UserError where there is none that is whole."""
    newest = store.newest()
    candidate = 0 if newest is None else newest + 1
    if not any(not passed for passed, _ in store.gates(candidate).values()):
        raise UserError(f"no gate has refused a model of {store.folder}; there is nothing to accept")
    faults = manifest_faults(store.model_dir(candidate))
    if not faults and not store.is_done(candidate, "evaluation"):
        faults = ["it was not measured to the end, and the model after it would be held against nothing"]
    if faults:
        raise UserError(f"M{candidate} cannot be accepted: {faults[0]}; go on with `run --gates report`")
    store.promote(candidate, by="a person")
    return candidate


def promote(run: Run, iteration: int) -> None:
    """Make M(t) the newest model."""
    refused = any(not passed for passed, _ in run.store.gates(iteration).values())
    run.store.promote(iteration, by="report" if refused else "gates")


def _ask(run: Run, model: int) -> None:
    settings, iteration = run.settings.evaluation, max(model, 0)
    prefix = "base_" if model == BASE else ""
    actor = run.voice(model, settings.draw, iteration)
    run.ask(iteration, f"{prefix}eval_responses", [(one.id, bind(responses.ask, one, actor, 1)) for one in run.held_out()])
    judge = run.voice(model, run.settings.judge.draw, iteration)
    run.ask(iteration, f"{prefix}eval_judgments", judging(run.ranked().evaluation, judge, settings.judgments))


def _measured(run: Run, model: int) -> Measured:
    name, iteration = run.voice(model, run.settings.judge.draw, 0).model, max(model, 0)
    ranked, held_out = run.ranked().evaluation, {one.id for one in run.held_out()}
    mine = {answer.id for one in ranked for answer in one.responses}
    answers = [one for one in run.store.records(Response, iteration=iteration, model=name) if one.prompt_id in held_out]
    count = run.settings.evaluation.judgments  # a second look at some canary's rivals drew more
    drawn = run.store.records(Judgment, iteration=iteration, model=name)
    judged = [one for one in drawn if one.response_id in mine and one.index < count]
    by_response = grouped(judged, lambda judgment: judgment.response_id)
    settings = run.settings.judge.model_copy(update={"count": count})
    scores = {response_id: judgments.summarise(drawn, settings) for response_id, drawn in by_response.items()}
    return Measured(len(held_out), answers, judged, judge_quality(ranked, scores))


def _record(run: Run, model: int) -> Outcome:
    """Compute the metrics of a model and keep them under its number."""
    measured = _measured(run, model)
    values: dict[str, float | None] = {
        **{f"judge_{name}": value for name, value in measured.quality.metrics().items()},
        "judge_read_share": evaluate.share_read(measured.judged),
        "mean_response_tokens": fmean(one.tokens for one in measured.answers) if measured.answers else None,
        "cut_share": _cut_share(measured),
        "repetitive_share": evaluate.share_repetitive(measured.answers),
        "distinct_share": len({one.text for one in measured.answers}) / max(1, len(measured.answers)),
    }
    if model >= 0:
        canary = tripwires.canary_view(run, model)
        values |= {"canary_score": canary.score, "honest_bad_score": canary.honest}
        values |= {"canaries_scored": canary.scored}
        values |= {"canaries_suspected": canary.suspected, "canaries_chosen": canary.chosen}
        for name, judge in (("outside_score", 0), ("self_score", model)):
            scores = tripwires.outside_scores(run, model, judge)
            values[name] = fmean(scores.values()) if scores else None
    exact = _exact(run, model, measured.answers)
    run.store.measure(model, **values, **(exact or _compared(run, model)))
    return Outcome()


def _exact(run: Run, model: int, answers: Sequence[Response]) -> dict[str, float | None]:
    """Metrics from the exact scorer, where there is one. Only the report reads them."""
    exact = evaluate.exact_scores(run.held_out(), answers)
    if exact is None:
        return {}
    rivals = run.store.records(Response, iteration=0, model="M0") if model > 0 else answers
    rival = evaluate.exact_scores(run.held_out(), rivals)
    assert rival is not None
    rate, error = evaluate.win_rate(exact.score, rival.score)
    return {
        "exact_score": fmean(exact.score.values()),
        "exact_score_error": standard_error(list(exact.score.values())),
        "answer_right": fmean(exact.right.values()),
        "answer_right_error": standard_error([float(right) for right in exact.right.values()]),
        "win_rate_vs_seed": rate if model >= 0 else None,
        "win_rate_vs_seed_error": error if model > 0 else None,
    }


def _compare(run: Run, iteration: int) -> None:
    """Where quality cannot be computed: M0, frozen, compares M(t)'s answers with its own, in both orders."""
    held_out = {one.id: one for one in run.held_out()}
    mine = {one.prompt_id: one for one in run.store.records(Response, iteration=iteration, model=f"M{iteration}")}
    seeds = {one.prompt_id: one for one in run.store.records(Response, iteration=0, model="M0")}
    both = [one for one in held_out.values() if one.id in mine and one.id in seeds]
    voice = run.voice(0, run.settings.judge.draw, iteration)
    items = [(one.id, bind(pairwise.ask_comparison, one, mine[one.id], seeds[one.id], voice)) for one in both]
    run.ask(iteration, "comparisons", items)


def _compared(run: Run, model: int) -> dict[str, float | None]:
    compared = {one.prompt_id: one.result for one in run.store.records(Comparison, iteration=model)}
    if not compared:
        return {"win_rate_vs_seed": 0.5} if model == 0 else {}
    # An answer that never came loses to one that did.
    answered = {one.prompt_id for one in run.store.records(Response, iteration=model, model=f"M{model}")}
    seeds = {one.prompt_id for one in run.store.records(Response, iteration=0, model="M0")}
    ids = [prompt.id for prompt in run.held_out()]
    results = [compared.get(name, pairwise.points(name in answered, name in seeds)) for name in ids]
    return {"win_rate_vs_seed": fmean(results), "win_rate_vs_seed_error": standard_error(results)}


def _evidence(run: Run, iteration: int) -> gates.Evidence:
    now, before = _measured(run, iteration), _measured(run, iteration - 1)
    known, known_before = run.store.metrics(iteration), run.store.metrics(iteration - 1)
    folder = run.store.model_dir(iteration)
    needed = (folder / "adapter" / "adapter_model.safetensors", folder / "adapter.gguf")
    own = (known["self_score"], known_before.get("self_score"))
    outside = tripwires.outside_view(run, iteration) if iteration > 0 else None
    return gates.Evidence(
        file_faults=manifest_faults(folder) + [f"{path}: missing" for path in needed if not path.exists()],
        trained=iteration > 0 or run.settings.seed_stage.trains,
        rows=int(known["training_rows"] or 0),
        rows_given=int(known["training_rows_given"] or 0),
        moved_share=_number(known["training_moved_share"]),
        losses=[_number(value) for _, name, value in run.store.training(iteration) if name == "loss"],
        first_margin=_number(known["training_first_margin"]),
        logit_difference=_number(known["logit_difference"]),
        logit_change=_number(known["logit_change"]),
        agreement=_number(known["greedy_agreement"]),
        adapter_share=known.get("adapter_share"),
        cut_share=_cut_share(now),
        repetitive_share=_number(known["repetitive_share"]),
        distinct_share=_number(known["distinct_share"]),
        read_share=evaluate.share_read(now.judged),
        length_ratio=_mean_length(now.answers) / _mean_length(before.answers) if before.answers else None,
        judge_interval=paired_interval(now.quality.outcomes, before.quality.outcomes),
        outside_interval=outside.interval if outside else None,
        outside_share=outside.share if outside else None,
        self_change=None if own[0] is None or own[1] is None else own[0] - own[1],
        canary_score=known["canary_score"],
        honest_score=known["honest_bad_score"],
        canaries_scored=int(known["canaries_scored"] or 0),
        canaries_chosen=_number(known["canaries_chosen"]),
    )


def _cut_share(measured: Measured) -> float:
    """The share of prompts without a finished answer: cut by the length limit, empty, or none at all."""
    return 1 - sum(one.finish == "stop" for one in measured.answers) / measured.asked


def _mean_length(answers: Sequence[Response]) -> float:
    return fmean(len(one.text) for one in answers) if answers else 0.0


def _number(value: float | None) -> float:
    """SQLite keeps NaN as NULL; as NaN it fails every limit."""
    return float("nan") if value is None else value
