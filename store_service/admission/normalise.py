"""Writes the one form in which a version is served: a safetensors file in layer order, the same on any machine.

Tensors stand as `<path>.lora_A` `[rank, in]`, then `<path>.lora_B` `[out, rank]`, in the base's layer order, in the
checkpoint's own element type; where types are mixed, all become F32, which holds the others exactly. Memory stays
at one tensor.
"""

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from shared.errors import Violation
from shared.manifest import DTYPE_SIZES_BYTES, LORA_A, LORA_B, WEIGHTS_FORMAT
from shared.safetensors_header import PREFIX_BYTES, TensorEntry
from store_service.admission.checks import PlannedModule, StoredTensor

DATA_ALIGNMENT_BYTES = 64
_STORAGE: dict[str, npt.DTypeLike] = {"F32": "<u4", "F16": "<u2", "BF16": "<u2"}
_EXPONENT_BITS = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}

Bits = npt.NDArray[Any]
"""Elements as the unsigned integers that hold their bits."""


@dataclass(frozen=True, slots=True)
class WeightsPlan:
    """The file to write: everything but the values is known before the first tensor is read."""

    dtype: str
    header: bytes
    """The file's first bytes: length and JSON, padded."""
    size_bytes: int
    modules: tuple[PlannedModule, ...]


def plan_weights(modules: tuple[PlannedModule, ...]) -> WeightsPlan:
    """Lay out the file for modules in layer order."""
    dtypes = {tensor.entry.dtype for module in modules for tensor in (module.a, module.b)}
    dtype = dtypes.pop() if len(dtypes) == 1 else "F32"
    document: dict[str, object] = {"__metadata__": {"format": WEIGHTS_FORMAT}}
    position = 0
    for module in modules:
        for suffix, tensor in ((LORA_A, module.a), (LORA_B, module.b)):
            end = position + tensor.entry.num_elements * DTYPE_SIZES_BYTES[dtype]
            document[module.path + suffix] = {
                "dtype": dtype,
                "shape": list(tensor.shape),
                "data_offsets": [position, end],
            }
            position = end
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-(PREFIX_BYTES + len(text)) % DATA_ALIGNMENT_BYTES)
    header = struct.pack("<Q", len(text)) + text
    return WeightsPlan(dtype, header, len(header) + position, modules)


def write_weights(plan: WeightsPlan, file: BinaryIO, write: Callable[[bytes | memoryview], object]) -> list[Violation]:
    """Convert tensor by tensor from the open checkpoint; returns the tensors with values that are not finite.

    What was written is worthless when anything is returned; reading goes on, to report all of them.
    """
    violations: list[Violation] = []
    write(plan.header)
    for module in plan.modules:
        for tensor in (module.a, module.b):
            bits = _read_bits(file, tensor.entry)
            violations.extend(_not_finite(tensor.entry, bits))
            write(_convert(bits, tensor, plan.dtype).data.cast("B"))
    return violations


def values_violations(entries: Iterator[TensorEntry], file: BinaryIO) -> Iterator[Violation]:
    """The tensors with values that are not finite, for a checkpoint that is refused anyway."""
    for entry in entries:
        if entry.dtype in _STORAGE:
            yield from _not_finite(entry, _read_bits(file, entry))


def _read_bits(file: BinaryIO, entry: TensorEntry) -> Bits:
    file.seek(entry.begin)
    data = file.read(entry.size_bytes)
    assert len(data) == entry.size_bytes, "the header was checked against the size of this very file"
    return np.frombuffer(data, _STORAGE[entry.dtype])


def _not_finite(entry: TensorEntry, bits: Bits) -> Iterator[Violation]:
    exponent = _EXPONENT_BITS[entry.dtype]
    num_bad = int(np.count_nonzero((bits & bits.dtype.type(exponent)) == exponent))
    if num_bad:
        yield Violation.of(
            "NOT_FINITE",
            entry.name,
            f"{num_bad} of {bits.size} values are NaN or infinite",
            "finite values",
            "it would poison every answer",
        )


def _convert(bits: Bits, tensor: StoredTensor, dtype: str) -> Bits:
    if tensor.is_transposed:
        bits = np.ascontiguousarray(bits.reshape(tensor.entry.shape).T).reshape(-1)
    if tensor.entry.dtype == dtype:
        return bits
    if tensor.entry.dtype == "BF16":
        return bits.astype(np.uint32) << np.uint32(16)
    return bits.view(np.float16).astype(np.float32).view(np.uint32)
