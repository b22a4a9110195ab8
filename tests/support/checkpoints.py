"""Small base models and adapter checkpoints, made without torch."""

import copy
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hotslot.formats.base_details import BaseDetails
from hotslot.formats.base_spec import BaseModule, BaseSpec, ModuleKind
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


def fused_base_spec(name: str = "acme/tiny-fused", num_layers: int = 2) -> BaseSpec:
    """The same base with queries, keys and values as one linear, gate and up as another, as a Phi-3 has them."""
    spec = base_spec(name, num_layers)
    joined = {"q_proj": ("qkv_proj", HIDDEN + 2 * KV), "gate_proj": ("gate_up_proj", 2 * INTERMEDIATE)}
    modules = []
    for module in spec.modules:
        if module.name in joined:
            leaf, num_out = joined[module.name]
            path = module.path.removesuffix(module.name) + leaf
            modules.append(BaseModule(path, ModuleKind.LINEAR, HIDDEN, num_out))
        elif module.name not in ("k_proj", "v_proj", "up_proj"):
            modules.append(module)
    attention = {"num_attention_heads": HIDDEN // KV, "num_key_value_heads": 1, "head_dim": KV}
    details = BaseDetails(attention=attention)
    return replace(spec, model_type="phi3", modules=tuple(modules), details=details)


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
    pieces: list[bytes] = []
    end = 0
    for name, tensor in tensors.items():
        raw = np.ascontiguousarray(tensor).tobytes()
        dtype = (dtypes or {}).get(name, _DTYPES[str(tensor.dtype)])
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [end, end + len(raw)]}
        pieces.append(raw)
        end += len(raw)
    text = json.dumps(header).encode()
    return b"".join([struct.pack("<Q", len(text)), text, *pieces])


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


KEY_VARIANTS: dict[str, Callable[[str, str], str]] = {
    "PEFT's": lambda path, role: f"base_model.model.{path}.lora_{role}.weight",
    "PEFT's unstripped": lambda path, role: f"base_model.model.{path}.lora_{role}.default.weight",
    "transformers'": lambda path, role: f"{path}.lora_{role}.weight",
    "compiled": lambda path, role: f"_orig_mod.base_model.model.{path}.lora_{role}.weight",
    "compiled inside": lambda path, role: f"base_model.model._orig_mod.{path}.lora_{role}.weight",
    "FSDP": lambda path, role: (
        "_fsdp_wrapped_module.base_model.model."
        + path.replace("layers.0", "layers.0._fsdp_wrapped_module")
        + f".lora_{role}.weight"
    ),
    "checkpointed layers": lambda path, role: (
        "base_model.model." + path.replace("layers.1", "layers.1._checkpoint_wrapped_module") + f".lora_{role}.weight"
    ),
    "DataParallel": lambda path, role: f"module.base_model.model.{path}.lora_{role}.weight",
    "without model.": lambda path, role: f"{path.removeprefix('model.')}.lora_{role}.weight",
    "text model of a multimodal one": lambda path, role: (
        "base_model.model.model.language_model." + path.removeprefix("model.") + f".lora_{role}.weight"
    ),
    "language_model outside": lambda path, role: f"base_model.model.language_model.{path}.lora_{role}.weight",
}
"""How trainers call a tensor, by the module's path and `A` or `B`; all mean the same."""

WRAPPED_VARIANTS: dict[str, Callable[[str, str], str]] = {
    "a PEFT model inside of a model": lambda path, role: f"model.base_model.model.{path}.lora_{role}.weight",
    "PEFT twice": lambda path, role: f"base_model.model.base_model.model.{path}.lora_{role}.weight",
    "an adapter's name twice": lambda path, role: f"base_model.model.{path}.lora_{role}.default.default.weight",
    "wrapped three times": lambda path, role: (
        f"module._orig_mod._fsdp_wrapped_module.base_model.model.{path}.lora_{role}.weight"
    ),
}
"""Further ones, of models that were wrapped more than once."""

TORCHTUNE_NAMES = {
    "o_proj": "attn.output_proj", "gate_proj": "mlp.w1", "down_proj": "mlp.w2", "up_proj": "mlp.w3",
}  # fmt: skip
"""Torchtune's names of the projections whose rows it keeps in order."""


def torchtune_adapter() -> Draft:
    """A sound adapter in torchtune's own layout."""

    def key(path: str, role: str) -> str:
        layer, name = path.split(".")[2], path.rpartition(".")[2]
        return f"layers.{layer}.{TORCHTUNE_NAMES[name]}.lora_{role.lower()}.weight"

    return adapter(tuple(TORCHTUNE_NAMES), key=key)


def mlx_adapter() -> Draft:
    """The same adapter as `adapter()`, as mlx-lm saves it."""
    draft = adapter(key=lambda path, role: f"{path}.lora_{role.lower()}")
    draft.tensors = {name: np.ascontiguousarray(value.T) for name, value in draft.tensors.items()}
    draft.config = {
        "fine_tune_type": "lora", "model": "acme/tiny", "num_layers": 2, "iters": 100, "train": True,
        "lora_parameters": {"rank": RANK, "scale": 2.0, "dropout": 0.0},
    }  # fmt: skip
    draft.extra_files["adapters.safetensors"] = draft.files()["adapter_model.safetensors"]
    draft.without.add("adapter_model.safetensors")
    return draft
