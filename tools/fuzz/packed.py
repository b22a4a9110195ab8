"""One checkpoint as one run of bytes, so that a fuzzer and a file can hold it."""

import json
import struct
from dataclasses import dataclass, replace
from enum import IntFlag
from typing import Any

from hotslot.formats.file_names import CONFIG_FILE, WEIGHTS_FILES


class Shape(IntFlag):
    """Files that the checkpoint has."""

    MLX_NAME = 1
    NO_CONFIG = 2
    NO_WEIGHTS = 4
    PICKLE = 8
    SHARDED = 16
    """The weights in two files, where they can be cut between two tensors, else in one that is called as a shard."""
    FUSED_BASE = 32
    """Not a file: the base has queries, keys and values as one linear, gate and up as another."""


ALL_FILES = Shape(0)


@dataclass(frozen=True, slots=True)
class Packed:
    """A config, a weights file, and which of them are there."""

    config: bytes
    weights: bytes
    shape: Shape = ALL_FILES

    def to_bytes(self) -> bytes:
        """`[shape u8][length of the config u32][config][weights]`."""
        return struct.pack("<BI", self.shape, len(self.config)) + self.config + self.weights

    @classmethod
    def from_bytes(cls, data: bytes) -> "Packed":
        """Any bytes are a checkpoint; what a length claims and is not there is empty."""
        shape, length = struct.unpack("<BI", data[:5].ljust(5, b"\0"))
        return cls(data[5 : 5 + length], data[5 + length :], Shape(shape & 63))

    def files(self) -> dict[str, bytes]:
        """The files by name."""
        found: dict[str, bytes] = {}
        if Shape.NO_CONFIG not in self.shape:
            found[CONFIG_FILE] = self.config
        if Shape.NO_WEIGHTS not in self.shape:
            found |= self._weights_files()
        if Shape.PICKLE in self.shape:
            found["adapter_model.bin"] = b"\x80\x04."
        return found

    def _weights_files(self) -> dict[str, bytes]:
        if Shape.SHARDED not in self.shape:
            return {WEIGHTS_FILES[Shape.MLX_NAME in self.shape]: self.weights}
        shards = _in_two(self.weights) or [self.weights]
        names = [f"adapter_model-{index + 1:05}-of-{len(shards):05}.safetensors" for index in range(len(shards))]
        return dict(zip(names, shards, strict=True))

    @classmethod
    def of_files(cls, files: dict[str, bytes]) -> "Packed":
        """The inverse of `files`, as far as admission can tell files apart."""
        name = next((name for name in WEIGHTS_FILES if name in files), None)
        packed = cls(files.get(CONFIG_FILE, b""), files.get(name, b"") if name else b"")
        flags = [
            (CONFIG_FILE not in files, Shape.NO_CONFIG),
            (name is None, Shape.NO_WEIGHTS),
            (name == WEIGHTS_FILES[1], Shape.MLX_NAME),
            ("adapter_model.bin" in files, Shape.PICKLE),
        ]
        return replace(packed, shape=Shape(sum(flag for is_set, flag in flags if is_set)))


def _in_two(file: bytes) -> list[bytes] | None:
    """The tensors of a file as two files; None where cutting it would mend something."""
    try:
        length = struct.unpack("<Q", file[:8])[0]
        document: dict[str, Any] = json.loads(file[8 : 8 + length])
        if json.dumps(document).encode() != file[8 : 8 + length]:
            return None
        metadata = document.pop("__metadata__", {})
        places = [tuple(entry["data_offsets"]) for entry in document.values()]
        ends = [0, *(end for _, end in places)]
        if [begin for begin, _ in places] != ends[:-1] or ends[-1] != len(file) - 8 - length or sorted(ends) != ends:
            return None
        are_numbers = all(type(place) is int for pair in places for place in pair)
        if not are_numbers or not all(isinstance(text, str) for text in metadata.values()):
            return None
    except (struct.error, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    data, half = file[8 + length :], len(document) // 2
    return [
        _joined({name: document[name] for name in names}, data, base)
        for names, base in ((list(document)[:half], 0), (list(document)[half:], ends[half]))
    ]


def _joined(document: dict[str, Any], data: bytes, base: int) -> bytes:
    end = max((entry["data_offsets"][1] for entry in document.values()), default=base)
    moved = {
        name: {**entry, "data_offsets": [place - base for place in entry["data_offsets"]]}
        for name, entry in document.items()
    }
    text = json.dumps(moved).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + data[base:end]
