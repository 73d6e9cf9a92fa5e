"""How many cores this process may use, which is often fewer than the machine has."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def count_cores(groups: Path = GROUPS, membership: Path = MEMBERSHIP) -> int:
    """The cores of the scheduler's mask, or fewer where a quota of CPU time is less; at least 1.

    A quota of 1.5 cores counts as 2: threads beyond a quota are stopped together, so the last part
    of a core is used too. Quotas are those of Linux's control groups, versions 1 and 2.
    """
    return max(1, math.ceil(min(_count_mask(), _find_quota(groups, membership))))


def thread_limit(groups: Path = GROUPS, membership: Path = MEMBERSHIP) -> dict[str, str]:
    """An environment variable that keeps torch and numpy within a quota; none without one.

    They know the mask by themselves, and no quota.
    """
    if _find_quota(groups, membership) >= _count_mask():
        return {}
    return {"OMP_NUM_THREADS": str(count_cores(groups, membership))}


def _count_mask() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # no Linux, or a sandbox that forbids to ask
        return os.cpu_count() or 1


def _find_quota(groups: Path, membership: Path) -> float:
    """The least quota of this process's groups and of those above them, in cores."""
    try:
        lines = membership.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # no Linux, or /proc is not there: nothing says that there is a quota
        return math.inf
    quotas = [math.inf]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            quotas += [_read_quota(folder / "cpu.max") for folder in _walk_up(groups, path)]
        elif "cpu" in controllers.split(","):
            # A system mounts controllers that belong together once, and links their single names.
            for root in {groups / controllers, groups / "cpu"}:
                quotas += [
                    _read_quota(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")
                    for folder in _walk_up(root, path)
                ]
    return min(quotas)


def _walk_up(root: Path, path: str) -> Iterator[Path]:
    """A group's folder and those above it; in a container its own group may be the root."""
    folder = root / path.lstrip("/")
    yield folder
    for above in folder.parents:
        if above.is_relative_to(root):
            yield above


def _read_quota(*files: Path) -> float:
    """The time over the period that files hold, in this order; infinite where there is no quota."""
    try:
        words = " ".join(file.read_text(encoding="ascii") for file in files).split()
        time, period = (int(word) for word in words)
    except (OSError, ValueError):  # no such group here, or "max"
        return math.inf
    return time / period if time > 0 and period > 0 else math.inf
