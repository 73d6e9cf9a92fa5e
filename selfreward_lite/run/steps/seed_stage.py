"""Seed stage: ranked data, decoys, EFT judgments."""

from __future__ import annotations

import math
from collections.abc import Iterator

from selfreward_lite.data import hub, prompt_files, ranked
from selfreward_lite.data.records import BASE, Judgment, Outcome, Response
from selfreward_lite.method import canaries, eft
from selfreward_lite.method import new_prompts as prompt_writing
from selfreward_lite.run.ask import run_stage
from selfreward_lite.run.context import RunContext, _secret, bind, grouped


def read_ranked(run: RunContext, _: int) -> None:
    """Read the ranked human data and draw the held-out prompts."""

    def work() -> Outcome:
        rows, skipped = ranked.load_ranked_rows(run.settings)
        found, outcome = ranked.build_ranked_prompts(rows, run.store.id_namespace)
        parts = ranked.split_ranked(found, run.settings)
        own = ranked.pick_held_out_prompts(run.settings, run.store.id_namespace, parts.evaluation)
        new = [prompt for prompt in own if prompt.origin == "held_out"]
        return Outcome((*outcome.records, *new), (*skipped, *outcome.drops))

    run.once(0, "ranked", work)


def read_prompts(run: RunContext, _: int) -> None:
    """Read the user's own prompts, if there are any: once, so that the file may change or go away afterwards."""
    settings = run.settings.prompts
    if settings.file is None:
        return

    def work() -> Outcome:
        rows = prompt_files.read_rows(
            hub.find_local(settings.file or "", "dataset"), skip_bad=run.settings.skip_bad
        )
        secret = _secret(run)
        kept = prompt_writing.import_prompts(
            prompt_files.extract_prompts(rows),
            settings,
            id_namespace=run.store.id_namespace,
            held_out=secret,
        )
        return Outcome(kept.records, (*rows.drops(), *kept.drops))

    run.once(0, "prompts_file", work)


def lay_decoys(run: RunContext, _: int) -> None:
    """Put decoys among the responses of the ranked training prompts."""
    prompts, count = [one.prompt for one in run.ranked().eft], run.settings.seed_stage.decoys
    run.once(
        0,
        "decoys",
        lambda: canaries.build_decoy_responses(
            prompts,
            count,
            id_namespace=run.store.id_namespace,
            templates=run.settings.model.templates,
        ),
    )


def judge_ranked(run: RunContext, _: int) -> None:
    """Have the base judge ranked training answers, several times each, prompt by prompt until there are EFT examples enough."""
    if run.store.is_done(0, "eft_examples") or not run.settings.seed_stage.eft:
        return
    settings, ranked, laid = run.settings.seed_stage, run.ranked().eft, _decoys(run)
    role = run.role(BASE, run.settings.judge.draw, 0)
    for count in _eft_rounds(run):
        items = [
            (
                one.prompt.id,
                bind(
                    eft.ask_for_ranked_judgments,
                    one,
                    laid.get(one.prompt.id, ()),
                    role,
                    settings.attempts,
                    settings.strict,
                ),
            )
            for one in ranked[:count]
        ]
        run_stage(run.store, run.engine(), (0, "eft_judgments"), items, run.watch)
    run.once(0, "eft_examples", lambda: Outcome(drops=_eft(run, count)[1].drops))


def _eft_rounds(run: RunContext) -> Iterator[int]:
    """Yield how many prompts are to be judged by the end of each round; the judgments of a round decide whether it was the last.

    Only whole rounds are looked at, so that a resumed run ends with the one that an undisturbed run does.
    """
    ranked, wanted = run.ranked().eft, run.settings.seed_stage.train_examples
    most = len(ranked[0].responses) + run.settings.seed_stage.decoys if ranked else 1
    count = math.ceil(wanted / most)  # if everything agreed
    while True:
        count = min(count, len(ranked))
        yield count
        found = len(_eft(run, count)[0])
        if found >= wanted or count == len(ranked):
            return
        rate = max(found / count, 0.1 * most)
        count += max(8, math.ceil((wanted - found) / rate))


def eft_examples(run: RunContext) -> list[eft.EftExample]:
    """Return the EFT examples that M0 is trained on."""
    if not run.settings.seed_stage.eft:
        return []
    *_, count = _eft_rounds(run)
    return _eft(run, count)[0]


def _eft(run: RunContext, count: int) -> tuple[list[eft.EftExample], Outcome]:
    """The EFT examples that the first prompts give."""
    drawn = grouped(
        run.store.records(Judgment, iteration=0, model="base"),
        lambda judgment: judgment.response_id,
    )
    return eft.build_eft_examples(run.ranked().eft[:count], _decoys(run), drawn, run.settings)


def _decoys(run: RunContext) -> dict[str, list[Response]]:
    return grouped(
        run.store.records(Response, iteration=0, model=canaries.DECOY), lambda one: one.prompt_id
    )


def lay_canaries(run: RunContext, _: int) -> None:
    """Put the canaries among the responses of the ranked evaluation prompts."""
    prompts = [one.prompt for one in run.ranked().evaluation]

    def work() -> Outcome:
        return canaries.build_canary_responses(
            canaries.load_canaries(),
            prompts,
            id_namespace=run.store.id_namespace,
            templates=run.settings.model.templates,
        )

    run.once(0, "canaries", work)
