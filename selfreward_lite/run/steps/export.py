"""Base and adapters as GGUF files."""

from dataclasses import asdict

from selfreward_lite.data import ranked
from selfreward_lite.data.records import BASE, Judgment, Outcome, Prompt, Response, index_records
from selfreward_lite.method import judgments
from selfreward_lite.models.chat_template import user
from selfreward_lite.run import speed
from selfreward_lite.run.context import RunContext
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.files import (
    MANIFEST,
    find_manifest_faults,
    hash_folder,
    read_manifest_fact,
    write_manifest,
)


def export_base(run: RunContext, _: int) -> None:
    """Write the base as GGUF, from the very weights that the adapters are trained on."""
    folder = run.base_gguf.parent

    def work() -> Outcome:
        run.runtime.export_base(run.model_dir, run.base_gguf, run.settings.model)
        if run.settings.engine.kind == "server":
            run.write_reference(folder)
        source = hash_folder(run.model_dir)
        write_manifest(folder, {"base": run.settings.model.base, "source": source})
        return Outcome()

    if run.store.is_done(0, "base") and not (folder / MANIFEST).exists():
        work()  # pruned, or left on another machine: the same base is made again
    run.once(0, "base", work)


def check_models(run: RunContext, iteration: int) -> None:
    """Refuse to continue from changed files: a flipped bit in an adapter loads without error."""
    base = run.base_gguf.parent
    faults = find_manifest_faults(base)
    if iteration:
        faults += find_manifest_faults(run.store.model_dir(iteration - 1))
    if not faults and read_manifest_fact(base, "source") != hash_folder(run.model_dir):
        faults = [f"{run.model_dir}: the base model was changed after the run started"]
    if faults:
        raise UserError(f"{faults[0]}; restore it from a copy, or start a new --name")


def export_adapter(run: RunContext, iteration: int) -> None:
    """Write the adapter as GGUF, measure its parity, and complete the model's folder."""

    def work() -> Outcome:
        run.release_engine()
        folder = run.store.model_dir(iteration)
        parity = run.runtime.export_adapter(
            run.model_dir,
            folder / "adapter",
            run.base_gguf,
            folder / "adapter.gguf",
            _probes(run),
            run.settings.model,
        )
        run.store.measure(
            iteration,
            logit_difference=parity.difference,
            logit_change=parity.change,
            greedy_agreement=parity.agreement,
            adapter_share=parity.share,
        )
        if run.settings.engine.kind == "server":
            run.write_reference(folder)
        manifest = {"iteration": iteration, "run": run.store.id_namespace, **asdict(parity)}
        write_manifest(folder, manifest)
        return Outcome()

    run.once(iteration, "export", work)


def _probes(run: RunContext) -> list[tuple[int, ...]]:
    """Token ids to compare logits on: held-out prompts, and judgments, the longest texts."""
    texts = run.held_out()[: speed.CHECKED_PROMPTS]
    probes = [tuple(run.chat.prompt_ids(user(prompt.text))) for prompt in texts]
    prompts = index_records(run.store.records(Prompt, origin="ranked"))
    responses = index_records(run.store.records(Response, model=ranked.HUMAN))
    judged = [one for one in run.store.made_by(Judgment, BASE) if one.response_id in responses]
    for judgment in judged[: speed.CHECKED_JUDGMENTS]:
        response = responses[judgment.response_id]
        question = judgments.build_judge_question(
            prompts[response.prompt_id], response, run.settings.model.templates
        )
        probes.append((*run.chat.prompt_ids(user(question)), *run.chat.text_ids(judgment.text)))
    return probes
