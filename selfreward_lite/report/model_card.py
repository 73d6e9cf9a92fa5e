"""A model of a run, or its preference pairs, as a folder for the Hugging Face hub, with a card.

Everything in a card comes from the run's own records. Texts of models are indented blocks, in which
nothing is markup. Only `push` sends anything, to the repository that it is given.
"""

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jinja2

from selfreward_lite import __version__
from selfreward_lite.config.settings import Settings
from selfreward_lite.data import hub
from selfreward_lite.data.download import describe_error
from selfreward_lite.data.records import (
    Judgment,
    JudgmentPair,
    ModelId,
    Prompt,
    Response,
    ResponsePair,
    index_records,
)
from selfreward_lite.data.store import Store
from selfreward_lite.models.chat_template import user
from selfreward_lite.report import passport, summary, tasks
from selfreward_lite.system import proxies
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.files import Json
from selfreward_lite.training.rows import TOO_LONG, TOO_LONG_FOR_MEMORY, PairTexts

TABLE = "data/train-00000-of-00001.parquet"

# Licenses by the names of bases, lower case, as the hub calls them. Those of Llama and Gemma hold
# for whatever is made of them, so their names count anywhere; others only as their makers use them
# (a copy of unsloth's has the same license). Qwen2.5 has another license in 3B and 72B. What a card
# must state is in section 1.b of Llama's, in 3.1 of Gemma's.
_MAKER = r"(?:^| )(?:unsloth|{})/"
LICENSES = {
    r"llama-3(?![.\d])": "llama3",
    r"llama-3\.1(?![.\d])": "llama3.1",
    r"llama-3\.2(?![.\d])": "llama3.2",
    r"llama-3\.3(?![.\d])": "llama3.3",
    r"gemma-3-": "gemma",
    _MAKER.format("qwen") + r"qwen3-[\d.]+b": "apache-2.0",
    _MAKER.format("qwen") + r"qwen2\.5-(?:[a-z]+-)?(?:0\.5|1\.5|7|14|32)b": "apache-2.0",
    _MAKER.format("huggingfacetb") + "smollm2-": "apache-2.0",
    _MAKER.format("mistralai") + "mistral-7b-": "apache-2.0",
}


def write_adapter(store: Store, number: int, out: Path) -> Path:
    """Write M<number> for PEFT, with its GGUF adapter and a model card; returns `out`."""
    settings = store.settings()
    source = store.model_dir(number)
    out.mkdir(parents=True, exist_ok=True)
    base = hub.parse_repository(settings.model.base)
    ranked = hub.parse_repository(settings.seed_stage.ranked)
    config = json.loads((source / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    # The trained adapter names a folder of this machine, which is private and useless to others.
    config["base_model_name_or_path"] = base.id if base else settings.model.base.rsplit("/", 1)[-1]
    config["revision"] = base.revision if base else None
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    for file in (source / "adapter" / "adapter_model.safetensors", source / "adapter.gguf"):
        shutil.copyfile(file, out / file.name)
    head = {
        "library_name": "peft",
        "tags": ["self-rewarding", "meta-rewarding", "dpo", "trl", "lora", "gguf"],
        "base_model": base.id if base else None,
        "base_model_relation": "adapter" if base else None,
        "datasets": [ranked.id] if ranked else None,
    }
    rows = summary.summarize_run(store)["iterations"][: number + 1]
    without_time = [{name: row[name] for name in row if name != "seconds"} for row in rows]
    _write_card(
        out,
        store,
        number,
        head,
        kind="model",
        name=ModelId(number).name,
        metrics=summary.build_run_table(without_time).to_markdown(),
        examples=summary.build_example_table(store, 3).rows,
        tasks=tasks.load_reports(store, number),
        passports=passport.load_reports(store, number),
    )
    return out


def write_pairs(store: Store, out: Path) -> Path:
    """Write all pairs of a run for TRL's DPOTrainer, with a data set card; returns `out`.

    Raises UserError for a run without pairs.
    """
    from datasets import Dataset, Features, Value

    rows = list(_build_rows(store))
    if not rows:
        raise UserError(
            f"{store.folder} has made no pairs yet; `status --name {store.folder.name}` shows how "
            "far it is"
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
    path = out / TABLE
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=features).to_parquet(str(path))
    head = {
        "pretty_name": f"Preference pairs of {store.folder.name}",
        "tags": ["preference", "dpo", "trl", "self-rewarding"],
        "language": ["en"],
        "configs": [
            {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}
        ],
    }
    iterations = {row["iteration"] for row in rows}
    _write_card(
        out,
        store,
        max(iterations),
        head,
        kind="data",
        response_pairs=sum(row["kind"] == "response" for row in rows),
        judgment_pairs=sum(row["kind"] == "judgment" for row in rows),
        too_long=_count_drops(store, iterations, TOO_LONG),
        too_long_for_memory=_count_drops(store, iterations, TOO_LONG_FOR_MEMORY),
    )
    return out


def _count_drops(store: Store, iterations: Iterable[int], reason: str) -> int:
    """How many rows were left out of trainings for a reason."""
    return sum(store.drops(iteration, "training").get(reason, 0) for iteration in iterations)


def push(folder: Path, repository: str, private: bool) -> str:
    """Upload a folder that was written here; returns its address. A new repository is created.

    Raises UserError for any other folder, and for a name that is not a repository's.
    """
    from huggingface_hub import HfApi, errors
    from huggingface_hub.utils import validate_repo_id

    files = {"model": "adapter_config.json", "dataset": TABLE}
    kind = next((kind for kind, file in files.items() if (folder / file).exists()), None)
    if kind is None or not (folder / "README.md").exists():
        raise UserError(
            f"{folder} holds no adapter and no pairs; write it with `export adapter` or "
            "`export pairs` first"
        )
    try:
        validate_repo_id(repository)
    except errors.HFValidationError:
        raise UserError(f"{repository} cannot be a repository; give owner/name") from None
    if repository.count("/") != 1:
        raise UserError(f"{repository}: say who owns it, as owner/name")
    if fault := proxies.find_request_fault():
        raise UserError(f"{repository}: {fault}")
    try:
        api = HfApi()
        api.create_repo(repository, repo_type=kind, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            repo_type=kind,
            folder_path=str(folder),
            commit_message=f"selfreward_lite {__version__}",
        )
    except (httpx.HTTPError, errors.HfHubHTTPError, errors.OfflineModeIsEnabled) as error:
        status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
        if status in (401, 403, 404):
            raise UserError(
                f"the hub does not let you write to {repository} ({status}): set HF_TOKEN to a "
                "token that may write there, or name a repository of your own"
            ) from None
        raise UserError(
            f"{repository}: the upload is incomplete ({describe_error(error)}); run the same "
            "command again"
        ) from None
    return f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{repository}"


def _build_rows(store: Store) -> Iterator[Json]:
    """Every pair as a conversation: what the user says, and two replies of the assistant."""
    texts = PairTexts(
        index_records(store.records(Prompt)),
        index_records(store.records(Response)),
        index_records(store.records(Judgment)),
        store.settings().model.templates,
    )
    for pair in store.records(ResponsePair):
        scores = (pair.chosen_score, pair.rejected_score)
        yield _build_row("response", pair.iteration, texts.read_response_pair(pair), scores)
    for judged in store.records(JudgmentPair):
        scores = (judged.chosen_strength, judged.rejected_strength)
        yield _build_row("judgment", judged.iteration, texts.read_judgment_pair(judged), scores)


def _build_row(
    kind: str, iteration: int, texts: tuple[str, str, str], scores: tuple[float, float]
) -> Json:
    prompt, chosen, rejected = texts
    return {
        "prompt": user(prompt),
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "kind": kind,
        "iteration": iteration,
        "chosen_score": scores[0],
        "rejected_score": scores[1],
    }


def _write_card(
    out: Path,
    store: Store,
    iterations: int,
    head: Json,
    **values: Any,
) -> None:
    """Write the card of a model or of pairs; `head` is the hub's metadata, without None.

    Not `ModelCard.from_template`, which fills in nothing for a name that is missing.
    """
    from huggingface_hub.repocard_data import CardData

    settings = store.settings()
    license_id = _find_license(settings)
    answered = [
        len({one.prompt_id for one in store.made_by(Response, t - 1, t)})
        for t in range(1, iterations + 1)
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["indent_text"] = summary.indent_text
    text = environment.get_template("card.jinja").render(
        head=CardData(**head, license=license_id).to_yaml(),
        version=__version__,
        settings=settings,
        base=hub.parse_repository(settings.model.base),
        ranked=hub.parse_repository(settings.seed_stage.ranked),
        answered=answered,
        seed_data=summary.build_seed_table(store).to_markdown(),
        hardware=store.fact("hardware") or "hardware not recorded",
        versions=store.fact("versions") or {},
        license_id=license_id,
        **values,
    )
    # The name of a run need not be UTF-8.
    (out / "README.md").write_text(text, encoding="utf-8", errors="backslashreplace")


def _find_license(settings: Settings) -> str | None:
    """The hub's id of the license of the base or its origin, None where it is not known."""
    names = f"{settings.model.base} {settings.model.origin or ''}".casefold()
    return next((name for text, name in LICENSES.items() if re.search(text, names)), None)
