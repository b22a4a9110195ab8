"""Changes to safetensors files that keep most of their structure."""

import json
import math
import struct
from random import Random
from typing import Any

from hotslot.formats.safetensors_header import DTYPE_BITS
from tools.fuzz.mutations.text import mutate_bytes, mutate_text

MAX_DATA_BYTES = 8_192
_SIZES = (0, 1, 2, 3, 4, 7, 8, 9, 12, 16, 64, 2**31, 2**32, 2**53, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
_ODD: tuple[Any, ...] = (None, True, -1, 1.5, "1", [], {}, 10**30)
_NAMES = ("", "a", "é", "\x00", "__metadata__", "\ud800", "n" * 1025, "n" * 1024, "model.lora_A", "lora_A.weight")
_DTYPES = (*DTYPE_BITS, "F4", "F6_E2M3", "f32", "", "FLOAT")


def split(file: bytes) -> tuple[dict[str, Any], bytes] | None:
    """The header as a document and the data; None where the file has no such form."""
    if len(file) < 8:
        return None
    (length,) = struct.unpack("<Q", file[:8])
    try:
        document = json.loads(file[8 : 8 + length])
    except (ValueError, RecursionError):
        return None
    return (document, file[8 + length :]) if isinstance(document, dict) else None


def join(document: dict[str, Any], data: bytes, rng: Random | None = None) -> bytes:
    """A file; with `rng` its JSON is written in one of the ways that writers do."""
    text = json.dumps(document, ensure_ascii=rng is None or rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if rng is not None and rng.random() < 0.1:
        text += b" " * rng.choice((1, 7, 8, 64))
    return struct.pack("<Q", len(text)) + text + data


def relaid(document: dict[str, Any], data: bytes, rng: Random) -> bytes:
    """Give every tensor the offsets that its type and shape need, in order; returns the data of that length."""
    position = 0
    for name, entry in document.items():
        if name == "__metadata__" or not isinstance(entry, dict):
            continue
        shape, bits = entry.get("shape"), DTYPE_BITS.get(str(entry.get("dtype")), 8)
        sizes = shape if isinstance(shape, list) and all(type(size) is int for size in shape) else []
        num_bytes = math.prod(sizes) * bits // 8
        entry["data_offsets"] = [position, position + num_bytes]
        if 0 <= num_bytes <= MAX_DATA_BYTES:
            position += num_bytes
    if len(data) < position:
        data += rng.randbytes(min(position - len(data), 4 * MAX_DATA_BYTES))
    return data[:position]


def mutate_header(file: bytes, rng: Random) -> bytes:
    """The file with a few changes to its header, mostly made consistent again."""
    parts = split(file)
    if parts is None:
        if rng.random() < 0.6:
            return mutate_bytes(file, rng)
        parts = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)
    document, data = parts
    for _ in range(rng.choice((1, 1, 2, 4))):
        document = _changed(document, rng)
    if rng.random() < 0.7:
        data = relaid(document, data, rng)
    elif rng.random() < 0.3:
        data = mutate_bytes(data, rng)
    file = join(document, data, rng)
    if rng.random() < 0.1:
        length = len(file) - len(data) - 8
        text = mutate_text(file[8 : 8 + length], rng)
        return struct.pack("<Q", len(text)) + text + data
    if rng.random() < 0.05:
        return struct.pack("<Q", rng.choice((0, 1, len(file), len(file) - 8, 2**63, 2**64 - 1))) + file[8:]
    return file


def _changed(document: dict[str, Any], rng: Random) -> dict[str, Any]:
    entries = [name for name, entry in document.items() if isinstance(entry, dict) and name != "__metadata__"]
    action = rng.randrange(12)
    if not entries or action == 0:
        name = rng.choice((*_NAMES, f"t{rng.randrange(50)}"))
        document[name] = {"dtype": rng.choice(_DTYPES), "shape": _shape(rng), "data_offsets": [0, rng.choice(_SIZES)]}
        return document
    name = rng.choice(entries)
    entry: dict[str, Any] = document[name]
    shape = entry.get("shape")
    match action:
        case 1 | 2:
            entry["dtype"] = rng.choice(_DTYPES)
        case 3 | 4:
            entry["shape"] = _shape(rng)
        case 5 if isinstance(shape, list):
            position = rng.randrange(len(shape) + 1)
            size = rng.choice(_ODD if rng.random() < 0.2 else _SIZES)
            entry["shape"] = [*shape[:position], size, *shape[position + rng.randrange(2) :]]
        case 6:
            entry["data_offsets"] = [rng.choice(_SIZES), rng.choice(_SIZES)]
        case 7:
            other = document[rng.choice(entries)]
            entry["data_offsets"], other["data_offsets"] = other.get("data_offsets"), entry.get("data_offsets")
        case 8:
            return {rng.choice(_NAMES) if key == name else key: value for key, value in document.items()}
        case 9:
            del document[name]
        case 10:
            document["__metadata__"] = rng.choice(({}, {"format": "pt"}, {"é": "\x00"}, {"a": 1}, None, [], {"": ""}))
        case _:
            entry[rng.choice(("extra", "dtype", "shape", "data_offsets"))] = rng.choice(_ODD)
    return document


def _shape(rng: Random) -> list[int]:
    if rng.random() < 0.02:
        return [1] * rng.choice((8, 32, 33, 64, 65))
    sizes = _SIZES if rng.random() < 0.25 else _SIZES[:8]
    return [rng.choice(sizes) for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 5)))]
