"""Tiny models with the same maths and weights, of which one has linears apart that the other has as one."""

from pathlib import Path
from typing import Any

import torch
import transformers

from tests.support.tiny_models import SIZES, Architecture, load_whole, save_model

_ALIKE = {**SIZES, "rms_norm_eps": 1e-6, "initializer_range": 0.3, "tie_word_embeddings": False}
SPLIT = Architecture(transformers.LlamaConfig, _ALIKE)
FUSED = Architecture(transformers.Phi3Config, {**_ALIKE, "pad_token_id": 0}, attention="qkv_proj", mlp="gate_up_proj")
PARTS = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def save_twins(folder: Path) -> dict[str, Path]:
    """A Llama `split` and a Phi-3 `fused`, whose answers are the same."""
    split = save_model(folder / "split", SPLIT)
    fused = save_model(folder / "fused", FUSED)
    weights: dict[str, torch.Tensor] = load_whole(split).state_dict()
    for name, parts in PARTS.items():
        for first in [key for key in weights if key.endswith(f".{parts[0]}.weight")]:
            parent = first.removesuffix(f"{parts[0]}.weight")
            weights[f"{parent}{name}.weight"] = torch.cat([weights.pop(f"{parent}{part}.weight") for part in parts])
    model: Any = load_whole(fused)
    model.load_state_dict(weights)
    model.save_pretrained(fused)
    return {"split": split, "fused": fused}
