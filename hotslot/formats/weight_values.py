"""Digests of a weight's values, the same for every element type that holds them exactly.

Trainers save copies of base weights in whatever type they trained in, so values are compared as F32, which holds
F16 and BF16 exactly.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from hotslot.formats.safetensors_header import TensorEntry
from hotslot.ids import Digest

STORAGE: Mapping[str, npt.DTypeLike] = {"F32": "<u4", "F16": "<u2", "BF16": "<u2"}
"""By safetensors' element type: the unsigned integers that hold an element's bits."""

_CHUNK_BYTES = 1 << 22

Bits = npt.NDArray[Any]
"""Elements as the unsigned integers that hold their bits."""


def float32_bits(bits: Bits, dtype: str) -> Bits:
    """The same values as F32."""
    match dtype:
        case "F32":
            return bits
        case "BF16":
            return bits.astype(np.uint32) << np.uint32(16)
        case _:
            return bits.view(np.float16).astype(np.float32).view(np.uint32)


def values_digest(tensors: Sequence[tuple[BinaryIO, TensorEntry]]) -> Digest:
    """The digest over the values of tensors whose types are in STORAGE, one after the other, without their shapes."""
    hasher = hashlib.sha256()
    for file, entry in tensors:
        file.seek(entry.begin)
        for begin in range(0, entry.size_bytes, _CHUNK_BYTES):
            data = file.read(min(_CHUNK_BYTES, entry.size_bytes - begin))
            hasher.update(float32_bits(np.frombuffer(data, STORAGE[entry.dtype]), entry.dtype).data)
    return Digest("sha256:" + hasher.hexdigest())
