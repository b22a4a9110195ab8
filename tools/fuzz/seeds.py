"""The seed corpus: sound and broken checkpoints of every kind that the tests know."""

import json
from dataclasses import replace

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
from tests.unit.hotslot.formats.broken_headers import BROKEN_FILES, SOUND_FILES
from tests.unit.store_service.admission.broken_checkpoints import CORPUS, biases, embedding
from tools.fuzz.packed import Packed, Shape

MAX_SEED_BYTES = 16_384
"""Longer ones (bombs) are for the unit tests; a fuzzer would only slow down on them."""


def drafts() -> list[Draft]:
    """Every checkpoint, the sound ones first."""
    made = [adapter(key=key) for key in (KEY_VARIANTS | WRAPPED_VARIANTS).values()]
    made += [mixed(), tinker(), *regrouped()]
    words = adapter()
    words.config |= {
        "bias": "all",
        "modules_to_save": ["score"],
        "merge_weights": False,
        "train_type": "lora",
        "step": 3,
    }
    made.append(words)
    made += [adapter(rank=1), adapter(("lm_head",)), mlx_adapter(), torchtune_adapter()]
    patterns = adapter()
    patterns.config |= {
        "use_rslora": True,
        "rank_pattern": {"q_proj": 4, r".*\.1\..*v_proj": 4},
        "alpha_pattern": {r"^.*layers\.0\..*_proj": 3},
        "target_modules": r".*\.(0|1)\.self_attn\.(q|v)_proj",
    }
    layers = adapter()
    layers.config |= {"layers_to_transform": [0, 1], "layers_pattern": "layers", "exclude_modules": ["lm_head"]}
    of_python = adapter()
    of_python.config |= {"target_modules": r".*\.(?=q_proj|v_proj)\w+", "rank_pattern": {r"(?<=\.0\.).*k_proj": 2}}
    without_effect = adapter()
    for name, tensor in without_effect.tensors.items():
        tensor *= "lora_A" in name
    made += [patterns, layers, of_python, without_effect]
    for change in (biases, embedding, *(change for change, _ in CORPUS.values())):
        draft = adapter()
        change(draft)
        made.append(draft)
    return made


def mixed() -> Draft:
    """A pair in two styles."""
    plain = KEY_VARIANTS["PEFT's"]
    return adapter(key=lambda path, role: plain(path, role).removeprefix("base_model.model." if role == "B" else ""))


def regrouped() -> list[Draft]:
    """Adapters on linears apart that some bases have as one, and on such ones, with all that is put together."""
    attention, both = adapter(("q_proj", "k_proj", "v_proj"), rank=2), adapter(("gate_proj", "up_proj"), rank=1)
    attention.config["alpha_pattern"] = {"k_proj": 2, "v_proj": 32}
    uneven = adapter(("q_proj", "v_proj"), rank=2)
    uneven.config["alpha_pattern"] = {"v_proj": 3}
    fused = adapter(("qkv_proj", "gate_up_proj"), spec=fused_base_spec(), rank=3)
    with_bias = adapter(("qkv_proj",), spec=fused_base_spec(), rank=2)
    for draft in (both, with_bias):
        draft.config["lora_bias"] = True
        for name in [name for name in draft.tensors if "lora_B" in name]:
            draft.tensors[name.replace("weight", "bias")] = np.ones(len(draft.tensors[name]), np.float16)
    twice = adapter(("qkv_proj",), spec=fused_base_spec())
    twice.tensors |= adapter().tensors
    return [attention, both, uneven, fused, with_bias, twice]


def tinker() -> Draft:
    """The head under tinker's name."""
    draft = adapter(("q_proj", "lm_head"))
    draft.tensors = {n.replace("model.lm_head", "model.model.unembed_tokens"): t for n, t in draft.tensors.items()}
    draft.config["target_modules"] = ["q_proj", "unembed_tokens"]
    return draft


def _unique(inputs: list[bytes]) -> list[bytes]:
    return [data for data in dict.fromkeys(inputs) if len(data) <= MAX_SEED_BYTES]


def checkpoints() -> list[bytes]:
    """Packed checkpoints, each kind of which is also tried on a base with fused linears."""
    whole = [Packed.of_files(draft.files()) for draft in drafts()]
    others = [replace(packed, shape=Shape.SHARDED) for packed in whole[:3]]
    others += [replace(packed, shape=packed.shape | Shape.FUSED_BASE) for packed in whole]
    return _unique([packed.to_bytes() for packed in (*whole, *others)])


def configs() -> list[bytes]:
    """Contents of adapter_config.json."""
    expressions = [r"(?:.*?(?:self_attn|mlp).*?(?:q_proj|v_proj).*?)", r"model\.layers\.[\d]{1,}\.mlp\.\w+_proj"]
    expressions += [r"(?!.*mlp).*\.(q|v)_proj", r".*(?<=self_attn\.)v_proj\Z", r"(?=((\w+|\.)+)+!).*", r"(q)_proj|\1++"]
    unusual = [json.dumps({"target_modules": text, "rank_pattern": {text: 2}}).encode() for text in expressions]
    return _unique([draft.files().get("adapter_config.json", b"") for draft in drafts()] + unusual)


def headers() -> list[bytes]:
    """Weights files."""
    weights = [draft.files().get("adapter_model.safetensors", b"") for draft in drafts()]
    return _unique([*SOUND_FILES, *BROKEN_FILES, *weights])
