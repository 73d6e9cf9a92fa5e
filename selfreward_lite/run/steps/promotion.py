"""The last steps of an iteration: measure the candidate M(t), let the gates decide, promote it or stop.

Knows: which records measure which model. Does not know: how a metric is computed (`evaluate`) or a limit chosen
(`gates`). The gates are handed only what needs no exact score.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from selfreward_lite.data.records import Judgment, ModelId, Outcome, Prompt, Response, ResponsePair
from selfreward_lite.data.store import Store
from selfreward_lite.method import metrics
from selfreward_lite.method.statistics import paired_interval
from selfreward_lite.run import gates
from selfreward_lite.run.ask import NO_TIME
from selfreward_lite.run.context import RunContext
from selfreward_lite.run.steps import measure
from selfreward_lite.run.steps.measure import _cut_share, _measured
from selfreward_lite.system.errors import GateStop, UserError
from selfreward_lite.system.files import manifest_faults


def pass_data_gates(run: RunContext, iteration: int) -> None:
    """Before a training: do the judgments say anything, and could they be read? A night is too long to find out after."""
    pairs = run.store.count(ResponsePair, iteration=iteration)
    answered = {
        one.id
        for one in run.store.records(
            Response, iteration=iteration, model=ModelId(iteration - 1).name
        )
    }
    drawn = run.store.records(Judgment, iteration=iteration, model=ModelId(iteration - 1).name)
    read = metrics.share_read([one for one in drawn if one.response_id in answered])
    # Of the prompts wanted: a writer that wrote a handful of them must not pass because all of those gave a pair. A file's
    # last share is as short as it is.
    own = run.settings.prompts.file is not None
    wanted = run.store.count(Prompt, iteration=iteration) if own else run.prompts_wanted(iteration)
    if any(NO_TIME in run.store.drops(iteration, stage) for stage in ("responses", "judgments")):
        judged = {one.response_id for one in drawn}
        answers = run.store.records(
            Response, iteration=iteration, model=ModelId(iteration - 1).name
        )
        wanted = len({one.prompt_id for one in answers if one.id in judged})
    data = gates.Data(pairs / wanted if wanted else 0.0, read if drawn else 0.0)
    _pass(run, iteration, "data_gates", list(gates.check_data(data, run.settings.gates)))


def pass_gates(run: RunContext, iteration: int) -> None:
    """Ask every gate, keep the answers, and raise GateStop if one refuses and gates are to stop the run."""
    if not run.store.is_done(iteration, "gates"):
        _pass(
            run,
            iteration,
            "gates",
            list(gates.check(_evidence(run, iteration), run.settings.gates)),
        )


def _pass(run: RunContext, iteration: int, stage: str, answers: Sequence[gates.Answer]) -> None:
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
        raise UserError(
            f"no gate has refused a model of {store.folder}; there is nothing to accept"
        )
    faults = manifest_faults(store.model_dir(candidate))
    if not faults and not store.is_done(candidate, "evaluation"):
        faults = [
            "it was not measured to the end, and the model after it would be held against nothing"
        ]
    if faults:
        raise UserError(
            f"M{candidate} cannot be accepted: {faults[0]}; go on with `run --gates report`"
        )
    store.promote(candidate, by="a person")
    return candidate


def promote(run: RunContext, iteration: int) -> None:
    """Make M(t) the newest model."""
    refused = any(not passed for passed, _ in run.store.gates(iteration).values())
    run.store.promote(iteration, by="report" if refused else "gates")


def _evidence(run: RunContext, iteration: int) -> gates.Evidence:
    now, before = _measured(run, iteration), _measured(run, iteration - 1)
    known, known_before = run.store.metrics(iteration), run.store.metrics(iteration - 1)
    folder = run.store.model_dir(iteration)
    needed = (folder / "adapter" / "adapter_model.safetensors", folder / "adapter.gguf")
    own = (known["self_score"], known_before.get("self_score"))
    outside = measure.outside_view(run, iteration) if iteration > 0 else None
    return gates.Evidence(
        file_faults=manifest_faults(folder)
        + [f"{path}: missing" for path in needed if not path.exists()],
        trained=iteration > 0 or run.settings.seed_stage.trains,
        rows=int(known["training_rows"] or 0),
        rows_given=int(known["training_rows_given"] or 0),
        moved_share=_number(known["training_moved_share"]),
        losses=[
            _number(value) for _, name, value in run.store.training(iteration) if name == "loss"
        ],
        first_margin=_number(known["training_first_margin"]),
        logit_difference=_number(known["logit_difference"]),
        logit_change=_number(known["logit_change"]),
        agreement=_number(known["greedy_agreement"]),
        adapter_share=known.get("adapter_share"),
        cut_share=_cut_share(now),
        repetitive_share=_number(known["repetitive_share"]),
        distinct_share=_number(known["distinct_share"]),
        read_share=metrics.share_read(now.judged),
        length_ratio=_mean_length(now.answers) / _mean_length(before.answers)
        if before.answers
        else None,
        judge_interval=paired_interval(now.quality.outcomes, before.quality.outcomes),
        outside_interval=outside.interval if outside else None,
        outside_share=outside.share if outside else None,
        self_change=None if own[0] is None or own[1] is None else own[0] - own[1],
        canary_score=known["canary_score"],
        honest_score=known["honest_bad_score"],
        canaries_scored=int(known["canaries_scored"] or 0),
        canaries_chosen=_number(known["canaries_chosen"]),
    )


def _mean_length(answers: Sequence[Response]) -> float:
    return fmean(len(one.text) for one in answers) if answers else 0.0


def _number(value: float | None) -> float:
    """SQLite keeps NaN as NULL; as NaN it fails every limit."""
    return float("nan") if value is None else value
