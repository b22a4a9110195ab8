"""Weights in memory as the safetensors file that PEFT would write, without a copy of the tensors.

A weights file is a header and views of the tensors' own memory, which must not change while it is read.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hotslot.errors import FieldViolation, InvalidRequestError

_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
"""safetensors' names of element types by numpy's, ml_dtypes' and torch's."""
_ALIGNMENT_BYTES = 8
_METADATA = "__metadata__"


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A tensor as bytes, for element types that numpy lacks."""

    data: bytes | bytearray | memoryview
    """Little-endian elements, row by row."""
    shape: tuple[int, ...]
    dtype: str
    """As safetensors calls it, such as "BF16"."""


def weights_file(tensors: Mapping[str, object]) -> tuple[bytes | memoryview, ...]:
    """The parts of a safetensors file of these tensors: its header, then each tensor's memory.

    Tensors are torch's, numpy arrays, those with an element type of ml_dtypes, or `RawTensor`. Raises
    InvalidRequestError with each that is none of them.
    """
    document: dict[str, object] = {_METADATA: {"format": "pt"}}
    parts: list[bytes | memoryview] = []
    problems: list[FieldViolation] = []
    position = 0
    for name, tensor in tensors.items():
        try:
            _check_name(name)
            raw = _raw(tensor)
            data, shape = memoryview(raw.data).cast("B"), [int(size) for size in raw.shape]
        except (TypeError, ValueError) as exc:
            problems.append(FieldViolation(f"weights[{str(name)[:80]!r}]", str(exc)))
            continue
        end = position + data.nbytes
        document[name] = {"dtype": raw.dtype, "shape": shape, "data_offsets": [position, end]}
        position = end
        if data.nbytes:
            parts.append(data)
    if not tensors:
        problems.append(FieldViolation("weights", "there are no tensors"))
    if problems:
        raise InvalidRequestError(problems)
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    return struct.pack("<Q", len(text)) + text, *parts


def size_of(parts: Sequence[bytes | memoryview]) -> int:
    """Number of bytes of a file in parts."""
    return sum(len(part) if isinstance(part, bytes) else part.nbytes for part in parts)


def _check_name(name: object) -> None:
    """Refuse a name that no tensor in a file can have, before it takes another's place there."""
    if not isinstance(name, str):
        raise TypeError(f"found a name that is {type(name).__name__}, expected a text")
    if name == _METADATA:
        raise ValueError("no tensor can have this name: safetensors keeps it for a file's metadata")


def _raw(tensor: object) -> RawTensor:
    """A tensor's bytes where they lie; raises TypeError or ValueError, which say what was found."""
    if isinstance(tensor, RawTensor):
        return tensor
    if isinstance(tensor, np.ndarray):
        return _of_array(tensor, _dtype_name(tensor.dtype.name))
    if hasattr(tensor, "detach") and hasattr(tensor, "cpu"):
        return _of_torch(tensor)
    raise TypeError(f"found {type(tensor).__name__}, expected a torch tensor, a numpy array or a RawTensor")


def _of_torch(tensor: Any) -> RawTensor:
    """A tensor of torch, which is not imported here."""
    name = _dtype_name(str(tensor.dtype).removeprefix("torch."))
    try:
        host = tensor.detach().cpu().contiguous()
        # numpy has no bfloat16, and bytes have no element type. A view of one dimension takes tensors of any shape.
        array: Any = host.reshape(-1).view(_torch_bytes(host)).numpy()
    except RuntimeError as exc:  # on the meta device, sparse, or in parts on several devices
        kind = f"{tensor.layout} on the device {tensor.device}"
        raise ValueError(f"found values that cannot be read, {kind}: {str(exc).partition(chr(10))[0]}") from exc
    return RawTensor(memoryview(array), tuple(int(size) for size in tensor.shape), name)


def _torch_bytes(tensor: Any) -> Any:
    """torch.uint8, without an import of torch."""
    return __import__(type(tensor).__module__.partition(".")[0]).uint8


def _of_array(array: "np.ndarray[Any, Any]", dtype: str) -> RawTensor:
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    flat: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return RawTensor(memoryview(flat), array.shape, dtype)


def _dtype_name(name: str) -> str:
    if name not in _DTYPES:
        raise ValueError(f"found element type {name}, expected one of {', '.join(_DTYPES)}")
    return _DTYPES[name]
