"""Adapters as a trainer holds them, a PEFT model, a state dict or a file in memory, as the files to send."""

import enum
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hotslot.codec import mismatch
from hotslot.errors import FieldViolation, InvalidRequestError
from hotslot.formats.file_names import CONFIG_FILE, WEIGHTS_FILE
from hotslot.formats.weight_files import size_of, weights_file

WEIGHTS = "a PEFT model, a mapping of names to tensors, or the bytes of a safetensors file"
MAX_WRAPPERS = 8


@dataclass(frozen=True, slots=True)
class MemoryFile:
    """A file of a checkpoint that is in memory only."""

    path: str
    """Name inside the checkpoint folder."""
    parts: Sequence[bytes | memoryview]

    @property
    def size_bytes(self) -> int:
        """Number of its bytes."""
        return size_of(self.parts)


def trained_files(weights: object, config: object, adapter: str) -> tuple[MemoryFile, ...]:
    """The files that `save_pretrained` would write; nothing is written, and no tensor in host memory is copied.

    Raises InvalidRequestError for what is no adapter.
    """
    if not isinstance(adapter, str):
        raise InvalidRequestError([mismatch("adapter", adapter, "the name of one of the model's adapters")])
    if isinstance(weights, bytes | bytearray | memoryview):
        parts: tuple[bytes | memoryview, ...] = (_file_bytes(weights),)
    elif isinstance(weights, Mapping):
        parts = weights_file(weights)
    else:
        model = _peft_model(weights)
        name = adapter or str(model.active_adapter)
        if name not in model.peft_config:
            raise InvalidRequestError([mismatch("adapter", name, f"one of {', '.join(map(repr, model.peft_config))}")])
        config = model.peft_config[name] if config is None else config
        parts = weights_file(_peft_state(model, name))
    return MemoryFile(CONFIG_FILE, (config_json(config),)), MemoryFile(WEIGHTS_FILE, parts)


def _file_bytes(weights: bytes | bytearray | memoryview) -> memoryview:
    """The bytes of a file, where they lie; raises InvalidRequestError where there are none."""
    view = memoryview(weights)
    if not view.nbytes or not view.c_contiguous:
        found = "a view with gaps" if view.nbytes else "no bytes"
        raise InvalidRequestError([FieldViolation("weights", f"found {found}, expected {WEIGHTS}")])
    return view.cast("B")


def config_json(config: object) -> bytes:
    """An adapter's config as the file that PEFT would write: of a PEFT config, a mapping, or such a file's text."""
    if isinstance(config, bytes | bytearray):
        return bytes(config)
    try:
        if isinstance(config, str):
            return config.encode()
        # A class has the method, too.
        found = config.to_dict() if hasattr(config, "to_dict") and not isinstance(config, type) else config
        if not isinstance(found, Mapping):
            raise InvalidRequestError([mismatch("config", config, "a PEFT config, a mapping, or the JSON of one")])
        return json.dumps(_plain(found), sort_keys=True).encode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidRequestError([FieldViolation("config", str(exc))]) from exc


def _plain(value: Any) -> Any:
    """A config's value as JSON has it; sets are lists there, as PEFT writes them."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(_plain(item) for item in value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _peft_model(model: Any) -> Any:
    """The PEFT model, out of what wraps it for compiling or for several devices."""
    for _ in range(MAX_WRAPPERS):
        if hasattr(model, "peft_config") and hasattr(model, "active_adapter"):
            return model
        model = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if model is None:
            break
    raise InvalidRequestError([FieldViolation("weights", f"no PEFT model was found in it, expected {WEIGHTS}")])


def _peft_state(model: Any, name: str) -> Mapping[str, object]:
    """The tensors under the names that PEFT saves them by, which it alone knows: where there is its model, it is there.

    Base embeddings are left out: an adapter that trained them names them in `modules_to_save`.
    """
    peft = sys.modules.get("peft")
    if peft is None:
        problem = "it looks like a PEFT model, and peft was never imported here; give its state dict"
        raise InvalidRequestError([FieldViolation("weights", problem)])
    take = peft.get_peft_model_state_dict
    state: Mapping[str, object] = take(model, adapter_name=name, save_embedding_layers=False)
    return state
