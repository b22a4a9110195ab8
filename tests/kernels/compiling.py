"""`python -m tests.kernels.compiling`: compiles the Triton kernels for GPUs that are not there, in the forms that steps
launch, and prints as JSON lines what each takes.
"""

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from worker_service.model.cuda import slot_kernels
from worker_service.model.cuda.active_columns import FEW_TILE, MANY_TILE
from worker_service.model.cuda.add_slots import expand_options, shrink_options

CAPABILITIES = (80, 90, 100)
_TRITON_TYPES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
_TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
_WEIGHTS = {"x_ptr", "a_ptr", "b_ptr", "y_ptr"}
_LISTS = {"begins_ptr", "columns_ptr"}
_SIZES = {"in_features", "num_outputs", "stride_x", "num_columns", "num_places", "end_0", "end_1", "end_2"}


def compile_all() -> list[dict[str, Any]]:
    """All processors in bfloat16, whose code is float16's too; the smallest in float32, whose large tiles take most."""
    found = []
    for capability in CAPABILITIES:
        for dtype in (torch.bfloat16, torch.float32) if capability == CAPABILITIES[0] else (torch.bfloat16,):
            for is_few in (True, False) if dtype == torch.bfloat16 else (False,):
                tile = FEW_TILE if is_few else MANY_TILE
                common = {"NUM_LINEARS": 3, "TILE": tile, "WIDEN": False}
                features = {"SPLIT_FEATURES": 512 if is_few else 4096}
                splits = {"NUM_SPLITS": 8 if is_few else 1, "SLOT_RANK": 16}
                shrink = {**common, **features, **shrink_options(is_few, dtype)}
                expand = {**common, **splits, **expand_options()}
                for kernel, constants in ((slot_kernels.shrink, shrink), (slot_kernels.expand, expand)):
                    found.append(_compile(kernel, capability, dtype, constants))
    return found


def _compile(kernel: Any, capability: int, dtype: torch.dtype, constants: dict[str, int]) -> dict[str, Any]:
    options = {name: constants[name] for name in ("num_warps", "num_stages")}
    constants = {name: value for name, value in constants.items() if name.isupper()}
    signature = {name: _type(name, _TRITON_TYPES[dtype]) for name in kernel.arg_names}
    # What a launch finds out by itself: addresses and sizes that are multiples of 16.
    aligned = [name.endswith("_ptr") or name in _SIZES for name in kernel.arg_names]
    attributes = {(index,): [["tt.divisibility", 16]] for index, is_aligned in enumerate(aligned) if is_aligned}
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    spilled_bytes, registers = spilled_and_registers(compiled.asm["cubin"])
    return {
        "kernel": kernel.fn.__name__,
        "capability": capability,
        "dtype": str(dtype),
        "tile": constants["TILE"],
        "shared_bytes": compiled.metadata.shared,
        "registers": registers,
        "spilled_bytes": spilled_bytes,
    }


def spilled_and_registers(code: bytes) -> tuple[int, int]:
    """Bytes that a compiled kernel keeps in memory for want of registers, and the registers of a thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(code)
        cubin.flush()
        usage = subprocess.run([_TOOL, "-res-usage", cubin.name], capture_output=True, text=True, check=True)
    numbers = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage.stdout + usage.stderr))
    return int(numbers["STACK"]) + int(numbers["LOCAL"]), int(numbers["REG"])


def _type(name: str, element_type: str) -> str:
    if name.isupper():
        return "constexpr"
    if name in _LISTS:
        return "*i32"
    if name.endswith("_ptr"):
        return f"*{element_type}" if name in _WEIGHTS else "*fp32"
    return "i32"


if __name__ == "__main__":
    for line in compile_all():
        print(json.dumps(line))  # noqa: T201
