"""Loaded modules of a base model: what transformers makes of a checkpoint's linears, told without torch.

A checkpoint may hold more than its model loads: layers for speculation, vision towers, experts that become one
parameter. The rules here follow transformers 5 and are held to it by a test over its causal language models; a worker
replaces them by what it has loaded (`worker_service/model/observed.py`).
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hotslot.formats.base_spec import Absence, BaseModule, BaseSpec, LoadedModules, ModuleKind
from hotslot.formats.quantisation import TEXT_CONFIGS

_LAYER = re.compile(r"(?:layers|h|blocks|block)\.(\d+)\.")
_EXPERT = re.compile(r"(?:^|\.)experts\.\d+\.")
_ROUTERS = frozenset({"gate", "router"})
_LINEAR_ROUTERS = frozenset({"afmoe", "jetmoe", "llama4", "llama4_text", "phimoe"})
"""Types whose routers are linears of the loaded model."""
_SHARED_KEYS = ("gemma4", frozenset({"k_proj", "v_proj"}))
"""Beginnings of the types of models whose last layers use the keys and values of others, and what those layers lack
once they are loaded, though their checkpoints have it."""
_PREDICTS_FURTHER_TOKENS = "eh_proj"
"""Only layers that are for speculation have it."""
_OTHER_PART = re.compile(
    r"(?:^|\.)(?:vision|visual|vit|image|audio|speech|video|mm_|multi_?modal|projector|connector|merger|resampler"
    r"|perceiver|abstractor|mlp1|acoustic|semantic_tokenizer|patch_)"
)
_TEXT_MODELS = ("model.language_model.", "model.text_model.")
"""Prefixes of the text model's paths in multimodal models as transformers 5 loads them, whatever their checkpoints
have.
"""
KV_SHARED = "num_kv_shared_layers"
_HEADS, _KEY_HEADS, _HEAD_SIZE = "num_attention_heads", "num_key_value_heads", "head_dim"
NUM_LAYERS = "num_hidden_layers"
_LAYER_COUNTS = (NUM_LAYERS, "n_layer", "n_layers", "num_layers")

REASONS: Mapping[Absence, str] = {
    Absence.BEYOND: "its layer is beyond those that the model's config has, such as layers for speculation",
    Absence.EXPERT: "transformers 5 loads all experts of a layer as one parameter, which is no linear",
    Absence.ROUTER: "the router of experts is no linear of the loaded model",
    Absence.SHARED_KEYS: "its layer uses the keys and values of another",
    Absence.OTHER_PART: "it is no part of the text model: a vision or audio tower, a projector, speculation",
    Absence.REPLACED: "transformers loads it as something else than this linear",
}
"""Reasons for which the loaded model lacks a module, for people."""


@dataclass(frozen=True, slots=True)
class TextModules:
    """The text model in a checkpoint."""

    prefix: str
    """Beginning of its modules' paths, with a dot at the end; may be empty."""

    def holds(self, path: str) -> bool:
        """Tell whether a path is below the text model."""
        return path.startswith(self.prefix)

    def layer_of(self, path: str) -> int | None:
        """The number of the decoder layer that a module is in; None outside of them."""
        match = _LAYER.match(path, len(self.prefix)) if self.holds(path) else None
        return int(match[1]) if match is not None else None


def with_absences(spec: BaseSpec, config: Mapping[str, Any] | None = None) -> BaseSpec:
    """The spec with what the loaded model lacks, as far as names and the model's config tell.

    Without a config, as for specs that were registered without these facts, the number of layers is not known.
    """
    part = text_part(spec.modules)
    if part is None:
        return spec
    numbers = layer_numbers(config or {})
    num_layers, num_shared = numbers.get(_LAYER_COUNTS[0]), numbers.get(KV_SHARED)
    first_shared = num_layers - num_shared if num_layers is not None and num_shared is not None else None
    speculating = {part.layer_of(m.path) for m in spec.modules if m.name == _PREDICTS_FURTHER_TOKENS} - {None}

    def absence(module: BaseModule) -> Absence | None:
        layer = part.layer_of(module.path)
        if layer is None:
            return Absence.OTHER_PART if _is_elsewhere(module, part) else None
        if layer in speculating or (num_layers is not None and layer >= num_layers):
            return Absence.BEYOND
        if _EXPERT.search(module.path):
            return Absence.EXPERT
        if _is_router(module) and spec.model_type not in _LINEAR_ROUTERS:
            return Absence.ROUTER
        shares = spec.model_type.startswith(_SHARED_KEYS[0]) and module.name in _SHARED_KEYS[1]
        return Absence.SHARED_KEYS if shares and first_shared is not None and layer >= first_shared else None

    modules = tuple(replace(module, absence=absence(module)) for module in spec.modules)
    return replace(spec, modules=modules, loaded=LoadedModules.DERIVED if config is not None else spec.loaded)


def completed(spec: BaseSpec) -> BaseSpec:
    """A registered spec with what the loaded model lacks, by rules where nothing else told it."""
    if spec.loaded is not LoadedModules.UNKNOWN:
        return spec
    layers = spec.details.layers if spec.details is not None else {}
    return with_absences(spec, layers or None)


def layer_numbers(config: Mapping[str, Any]) -> dict[str, int]:
    """The numbers in a config that the rules need, under the names that they have in most."""
    text_config = _text_config(config)
    numbers = {name: text_config[name] for name in _LAYER_COUNTS if type(text_config.get(name)) is int}
    found = {_LAYER_COUNTS[0]: next(iter(numbers.values()))} if numbers else {}
    shared = text_config.get(KV_SHARED)
    return {**found, KV_SHARED: shared} if found and type(shared) is int else found


def attention_numbers(config: Mapping[str, Any]) -> dict[str, int]:
    """The numbers of heads for queries and for keys, and the size of one; empty where the config lacks them.

    As transformers 5 (models/phi3/modeling_phi3.py) where one is left out: as many heads for keys as for queries, and
    heads that share the hidden size.
    """
    text_config = _text_config(config)
    heads = text_config.get(_HEADS)
    if type(heads) is not int or heads <= 0:
        return {}
    key_heads, size = text_config.get(_KEY_HEADS), text_config.get(_HEAD_SIZE)
    hidden_size = text_config.get("hidden_size")
    if size is None and type(hidden_size) is int:
        size = hidden_size // heads
    found = {_HEADS: heads, _KEY_HEADS: heads if key_heads is None else key_heads, _HEAD_SIZE: size}
    numbers = {name: number for name, number in found.items() if type(number) is int and number > 0}
    return numbers if len(numbers) == len(found) else {}


def kv_row_features(numbers: Mapping[str, int]) -> int:
    """Elements of a token's keys in one layer, and of its values, by `attention_numbers`; 0 where it has none."""
    return numbers.get(_KEY_HEADS, 0) * numbers.get(_HEAD_SIZE, 0)


def query_and_key_rows(numbers: Mapping[str, int]) -> tuple[int, int] | None:
    """Rows of the projection of queries, and of that of keys, by `attention_numbers`; None where it has none."""
    if not numbers.keys() >= {_HEADS, _KEY_HEADS, _HEAD_SIZE}:
        return None
    return numbers[_HEADS] * numbers[_HEAD_SIZE], numbers[_KEY_HEADS] * numbers[_HEAD_SIZE]


def may_lack(spec: BaseSpec, module: BaseModule) -> bool:
    """Tell whether a spec that was registered without a config leaves open that the loaded model lacks a module."""
    is_open = spec.loaded is LoadedModules.UNKNOWN
    return is_open and spec.model_type.startswith(_SHARED_KEYS[0]) and module.name in _SHARED_KEYS[1]


def text_part(modules: Collection[BaseModule]) -> TextModules | None:
    """The part with the token embedding and most layers below it; None where names do not tell."""
    embeddings = [m for m in modules if m.kind is ModuleKind.EMBEDDING and m.is_token_embedding and not m.is_in_layer]
    above = [module.path.removesuffix(module.name) for module in embeddings]
    parts = [TextModules(prefix) for path in above for prefix in (path, path.removesuffix("embeddings."))]
    num_inside = {part: sum(part.layer_of(module.path) is not None for module in modules) for part in parts}
    best = max(parts, key=lambda part: num_inside[part], default=None)
    return best if best is not None and num_inside[best] else None


def other_beginnings(spec: BaseSpec, backbones: Collection[str]) -> tuple[str, tuple[str, ...]]:
    """Prefix of the text model's paths in a checkpoint, and those that the loaded model may have instead.

    A checkpoint of the decoder alone (GPT-2's) gets one of the `backbones`.
    """
    part = text_part(spec.modules)
    if part is None:
        return "", ()
    if any(module.absence is Absence.OTHER_PART and is_other_part(module.path) for module in spec.modules):
        return part.prefix, _TEXT_MODELS
    return part.prefix, tuple(backbones) if not part.prefix else ()


def is_other_part(path: str) -> bool:
    """Tell whether a module's path is that of a vision or audio tower, or of a module that ties one to a text model."""
    return _OTHER_PART.search(path) is not None


def _is_elsewhere(module: BaseModule, part: TextModules) -> bool:
    """Tell whether a module outside of the text model's layers is outside of the text model, too."""
    if module.is_head_by_name and part.prefix.startswith(module.path.removesuffix(module.name)):
        return False
    if module.is_head_by_name and module.path.removesuffix(module.name) in ("", "model."):
        return False
    return not part.holds(module.path) or module.is_in_layer or is_other_part(module.path[len(part.prefix) :])


def _is_router(module: BaseModule) -> bool:
    parts = module.path.split(".")
    return parts[-1] in _ROUTERS or parts[-2:] == ["router", "layer"]


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in TEXT_CONFIGS:
        inner = config.get(name)
        if isinstance(inner, Mapping):
            return _text_config(inner)
    return config
