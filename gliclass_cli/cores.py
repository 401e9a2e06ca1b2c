"""How many cores this process may use: by its affinity and the quota of its control groups."""

import math
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def available_cores(cgroups: Path = _CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> int:
    """Return the number of cores to use, at least 1.

    ONNX Runtime sees every core of the machine, also inside a container that may use two of them.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroups, membership)
    return max(1, min(affinity, affinity if quota is None else math.ceil(quota)))


def _quota(cgroups: Path, membership: Path) -> float | None:
    """Return the smallest quota, in cores, of this process's control group (v2 or v1) and those above it."""
    quotas = []
    for folder in _folders(cgroups, membership):
        try:
            if (folder / "cpu.max").exists():
                used, period = (folder / "cpu.max").read_text().split()
            else:
                used = (folder / "cpu.cfs_quota_us").read_text().strip()
                period = (folder / "cpu.cfs_period_us").read_text().strip()
            if used not in ("max", "-1"):
                quotas.append(int(used) / int(period))
        except (OSError, ValueError, ArithmeticError):
            continue
    return min(quotas, default=None)


def _folders(cgroups: Path, membership: Path) -> list[Path]:
    try:
        lines = membership.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, controllers, name = (*line.split(":", 2), "", "", "")[:3]
        root = cgroups if not controllers else cgroups / controllers
        path = root / name.lstrip("/")
        folders += [path, *(parent for parent in path.parents if parent.is_relative_to(root))]
    return folders
