"""The gates before a training and before a promotion, and the promotion of M(t) to newest model."""

from collections.abc import Iterable
from math import nan

from selfreward_lite.data.records import BASE, Outcome, Prompt, ResponsePair
from selfreward_lite.data.store import Store
from selfreward_lite.method import metrics
from selfreward_lite.method.statistics import paired_interval
from selfreward_lite.run import gates
from selfreward_lite.run.ask import NO_TIME
from selfreward_lite.run.context import RunContext
from selfreward_lite.run.steps.judge_set import compare_with_before
from selfreward_lite.run.steps.measure import model_metrics
from selfreward_lite.run.steps.reward_hacking import find_signs, mean_outside_score, outside_view
from selfreward_lite.system.errors import GateStop, UserError
from selfreward_lite.system.files import find_manifest_faults


def pass_data_gates(run: RunContext, iteration: int) -> None:
    """Before a training: are there enough pairs, and could the judgments be read?"""
    answers, drawn = run.responses(iteration), run.judgments(iteration)
    answered = {one.id for one in answers}
    judged_now = [one for one in drawn if one.response_id in answered]
    taught = run.settings.seed_stage.eft
    read = metrics.share_written(judged_now) if taught else metrics.share_read(judged_now)
    # Of the prompts wanted: a writer that wrote a handful must not pass because all of those gave a
    # pair. The last share of a user's file may be short.
    own = run.settings.prompts.file is not None
    wanted = run.store.count(Prompt, iteration=iteration) if own else run.prompts_wanted(iteration)
    if any(NO_TIME in run.store.drops(iteration, stage) for stage in ("responses", "judgments")):
        judged = {one.response_id for one in drawn} if run.settings.judge.count else answered
        wanted = len({one.prompt_id for one in answers if one.id in judged})
    share = run.store.count(ResponsePair, iteration=iteration) / wanted if wanted else 0.0
    limits = run.settings.gates
    results = gates.check_data(share, read if drawn else 0.0, limits, taught=taught)
    decide(run, iteration, "data_gates", results)


def pass_gates(run: RunContext, iteration: int) -> None:
    """Check every gate and store the results; raises GateStop if one stops the run."""
    if not run.store.is_done(iteration, "gates"):
        evidence = collect_evidence(run, iteration)
        decide(run, iteration, "gates", gates.check(evidence, run.settings.gates))


def decide(
    run: RunContext, iteration: int, stage: str, answers: Iterable[gates.GateResult]
) -> None:
    """Store what gates decided; raises GateStop if one refused and gates stop the run."""
    if run.store.is_done(iteration, stage):
        return
    refused = []
    for answer in answers:
        run.store.record_gate(iteration, answer.gate, answer.passed, answer.reason)
        if answer.passed is False:
            refused.append(f"{answer.gate}: {answer.reason}")
    if refused and run.settings.gates.mode == "stop":
        newest = run.store.newest()
        stays = f"The newest model stays {'the base' if newest is None else f'M{newest}'}"
        what, by_hand = "nothing was trained", "Continue"
        if stage == "gates":
            what = f"the candidate is in {run.store.model_dir(iteration)}"
            by_hand = "Promote it by hand with `accept`, continue"
        raise GateStop(
            f"M{iteration} was refused ({' | '.join(refused)}). {stays}; {what}. {by_hand} with "
            "--gates report, past every gate of that command, or start a new --name with other "
            "settings."
        )
    run.once(iteration, stage, Outcome)


def accept(store: Store) -> int:
    """Promote the refused candidate by hand; returns its number.

    Raises UserError where there is no complete one.
    """
    candidate = store.next_model()
    if not store.refusals(candidate):
        raise UserError(
            f"no gate has refused a model of {store.folder}; there is nothing to accept"
        )
    faults = find_manifest_faults(store.model_dir(candidate))
    if not faults and not store.is_done(candidate, "evaluation"):
        faults = [
            "it was not measured to the end, so the model after it could not be compared with it"
        ]
    if faults:
        raise UserError(
            f"M{candidate} cannot be accepted: {faults[0]}; continue with `run --gates report`"
        )
    store.promote(candidate, by="a person")
    return candidate


def promote(run: RunContext, iteration: int) -> None:
    """Make M(t) the newest model."""
    run.store.promote(iteration, by="report" if run.store.refusals(iteration) else "gates")


def collect_evidence(run: RunContext, iteration: int) -> gates.Evidence:
    """Everything that the gates may know of a candidate."""
    now, before = model_metrics(run, iteration), model_metrics(run, iteration - 1)
    signs, interval, share, liked = find_signs(run, iteration), None, None, None
    if iteration > 0:
        interval, share = outside_view(run, iteration)
        liked = mean_outside_score(run, iteration - 1, iteration - 1)
    known, folder = run.store.metrics(iteration), run.store.model_dir(iteration)
    base = run.store.metrics(BASE)
    needed = (folder / "adapter" / "adapter_model.safetensors", folder / "adapter.gguf")
    missing = [f"{path}: missing" for path in needed if not path.exists()]
    return gates.Evidence(
        file_faults=find_manifest_faults(folder) + missing,
        trained=iteration > 0 or run.settings.seed_stage.trains,
        taught=run.settings.seed_stage.eft,
        rows=int(known["training_rows"] or 0),
        rows_given=int(known["training_rows_given"] or 0),
        moved_share=_number(known["training_moved_share"]),
        losses=[
            _number(value) for _, name, value in run.store.training(iteration) if name == "loss"
        ],
        first_margin=_number(known["training_first_margin"]),
        quantized=run.settings.model.gguf == "q8_0" or run.settings.model.gguf_file is not None,
        logit_difference=_number(known["logit_difference"]),
        logit_change=_number(known["logit_change"]),
        agreement=_number(known["greedy_agreement"]),
        adapter_share=known.get("adapter_share"),
        answers=now.answers,
        base_cut_share=_number(base["cut_share"]),
        base_repetitive_share=_number(base["repetitive_share"]),
        length_ratio=None
        if before.mean_length is None
        else (now.mean_length or 0.0) / before.mean_length,
        judge_interval=paired_interval(now.agreement.outcomes, before.agreement.outcomes),
        outside_interval=interval,
        outside_share=share,
        self_change=None if liked is None or signs.self_score is None else signs.self_score - liked,
        signs=signs,
        judge_set=compare_with_before(run, iteration),
    )


def _number(value: float | None) -> float:
    """SQLite stores NaN as NULL; as NaN it fails every limit."""
    return nan if value is None else value
