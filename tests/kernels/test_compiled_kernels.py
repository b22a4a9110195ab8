"""The Triton kernels as compiled for GPUs that are not there: nothing spills, and shared memory fits."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.triton, pytest.mark.timeout(900)]

MAX_SHARED_BYTES = 99 * 1024
"""A block's most on the smallest GPUs of the kind (compute capability 8.6 and 8.9; 8.0 and later ones have more)."""
MOST_LAUNCHES = {"base": 10, "adapters": 18}
"""Of one layer, what writes to the caches included."""
TIMEOUT_S = 600.0


def lines_of(module: str, folder: Path) -> list[dict[str, Any]]:
    """In a process of its own: this one's kernels are interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment = {"TRITON_CACHE_DIR": str(folder / "triton"), "TORCHINDUCTOR_CACHE_DIR": str(folder), **environment}
    command = [sys.executable, "-m", module]
    ended = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]


def check_resources(found: list[dict[str, Any]]) -> None:
    assert {kernel["capability"] for kernel in found} == {80, 90, 100}
    assert [kernel for kernel in found if kernel["spilled_bytes"]] == []
    assert [kernel for kernel in found if kernel["shared_bytes"] > MAX_SHARED_BYTES] == []


def test_kernels_compile_without_spills_and_within_shared_memory(tmp_path: Path) -> None:
    check_resources(lines_of("tests.kernels.compiling", tmp_path))


def test_a_layer_launches_no_more_than_its_bound_and_what_the_compiler_writes_compiles(tmp_path: Path) -> None:
    found = lines_of("tests.kernels.generated", tmp_path)
    launches = {line["layer"]: line["launches"] for line in found if "launches" in line}
    assert launches.keys() == MOST_LAUNCHES.keys()
    for layer, most in MOST_LAUNCHES.items():
        assert sum(launches[layer].values()) <= most, launches[layer]
        assert launches[layer]["extern_kernels.mm"] == 4
        assert launches[layer]["torch.ops.hotslot.attend_varlen.default"] == 1
    assert launches["adapters"]["torch.ops.hotslot_cuda.add_slots.default"] == 8
    check_resources([line for line in found if "kernel" in line])
