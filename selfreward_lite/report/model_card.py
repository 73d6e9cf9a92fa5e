"""A model of a run, or the pairs it was trained on, as a folder that the hub takes: files, and a card that says what they are.

Knows: what a card must say (base, data, method, metrics, versions, hardware, limits, licences), TRL's conversational preference
format. Does not know: command lines. Everything in a card comes from the run's own records. Texts of models stand in indented
blocks, where nothing in them is markup. Nothing is sent but by `push`, to the repository that it is given.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from selfreward_lite import __version__
from selfreward_lite.config.settings import Settings
from selfreward_lite.data import hub
from selfreward_lite.data.records import (
    Judgment,
    JudgmentPair,
    ModelId,
    Prompt,
    Response,
    ResponsePair,
)
from selfreward_lite.data.store import Store
from selfreward_lite.report import summary
from selfreward_lite.system.errors import UserError
from selfreward_lite.training.rows import TOO_LONG, Texts

PAPERS = (
    "[Self-Rewarding Language Models](https://arxiv.org/abs/2401.10020), "
    "[Meta-Rewarding Language Models](https://arxiv.org/abs/2407.19594)"
)
LIMITS = (
    "Trained on labels that it gave itself: what its judge likes is not what people like. Longer answers, ties and a judge that "
    "praises everything are known failures of the method; the figures above show how far they went here. Not tested for safety."
)
SCORES = {
    "mean": "the mean of a response's judgments",
    "expected": "the mean of the expected scores of a response's judgments",
}
ROWS = "data/train-00000-of-00001.parquet"


def write_adapter(store: Store, number: int, out: Path) -> Path:
    """Write M<number> as PEFT reads it, with its GGUF twin and a model card; returns `out`."""
    settings = Settings.model_validate(store.fact("settings"))
    source = store.model_dir(number)
    out.mkdir(parents=True, exist_ok=True)
    repository = hub.parse_repository(settings.model.base)
    config = json.loads((source / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    # As it was trained it names a folder of this machine, which is nobody else's business, and of no use to them.
    config["base_model_name_or_path"] = (
        repository.id if repository else settings.model.base.rsplit("/", 1)[-1]
    )
    config["revision"] = repository.revision if repository else None
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    shutil.copyfile(
        source / "adapter" / "adapter_model.safetensors", out / "adapter_model.safetensors"
    )
    shutil.copyfile(source / "adapter.gguf", out / "adapter.gguf")
    (out / "README.md").write_text(_model_card(store, settings, number), encoding="utf-8")
    return out


def write_pairs(store: Store, out: Path) -> Path:
    """Write every pair that the run made, as TRL's DPOTrainer takes them, with a data set card; returns `out`.

    Raises UserError where the run has none.
    """
    from datasets import Dataset, Features, Value

    settings = Settings.model_validate(store.fact("settings"))
    rows = list(_rows(store, settings))
    if not rows:
        raise UserError(
            f"{store.folder} has made no pairs yet; `status --name {store.folder.name}` shows how far it is"
        )
    text, number = Value("string"), Value("float64")
    turns = [{"role": text, "content": text}]
    features = Features(
        {
            "prompt": turns,
            "chosen": turns,
            "rejected": turns,
            "kind": text,
            "iteration": Value("int32"),
            "chosen_score": number,
            "rejected_score": number,
        }
    )
    path = out / ROWS
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=features).to_parquet(str(path))
    (out / "README.md").write_text(_data_card(store, settings, rows), encoding="utf-8")
    return out


def push(folder: Path, repository: str, private: bool) -> str:
    """Upload a folder that was written here to the repository named, made if it is new; returns its address.

    Raises UserError where the folder is none of ours or the name is no repository's.
    """
    from huggingface_hub import HfApi, errors
    from huggingface_hub.utils import validate_repo_id

    kind = (
        "model"
        if (folder / "adapter_config.json").exists()
        else "dataset"
        if (folder / ROWS).exists()
        else None
    )
    if kind is None or not (folder / "README.md").exists():
        raise UserError(
            f"{folder} holds no adapter and no pairs; write it with `export adapter` or `export pairs` first"
        )
    try:
        validate_repo_id(repository)
    except errors.HFValidationError:
        raise UserError(f"{repository} cannot be a repository; give owner/name") from None
    if repository.count("/") != 1:
        raise UserError(f"{repository}: say whose it is to be, as owner/name")
    with _upload_in_words(repository):
        api = HfApi()
        api.create_repo(repository, repo_type=kind, private=private, exist_ok=True)
        message = f"selfreward_lite {__version__}"
        api.upload_folder(
            repo_id=repository, repo_type=kind, folder_path=str(folder), commit_message=message
        )
    return f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{repository}"


@contextmanager
def _upload_in_words(repository: str) -> Iterator[None]:
    """Every way in which the hub can refuse, as one line with what to do next."""
    from huggingface_hub import errors

    try:
        yield
    except (httpx.HTTPError, errors.HfHubHTTPError, errors.OfflineModeIsEnabled) as error:
        status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
        if status in (401, 403, 404):
            raise UserError(
                f"the hub does not let you write to {repository} ({status}): set HF_TOKEN to a token that may write there, or "
                "name a repository of your own"
            ) from None
        why = str(error).splitlines()[0] if str(error) else ""
        raise UserError(
            f"{repository}: not all was sent ({type(error).__name__}: {why}); give the same command again"
        ) from None


# -- pairs ----------------------------------------------------------------------------------------------------------------


def _rows(store: Store, settings: Settings) -> Iterable[dict[str, Any]]:
    """Every pair as a conversation: what the user says, and two things that the assistant may answer."""
    texts = Texts(
        {one.id: one for one in store.records(Prompt)},
        {one.id: one for one in store.records(Response)},
        {one.id: one for one in store.records(Judgment)},
        settings.model.templates,
    )
    for pair in store.records(ResponsePair):
        scores = {"chosen_score": pair.chosen_score, "rejected_score": pair.rejected_score}
        yield _row(*texts.of_responses(pair), "response", pair.iteration) | scores
    for judged in store.records(JudgmentPair):
        strengths = {
            "chosen_score": judged.chosen_strength,
            "rejected_score": judged.rejected_strength,
        }
        yield _row(*texts.of_judgments(judged), "judgment", judged.iteration) | strengths


def _row(said: str, chosen: str, rejected: str, kind: str, iteration: int) -> dict[str, Any]:
    def turn(role: str, content: str) -> list[dict[str, str]]:
        return [{"role": role, "content": content}]

    return {
        "prompt": turn("user", said),
        "chosen": turn("assistant", chosen),
        "rejected": turn("assistant", rejected),
        "kind": kind,
        "iteration": iteration,
    }


# -- cards ----------------------------------------------------------------------------------------------------------------


def _model_card(store: Store, settings: Settings, number: int) -> str:
    ranked = hub.parse_repository(settings.seed_stage.ranked)
    head: dict[str, Any] = {
        "library_name": "peft",
        "tags": ["self-rewarding", "meta-rewarding", "dpo", "trl", "lora", "gguf"],
    }
    if base := hub.parse_repository(settings.model.base):
        head |= {"base_model": base.id, "base_model_relation": "adapter"}
    if licence := _licence(settings):
        head["license"] = licence
    if ranked:
        head["datasets"] = [ranked.id]
    parts = [
        f"# M{number} of a self-rewarding run",
        f"A LoRA adapter, made by selfreward_lite {__version__} after {PAPERS}: the model answered prompts, judged its own "
        "answers, judged its own judgments, and was trained on both with DPO. `adapter.gguf` is the same adapter for llama.cpp.",
        _base_words(settings),
        "## Method",
        _method(store, settings, number),
        "## Data",
        _data_words(store, settings),
        "## Metrics",
        _metrics(store, number),
        "M0 is the model after the seed stage. Win rates are against M0 on held-out prompts"
        + (
            ", by the exact scorer of the tiny world."
            if settings.model.base == "tiny"
            else ", judged by M0, frozen, in both orders; a verdict that flips with the order is a tie."
        ),
        "## Before and after",
        _examples(store),
        "## Versions and hardware",
        _versions(store),
        "## Limits",
        LIMITS,
    ]
    if licence:
        parts += ["## Licence", _licence_words(licence)]
    return _card(head, parts)


def _data_card(store: Store, settings: Settings, rows: Sequence[dict[str, Any]]) -> str:
    head: dict[str, Any] = {
        "pretty_name": f"Preference pairs of {store.folder.name}",
        "tags": ["preference", "dpo", "trl", "self-rewarding"],
        "language": ["en"],
        "configs": [
            {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}
        ],
    }
    if licence := _licence(settings):
        head["license"] = licence
    kinds = {kind: sum(row["kind"] == kind for row in rows) for kind in ("response", "judgment")}
    long = sum(
        store.drops(iteration, "training").get(TOO_LONG, 0)
        for iteration in {row["iteration"] for row in rows}
    )
    parts = [
        "# Preference pairs that a model made for itself",
        f"{kinds['response']} pairs of responses and {kinds['judgment']} pairs of judgments, in TRL's conversational preference "
        f"format, from a run of selfreward_lite {__version__} after {PAPERS}. `kind` tells them apart, `iteration` which model's "
        f"training they were for; scores are {SCORES[settings.judge.score]}, or a judgment's Bradley–Terry strength. "
        f"{long:,} of them were not trained on, because they are longer than {settings.dpo.max_length} tokens.",
        "## Method",
        _method(store, settings, max(row["iteration"] for row in rows)),
        "## Data",
        _data_words(store, settings),
        "## Versions and hardware",
        _versions(store),
        "## Limits",
        f"No person has looked at these pairs. {LIMITS}",
    ]
    if licence:
        parts += ["## Licence", _licence_words(licence)]
    return _card(head, parts)


def _card(head: dict[str, Any], parts: Sequence[str]) -> str:
    from huggingface_hub.repocard_data import CardData

    return f"---\n{CardData(**head).to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def _licence(settings: Settings) -> str | None:
    """The hub's name of the licence of the base, where that, or what it was made from, is one of the Llama 3 family."""
    names = f"{settings.model.base} {settings.model.origin or ''}".casefold()
    found = re.search(r"llama-(3(?:\.[1-3])?)(?![.\d])", names)
    return f"llama{found[1]}" if found else None


def _licence_words(licence: str) -> str:
    """What has to be said beside a model that is built with a Llama 3 (its licence, section 1.b)."""
    name = f"Llama {licence.removeprefix('llama')}"
    return (
        f"Built with {'Meta Llama 3' if name == 'Llama 3' else 'Llama'}. {name} is licensed under the {name} Community License, "
        "Copyright © Meta Platforms, Inc. All Rights Reserved. Whoever passes this on passes on that licence too, and begins the "
        "name with “Llama”."
    )


def _base_words(settings: Settings) -> str:
    base = hub.parse_repository(settings.model.base)
    of = (
        f"[{base.id}](https://huggingface.co/{base.id}) at revision `{base.revision}`"
        if base
        else (
            "the tiny base that ships with it"
            if settings.model.base == "tiny"
            else "a model of its owner's own"
        )
    )
    origin = f", the 4-bit form of {settings.model.origin}" if settings.model.origin else ""
    return f"Its base is {of}{origin}, held in {settings.model.quantisation} while it was trained."


def _method(store: Store, settings: Settings, number: int) -> str:
    lines = [
        f"seed stage: SFT on judgments that agree with human rankings, {settings.sft.epochs:g} epochs at "
        f"{settings.sft.learning_rate:g}",
        f"K = {settings.responses.count} responses a prompt, N = {settings.judge.count} judgments a response; score: "
        f"{settings.judge.score}",
        f"DPO: beta {settings.dpo.beta:g}, SFT anchor {settings.dpo.anchor:g}, {settings.dpo.epochs:g} epochs at "
        f"{settings.dpo.learning_rate:g}, batch {settings.dpo.batch}, reference M(t−1)",
        f"LoRA: rank {settings.lora.rank}, alpha {settings.lora.alpha}, all linear layers",
    ]
    for iteration in range(1, number + 1):
        step = settings.for_iteration(iteration)
        answered = len(
            {
                one.prompt_id
                for one in store.records(
                    Response, iteration=iteration, model=ModelId(iteration - 1).name
                )
            }
        )
        judges = "with" if step.judgment_pairs else "without"
        lines.append(
            f"iteration {iteration}: {answered:,} prompts, rho {step.rho:g}, {judges} judgment pairs"
        )
    return "\n".join(f"- {line}" for line in lines)


def _data_words(store: Store, settings: Settings) -> str:
    ranked = hub.parse_repository(settings.seed_stage.ranked)
    of = (
        f"[{ranked.id}](https://huggingface.co/datasets/{ranked.id}) at revision `{ranked.revision}`"
        if ranked
        else ("the tiny world" if settings.seed_stage.ranked == "tiny" else "its owner's own file")
    )
    written = (
        "the user's own"
        if settings.prompts.file
        else f"written by the {settings.prompts.writer} model"
    )
    counts = summary.build_seed_table(store).to_markdown()
    return f"Human rankings: {of}. Prompts: {written}.\n\n{counts}"


def _metrics(store: Store, number: int) -> str:
    rows = summary.summarize_run(store)["iterations"][: number + 1]
    timeless = [{name: row[name] for name in row if name != "seconds"} for row in rows]
    return summary.build_run_table(timeless).to_markdown()


def _examples(store: Store) -> str:
    """The first held-out prompts that both models answer differently, not chosen ones; indented, so that nothing is markup."""
    blocks = []
    for row in summary.build_example_table(store, 3).rows:
        for title, text in zip(("prompt", "M0", "now"), row, strict=True):
            blocks.append(f"{title}:\n\n{summary.indent_text(text)}")
    return "\n\n".join(blocks) or "Both models answer the held-out prompts alike."


def _versions(store: Store) -> str:
    versions = store.fact("versions") or {}
    said = ", ".join(f"{name} {number}" for name, number in versions.items())
    return f"{store.fact('hardware') or 'hardware not recorded'}; {said}."
