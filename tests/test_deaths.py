"""A run that dies, as by SIGKILL, before and after every commit, every end of a stage, every manifest and every promotion."""

import os
from pathlib import Path

import pytest
from scripted_run import run
from test_loop import everything

from selfreward_lite import steps
from selfreward_lite.store import Store

LIVES = 600  # more than enough; a run that gets no further would end here


def die_at(call: int) -> None:
    """Let this process die at the `call`-th time that it is about to write, or has just written."""
    left = [call]

    def count() -> None:
        left[0] -= 1
        if left[0] == 0:
            os._exit(137)

    def mortal(function):
        def wrapped(*arguments, **named):
            count()
            result = function(*arguments, **named)
            count()
            return result

        return wrapped

    for name in ("commit", "begin_stage", "end_stage", "promote", "measure", "state"):
        setattr(Store, name, mortal(getattr(Store, name)))
    steps.write_manifest = mortal(steps.write_manifest)


def live(folder: Path, call: int) -> int:
    """Go on with the run in a process of its own that dies at its `call`-th moment; return its exit code."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            die_at(call)
            run(folder, iterations="1")
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("moments", [17, 18, 21])
def test_death_at_every_write_loses_and_doubles_nothing(tmp_path, moments):
    """Each life gets a few writes further than the last; the lives together pass every write of the run."""
    whole = tmp_path / "whole"
    run(whole, iterations="1")
    folder, deaths = tmp_path / "run", 0
    while (code := live(folder, moments)) != 0:  # up to sixteen moments pass before the first new write
        assert code == 137
        deaths += 1
        assert deaths < LIVES
    assert everything(folder) == everything(whole)
    with Store.read(folder) as store:
        assert store.faults() == []
    print(f"\n{deaths} deaths at the writes of a run; the records are those of an undisturbed one")
