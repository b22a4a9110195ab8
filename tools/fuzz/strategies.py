"""Hypothesis strategies for the targets: documents and messages drawn field by field, then sometimes damaged."""

import json
import struct
from typing import Any

from hypothesis import strategies as st

from hotslot.formats.safetensors_header import DTYPE_BITS
from store_service.admission.config_fields import FIELDS
from tests.support.checkpoints import (
    KEY_VARIANTS,
    WRAPPED_VARIANTS,
    Draft,
    adapter,
    base_spec,
    fused_base_spec,
    mlx_adapter,
    torchtune_adapter,
)
from tests.unit.store_service.admission.broken_checkpoints import CORPUS
from tools.fuzz.packed import Packed, Shape
from tools.fuzz.request.strategy import packed_requests

_LEAVES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
_FUSED_LEAVES = ["qkv_proj", "gate_up_proj", "o_proj", "down_proj"]
_json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
_patterns = st.one_of(
    st.sampled_from(
        [*_LEAVES, r".*\.0\..*", r"model\.layers\.\d+\..*_proj", "(", "[", "a{9}", ".*", "{,2}", "^q_proj$"]
    ),
    st.from_regex(r"[a-z_.\\*+?(|)\[\]{}0-9^$-]{0,12}", fullmatch=True),
    st.text(max_size=6),
)
_numbers = st.one_of(st.integers(-2, 17), st.integers(), st.floats(allow_nan=False))
_configs = st.fixed_dictionaries(
    {},
    optional={
        "peft_type": st.sampled_from(["LORA", "LOHA", None]),
        "r": st.one_of(st.integers(0, 9), _json_values),
        "lora_alpha": st.one_of(st.integers(1, 32), _numbers, _json_values),
        "use_rslora": st.booleans(),
        "target_modules": st.one_of(st.lists(_patterns, max_size=3), _patterns),
        "exclude_modules": st.one_of(st.lists(_patterns, max_size=2), _patterns),
        "layers_to_transform": st.one_of(st.integers(-1, 3), st.lists(st.integers(0, 3), max_size=3), _json_values),
        "layers_pattern": st.one_of(st.lists(_patterns, max_size=2), _patterns),
        "rank_pattern": st.dictionaries(_patterns, _numbers, max_size=3),
        "alpha_pattern": st.dictionaries(_patterns, _numbers, max_size=3),
        "lora_parameters": st.dictionaries(
            st.sampled_from(["rank", "scale", "alpha", "keys", "x"]), _numbers, max_size=3
        ),
    },
)


@st.composite
def configs(draw: st.DrawFn) -> bytes:
    """Contents of adapter_config.json."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=300))
    document: dict[str, Any] = draw(_configs)
    document |= draw(st.dictionaries(st.sampled_from(sorted(FIELDS)) | st.text(max_size=6), _json_values, max_size=2))
    return json.dumps(document).encode()


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """Weights files whose tensors lie side by side, then some bytes of the whole changed."""
    document: dict[str, Any] = {}
    position = 0
    for _ in range(draw(st.integers(0, 5))):
        shape = draw(st.lists(st.integers(0, 3), max_size=4))
        dtype = draw(st.sampled_from(sorted(DTYPE_BITS)))
        end = position + DTYPE_BITS[dtype] // 8 * _product(shape)
        document[draw(st.text(max_size=5))] = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
        position = end
    if draw(st.booleans()):
        document["__metadata__"] = draw(st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2))
    if draw(st.integers(0, 5)) == 0:
        document[draw(st.text(max_size=3))] = draw(_json_values)
    text = json.dumps(document).encode()
    return _damaged(draw, struct.pack("<Q", len(text)) + text + draw(st.binary(min_size=position, max_size=position)))


@st.composite
def checkpoints(draw: st.DrawFn) -> bytes:
    """Packed checkpoints: a sound one of any kind, its config changed, broken in known ways, or damaged."""
    draft = draw(_drafts())
    match draw(st.integers(0, 5)):
        case 0:
            draft.config |= draw(_configs)
        case 1:
            draft.config |= draw(st.dictionaries(st.sampled_from(sorted(FIELDS)), _json_values, max_size=3))
        case 2 | 3:
            base = adapter()
            for name in draw(st.lists(st.sampled_from(sorted(CORPUS)), max_size=3)):
                try:
                    CORPUS[name][0](base)
                except (KeyError, IndexError, AttributeError):
                    continue  # An earlier break has taken what this one needs.
            draft = base
        case _:
            pass
    packed = Packed.of_files(draft.files())
    shape = packed.shape if draw(st.integers(0, 9)) else Shape(draw(st.integers(0, 63)))
    return Packed(packed.config, _damaged(draw, packed.weights), shape).to_bytes()


@st.composite
def _drafts(draw: st.DrawFn) -> Draft:
    kind = draw(st.integers(0, 5))
    if kind == 0:
        return mlx_adapter()
    if kind == 1:
        return torchtune_adapter()
    spec, leaves = (fused_base_spec(), _FUSED_LEAVES) if kind == 2 else (base_spec(), _LEAVES)
    targets = tuple(draw(st.lists(st.sampled_from(leaves), min_size=1, max_size=3, unique=True)))
    variant = draw(st.sampled_from(list((KEY_VARIANTS | WRAPPED_VARIANTS).values())))
    return adapter(targets, spec=spec, rank=draw(st.integers(1, 9)), key=variant)


def _damaged(draw: st.DrawFn, file: bytes) -> bytes:
    changed = bytearray(file)
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        if changed:
            changed[draw(st.integers(0, min(len(changed), 1500) - 1))] = draw(st.integers(0, 255))
    return bytes(changed[: draw(st.integers(0, len(changed)))]) if draw(st.integers(0, 15)) == 0 else bytes(changed)


def _product(sizes: list[int]) -> int:
    product = 1
    for size in sizes:
        product *= size
    return product


STRATEGIES = {"header": headers(), "config": configs(), "checkpoint": checkpoints(), "request": packed_requests()}
