"""A run, new or resumed: its settings, its downloads, and all checks before the first step."""

import platform
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from jinja2 import TemplateError

from selfreward_lite import config
from selfreward_lite.config.settings import CHECKABLE, Settings
from selfreward_lite.data import hub, judge_sets, task_sets
from selfreward_lite.data.data_files import read_rows
from selfreward_lite.data.download import Show
from selfreward_lite.data.prompt_rows import extract_prompts
from selfreward_lite.data.rows import describe_counts
from selfreward_lite.data.store import Store
from selfreward_lite.method.closing import can_close, make_score_probe
from selfreward_lite.method.new_prompts import count_different
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.models.checks import check_files, check_folder, check_tensors
from selfreward_lite.models.gguf_folder import check_gguf, find_base, refuse_split
from selfreward_lite.models.hf_folder import list_weight_files, read_config
from selfreward_lite.run import plan
from selfreward_lite.run.ask import Watch
from selfreward_lite.run.context import RunContext
from selfreward_lite.run.runtime import Runtime
from selfreward_lite.system.cores import count_cores
from selfreward_lite.system.errors import ConfigError, ExportError
from selfreward_lite.system.files import (
    MANIFEST,
    Json,
    check_disk,
    hash_folder,
    read_manifest_fact,
)
from selfreward_lite.system.gpu import list_gpus
from selfreward_lite.system.surroundings import expand_user

# Settings that may change when a run resumes: none of them changes what its records mean.
_MAY_CHANGE = ("iterations", "engine", "gates", "backend", "checkpoint_minutes", "training")
# `max_length` may change for trainings that have not begun: see `_check_lengths`.
_MAY_CHANGE_IN = {
    "evaluation": {"tasks", "task_samples", "task_prompts"},
    "sft": {"micro_batch", "max_length"},
    "dpo": {"micro_batch", "max_length"},
}
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "llama-cpp-python", "gguf")

# Settings that may name a repository of the hub: section, name, and what kind it is.
Named = tuple[str, str, hub.Kind]
MODELS: tuple[Named, ...] = (("model", "base", "model"), ("model", "gguf_file", "model"))
READ_ONCE: tuple[Named, ...] = (  # the records hold what was read
    ("seed_stage", "ranked", "dataset"),
    ("prompts", "file", "dataset"),
)
JUDGED: Named = ("gates", "judge_set", "dataset")  # read in every iteration
DATA: tuple[Named, ...] = (*READ_ONCE, JUDGED)
NAMED = (*MODELS, *DATA)
# Names of what is no file, and no data set that the user chose on the hub.
BUILT_IN = ("tiny", hub.PACKAGED, CHECKABLE, *judge_sets.NAMES)
# Settings that may name a path.
PATHS: tuple[Named, ...] = (*NAMED, ("model", "origin", "model"))


def load_or_create_settings(
    store: Store,
    wanted: dict[str, str],
    preset: str | None,
    show: Show = lambda file, done, total: None,
    check: Callable[[Settings], None] = lambda settings: None,
) -> Settings:
    """The settings of a run: those it started with, or the preset's; `wanted` overrides them.

    After `check`, what the settings name on the hub is downloaded (`show` receives the progress)
    and pinned to its commit. Raises ConfigError where `wanted` contradicts what the run's records
    were made with.
    """
    stored = store.fact("settings")
    if stored is None or not store.has_items():
        settings = _make_absolute(config.load(preset or "tiny", wanted))
        check(settings)
        _check_small(settings, show)
        # What is small first, so that it is refused before gigabytes of weights are downloaded.
        settings = _download(settings, DATA, show)
        _fetch_tasks(settings, show)
        _check_prompts(settings)
        settings = _download(settings, MODELS, show)
        check_base(settings)
        _store_facts(store, settings)
    else:
        store.settings()  # refuses those of another version, in its own words
        stored = config.complete(stored)
        if preset not in (None, stored["preset"]):
            raise ConfigError(
                f"{store.folder} was started with preset {stored['preset']}; give another --name "
                f"for {preset}"
            )
        settings = _keep_paths(config.override(stored, wanted), stored)
        settings = _keep_commits(settings, stored)
        if settings.model.base != stored["model"]["base"] and _is_moved_base(
            store, settings.model.base
        ):
            stored["model"]["base"] = settings.model.base
        check(settings)
        needed = [*MODELS, JUDGED, *(() if store.is_done(0, "ranked") else READ_ONCE)]
        settings = _download(settings, needed, show)
        _fetch_tasks(settings, show)
        started = config.parse(stored)
        before = started.model_dump(mode="json", exclude=_MAY_CHANGE_IN)
        for key, value in settings.model_dump(mode="json", exclude=_MAY_CHANGE_IN).items():
            if key not in _MAY_CHANGE and value != before[key]:
                raise ConfigError(
                    f"{store.folder} was started with other settings ({key}); give another --name "
                    "to change them"
                )
        _check_lengths(store, started, settings)
    # `--gates report` holds for one command; it is not stored with the run.
    store.state("settings", settings.with_values("gates", mode="stop").model_dump(mode="json"))
    return settings


def _check_lengths(store: Store, before: Settings, now: Settings) -> None:
    """Refuse a max_length that was raised, or lowered for a training that has begun."""
    number = store.next_model()
    is_sft = number == 0 or before.for_iteration(number).train_on == "positive"
    begun = bool(store.training(number)) and not store.is_done(number, "training")
    for name, then, wanted in (("sft", before.sft, now.sft), ("dpo", before.dpo, now.dpo)):
        if wanted.max_length > then.max_length:
            raise ConfigError(
                f"{store.folder} was started with {name}.max_length={then.max_length}, which may "
                "be lowered only; give another --name to raise it"
            )
        if begun and (name == "sft") == is_sft and wanted.max_length < then.max_length:
            raise ConfigError(
                f"the training of M{number} has begun with {name}.max_length={then.max_length}: "
                f"leave it so, or lower {name}.micro_batch. Where memory is short for the longest "
                "rows, the training leaves them out by itself"
            )


def open_run(
    store: Store, settings: Settings, runtime: Runtime, watch: Watch, deadline: float
) -> RunContext:
    """A run that is ready for its steps: the disk has room, the prediction is stored."""
    model_dir = find_base(settings.model.base)
    chat, shape = ChatFormat.load(model_dir), read_config(model_dir)
    base_written = (store.folder / "base" / MANIFEST).exists()
    needs = plan.disk_needs(settings, shape, store.newest(), base_written=base_written)
    check_disk(store.folder, needs)
    if store.fact("plan") is None:
        gpus = list_gpus()
        store.state("plan", plan.predict(settings, shape, gpus[0].name if gpus else None).to_json())
    return RunContext(store, settings, chat, model_dir, runtime, watch, deadline)


class PromptFile(NamedTuple):
    """The prompts of the user's own file, what was skipped by reason, and notes for the user."""

    texts: list[str]
    skipped: Counter[str]
    notes: list[str]


def read_prompt_file(file: str, settings: Settings) -> PromptFile:
    """Return what is in the user's own file of prompts. Raises DataError for a bad row."""
    rows = read_rows(hub.find_local(file, "dataset"), skip_bad=settings.skip_bad)
    return PromptFile(extract_prompts(rows, settings.prompts.ignore), rows.skipped, rows.notes)


def _store_facts(store: Store, settings: Settings) -> None:
    """Store what tells a new run from others, and on which machine it starts."""
    gpus = list_gpus()
    hardware = f"{count_cores()} CPU cores, no GPU"
    if gpus:
        hardware = f"{gpus[0].name}, driver {gpus[0].driver}"
    store.state("run", f"seed {settings.seed}")
    # What tells this run from others of its name, and from their copies.
    store.state("birth", uuid.uuid4().hex)
    store.state("hardware", hardware)
    packages = {name: version(name) for name in PACKAGES}
    store.state("versions", {"python": platform.python_version(), **packages})


def _download(settings: Settings, needed: Sequence[Named], show: Show) -> Settings:
    """Download what is needed; returns the settings with every repository at its commit."""
    for section, name, kind in needed:
        if repository := _find_repository(settings, section, name):
            _, at_commit = hub.fetch(repository, kind, show)
            settings = settings.with_values(section, **{name: str(at_commit)})
    return settings


def _fetch_tasks(settings: Settings, show: Show) -> None:
    """Download the task sets and the judge set that every model is asked, unless they are there."""
    for name in settings.evaluation.tasks:
        task_sets.fetch_set(name, show)
    judged = settings.gates.judge_set
    if not judged or judged in ("tiny", CHECKABLE):
        return
    if judged in judge_sets.NAMES:
        task_sets.fetch_set(judge_sets.NAMES[judged], show)
    elif not hub.find_local(judged, "dataset").exists():
        raise ConfigError(f"gates.judge_set: {judged} does not exist; name a set, or a file")


def _make_absolute(settings: Settings) -> Settings:
    """The settings with every path from the root, so that they mean the same in any folder."""
    for section, name, _ in PATHS:
        if text := getattr(getattr(settings, section), name):
            settings = settings.with_values(section, **{name: _from_root(text)})
    return settings


def _from_root(text: str) -> str:
    """A path from the root; unchanged where it is none."""
    if text in BUILT_IN or hub.parse_repository(text) is not None:
        return text
    return str(expand_user(text).absolute())


def _keep_paths(settings: Settings, stored: Json) -> Settings:
    """The settings with every path as at the start, if it is named as then from another folder."""
    before = config.parse(stored)
    for section, name, _ in PATHS:
        now, then = (getattr(getattr(each, section), name) for each in (settings, before))
        if now and now != then:
            parts = Path(now).parts
            is_same = then and not Path(now).exists() and Path(then).exists()
            if not (is_same and Path(then).parts[-len(parts) :] == parts):
                then = _from_root(now)
            settings = settings.with_values(section, **{name: then})
    return settings


def _is_moved_base(store: Store, base: str) -> bool:
    """Whether a local base has the same files as the one that the run started with."""
    written = store.folder / "base"
    if hub.parse_repository(base) is not None or not (written / MANIFEST).exists():
        return False
    return hash_folder(find_base(base)) == read_manifest_fact(written, "source")


def _keep_commits(settings: Settings, stored: Json) -> Settings:
    """The settings with every repository named as at the start at the commit it had then."""
    before = config.parse(stored)
    for section, name, _ in NAMED:
        now, then = (_find_repository(each, section, name) for each in (settings, before))
        if now and then and now == replace(then, revision=None):
            settings = settings.with_values(section, **{name: str(then)})
    return settings


def _find_repository(settings: Settings, section: str, name: str) -> hub.Repository | None:
    """The repository of the hub that a setting names, if any."""
    return hub.parse_repository(getattr(getattr(settings, section), name))


def _check_small(settings: Settings, show: Show) -> None:
    """Refuse what can be refused without weights: a base's small files alone are downloaded."""
    refuse_split(settings.model.base)
    refuse_split(settings.model.gguf_file)
    if settings.model.gguf_file and not _find_repository(settings, "model", "gguf_file"):
        check_gguf(Path(settings.model.gguf_file))
    base = _find_repository(settings, "model", "base")
    if base and base.file is None:
        check_repository(settings, base, show)


def check_repository(settings: Settings, base: hub.Repository, show: Show) -> Path:
    """Refuse a base on the hub by its small files and the headers of its weights.

    Returns the folder of the small files; about 10 MB are downloaded. Raises UserError.
    """
    folder = hub.fetch_small(base, show)
    with refuse_base(folder):
        shape = check_files(folder)
    _check_use(settings, folder)
    if hub.find_missing(str(base), "model"):
        tensors = hub.fetch_tensors(base, list_weight_files(folder))
        with refuse_base(folder):
            check_tensors(folder, shape, tensors)
    return folder


def check_base(settings: Settings) -> Path:
    """Refuse a base on this machine that cannot be used; returns its folder."""
    with refuse_base(Path(settings.model.base)):
        folder = find_base(settings.model.base)
        check_folder(folder)
    _check_use(settings, folder)
    return folder


def _check_use(settings: Settings, folder: Path) -> None:
    """Refuse a base that cannot do what the settings ask of it."""
    if settings.model.quantisation == "none" and read_config(folder).packed:
        raise ConfigError(
            f"{folder} holds 4-bit weights; set model.quantisation=nf4, or model.base to a "
            "folder in 16 bits"
        )
    chat = ChatFormat.load(folder)
    if settings.judge.score == "expected" and make_score_probe(chat) is None:
        raise ConfigError(
            f"{folder}: a digit is not one token here, so there is no expected score; use "
            "judge.score=mean"
        )
    if settings.judge.close == "force" and not can_close(chat):
        raise ConfigError(
            f"{folder}: a digit, A or B is not one token here, so no judgment can be closed; use "
            "judge.close=drop"
        )


@contextmanager
def refuse_base(folder: Path) -> Iterator[None]:
    """Turn whatever is wrong with the files of a base into one line."""
    try:
        yield
    except ExportError as error:
        raise ConfigError(str(error)) from None
    except (
        LookupError,
        TypeError,
        AttributeError,
        ValueError,
        ArithmeticError,
        TemplateError,
    ) as error:
        # Other people's JSON and Jinja: every wrong value in them ends here.
        raise ConfigError(
            f"{folder}: its files are not those of a chat model "
            f"({type(error).__name__}: {error}); download it again"
        ) from None


def _check_prompts(settings: Settings) -> None:
    """Refuse a bad prompt file before the settings are stored, so that they can still change."""
    if settings.prompts.file in (None, CHECKABLE):
        return
    texts, skipped, _ = read_prompt_file(settings.prompts.file, settings)
    found = count_different(texts)
    count, iterations = settings.prompts.count, settings.iterations
    if found <= (iterations - 1) * count:
        repeated = len(texts) - found
        repeats = f" ({repeated} more {'repeat' if repeated > 1 else 'repeats'} one of them)"
        again = repeats if repeated else ""
        left_out = f" (skipped: {describe_counts(skipped)})" if skipped else ""
        # Each advice works alone; the last iteration may have fewer prompts than the others.
        advice = f"give at least {(iterations - 1) * count + 1} prompts"
        if found >= iterations:
            advice = f"set prompts.count={found // iterations}"
        raise ConfigError(
            f"{settings.prompts.file} holds {found} prompt{'s' if found > 1 else ''}"
            f"{again}{left_out}: too few for {iterations} iterations of "
            f"{count}; {advice}, or --iterations {-(-found // count)}"
        )
