"""One checkpoint as one run of bytes, so that a fuzzer and a file can hold it."""

import struct
from dataclasses import dataclass, replace
from enum import IntFlag

from store_service.admission.admit import WEIGHTS_FILES
from store_service.admission.config import CONFIG_FILE


class Shape(IntFlag):
    """Which files the checkpoint has."""

    MLX_NAME = 1
    NO_CONFIG = 2
    NO_WEIGHTS = 4
    PICKLE = 8


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
        return cls(data[5 : 5 + length], data[5 + length :], Shape(shape & 15))

    def files(self) -> dict[str, bytes]:
        """The files by name."""
        found: dict[str, bytes] = {}
        if Shape.NO_CONFIG not in self.shape:
            found[CONFIG_FILE] = self.config
        if Shape.NO_WEIGHTS not in self.shape:
            found[WEIGHTS_FILES[Shape.MLX_NAME in self.shape]] = self.weights
        if Shape.PICKLE in self.shape:
            found["adapter_model.bin"] = b"\x80\x04."
        return found

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
