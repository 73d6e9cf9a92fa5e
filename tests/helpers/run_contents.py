"""What a run folder holds, to compare two runs."""

from dataclasses import astuple
from pathlib import Path

from selfreward_lite.data.records import KINDS
from selfreward_lite.data.store import Store


def read_records(folder: Path) -> dict[str, list]:
    with Store.read(folder) as store:
        return {
            kind.__name__: sorted(astuple(record) for record in store.records(kind))
            for kind in KINDS
        }


def read_contents(folder: Path) -> dict:
    """Everything a run keeps, except how many seconds its stages took."""
    with Store.read(folder) as store:
        stages = [
            (row.iteration, row.stage, row.done, row.total, row.ended) for row in store.stages()
        ]
        models = range(-1, (store.newest() or 0) + 1)
        kept = {
            f"M{model}": (
                store.metrics(model),
                store.gates(model),
                store.training(model),
                read_files(store.folder / f"M{model}"),
            )
            for model in models
        }
        dropped = {
            (iteration, stage): store.drops(iteration, stage) for iteration, stage, *_ in stages
        }
        return {
            **read_records(folder),
            **kept,
            "stages": stages,
            "drops": dropped,
            "base": read_files(folder / "base"),
        }


def read_files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
