"""Sizes of a deployment of processes, sampled while it works, and what of them grows."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import psutil

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Sizes:
    """One look at a deployment."""

    store_rss_mib: float
    workers_rss_mib: float
    """Of the largest worker."""
    blobs_mib: float
    """Files of the store but the catalog's."""
    num_store_files: int
    catalog_mib: float
    """The catalog's own, with what waits to be written into it."""
    workers_disk_mib: float
    """Disk tiers of all workers."""
    redis_keys: int


def rss_mib(pid: int) -> float:
    """Memory of a process."""
    return float(psutil.Process(pid).memory_info().rss) / MIB


def files_below(folder: Path, *, but: str = "", only: str = "") -> list[int]:
    """Sizes of the files of a folder that others write to meanwhile, with or without those whose name begins so."""
    sizes = []
    for path in folder.rglob("*"):
        if (but and path.name.startswith(but)) or not path.name.startswith(only):
            continue
        try:
            if path.is_file():
                sizes.append(path.stat().st_size)
        except FileNotFoundError:
            continue
    return sizes


def growth(samples: Sequence[Sizes]) -> dict[str, tuple[float, float]]:
    """Median of each size in the second third of the samples, and in the last: before it caches fill."""
    third = len(samples) // 3
    assert third, "too few samples to tell growth by"
    middle, last = ([asdict(sample) for sample in part] for part in (samples[third : 2 * third], samples[2 * third :]))
    return {name: (median(s[name] for s in middle), median(s[name] for s in last)) for name in middle[0]}
