"""Changes to whole checkpoints: config and tensors together, so that most still belong together."""

import json
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np

from tests.support.checkpoints import (
    KEY_VARIANTS,
    WRAPPED_VARIANTS,
    Draft,
    adapter,
    fused_base_spec,
    mlx_adapter,
    torchtune_adapter,
)
from tests.unit.store_service.admission.broken_checkpoints import biases, embedding
from tools.fuzz.mutations.config import mutate_config
from tools.fuzz.mutations.header import join, mutate_header, relaid, split
from tools.fuzz.mutations.text import mutate_bytes
from tools.fuzz.packed import Packed, Shape

_LEAVES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
_FUSED_LEAVES = ("qkv_proj", "gate_up_proj", "o_proj", "down_proj")
_EXTRA_NAMES = (
    "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
    "base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias",
    "base_model.model.model.embed_tokens.lora_embedding_A",
    "base_model.model.model.embed_tokens.lora_A.weight",
    "base_model.model.lm_head.weight",
    "base_model.model.vision_tower.layers.0.q_proj.lora_A.weight",
    "layers.0.attn.q_proj.lora_a.weight",
    "layers.0.attn.output_proj.lora_a.weight",
    "model.layers.0.self_attn.q_proj.lora_a",
    "model.layers.9.self_attn.q_proj.lora_A.weight",
    "lora_A.weight",
    ".lora_A.weight",
    "optimizer.step",
)
_WORDS = (
    "base_model.model.", "_orig_mod.", "module.", "language_model.", "model.", "_fsdp_wrapped_module.", ".weight",
    ".default", ".bias", "layers.", "lora_A", "lora_B", "lora_a", "lora_b", "q_proj", "v_proj", ".0.", ".1.",
    "qkv_proj",
)  # fmt: skip
_POISON = {"F32": 0x7FC00000, "F16": 0x7C00, "BF16": 0xFF80}
_WIDTH = {"F32": 4, "F16": 2, "BF16": 2}


def mutate_checkpoint(data: bytes, rng: Random) -> bytes:
    """The checkpoint with one thing changed, or another sound one."""
    packed = Packed.from_bytes(data)
    match rng.randrange(20):
        case 0 | 1 | 2:
            packed = replace(Packed.of_files(_sound(rng).files()), shape=packed.shape & Shape.FUSED_BASE)
            if rng.random() < 0.2:
                packed = replace(packed, shape=packed.shape | Shape.SHARDED)
        case 3 | 4 | 5:
            packed = replace(packed, config=mutate_config(packed.config, rng))
        case 6 | 7:
            packed = replace(packed, weights=mutate_header(packed.weights, rng))
        case 8:
            packed = replace(packed, weights=mutate_bytes(packed.weights, rng))
        case 9:
            packed = replace(packed, shape=Shape(rng.randrange(64)))
        case 10 | 11:
            packed = _reranked(packed, rng)
        case _:
            packed = _with_other_tensors(packed, rng)
    return packed.to_bytes()


def _sound(rng: Random) -> Draft:
    """A checkpoint that is admitted, of a random kind."""
    kind = rng.randrange(8)
    if kind == 0:
        return mlx_adapter()
    if kind == 1:
        return torchtune_adapter()
    is_fused = rng.randrange(4) == 0
    targets = tuple(rng.sample(_FUSED_LEAVES if is_fused else _LEAVES, rng.randrange(1, 4)))
    variant = rng.choice(list((KEY_VARIANTS | WRAPPED_VARIANTS).values()))
    base = fused_base_spec() if is_fused else None
    draft = adapter(targets, spec=base, rank=rng.choice((1, 2, 4, 8)), seed=rng.randrange(100), key=variant)
    if kind == 2:
        biases(draft)
    elif kind == 3:
        draft = adapter()
        embedding(draft)
    for name, tensor in draft.tensors.items():
        match rng.randrange(4):
            case 0:
                draft.tensors[name] = tensor.astype(np.float16)
            case 1:
                draft.tensors[name] = (tensor.view(np.uint32) >> 16).astype(np.uint16)
    return draft


def _reranked(packed: Packed, rng: Random) -> Packed:
    """One module, or all, with another rank, and a config that mostly says so."""
    parts, config = split(packed.weights), _object(packed.config)
    if parts is None or config is None:
        return packed
    document, data = parts
    rank, leaf = rng.choice((1, 2, 3, 8, 9)), rng.choice(("", *_LEAVES))
    for name, entry in document.items():
        if leaf in name and _is_matrix(entry):
            entry["shape"][0 if "lora_A" in name or ("lora_b" in name and not name.endswith("weight")) else 1] = rank
    if rng.random() < 0.85:
        if leaf:
            config["rank_pattern"] = {rng.choice((leaf, f".*{leaf}", f".*[.]{leaf}$")): rank}
        else:
            config["r"] = rank
    return replace(packed, config=json.dumps(config).encode(), weights=join(document, relaid(document, data, rng)))


def _with_other_tensors(packed: Packed, rng: Random) -> Packed:
    parts = split(packed.weights)
    if parts is None:
        return packed
    document, data = parts
    names = [name for name, entry in document.items() if _is_matrix(entry)]
    if not names:
        return packed
    name = rng.choice(names)
    entry = document[name]
    match rng.randrange(7):
        case 0:
            document.pop(name)
        case 1:
            document[rng.choice(_EXTRA_NAMES)] = {**entry, "shape": list(entry["shape"])}
        case 2:
            old, new = rng.choice(_WORDS), rng.choice(("", *_WORDS))
            every = rng.random() < 0.6
            document = {k.replace(old, new) if every or k == name else k: v for k, v in document.items()}
        case 3:
            entry["dtype"] = rng.choice(("F32", "F16", "BF16", "F64", "I8", "F8_E4M3"))
        case 4:
            entry["shape"] = rng.choice(([], [0], [0, 8], [32], [4, 8, 1, 1], entry["shape"][::-1], [4, 9], [12, 4]))
        case 5:
            keys = list(document)
            rng.shuffle(keys)
            document = {key: document[key] for key in keys}
        case _:
            return replace(packed, weights=join(document, _poisoned(entry, data, rng)))
    return replace(packed, weights=join(document, relaid(document, data, rng)))


def _poisoned(entry: dict[str, Any], data: bytes, rng: Random) -> bytes:
    """The data with one value of the tensor set to a NaN or an infinity."""
    offsets, dtype = entry.get("data_offsets"), entry.get("dtype")
    if not isinstance(dtype, str) or dtype not in _POISON or not isinstance(offsets, list) or len(offsets) != 2:
        return data
    begin, end = offsets
    width = _WIDTH[dtype]
    if not (type(begin) is int and type(end) is int and 0 <= begin <= end - width and end <= len(data)):
        return data
    position = begin + width * rng.randrange((end - begin) // width)
    return data[:position] + _POISON[dtype].to_bytes(width, "little") + data[position + width :]


def _is_matrix(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("shape"), list) and len(entry["shape"]) == 2


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None
