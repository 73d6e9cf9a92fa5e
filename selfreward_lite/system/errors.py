"""Everything that can go wrong in a way that a user can mend.

    SelfRewardError            one line that says what happened and what to do next
    ├── UserError              exit code 2: bad option, bad file, wrong folder, second writer
    │   ├── ConfigError        a setting that does not exist or cannot hold
    │   └── DataError          a file that cannot be read, with its name and line
    ├── EngineError            exit code 1: the model could not be loaded or asked
    │   └── ExportError        an adapter or base that GGUF cannot express, or that came out different
    ├── TrainingError          exit code 1: the training child failed; the last good adapter stands
    ├── GateStop               exit code 3: a gate refused the new model; the run is whole and resumable
    └── OutOfTime              exit code 130: the hours given are used up; the run is whole and resumable

Anything that is not in this tree is a bug of ours and keeps its traceback.
"""

from __future__ import annotations


class SelfRewardError(Exception):
    """Base of all errors shown to a user as one line."""

    exit_code = 1


class UserError(SelfRewardError):
    """Something in the command, the configuration or the data must be changed."""

    exit_code = 2


class ConfigError(UserError):
    """A setting does not exist, has the wrong type or contradicts another."""


class DataError(UserError):
    """A data file cannot be read; the message names file and line."""


class EngineError(SelfRewardError):
    """A model or adapter could not be loaded, or the engine died too often."""


class ExportError(EngineError):
    """A model cannot be written as GGUF exactly, or its logits differ after writing."""


class TrainingError(SelfRewardError):
    """Training failed or produced an adapter that must not be used."""


class GateStop(SelfRewardError):
    """A new model was refused; the previous one stays the newest."""

    exit_code = 3


class OutOfTime(SelfRewardError):
    """The hours that the command was given do not pay for what comes next."""

    exit_code = 130
