"""What the C++ compiler makes of the kernels, where it is known to make something slow of what looks the same."""

import platform
import shutil
import subprocess

import pytest
import torch

from worker_service.model.cpu.library import load_kernels, processor

needs_x86 = pytest.mark.skipif(
    platform.machine() != "x86_64" or "avx2" not in processor().split() or shutil.which("objdump") is None,
    reason="it reads code of x86 processors with AVX2",
)


@needs_x86
def test_weights_of_8_bits_are_widened_by_one_instruction() -> None:
    assert load_kernels(None)
    (library,) = (path for path in torch.ops.loaded_libraries if "hotslot_cpu" in path)
    code = subprocess.run(["objdump", "-d", library], check=True, capture_output=True, text=True).stdout
    # GCC 12 reads each byte by itself where it is left to convert a vector of them: a third of the speed.
    assert code.count("vpmovsxbd") > 20
    assert code.count("movsbl") < 20
