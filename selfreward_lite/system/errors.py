"""Errors that a user can fix. Anything else is a bug and keeps its traceback.

SelfRewardError            one line: what happened, and what to do next
├── UserError              exit code 2: bad option, bad file, wrong folder, second writer
│   ├── ConfigError        a setting that does not exist or has a wrong value
│   └── DataError          a file that cannot be read, with its name and line
├── EngineError            exit code 1: the model could not be loaded or used
│   ├── EngineMemoryError  the memory of the GPU is too short for so many cells
│   └── ExportError        a model that GGUF cannot express, or that differs after export
├── TrainingError          exit code 1: the training process failed; the last adapter is kept
├── GateStop               exit code 3: a gate refused the new model; the run can be resumed
└── OutOfTime              exit code 130: the given hours are used; the run can be resumed
"""

from pathlib import Path


class SelfRewardError(Exception):
    """Base of all errors that are shown as one line."""

    exit_code = 1

    def __str__(self) -> str:
        return as_line(super().__str__())


class UserError(SelfRewardError):
    """The command, the configuration or the data must be changed."""

    exit_code = 2


class ConfigError(UserError):
    """A setting does not exist, has the wrong type or contradicts another."""


class DataError(UserError):
    """A data file cannot be read; the message names file and line."""


class EngineError(SelfRewardError):
    """A model or adapter could not be loaded, or the engine died too often."""


class EngineMemoryError(EngineError):
    """The device has no memory for cells or an adapter; with fewer cells it may work."""


class ExportError(EngineError):
    """A model cannot be written as GGUF exactly, or its logits differ afterwards."""


class TrainingError(SelfRewardError):
    """Training failed or produced an adapter that must not be used."""


class GateStop(SelfRewardError):
    """A new model was refused; the previous one remains the newest."""

    exit_code = 3


class OutOfTime(SelfRewardError):
    """The hours that the command was given are too few for the next step."""

    exit_code = 130


def refuse_reading(path: Path) -> UserError:
    """The error for a file of another user, in a folder that this one may not read."""
    return UserError(
        f"{path}: you may not read it; ask its owner to let you, as with "
        f"`chmod -R a+rX {path.parent}`"
    )


def as_line(text: str) -> str:
    """The text in one line; what cannot be printed, as in odd file names, as it is escaped.

    >>> as_line("no run in a\\nb\\udce9")
    'no run in a b\\\\udce9'
    """
    line = text.replace("\n", " ")
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in line)
