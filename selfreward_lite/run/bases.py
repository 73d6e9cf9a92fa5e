"""Whether bases can be used: by their small files and the headers of their weights.

About 10 MB of each are downloaded, where its weights are gigabytes.
"""

from collections.abc import Sequence

from selfreward_lite import config
from selfreward_lite.config.settings import Settings
from selfreward_lite.data import hub
from selfreward_lite.data.download import Show
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.models.gguf_folder import SPLIT, refuse_split
from selfreward_lite.models.hf_folder import read_config
from selfreward_lite.models.memory import count_weights
from selfreward_lite.run.prepare import check_base, check_repository
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.machine import Finding

OTHERS = "overnight"  # the preset whose settings a base gets that is in none


def choose_bases(names: Sequence[str]) -> dict[str, Settings]:
    """The settings to check each base with; by default all bases that presets download.

    A name is a preset, or what model.base can be.
    """
    presets = config.presets()
    if not names:
        found = {one.model.base: one for one in map(config.load, presets)}
        return {base: one for base, one in found.items() if hub.parse_repository(base)}
    chosen = [
        config.load(name) if name in presets else config.load(OTHERS, {"model.base": name})
        for name in names
    ]
    return {one.model.base: one for one in chosen}


def examine_base(base: str, settings: Settings, show: Show) -> Finding:
    """What a run would say of a base before it downloads or reads its weights."""
    missing = hub.find_missing(base, "model")
    if missing is not None and missing.file is not None and not SPLIT.search(base):
        return Finding(base, "note", "one file: it can be checked after its download, by `run`")
    try:
        refuse_split(base)
        folder = check_repository(settings, missing, show) if missing else check_base(settings)
    except UserError as error:
        return Finding(base, "bad", str(error))
    shape, chat = read_config(folder), ChatFormat.load(folder)
    text = (
        f"{shape.family.architecture}, {count_weights(shape) / 1e9:.2f} billion weights"
        f"{' in NF4' if shape.packed else ''}, vocabulary {shape.vocab}, turns end with "
        f"{chat.answer.end}, padding {chat.tokenizer.id_to_token(chat.pad)}: can be used"
    )
    return Finding(base, "good", text)
