"""Base model of a folder to push: what its config calls it, and how its weights begin, by which others are told."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path

from hotslot.formats.file_names import CONFIG_FILE, WEIGHTS_FILES
from hotslot.formats.safetensors_header import MAX_ADAPTER_HEADER_BYTES, PREFIX_BYTES

MAX_CONFIG_BYTES = 1 << 20
_NAMES = ("base_model_name_or_path", "model")
"""PEFT's field, and MLX's."""


@dataclass(frozen=True, slots=True)
class PushedBase:
    """A folder's word on its base model."""

    name: str
    weights_header: bytes
    weights_size_bytes: int


def base_of_folder(folder: Path) -> PushedBase | None:
    """None where config or weights cannot be read so far; admission says then what is wrong with them."""
    try:
        weights = next(path for name in WEIGHTS_FILES if (path := folder / name).is_file())
        config = folder / CONFIG_FILE
        if config.stat().st_size > MAX_CONFIG_BYTES:
            return None
        document = json.loads(config.read_bytes())
        with weights.open("rb") as file:
            prefix = file.read(PREFIX_BYTES)
            (length,) = struct.unpack("<Q", prefix)
            if length > MAX_ADAPTER_HEADER_BYTES:
                return None
            header = prefix + file.read(length)
    except (StopIteration, OSError, ValueError, RecursionError, struct.error):
        return None
    if not isinstance(document, dict):
        return None
    name = next((value for key in _NAMES if isinstance(value := document.get(key), str) and value), "")
    return PushedBase(name, header, weights.stat().st_size)
