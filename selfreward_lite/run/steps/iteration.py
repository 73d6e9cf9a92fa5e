"""One iteration, from new prompts to pairs: each step reads records, asks or computes, and commits.

M(t−1) answers its prompts, judges its answers, and judges its judgments. Every step can be called
again: it does only what is missing.
"""

from selfreward_lite.config.settings import CHECKABLE
from selfreward_lite.data.checkable.kinds import encode_constraints
from selfreward_lite.data.checkable.requests import draw_requests, remove_constraints
from selfreward_lite.data.records import (
    BASE,
    Battle,
    Candidate,
    Judgment,
    Outcome,
    Prompt,
    Rating,
    group_records,
    index_records,
)
from selfreward_lite.method import (
    battles,
    judgment_pairs,
    new_prompts,
    ratings,
    response_pairs,
    responses,
)
from selfreward_lite.method.judgments import group_by_response
from selfreward_lite.method.roles import AskGenerator
from selfreward_lite.run import budget
from selfreward_lite.run.context import RunContext
from selfreward_lite.system.errors import UserError


def write_prompts(run: RunContext, iteration: int) -> None:
    """Have new prompts written until enough are kept or attempts run out; or use the user's own."""
    store, count = run.store, run.prompts_wanted(iteration)
    settings = run.settings.prompts.model_copy(update={"count": count})
    if settings.file == CHECKABLE:
        run.once(iteration, "prompts", lambda: _draw_checkable(run, iteration, count))
        return
    if settings.file is not None:
        if not run.prompts(iteration):
            raise UserError(
                f"{settings.file} held no prompts for iteration {iteration}; start a new --name "
                "with more of them, or with fewer an iteration "
                f"(prompts.count={run.settings.prompts.count})"
            )
        return
    if store.is_done(iteration, "prompts"):
        return
    writer = BASE if settings.writer == "base" else iteration - 1
    role = run.role(writer, settings.draw, iteration)
    ranked = run.ranked()
    human = [one.prompt.text for one in (*ranked.eft, *ranked.ift)]
    own = [
        remove_constraints(prompt, run.settings.seed, settings.constraints)
        for prompt in store.records(Prompt, origin="generated")
        if prompt.iteration < iteration
    ]
    held_out = run.held_out_texts()
    wanted, limit = count, int(count * settings.attempts)
    while True:
        wanted = min(wanted, limit)
        items = [
            (str(index), new_prompts.ask_for_prompt(index, role, settings, human, own))
            for index in range(wanted)
        ]
        run.ask_round(iteration, "candidates", items)
        # A killed round may have left candidates of the next one. Only complete rounds count, so
        # that a resumed run keeps what an undisturbed one would.
        made = (one for one in store.records(Candidate, iteration=iteration) if one.index < wanted)
        kept = new_prompts.filter_candidates(
            sorted(made, key=lambda one: one.index),
            settings,
            id_namespace=store.id_namespace,
            iteration=iteration,
            known=[*human, *own],
            held_out=held_out,
            seed=run.settings.seed,
        )
        if len(kept.records) >= count or wanted == limit:
            break
        wanted += max(8, 2 * (count - len(kept.records)))
    run.once(iteration, "prompts", lambda: kept)


def _draw_checkable(run: RunContext, iteration: int, count: int) -> Outcome:
    """Requests with constraints, other ones in every iteration."""
    first = run.settings.prompts.count * (iteration - 1)
    drawn = draw_requests(run.settings.seed, "training", first + count)[first:]
    return Outcome(
        [
            Prompt.make(
                run.store.id_namespace,
                iteration,
                "generated",
                index,
                one.text,
                encode_constraints(one.constraints),
            )
            for index, one in enumerate(drawn)
        ]
    )


def answer_prompts(run: RunContext, iteration: int) -> None:
    """M(t−1) as actor: K responses a prompt."""
    settings = run.settings.responses
    role = run.role(iteration - 1, settings.draw, iteration)
    run.ask(
        iteration,
        "responses",
        run.prompts(iteration),
        lambda prompt: responses.ask_for_responses(prompt, role, settings.count),
        budget.may_start(run, iteration, "responses"),
    )


def judge_responses(run: RunContext, iteration: int) -> None:
    """M(t−1) as judge: N judgments a response; none where constraints alone decide."""
    if not run.settings.judge.count:
        return
    run.ask_judge(
        iteration,
        "judgments",
        iteration - 1,
        run.responses(iteration),
        run.settings.judge.count,
        may_start=budget.may_start(run, iteration, "judgments"),
    )


def pair_responses(run: RunContext, iteration: int) -> None:
    """The best response against the worst, with length control."""
    run.once(
        iteration,
        "response_pairs",
        lambda: response_pairs.build_response_pairs(
            run.prompts(iteration),
            group_records(run.responses(iteration), lambda one: one.prompt_id),
            run.judged_scores(iteration),
            run.settings.for_iteration(iteration),
            run.settings.pairs.verify,
            id_namespace=run.store.id_namespace,
            iteration=iteration,
        ),
    )


def run_battles(run: RunContext, iteration: int) -> None:
    """M(t−1) as meta-judge: all pairs of judgments of each prompt's most contested response."""
    if not run.settings.for_iteration(iteration).judgment_pairs:
        return
    role = run.role(iteration - 1, run.settings.meta_judge.draw, iteration)
    drawn = group_by_response(run.judgments(iteration))
    answers = group_records(run.responses(iteration), lambda one: one.prompt_id)
    seed = run.settings.seed
    contested = {
        prompt: response
        for prompt in run.prompts(iteration)
        if (response := battles.most_contested(answers.get(prompt.id, ()), drawn, seed)) is not None
    }

    def start(prompt: Prompt) -> AskGenerator:
        response = contested[prompt]
        return battles.ask_for_battles(prompt, response, drawn[response.id], role)

    run.ask(iteration, "battles", contested, start, budget.may_start(run, iteration, "battles"))


def pair_judgments(run: RunContext, iteration: int) -> None:
    """Fit a strength to every judgment that was in a battle; pair the strongest and weakest."""
    schedule, store = run.settings.for_iteration(iteration), run.store
    if not schedule.judgment_pairs:
        return
    run.once(
        iteration,
        "ratings",
        lambda: ratings.rate_judgments(
            sorted(store.records(Battle, iteration=iteration), key=lambda one: one.id),
            run.settings.meta_judge.ridge,
            id_namespace=store.id_namespace,
            iteration=iteration,
        ),
    )
    run.once(
        iteration,
        "judgment_pairs",
        lambda: judgment_pairs.build_judgment_pairs(
            store.records(Rating, iteration=iteration),
            index_records(store.records(Judgment, iteration=iteration)),
            schedule,
            id_namespace=store.id_namespace,
            iteration=iteration,
        ),
    )
