"""A file of prompts that a command is given: read as a run reads it, and said what is not used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from typer import Option

from selfreward_lite.cli.output import say, show_downloads
from selfreward_lite.config.settings import Settings
from selfreward_lite.data import hub
from selfreward_lite.data.rows import describe_counts

if TYPE_CHECKING:
    from selfreward_lite.run.prepare import PromptFile

SkipBad = Annotated[
    bool, Option("--skip-bad", help="With --prompts: leave out bad lines, and count them.")
]


def read_own_prompts(prompts: str, settings: Settings) -> PromptFile:
    """Return what is in a file, folder or repository of prompts, which is fetched if needed."""
    from selfreward_lite.run.prepare import read_prompt_file

    with show_downloads() as show:
        place = hub.fetch_dataset(prompts, show)
    found = read_prompt_file(str(place.absolute()), settings)
    for note in found.notes:
        say(note)
    if found.skipped:
        say(f"left out: {describe_counts(found.skipped)}")
    return found
