"""Each step of a run, between the store and a stage: what it reads, what it asks or computes, what it commits.

Knows: which records feed which stage, and which model speaks. Does not know: the order of the steps (that is `loop`), how
an engine works (`tools`), the two trainings (`training_steps`). Every step can be called again: it does only what is missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from selfreward_lite import budget, canaries, datafiles, hub, plan, seed
from selfreward_lite.chat import user
from selfreward_lite.errors import UserError
from selfreward_lite.manifest import MANIFEST, folder_hash, manifest_fact, manifest_faults, write_manifest
from selfreward_lite.records import (
    BASE,
    Battle,
    Candidate,
    Judgment,
    Outcome,
    Prompt,
    Rating,
    Response,
)
from selfreward_lite.run import Run, bind, grouped
from selfreward_lite.runner import run_stage
from selfreward_lite.stages import battles, judgment_pairs, judgments, prompts, ratings, response_pairs, responses
from selfreward_lite.stages.voice import Asking, Voice

# -- seed stage ----------------------------------------------------------------------------------------------------------


def export_base(run: Run, _: int) -> None:
    """Write the base as GGUF, in the numbers that the adapters are trained on."""

    def work() -> Outcome:
        run.tools.export_base(run.model_dir, run.base_gguf, run.settings.model)
        write_manifest(run.base_gguf.parent, {"base": run.settings.model.base, "source": folder_hash(run.model_dir)})
        return Outcome()

    if run.store.is_done(0, "base") and not (run.base_gguf.parent / MANIFEST).exists():
        work()  # pruned, or left behind on another machine: the same base, made again
    run.once(0, "base", work)


def check_models(run: Run, iteration: int) -> None:
    """Refuse to go on from files that are not those that were written: a flipped bit in an adapter loads silently."""
    base = run.base_gguf.parent
    faults = manifest_faults(base) + (manifest_faults(run.store.model_dir(iteration - 1)) if iteration else [])
    if not faults and manifest_fact(base, "source") != folder_hash(run.model_dir):
        faults = [f"{run.model_dir}: the base model was changed after the run began"]
    if faults:
        raise UserError(f"{faults[0]}; restore it from a copy, or start a new --name")


def read_ranked(run: Run, _: int) -> None:
    """Read the ranked human data and draw the held-out prompts."""

    def work() -> Outcome:
        rows, skipped = seed.load_rows(run.settings)
        found, outcome = seed.ranked_prompts(rows, run.store.run)
        parts = seed.split(found, run.settings)
        own = seed.held_out_prompts(run.settings, run.store.run, parts.evaluation)
        new = [prompt for prompt in own if prompt.origin == "held_out"]
        return Outcome((*outcome.records, *new), (*skipped, *outcome.drops))

    run.once(0, "ranked", work)


def read_prompts(run: Run, _: int) -> None:
    """Read the user's own prompts, if there are any: once, so that the file may change or go away afterwards."""
    settings = run.settings.prompts
    if settings.file is None:
        return

    def work() -> Outcome:
        rows = datafiles.read_rows(hub.local(settings.file or "", "dataset"), skip_bad=run.settings.skip_bad)
        secret = _secret(run)
        kept = prompts.imported(datafiles.prompts(rows), settings, run=run.store.run, held_out=secret)
        return Outcome(kept.records, (*rows.drops(), *kept.drops))

    run.once(0, "prompts_file", work)


def lay_decoys(run: Run, _: int) -> None:
    """Put decoys among the responses of the ranked training prompts."""
    prompts, count = [one.prompt for one in run.ranked().eft], run.settings.seed_stage.decoys
    run.once(0, "decoys", lambda: canaries.decoys(prompts, count, run=run.store.run, templates=run.settings.model.templates))


def judge_ranked(run: Run, _: int) -> None:
    """Have the base judge ranked training answers, several times each, prompt by prompt until there are EFT examples enough."""
    if run.store.is_done(0, "eft_examples") or not run.settings.seed_stage.eft:
        return
    settings, ranked, laid = run.settings.seed_stage, run.ranked().eft, _decoys(run)
    voice = run.voice(BASE, run.settings.judge.draw, 0)
    for count in _eft_rounds(run):
        items = [
            (one.prompt.id, bind(seed.ask, one, laid.get(one.prompt.id, ()), voice, settings.attempts, settings.strict))
            for one in ranked[:count]
        ]
        run_stage(run.store, run.engine(), (0, "eft_judgments"), items, run.watch)
    run.once(0, "eft_examples", lambda: Outcome(drops=_eft(run, count)[1].drops))


def _eft_rounds(run: Run) -> Iterator[int]:
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


def eft_examples(run: Run) -> list[seed.Example]:
    """Return the EFT examples that M0 is trained on."""
    if not run.settings.seed_stage.eft:
        return []
    *_, count = _eft_rounds(run)
    return _eft(run, count)[0]


def _eft(run: Run, count: int) -> tuple[list[seed.Example], Outcome]:
    """The EFT examples that the first prompts give."""
    drawn = grouped(run.store.records(Judgment, iteration=0, model="base"), lambda judgment: judgment.response_id)
    return seed.eft_examples(run.ranked().eft[:count], _decoys(run), drawn, run.settings)


# -- one iteration -------------------------------------------------------------------------------------------------------


def new_prompts(run: Run, iteration: int) -> None:
    """Have new prompts written, in rounds, until enough are kept or the attempts are used up; or take the user's own."""
    store, settings = run.store, run.settings.prompts.model_copy(update={"count": run.prompts_wanted(iteration)})
    if settings.file is not None:
        if not prompts_of(run, iteration):
            raise UserError(f"{settings.file} held no prompts for iteration {iteration}; start a new --name with more of them, "
                            f"or with fewer an iteration (prompts.count={run.settings.prompts.count})")
        return
    if store.is_done(iteration, "prompts"):
        return
    speaker = BASE if settings.writer == "base" else iteration - 1
    voice = run.voice(speaker, settings.draw, iteration)
    ranked = run.ranked()
    human = [one.prompt.text for one in (*ranked.eft, *ranked.ift)]
    own = [prompt.text for prompt in store.records(Prompt, origin="generated") if prompt.iteration < iteration]
    secret = _secret(run)
    examples = prompts.Examples(human, own)
    wanted, limit = settings.count, int(settings.count * settings.attempts)
    while True:
        wanted = min(wanted, limit)
        items = [(str(index), bind(prompts.ask, index, voice, settings, examples)) for index in range(wanted)]
        run_stage(store, run.engine(), (iteration, "candidates"), items, run.watch)
        # A killed round may have left some of the next round's: only whole rounds are looked at, so that a resumed run
        # keeps what an undisturbed one would.
        made = (one for one in store.records(Candidate, iteration=iteration) if one.index < wanted)
        candidates = sorted(made, key=lambda one: one.index)
        kept = prompts.keep(
            candidates, settings, run=store.run, iteration=iteration, known=[*human, *own], held_out=secret
        )
        if len(kept.records) >= settings.count or wanted == limit:
            break
        wanted += max(8, 2 * (settings.count - len(kept.records)))
    run.once(iteration, "prompts", lambda: kept)


def respond(run: Run, iteration: int) -> None:
    """M(t−1) as actor: K responses a prompt."""
    settings = run.settings.responses
    voice = run.voice(iteration - 1, settings.draw, iteration)
    items = [(one.id, bind(responses.ask, one, voice, settings.count)) for one in prompts_of(run, iteration)]
    run.ask(iteration, "responses", items, budget.going_on(run, iteration, "responses"))


def judge(run: Run, iteration: int) -> None:
    """M(t−1) as judge: N judgments a response."""
    settings = run.settings.judge
    voice = run.voice(iteration - 1, settings.draw, iteration)
    by_id = {prompt.id: prompt for prompt in prompts_of(run, iteration)}
    items = [
        (one.id, bind(judgments.ask, by_id[one.prompt_id], one, voice, settings.count))
        for one in responses_of(run, iteration)
    ]
    run.ask(iteration, "judgments", items, budget.going_on(run, iteration, "judgments"))


def pair_responses(run: Run, iteration: int) -> None:
    """Best against worst response, with length control."""

    def work() -> Outcome:
        drawn = judgments_of(run, iteration)
        answers = responses_of(run, iteration)
        scores = {one.id: judgments.summarise(drawn.get(one.id, ()), run.settings.judge) for one in answers}
        return response_pairs.build(
            prompts_of(run, iteration), grouped(answers, lambda one: one.prompt_id), scores,
            run.settings.for_iteration(iteration), run=run.store.run, iteration=iteration,
        )

    run.once(iteration, "response_pairs", work)


def battle(run: Run, iteration: int) -> None:
    """M(t−1) as meta-judge: on each prompt's most contested response, every pair of judgments in both orders."""
    if not run.settings.for_iteration(iteration).judgment_pairs:
        return
    voice = run.voice(iteration - 1, run.settings.meta_judge.draw, iteration)
    drawn = judgments_of(run, iteration)
    answers = grouped(responses_of(run, iteration), lambda one: one.prompt_id)
    items = []
    for prompt in prompts_of(run, iteration):
        candidates = [one for one in answers.get(prompt.id, ()) if drawn.get(one.id)]
        index = battles.contested([drawn[one.id] for one in candidates], run.settings.seed)
        if index is not None:
            response = candidates[index]
            items.append((prompt.id, bind(battles.ask, prompt, response, drawn[response.id], voice)))
    run.ask(iteration, "battles", items, budget.going_on(run, iteration, "battles"))


def rate(run: Run, iteration: int) -> None:
    """Fit a strength to every judgment that fought."""
    if run.settings.for_iteration(iteration).judgment_pairs:
        ridge = run.settings.meta_judge.ridge
        fought = sorted(run.store.records(Battle, iteration=iteration), key=lambda one: one.id)
        run.once(iteration, "ratings", lambda: ratings.rate(fought, ridge, run=run.store.run, iteration=iteration))


def pair_judgments(run: Run, iteration: int) -> None:
    """Strongest against weakest judgment."""
    schedule = run.settings.for_iteration(iteration)
    if schedule.judgment_pairs:
        by_id = {one.id: one for one in run.store.records(Judgment, iteration=iteration)}
        rated = run.store.records(Rating, iteration=iteration)
        run.once(
            iteration, "judgment_pairs",
            lambda: judgment_pairs.build(rated, by_id, schedule, run=run.store.run, iteration=iteration),
        )


def export(run: Run, iteration: int) -> None:
    """Write the adapter as GGUF, measure that llama.cpp runs the model that was trained, and close the folder."""

    def work() -> Outcome:
        run.release_engine()
        folder = run.store.model_dir(iteration)
        probes = [run.chat.prompt_ids(user(prompt.text)) for prompt in run.held_out()[: plan.CHECKED_PROMPTS]]
        probes += _judged_probes(run, plan.CHECKED_JUDGMENTS)
        parity = run.tools.export_adapter(
            run.model_dir, folder / "adapter", run.base_gguf, folder / "adapter.gguf", probes, run.settings.model
        )
        run.store.measure(
            iteration, logit_difference=parity["difference"], logit_change=parity["change"],
            greedy_agreement=parity["agreement"], adapter_share=parity["share"],
        )
        write_manifest(folder, {"iteration": iteration, "run": run.store.run, **parity})
        return Outcome()

    run.once(iteration, "export", work)


def _judged_probes(run: Run, count: int) -> list[list[int]]:
    """The token ids of whole judgments, question and all: the longest texts that the exported model will read."""
    prompts = {one.id: one for one in run.store.records(Prompt, origin="ranked")}
    responses = {one.id: one for one in run.store.records(Response, model=seed.HUMAN)}
    judged = [one for one in run.store.records(Judgment, model="base") if one.response_id in responses]
    probes = []
    for judgment in judged[:count]:
        response = responses[judgment.response_id]
        asked = judgments.question(prompts[response.prompt_id], response, run.settings.model.templates)
        probes.append([*run.chat.prompt_ids(user(asked)), *run.chat.text_ids(judgment.text)])
    return probes


# -- shared by the steps -------------------------------------------------------------------------------------------------


def judging(ranked: Sequence[seed.RankedPrompt], voice: Voice, count: int) -> list[tuple[str, Callable[[], Asking]]]:
    return [
        (response.id, bind(judgments.ask, one.prompt, response, voice, count)) for one in ranked for response in one.responses
    ]


def _decoys(run: Run) -> dict[str, list[Response]]:
    return grouped(run.store.records(Response, iteration=0, model=canaries.DECOY), lambda one: one.prompt_id)


def prompts_of(run: Run, iteration: int) -> list[Prompt]:
    """Return the prompts of an iteration; iteration 0 is that of the ranked and held-out ones."""
    found = run.store.records(Prompt, iteration=iteration)
    return found[: run.prompts_wanted(iteration)]  # of the user's own there may be more


def _secret(run: Run) -> list[str]:
    """The texts of all prompts that measure: none may be trained on, nor anything like it."""
    return [prompt.text for prompt in run.held_out()] + [one.prompt.text for one in run.ranked().evaluation]


def responses_of(run: Run, iteration: int) -> list[Response]:
    """Return what M(t−1) answered to the prompts of iteration t."""
    return run.store.records(Response, iteration=iteration, model=f"M{iteration - 1}")


def judgments_of(run: Run, iteration: int) -> Mapping[str, list[Judgment]]:
    """Return, by response, what M(t−1) judged of them."""
    drawn = run.store.records(Judgment, iteration=iteration, model=f"M{iteration - 1}")
    return grouped(drawn, lambda judgment: judgment.response_id)
