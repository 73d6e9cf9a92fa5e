"""A simulated disk with one folder, for tests of a few lines."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from simulated_disk import KILL, Dead, Disk

LUCKS = 60  # power cuts with as many draws of what is kept


class SmallDisk:
    """A disk with one folder, and what happens at the next moments whose name begins so."""

    def __init__(self, place: Path, luck: int = 0) -> None:
        self.disk = Disk(place / f"disk {luck}", random.Random(luck))
        self.disk.load({"work": None})
        self.disk.storage.adopt()
        self.folder = self.disk.root / "work"

    def run(
        self, work: Callable[[Path], object], moments: int | None = None, **faults: str
    ) -> BaseException | None:
        """Do `work` in a process; returns how it failed.

        `faults` happen at each moment whose name begins so; after so many `moments` it is killed.
        """

        left = moments

        def reach(point, kinds):
            nonlocal left
            if left is not None:
                left -= 1
                return KILL if left < 0 else None
            kind = faults.get(point.split()[0])
            return kind if kind in kinds else None

        self.disk.reach = reach
        try:
            with self.disk.attached():
                work(self.folder)
        except (Dead, OSError) as error:
            return error
        finally:
            self.disk.end_command()
        return None

    def names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


def after_power_cuts(place: Path, work: Callable[[Path], object]) -> Iterator[SmallDisk]:
    """Disks whose power went after `work`, each with another draw of what is kept."""
    for luck in range(LUCKS):
        disk = SmallDisk(place, luck)
        assert disk.run(work) is None
        disk.disk.cut_power()
        yield disk
