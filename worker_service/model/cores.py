"""The number of cores that a process may keep busy."""

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

CONTROL_GROUP = Path("/sys/fs/cgroup")


def usable_cores(control_group: Path = CONTROL_GROUP) -> int:
    """Cores of the process's affinity, or of its control group's quota where that is less, rounded up.

    Threads beyond a quota (a container's limit of CPU) use it up sooner, and then all of them stand still until the
    period ends.
    """
    cores = len(os.sched_getaffinity(0))
    quota = _quota(control_group)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def _quota(control_group: Path) -> float | None:
    """Cores by the quota of version 2 or 1 of control groups; None without one."""
    try:
        limit, period = (control_group / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit = (control_group / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (control_group / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    return int(limit) / int(period) if limit.isdigit() and period.isdigit() and int(period) else None


def num_alive(*threads: threading.Thread | None) -> int:
    """Threads that were begun and have not ended."""
    return sum(thread is not None and thread.is_alive() for thread in threads)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Have torch's own operators take so many threads meanwhile; no compiled code may run, which is for one number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
