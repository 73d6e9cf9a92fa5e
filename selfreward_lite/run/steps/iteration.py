"""Each step of a run, between the store and a stage: what it reads, what it asks or computes, what it commits.

Knows: which records feed which stage, and which model speaks. Does not know: the order of the steps (that is `loop`), how
an engine works (`runtime`), the two trainings (`training_steps`). Every step can be called again: it does only what is missing.
"""

from __future__ import annotations

from selfreward_lite.data.records import BASE, Battle, Candidate, Judgment, Outcome, Prompt, Rating
from selfreward_lite.method import (
    battles,
    judgment_pairs,
    judgments,
    ratings,
    response_pairs,
    responses,
)
from selfreward_lite.method import new_prompts as prompt_writing
from selfreward_lite.run import budget
from selfreward_lite.run.ask import run_stage
from selfreward_lite.run.context import (
    RunContext,
    _secret,
    bind,
    grouped,
    judgments_of,
    prompts_of,
    responses_of,
)
from selfreward_lite.system.errors import UserError

# -- one iteration -------------------------------------------------------------------------------------------------------


def new_prompts(run: RunContext, iteration: int) -> None:
    """Have new prompts written, in rounds, until enough are kept or the attempts are used up; or take the user's own."""
    store, settings = (
        run.store,
        run.settings.prompts.model_copy(update={"count": run.prompts_wanted(iteration)}),
    )
    if settings.file is not None:
        if not prompts_of(run, iteration):
            raise UserError(
                f"{settings.file} held no prompts for iteration {iteration}; start a new --name with more of them, "
                f"or with fewer an iteration (prompts.count={run.settings.prompts.count})"
            )
        return
    if store.is_done(iteration, "prompts"):
        return
    speaker = BASE if settings.writer == "base" else iteration - 1
    role = run.role(speaker, settings.draw, iteration)
    ranked = run.ranked()
    human = [one.prompt.text for one in (*ranked.eft, *ranked.ift)]
    own = [
        prompt.text
        for prompt in store.records(Prompt, origin="generated")
        if prompt.iteration < iteration
    ]
    secret = _secret(run)
    examples = prompt_writing.Examples(human, own)
    wanted, limit = settings.count, int(settings.count * settings.attempts)
    while True:
        wanted = min(wanted, limit)
        items = [
            (str(index), bind(prompt_writing.ask_for_prompt, index, role, settings, examples))
            for index in range(wanted)
        ]
        run_stage(store, run.engine(), (iteration, "candidates"), items, run.watch)
        # A killed round may have left some of the next round's: only whole rounds are looked at, so that a resumed run
        # keeps what an undisturbed one would.
        made = (one for one in store.records(Candidate, iteration=iteration) if one.index < wanted)
        candidates = sorted(made, key=lambda one: one.index)
        kept = prompt_writing.filter_candidates(
            candidates,
            settings,
            id_namespace=store.id_namespace,
            iteration=iteration,
            known=[*human, *own],
            held_out=secret,
        )
        if len(kept.records) >= settings.count or wanted == limit:
            break
        wanted += max(8, 2 * (settings.count - len(kept.records)))
    run.once(iteration, "prompts", lambda: kept)


def respond(run: RunContext, iteration: int) -> None:
    """M(t−1) as actor: K responses a prompt."""
    settings = run.settings.responses
    role = run.role(iteration - 1, settings.draw, iteration)
    items = [
        (one.id, bind(responses.ask_for_responses, one, role, settings.count))
        for one in prompts_of(run, iteration)
    ]
    run.ask(iteration, "responses", items, budget.going_on(run, iteration, "responses"))


def judge(run: RunContext, iteration: int) -> None:
    """M(t−1) as judge: N judgments a response."""
    settings = run.settings.judge
    role = run.role(iteration - 1, settings.draw, iteration)
    by_id = {prompt.id: prompt for prompt in prompts_of(run, iteration)}
    items = [
        (one.id, bind(judgments.ask_for_judgments, by_id[one.prompt_id], one, role, settings.count))
        for one in responses_of(run, iteration)
    ]
    run.ask(iteration, "judgments", items, budget.going_on(run, iteration, "judgments"))


def pair_responses(run: RunContext, iteration: int) -> None:
    """Best against worst response, with length control."""

    def work() -> Outcome:
        drawn = judgments_of(run, iteration)
        answers = responses_of(run, iteration)
        scores = {
            one.id: judgments.score_response(drawn.get(one.id, ()), run.settings.judge)
            for one in answers
        }
        return response_pairs.build_response_pairs(
            prompts_of(run, iteration),
            grouped(answers, lambda one: one.prompt_id),
            scores,
            run.settings.for_iteration(iteration),
            id_namespace=run.store.id_namespace,
            iteration=iteration,
        )

    run.once(iteration, "response_pairs", work)


def battle(run: RunContext, iteration: int) -> None:
    """M(t−1) as meta-judge: on each prompt's most contested response, every pair of judgments in both orders."""
    if not run.settings.for_iteration(iteration).judgment_pairs:
        return
    role = run.role(iteration - 1, run.settings.meta_judge.draw, iteration)
    drawn = judgments_of(run, iteration)
    answers = grouped(responses_of(run, iteration), lambda one: one.prompt_id)
    items = []
    for prompt in prompts_of(run, iteration):
        candidates = [one for one in answers.get(prompt.id, ()) if drawn.get(one.id)]
        index = battles.most_contested([drawn[one.id] for one in candidates], run.settings.seed)
        if index is not None:
            response = candidates[index]
            items.append(
                (
                    prompt.id,
                    bind(battles.ask_for_battles, prompt, response, drawn[response.id], role),
                )
            )
    run.ask(iteration, "battles", items, budget.going_on(run, iteration, "battles"))


def rate(run: RunContext, iteration: int) -> None:
    """Fit a strength to every judgment that fought."""
    if run.settings.for_iteration(iteration).judgment_pairs:
        ridge = run.settings.meta_judge.ridge
        fought = sorted(run.store.records(Battle, iteration=iteration), key=lambda one: one.id)
        run.once(
            iteration,
            "ratings",
            lambda: ratings.rate_judgments(
                fought, ridge, id_namespace=run.store.id_namespace, iteration=iteration
            ),
        )


def pair_judgments(run: RunContext, iteration: int) -> None:
    """Strongest against weakest judgment."""
    schedule = run.settings.for_iteration(iteration)
    if schedule.judgment_pairs:
        by_id = {one.id: one for one in run.store.records(Judgment, iteration=iteration)}
        rated = run.store.records(Rating, iteration=iteration)
        run.once(
            iteration,
            "judgment_pairs",
            lambda: judgment_pairs.build_judgment_pairs(
                rated, by_id, schedule, id_namespace=run.store.id_namespace, iteration=iteration
            ),
        )
