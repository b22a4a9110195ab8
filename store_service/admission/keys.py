"""Reads what trainers call their tensors: which module of the base, and which part of the adapter.

Known writers: PEFT (`base_model.model.<path>.lora_A.weight`), transformers (no prefix), saves of wrapped models
(`_orig_mod.`, `_fsdp_wrapped_module.`, `module.`) and of PEFT models inside others, of a named adapter
(`.lora_A.default.weight`), of text models inside multimodal ones (`language_model.`), tinker (`unembed_tokens`),
torchtune (`layers.N.attn.output_proj.lora_a.weight`) and mlx-lm (`.lora_a`, stored transposed).
"""

import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from enum import StrEnum

from hotslot.formats.base_spec import HEADS

_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_OUTER_WRAPPERS = frozenset({
    "base_model", "module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module",
})  # fmt: skip
_MAX_OUTER_WRAPPERS = 16
_ROLE = re.compile(
    r"(?P<path>.+)\.(?P<role>lora_A|lora_B|lora_a|lora_b|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?P<tail>(?:\.[^.]+){0,3})"
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
_MLX_MAGNITUDE = ".m"
"""mlx-lm's DoRA calls it so; no parameter of a base has this name."""
BACKBONES = ("model.", "transformer.", "gpt_neox.", "backbone.")
"""Beginnings of the decoder's paths in a model with a head; a checkpoint of the decoder alone has none (GPT-2's)."""
_TEXT_PARTS = (
    "model.language_model.model.", "language_model.model.", "model.language_model.", "language_model.",
    "model.text_model.",
)  # fmt: skip
"""Beginnings of the text model's paths in multimodal models and their checkpoints, which differ by version."""
HEAD_ALIASES = ("unembed_tokens", "model.unembed_tokens")
"""The head, as tinker calls it."""
HEAD_NAMES = (*HEADS, "unembed_tokens")


class Role(StrEnum):
    """Role of a tensor in an adapter."""

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
    leading: str = ""
    """The wrappers' prefix of the whole model, as it was written."""
    form: str = ""
    """Form of the part's name, behind the module: `.lora_A.default.weight` has the form `.lora_A.*.weight`."""
    stem: str = ""
    """The module as it was written, wrappers and all: a pair has one."""


def parse_key(name: str) -> ParsedKey:
    """Take a tensor's name apart; what is no adapter's part is a parameter of the base."""
    leading = _leading(name)
    bare = _WRAPPERS.sub("", name[len(leading) :])
    match = _ROLE.fullmatch(bare)
    if match is not None:
        tail = [part for part in match["tail"].split(".") if part]
        leaf = tail.pop() if tail and tail[-1] in ("weight", "bias") else ""
        if len(set(tail)) <= 1:
            word = match["role"]
            role = _role(word, leaf)
            is_transposed = word in ("lora_a", "lora_b") and not leaf
            if role is not None:
                stem = name[: len(name) - len(f".{word}" + match["tail"])]
                form = f".{word[:-1]}?{'.*' * len(tail)}{'.' + leaf if leaf == 'weight' else ''}"
                adapter = tail[0] if tail else ""
                return ParsedKey(match["path"], role, adapter, is_transposed, leading, form, stem)
    if bare.endswith(_MLX_MAGNITUDE):
        return ParsedKey(bare.removesuffix(_MLX_MAGNITUDE), Role.MAGNITUDE, "", False)
    if bare.endswith(".bias"):
        return ParsedKey(bare.removesuffix(".bias").removesuffix(".base_layer"), Role.BASE_BIAS, "", False)
    return ParsedKey(bare.removesuffix(".weight").removesuffix(".base_layer"), Role.BASE_WEIGHT, "", False)


def _leading(name: str) -> str:
    """The wrappers around the whole model, with what PEFT and others put between them (`base_model.model.`).

    A `model.` in front of another wrapper is one itself; at the end it is the model's own.
    """
    words = name.split(".", _MAX_OUTER_WRAPPERS)
    num_words = 0
    for index, word in enumerate(words):
        if word in _OUTER_WRAPPERS or (index and word == "model" and words[index - 1] == "base_model"):
            num_words = index + 1
        elif word != "model":
            break
    return "".join(f"{word}." for word in words[:num_words])


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
    return next((candidate for _, candidate in _candidates(path) if candidate in base_paths), None)


def naming_of(path: str, base_paths: Container[str]) -> str:
    """Difference of a path from the base's own, as a text that is equal for paths of one naming."""
    return next((naming for naming, candidate in _candidates(path) if candidate in base_paths), "")


def candidate_paths(path: str) -> Iterator[str]:
    """The paths that a trainer's path may stand for."""
    return (candidate for _, candidate in _candidates(path))


def is_rotated_by_torchtune(path: str) -> bool:
    """Tell whether torchtune permutes this module's rows (it rotates pairs, transformers rotates halves)."""
    match = _TORCHTUNE_LAYER.fullmatch(path)
    return match is not None and match["rest"] in _TORCHTUNE_ROTATED


def _candidates(path: str) -> Iterator[tuple[str, str]]:
    """Modules that a path may stand for, each with its naming; heads have a name of their own in none."""
    yield "", path
    if path in HEADS or path in HEAD_ALIASES:
        for head in HEADS:
            yield "", head
    for backbone in BACKBONES:
        yield f"<{backbone} left out>", backbone + path
        if path.startswith(backbone):
            yield f"{backbone}<put before it>", path.removeprefix(backbone)
    bare = path.removeprefix("model.")
    marker = next((marker for marker in _TEXT_PARTS if path.startswith(marker)), None)
    if marker is not None:
        bare = path.removeprefix(marker)
        yield marker, "model." + bare
        yield marker, bare
    for other in _TEXT_PARTS:
        yield f"<{marker or ''} for {other}>", other + bare
    match = _TORCHTUNE_LAYER.fullmatch(path)
    if match is not None and match["rest"] in _TORCHTUNE_NAMES:
        yield "<torchtune's>", f"model.layers.{match['layer']}.{_TORCHTUNE_NAMES[match['rest']]}"
