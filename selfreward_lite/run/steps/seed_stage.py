"""Seed stage: ranked data, user's prompts, canaries, decoys, and the judgments M0 learns from."""

import itertools
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import cycle

from selfreward_lite.config.settings import CHECKABLE
from selfreward_lite.data import ranked
from selfreward_lite.data.records import BASE, Judgment, Outcome, Prompt, Response, group_records
from selfreward_lite.method import canaries, eft, first_look, new_prompts
from selfreward_lite.method.judgments import group_by_response
from selfreward_lite.run import gates, prepare
from selfreward_lite.run.ask import Progress
from selfreward_lite.run.context import RunContext
from selfreward_lite.run.steps import promotion

FIRST_LOOK = 1_000_000  # the number of these judgments, above those of any others
ROUNDS_BEFORE_CHECK = 2


def read_ranked(run: RunContext, _: int) -> None:
    """Read the ranked human data and draw the held-out prompts."""

    def work() -> Outcome:
        started = time.monotonic()

        def show(done: int, total: int) -> None:
            seconds = time.monotonic() - started
            run.watch(Progress(0, "ranked", total, done=min(done, total - 1), seconds=seconds))

        rows, skipped, notes = ranked.load_ranked_rows(run.settings, show)
        _say(run, "ranked", notes)
        found, outcome = ranked.build_ranked_prompts(rows, run.store.id_namespace)
        parts = ranked.split_ranked(found, run.settings, skipped + outcome.drops)
        prompts = ranked.pick_held_out_prompts(
            run.settings, run.store.id_namespace, parts.evaluation
        )
        own = [prompt for prompt in prompts if prompt.origin == "held_out"]
        return Outcome([*outcome.records, *own], skipped + outcome.drops)

    run.once(0, "ranked", work)


def import_prompts(run: RunContext, _: int) -> None:
    """Import the user's own prompts, if any; their file may change or go away afterwards."""
    file = run.settings.prompts.file
    if file in (None, CHECKABLE):  # requests are drawn for each iteration
        return

    def work() -> Outcome:
        texts, skipped, notes = prepare.read_prompt_file(file, run.settings)
        _say(run, "prompts_file", notes)
        kept = new_prompts.import_prompts(
            texts,
            run.settings.prompts,
            id_namespace=run.store.id_namespace,
            held_out=run.held_out_texts(),
            seed=run.settings.seed,
        )
        return Outcome(kept.records, skipped + kept.drops)

    run.once(0, "prompts_file", work)


def _say(run: RunContext, stage: str, notes: Iterable[str]) -> None:
    for note in notes:
        run.watch(Progress(0, stage, 1, message=note))


def add_canaries(run: RunContext, _: int) -> None:
    """Put the canaries among the responses to the ranked evaluation prompts."""
    prompts = cycle(one.prompt for one in run.ranked().evaluation)
    texts = canaries.load_hostile_texts(canaries.CANARY)
    _respond(run, "canaries", canaries.CANARY, zip(texts, prompts, strict=False))


def look_at_judge(run: RunContext, _: int) -> None:
    """The base judges a hundred ranked answers; stop if it cannot judge, or EFT cannot learn."""
    if run.store.is_done(0, "first_look"):
        return
    parts = run.ranked()
    ranked = first_look.choose_prompts(parts.evaluation, parts.eft)
    answers = [answer for one in ranked for answer in one.responses]
    run.ask_judge(0, "first_judgments", BASE, answers, 1, first=FIRST_LOOK)
    judged = [one for one in run.store.made_by(Judgment, BASE) if one.index == FIRST_LOOK]
    seen = first_look.look(ranked, judged)
    faults = list(first_look.find_faults(seen, eft=run.settings.seed_stage.eft))
    doubts = list(first_look.find_doubts(seen))
    if run.settings.pairs.verify == "score":  # the judge decides too little to stop for it
        doubts, faults = [*faults, *doubts], []
    run.watch(Progress(0, "first_look", 1, message=f"the base as judge: {seen.summary()}"))
    for doubt in doubts:
        run.watch(Progress(0, "first_look", 1, message=f"warning: {doubt}"))
    reason = " | ".join(faults) or "; ".join([seen.summary(), *doubts])
    promotion.decide(run, 0, "first_look", [gates.GateResult("ability", not faults, reason)])


def add_decoys(run: RunContext, _: int) -> None:
    """Put decoys among the responses to the ranked training prompts."""
    count = run.settings.seed_stage.decoys
    prompts = (one.prompt for one in run.ranked().eft for _ in range(count))
    texts = cycle(canaries.load_hostile_texts(canaries.DECOY))
    _respond(run, "decoys", canaries.DECOY, zip(texts, prompts, strict=False))


def _respond(
    run: RunContext, stage: str, model: str, pairs: Iterable[tuple[canaries.HostileText, Prompt]]
) -> None:
    """Put hostile texts among the responses to prompts, once."""
    run.once(
        0,
        stage,
        lambda: canaries.build_hostile_responses(
            model,
            pairs,
            id_namespace=run.store.id_namespace,
            templates=run.settings.model.templates,
        ),
    )


def judge_ranked(run: RunContext, _: int) -> None:
    """The base judges ranked training answers until there are enough EFT examples."""
    if run.store.is_done(0, "eft_examples") or not run.settings.seed_stage.eft:
        return
    settings, prompts, decoys = run.settings.seed_stage, run.ranked().eft, _decoys(run)
    role = run.judge_role(BASE, 0)
    for number, count in enumerate(_rounds(run), 1):
        items = [
            (
                one.prompt.id,
                eft.ask_for_ranked_judgments(
                    one, decoys.get(one.prompt.id, ()), role, settings.attempts, settings.strict
                ),
            )
            for one in prompts[:count]
        ]
        run.ask_round(0, "eft_judgments", items)
        is_enough_seen = number == ROUNDS_BEFORE_CHECK or count == len(prompts)
        if is_enough_seen and not run.store.is_done(0, "eft_yield"):
            _check_yield(run, count)
    run.once(0, "eft_examples", lambda: Outcome(drops=_examples(run, count)[1]))


def _check_yield(run: RunContext, count: int) -> None:
    """Stop if all ranked prompts would give less than a tenth of the EFT examples wanted."""
    found, prompts = len(_examples(run, count)[0]), len(run.ranked().eft)
    wanted = run.settings.seed_stage.train_examples
    expected = round(found * prompts / count)
    reason = (
        f"{count} of {prompts} ranked prompts gave {found} EFT examples, so all of them would give "
        f"about {expected} of {wanted}"
    )
    is_enough = 10 * expected >= wanted
    if not is_enough:
        reason += (
            ": the base's judgments hardly ever agree with the ranks. A larger base, "
            "seed_stage.eft=false, or fewer seed_stage.train_examples in a new --name may help"
        )
    promotion.decide(run, 0, "eft_yield", [gates.GateResult("yield", is_enough, reason)])


def eft_examples(run: RunContext) -> list[eft.EftExample]:
    """The EFT examples that M0 is trained on."""
    if not run.settings.seed_stage.eft:
        return []
    *_, count = _rounds(run)
    return _examples(run, count)[0]


def _rounds(run: RunContext) -> Iterator[int]:
    """Yield how many prompts must be judged by the end of each round.

    The judgments of a round decide whether it was the last. Only complete rounds count, so that a
    resumed run ends with the same round as an undisturbed one.
    """
    prompts, wanted = run.ranked().eft, run.settings.seed_stage.train_examples
    most = len(prompts[0].responses) + run.settings.seed_stage.decoys
    count = math.ceil(wanted / most)  # if every judgment agreed
    for number in itertools.count(1):
        count = min(count, len(prompts))
        yield count
        found = len(_examples(run, count)[0])
        if found >= wanted or count == len(prompts):
            return
        least = 0.1 * most
        if found < least * count and number < ROUNDS_BEFORE_CHECK:
            count *= 2  # hardly any: look at as many again, before all of them are asked
        else:
            count += max(8, math.ceil((wanted - found) / max(found / count, least)))


def _examples(run: RunContext, count: int) -> tuple[list[eft.EftExample], Counter[str]]:
    """The EFT examples from the first `count` prompts, and what was left out."""
    attempts = range(run.settings.seed_stage.attempts)  # others are for evaluation, or a first look
    drawn = group_by_response(
        one for one in run.store.made_by(Judgment, BASE) if one.index in attempts
    )
    return eft.build_eft_examples(run.ranked().eft[:count], _decoys(run), drawn, run.settings)


def _decoys(run: RunContext) -> dict[str, list[Response]]:
    """The decoys by prompt."""
    found = run.store.records(Response, iteration=0, model=canaries.DECOY)
    return group_records(found, lambda one: one.prompt_id)
