"""Writes the one form in which a version is served: a safetensors file in layer order, the same on any machine.

Tensors stand as `<path>.lora_A` `[rank, in]`, `<path>.lora_B` `[out, rank]` and, where it is there,
`<path>.lora_B.bias` `[out]`, in the base's layer order, in the checkpoint's own element type; where types are mixed,
all become F32, which holds the others exactly. Memory stays at a few slices, however large a tensor is.
"""

import json
import math
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import BinaryIO

from hotslot.errors import Violation
from hotslot.formats.manifest import (
    DTYPE_SIZES_BYTES,
    LORA_A,
    LORA_B,
    LORA_B_BIAS,
    WEIGHTS_FORMAT,
    WEIGHTS_FORMAT_WITH_BIASES,
)
from hotslot.formats.safetensors_header import PREFIX_BYTES
from store_service.admission.gathered import Gathered, ValueFacts, WrittenPart
from store_service.admission.planned import ServedModule, WrittenTensor
from store_service.admission.slices import block_slices, is_gathered

DATA_ALIGNMENT_BYTES = 64
HANDED_OVER_BYTES = 1024 * 1024
"""Bytes that a thread takes at once; most tensors are smaller, and handing one over costs more than writing it."""
OVERLAP_FROM_BYTES = 8 * 1024 * 1024
"""From this size on files are hashed and written while the next slice is read; below, threads cost more."""

Sink = Callable[[bytes | memoryview], object]


@dataclass(frozen=True, slots=True)
class WeightsPlan:
    """The file to write: everything but the values is known before the first tensor is read."""

    dtype: str
    header: bytes
    """The file's first bytes: length and JSON, padded."""
    size_bytes: int
    modules: tuple[ServedModule, ...]


@dataclass(slots=True)
class Written:
    """Facts about the values that were written."""

    violations: list[Violation] = field(default_factory=list)
    """Tensors with values that are not finite."""
    has_effect: bool = False
    """False where no module changes anything, whatever its input."""


def plan_weights(modules: tuple[ServedModule, ...]) -> WeightsPlan:
    """Lay out the file for modules in layer order."""
    dtypes = {dtype for module in modules for _, tensor in _tensors(module) for dtype in tensor.dtypes}
    dtype = dtypes.pop() if len(dtypes) == 1 else "F32"
    has_biases = any(module.bias is not None for module in modules)
    weights_format = WEIGHTS_FORMAT_WITH_BIASES if has_biases else WEIGHTS_FORMAT
    document: dict[str, object] = {"__metadata__": {"format": weights_format}}
    position = 0
    for module in modules:
        for suffix, tensor in _tensors(module):
            end = position + math.prod(tensor.shape) * DTYPE_SIZES_BYTES[dtype]
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


def write_weights(plan: WeightsPlan, file: BinaryIO, sinks: Sequence[Sink]) -> Written:
    """Convert slice by slice from the open checkpoint.

    Every sink gets all bytes in order, never two calls at once, from other threads where the file is large. Bytes
    that were written are worthless when there are violations; reading goes on, to report all of them.
    """
    if plan.size_bytes < OVERLAP_FROM_BYTES:

        def write(data: bytes | memoryview) -> None:
            for sink in sinks:
                sink(data)

        return _write_tensors(plan, file, write)
    with ThreadPoolExecutor(len(sinks), "admission") as threads:
        under_way: list[Future[None]] = []
        waiting: list[bytes | memoryview] = []

        def hand_over() -> None:
            for call in under_way:
                call.result()
            under_way[:] = [threads.submit(_write_all, sink, tuple(waiting)) for sink in sinks]
            waiting.clear()

        def write_meanwhile(data: bytes | memoryview) -> None:
            waiting.append(data)
            if sum(map(len, waiting)) >= HANDED_OVER_BYTES:
                hand_over()

        written = _write_tensors(plan, file, write_meanwhile)
        hand_over()
        for call in under_way:
            call.result()
    return written


def _write_all(sink: Sink, pieces: Sequence[bytes | memoryview]) -> None:
    for piece in pieces:
        sink(piece)


def _write_tensors(plan: WeightsPlan, file: BinaryIO, write: Sink) -> Written:
    values = ValueFacts()
    gathered = Gathered(file, plan.dtype, values, write)
    write(plan.header)
    for module in plan.modules:
        for end, tensor in _tensors(module):
            for block in tensor.blocks:
                part = WrittenPart(module, end, block)
                if is_gathered(block, plan.dtype):
                    gathered.add(part)
                    continue
                gathered.flush()
                num_bad = 0
                for bits, num_more in block_slices(file, block, plan.dtype):
                    num_bad += num_more
                    values.note_effect(part, bits)
                    write(bits.data.cast("B"))
                values.note_bad(part, num_bad)
    gathered.flush()
    return Written(values.violations(), values.has_effect)


def _tensors(module: ServedModule) -> list[tuple[str, WrittenTensor]]:
    """A module's tensors in the order in which they are written, each with the end of its name."""
    pair = [(LORA_A, module.a), (LORA_B, module.b)]
    return pair if module.bias is None else [*pair, (LORA_B_BIAS, module.bias)]
