"""Cores that a process may keep busy, by affinity and quota."""

import os
from pathlib import Path

import pytest
import torch

from worker_service.model.cores import torch_threads, usable_cores

ALL = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, ALL),
        ({"cpu.max": "max 100000\n"}, ALL),
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "150000 100000\n"}, min(ALL, 2)),
        ({"cpu.max": "6400000 100000\n"}, ALL),
        ({"cpu.max": "nonsense"}, ALL),
        ({"cpu.max": "100000 0"}, ALL),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, ALL),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "100000\n"}, ALL),
    ],
)
def test_a_quota_bounds_the_cores_of_the_affinity(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cores(tmp_path) == expected


def test_the_threads_of_operators_are_as_before_even_after_a_failure() -> None:
    before = torch.get_num_threads()
    seen: list[int] = []

    def fail() -> None:
        with torch_threads(before + 1):
            seen.append(torch.get_num_threads())
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert seen == [before + 1]
    assert torch.get_num_threads() == before
