"""Base and adapters as GGUF files."""

from __future__ import annotations

from selfreward_lite.data import ranked
from selfreward_lite.data.records import Judgment, Outcome, Prompt, Response
from selfreward_lite.method import judgments
from selfreward_lite.models.chat_format import user
from selfreward_lite.run import plan
from selfreward_lite.run.context import RunContext
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.files import (
    MANIFEST,
    folder_hash,
    manifest_fact,
    manifest_faults,
    write_manifest,
)

# -- seed stage ----------------------------------------------------------------------------------------------------------


def export_base(run: RunContext, _: int) -> None:
    """Write the base as GGUF, in the numbers that the adapters are trained on."""

    def work() -> Outcome:
        run.runtime.export_base(run.model_dir, run.base_gguf, run.settings.model)
        write_manifest(
            run.base_gguf.parent,
            {"base": run.settings.model.base, "source": folder_hash(run.model_dir)},
        )
        return Outcome()

    if run.store.is_done(0, "base") and not (run.base_gguf.parent / MANIFEST).exists():
        work()  # pruned, or left behind on another machine: the same base, made again
    run.once(0, "base", work)


def check_models(run: RunContext, iteration: int) -> None:
    """Refuse to go on from files that are not those that were written: a flipped bit in an adapter loads silently."""
    base = run.base_gguf.parent
    faults = manifest_faults(base) + (
        manifest_faults(run.store.model_dir(iteration - 1)) if iteration else []
    )
    if not faults and manifest_fact(base, "source") != folder_hash(run.model_dir):
        faults = [f"{run.model_dir}: the base model was changed after the run began"]
    if faults:
        raise UserError(f"{faults[0]}; restore it from a copy, or start a new --name")


def export(run: RunContext, iteration: int) -> None:
    """Write the adapter as GGUF, measure that llama.cpp runs the model that was trained, and close the folder."""

    def work() -> Outcome:
        run.release_engine()
        folder = run.store.model_dir(iteration)
        probes = [
            run.chat.prompt_ids(user(prompt.text))
            for prompt in run.held_out()[: plan.CHECKED_PROMPTS]
        ]
        probes += _judged_probes(run, plan.CHECKED_JUDGMENTS)
        parity = run.runtime.export_adapter(
            run.model_dir,
            folder / "adapter",
            run.base_gguf,
            folder / "adapter.gguf",
            probes,
            run.settings.model,
        )
        run.store.measure(
            iteration,
            logit_difference=parity["difference"],
            logit_change=parity["change"],
            greedy_agreement=parity["agreement"],
            adapter_share=parity["share"],
        )
        write_manifest(folder, {"iteration": iteration, "run": run.store.id_namespace, **parity})
        return Outcome()

    run.once(iteration, "export", work)


def _judged_probes(run: RunContext, count: int) -> list[list[int]]:
    """The token ids of whole judgments, question and all: the longest texts that the exported model will read."""
    prompts = {one.id: one for one in run.store.records(Prompt, origin="ranked")}
    responses = {one.id: one for one in run.store.records(Response, model=ranked.HUMAN)}
    judged = [
        one for one in run.store.records(Judgment, model="base") if one.response_id in responses
    ]
    probes = []
    for judgment in judged[:count]:
        response = responses[judgment.response_id]
        asked = judgments.build_judge_question(
            prompts[response.prompt_id], response, run.settings.model.templates
        )
        probes.append([*run.chat.prompt_ids(user(asked)), *run.chat.text_ids(judgment.text)])
    return probes
