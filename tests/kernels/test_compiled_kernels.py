"""The Triton kernels as compiled for GPUs that are not there: nothing spills, and shared memory fits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.triton

MAX_SHARED_BYTES = 99 * 1024
"""A block's most on the smallest GPUs of the kind (compute capability 8.6 and 8.9; 8.0 and later ones have more)."""
TIMEOUT_S = 240.0


def test_kernels_compile_without_spills_and_within_shared_memory(tmp_path: Path) -> None:
    """In a process of its own: this one's kernels are interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.compiling"]
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    ended = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert ended.returncode == 0, ended.stderr
    found = [json.loads(line) for line in ended.stdout.splitlines()]
    assert {kernel["capability"] for kernel in found} == {80, 90, 100}
    assert [kernel for kernel in found if kernel["spilled_bytes"]] == []
    assert [kernel for kernel in found if kernel["shared_bytes"] > MAX_SHARED_BYTES] == []
