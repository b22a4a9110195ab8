"""Finds a model's attention modules, and refuses what theirs do that our attention function does not.

A comparison at start sees no further than its prompts are long, and ignoring an argument is silent. So every argument
that an architecture passes to attention must be known here, and windows must be where the config says.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from hotslot.errors import ModelNotServableError
from worker_service.model.attention import ATTENTION_NAME

HARMLESS = frozenset({
    "cache_position", "is_causal", "output_attentions", "output_hidden_states", "past_key_values",
    "position_embeddings", "position_ids", "use_cache",
})  # fmt: skip
"""Arguments that change nothing here: positions are in queries and keys already, every token sees those before it,
and the cache is ours. An architecture for which that is wrong differs in the first comparison."""


@dataclass(frozen=True)
class AttentionSite:
    """One attention module, as it called the attention function."""

    module: nn.Module
    num_kv_heads: int
    head_size: int
    window: int
    """Number of keys that a token sees, itself included; 0 means all before it."""


def find_attention_sites(model: PreTrainedModel, max_sequence_tokens: int) -> list[AttentionSite]:
    """Every attention module in order of use.

    Found by running two tokens through the model with an attention function that takes notes, which is the only way
    that holds for every architecture. Raises ModelNotServableError if not every layer asks for our function once, or
    one asks for what it does not compute.
    """
    seen: list[AttentionSite] = []
    paths = {id(module): path for path, module in model.named_modules()}

    def take_notes(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **others: Any,
    ) -> tuple[torch.Tensor, None]:
        problem = _problem(key, value, {"attention_mask": attention_mask, **others})
        if problem:
            path = paths.get(id(module), type(module).__name__)
            raise ModelNotServableError(f"{path} ({type(module).__name__}) {problem}; it cannot be served", path)
        seen.append(AttentionSite(module, key.shape[1], key.shape[3], sliding_window or 0))
        return query.transpose(1, 2).contiguous(), None

    AttentionInterface.register(ATTENTION_NAME, take_notes)
    config = model.config.get_text_config()
    try:
        model.set_attn_implementation(ATTENTION_NAME)
    except ValueError as exc:
        raise _unpluggable(config, 0) from exc
    device = next(model.parameters()).device
    with torch.no_grad():
        model(input_ids=torch.zeros(1, 2, dtype=torch.int64, device=device), use_cache=False)
    num_layers = config.num_hidden_layers
    if len(seen) != num_layers or len({id(site.module) for site in seen}) != num_layers:
        raise _unpluggable(config, len(seen))
    _check_windows(config, [site.window for site in seen], max_sequence_tokens)
    return seen


def _problem(key: torch.Tensor, value: torch.Tensor, arguments: Mapping[str, Any]) -> str:
    """Argument of a call that our attention function would ignore, in words; empty when it would ignore none."""
    if key.shape != value.shape:
        return f"has keys {tuple(key.shape)} and values {tuple(value.shape)} of different shapes"
    asked = {name: argument for name, argument in arguments.items() if name not in HARMLESS}
    ignored = sorted(name for name, argument in asked.items() if isinstance(argument, torch.Tensor) or argument)
    return f"passes {', '.join(ignored)} to attention, which is not supported" if ignored else ""


def _check_windows(config: PretrainedConfig, windows: list[int], max_sequence_tokens: int) -> None:
    """A window that exists in masks alone would be ignored, and show only in sequences longer than it."""
    kinds = getattr(config, "layer_types", None) or [
        "sliding_attention" if getattr(config, "sliding_window", None) and not any(windows) else "full_attention"
    ] * len(windows)
    for index, (kind, window) in enumerate(zip(kinds, windows, strict=True)):
        name = {"chunked_attention": "attention_chunk_size", "sliding_attention": "sliding_window"}.get(kind)
        size = getattr(config, name, None) if name is not None else None
        if size is None or window == size or max_sequence_tokens <= size:
            continue
        raise ModelNotServableError(
            f"layer {index} of {config.model_type} attends to {size} tokens ({kind}), which does not reach the "
            f"attention function; serve at most that many (HOTSLOT_MAX_SEQUENCE_TOKENS={size})",
            f"layer {index}",
        )


def _unpluggable(config: PretrainedConfig, num_found: int) -> ModelNotServableError:
    return ModelNotServableError(
        f"{config.model_type}: {num_found} of {config.num_hidden_layers} layers use the pluggable attention function; "
        "this architecture cannot be served",
        config.model_type,
    )
