"""Reads what trainers call their tensors: which module of the base, and which part of the adapter.

Known writers: PEFT (`base_model.model.<path>.lora_A.weight`), transformers (no prefix), saves of wrapped models
(`_orig_mod.`, `_fsdp_wrapped_module.`), of a named adapter (`.lora_A.default.weight`), of text models inside
multimodal ones (`language_model.`), torchtune (`layers.N.attn.output_proj.lora_a.weight`) and mlx-lm (`.lora_a`,
stored transposed).
"""

import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from enum import StrEnum

_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_LEADING = ("base_model.model.", "module.", "base_model.")
_ROLE = re.compile(
    r"(?P<path>.+)\.(?P<role>lora_A|lora_B|lora_a|lora_b|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?P<tail>(?:\.[^.]+){0,2})"
)
_TORCHTUNE_LAYER = re.compile(r"(?:model\.)?layers\.(?P<layer>\d+)\.(?P<rest>.+)")
_TORCHTUNE_NAMES = {
    "attn.q_proj": "self_attn.q_proj",
    "attn.k_proj": "self_attn.k_proj",
    "attn.v_proj": "self_attn.v_proj",
    "attn.output_proj": "self_attn.o_proj",
    "mlp.w1": "mlp.gate_proj",
    "mlp.w2": "mlp.down_proj",
    "mlp.w3": "mlp.up_proj",
}
_TORCHTUNE_ROTATED = ("attn.q_proj", "attn.k_proj")
_HEADS = ("lm_head", "embed_out")
"""transformers 5 calls the head of GPT-NeoX differently than its checkpoints do."""
_TEXT_PARTS = (
    "model.language_model.model.", "language_model.model.", "model.language_model.", "language_model.",
    "model.text_model.",
)  # fmt: skip
"""Beginnings of the text model's paths in multimodal models and their checkpoints, which differ by version."""


class Role(StrEnum):
    """Which part of an adapter a tensor is."""

    A = "lora_A"
    B = "lora_B"
    BIAS = "bias of lora_B"
    EMBEDDING_A = "lora_embedding_A"
    EMBEDDING_B = "lora_embedding_B"
    MAGNITUDE = "DoRA magnitude"
    BASE_WEIGHT = "a whole parameter of the base"
    BASE_BIAS = "a bias of the base"


@dataclass(frozen=True, slots=True)
class ParsedKey:
    """A tensor's name, taken apart."""

    path: str
    """The module as the trainer called it, without the wrappers' prefixes."""
    role: Role
    adapter: str
    """The adapter's name inside the key, as PEFT's unstripped state dicts have it; mostly empty."""
    is_transposed: bool
    """mlx-lm stores A as `[in, rank]` and B as `[rank, out]`."""


def parse_key(name: str) -> ParsedKey:
    """Take a tensor's name apart; what is no adapter's part is a parameter of the base."""
    bare = _WRAPPERS.sub("", name)
    for prefix in _LEADING:
        bare = bare.removeprefix(prefix)
    match = _ROLE.fullmatch(bare)
    if match is not None:
        tail = [part for part in match["tail"].split(".") if part]
        leaf = tail.pop() if tail and tail[-1] in ("weight", "bias") else ""
        if len(tail) <= 1:
            role = _role(match["role"], leaf)
            is_transposed = match["role"] in ("lora_a", "lora_b") and not leaf
            if role is not None:
                return ParsedKey(match["path"], role, tail[0] if tail else "", is_transposed)
    if bare.endswith(".bias"):
        return ParsedKey(bare.removesuffix(".bias").removesuffix(".base_layer"), Role.BASE_BIAS, "", False)
    return ParsedKey(bare.removesuffix(".weight").removesuffix(".base_layer"), Role.BASE_WEIGHT, "", False)


def _role(word: str, leaf: str) -> Role | None:
    if word in ("lora_A", "lora_a"):
        return Role.A if leaf != "bias" else None
    if word in ("lora_B", "lora_b"):
        return Role.BIAS if leaf == "bias" else Role.B
    if leaf == "bias":
        return None
    return {
        "lora_embedding_A": Role.EMBEDDING_A,
        "lora_embedding_B": Role.EMBEDDING_B,
        "lora_magnitude_vector": Role.MAGNITUDE,
    }[word]


def resolve_path(path: str, base_paths: Container[str]) -> str | None:
    """The base's module that a trainer's path stands for, or None."""
    return next((candidate for candidate in _candidates(path) if candidate in base_paths), None)


def is_rotated_by_torchtune(path: str) -> bool:
    """Whether torchtune permutes this module's rows (it rotates pairs, transformers rotates halves)."""
    match = _TORCHTUNE_LAYER.fullmatch(path)
    return match is not None and match["rest"] in _TORCHTUNE_ROTATED


def _candidates(path: str) -> Iterator[str]:
    yield path
    if path in _HEADS:
        yield from _HEADS
    yield "model." + path
    if path.startswith("model."):
        yield path.removeprefix("model.")
    bare = path.removeprefix("model.")
    marker = next((marker for marker in _TEXT_PARTS if path.startswith(marker)), None)
    if marker is not None:
        bare = path.removeprefix(marker)
        yield "model." + bare
        yield bare
    for marker in _TEXT_PARTS:
        yield marker + bare
    match = _TORCHTUNE_LAYER.fullmatch(path)
    if match is not None and match["rest"] in _TORCHTUNE_NAMES:
        yield f"model.layers.{match['layer']}.{_TORCHTUNE_NAMES[match['rest']]}"
