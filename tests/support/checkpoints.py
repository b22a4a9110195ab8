"""Small base models and adapter checkpoints, made without torch."""

import copy
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.base_spec import BaseModule, BaseSpec, ModuleKind
from store_service.admission.admit import Checkpoint

HIDDEN, INTERMEDIATE, VOCAB, KV = 8, 12, 16, 4
RANK = 4
Array = npt.NDArray[Any]


def base_spec(name: str = "acme/tiny", num_layers: int = 2, fingerprint: str = "f") -> BaseSpec:
    modules = [BaseModule("model.embed_tokens", ModuleKind.EMBEDDING, VOCAB, HIDDEN)]
    for layer in range(num_layers):
        for part, num_in, num_out in (
            ("mlp.down_proj", INTERMEDIATE, HIDDEN),
            ("mlp.gate_proj", HIDDEN, INTERMEDIATE),
            ("mlp.up_proj", HIDDEN, INTERMEDIATE),
            ("self_attn.k_proj", HIDDEN, KV),
            ("self_attn.o_proj", HIDDEN, HIDDEN),
            ("self_attn.q_proj", HIDDEN, HIDDEN),
            ("self_attn.v_proj", HIDDEN, KV),
        ):
            modules.append(BaseModule(f"model.layers.{layer}.{part}", ModuleKind.LINEAR, num_in, num_out))
    modules.append(BaseModule("lm_head", ModuleKind.LINEAR, HIDDEN, VOCAB))
    return BaseSpec(name, "llama", fingerprint, tuple(modules))


@dataclass
class Draft:
    """A checkpoint about to be written; change it to break it."""

    config: dict[str, Any]
    tensors: dict[str, Array]
    dtypes: dict[str, str] = field(default_factory=dict)
    """Element types that numpy does not have, by tensor: the array then holds the bits."""
    raw_config: bytes | None = None
    raw_weights: bytes | None = None
    without: set[str] = field(default_factory=set)
    extra_files: dict[str, bytes] = field(default_factory=dict)

    def copy(self) -> "Draft":
        return copy.deepcopy(self)

    def files(self) -> dict[str, bytes]:
        config = self.raw_config if self.raw_config is not None else json.dumps(self.config).encode()
        weights = self.raw_weights if self.raw_weights is not None else weights_file(self.tensors, self.dtypes)
        files = {"adapter_config.json": config, "adapter_model.safetensors": weights, **self.extra_files}
        return {name: data for name, data in files.items() if name not in self.without}

    def write(self, folder: Path) -> Checkpoint:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.files().items():
            (folder / name).write_bytes(data)
        return Checkpoint({name: folder / name for name in self.files()})


_DTYPES = {"float32": "F32", "float16": "F16", "float64": "F64", "int64": "I64", "uint16": "BF16"}


def weights_file(tensors: dict[str, Array], dtypes: dict[str, str] | None = None) -> bytes:
    """A safetensors file; the library's writer would refuse much of what the tests want."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, tensor in tensors.items():
        raw = np.ascontiguousarray(tensor).tobytes()
        dtype = (dtypes or {}).get(name, _DTYPES[str(tensor.dtype)])
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def adapter(
    targets: tuple[str, ...] = ("q_proj", "v_proj"),
    *,
    spec: BaseSpec | None = None,
    rank: int = RANK,
    seed: int = 0,
    prefix: str = "base_model.model.",
    key: Callable[[str, str], str] | None = None,
) -> Draft:
    """A sound adapter as PEFT saves it."""
    spec = spec or base_spec()
    rng = np.random.default_rng(seed)
    tensors: dict[str, Array] = {}
    for module in spec.modules:
        if module.path.rpartition(".")[2] in targets:
            for role, shape in (("A", (rank, module.in_features)), ("B", (module.out_features, rank))):
                name = key(module.path, role) if key else f"{prefix}{module.path}.lora_{role}.weight"
                tensors[name] = rng.standard_normal(shape).astype(np.float32)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 8,
        "target_modules": list(targets),
        "base_model_name_or_path": spec.name,
        "bias": "none",
        "lora_dropout": 0.05,
        "inference_mode": True,
        "init_lora_weights": True,
        "auto_mapping": None,
    }
    return Draft(config, tensors)
