"""Turns a plain transformers model into one with slots and a paged cache, compiled layer by layer."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from shared.errors import InternalError
from worker_service.engine.limits import EngineLimits
from worker_service.model.attention import ATTENTION_NAME, KvCache, PagedAttention, attention_interface
from worker_service.model.slot_linear import DenseLinear, SlotLinear
from worker_service.model.slot_writer import SlotWriter
from worker_service.model.step_state import StepState


def find_attention_modules(model: PreTrainedModel) -> list[tuple[nn.Module, int, int]]:
    """Every attention module in order of use, with its number of key/value heads and its head size.

    Found by running two tokens through the model with an attention function that takes notes, which is the only way
    that holds for every architecture. Raises InternalError if not every layer asks for our function once.
    """
    seen: list[tuple[nn.Module, int, int]] = []

    def take_notes(
        module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, None]:
        seen.append((module, key.shape[1], key.shape[3]))
        return query.transpose(1, 2).contiguous(), None

    AttentionInterface.register(ATTENTION_NAME, take_notes)
    model.set_attn_implementation(ATTENTION_NAME)
    device = next(model.parameters()).device
    with torch.no_grad():
        model(input_ids=torch.zeros(1, 2, dtype=torch.int64, device=device), use_cache=False)
    num_layers = model.config.get_text_config().num_hidden_layers
    if len(seen) != num_layers or len({id(module) for module, _, _ in seen}) != num_layers:
        raise InternalError(
            f"{model.config.model_type}: {len(seen)} of {num_layers} layers use the pluggable attention function; "
            "this architecture cannot be served"
        )
    return seen


def target_paths(model: PreTrainedModel, names: Sequence[str]) -> list[str]:
    """Paths of the linears inside the decoder layers whose last name is in `names` (all of them if it is empty)."""
    layers = find_layers(model)
    inside = {id(module) for layer in layers for module in layer.modules()}
    return [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module) in inside and (not names or path.rpartition(".")[2] in names)
    ]


def find_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers. Raises InternalError when the model has no list of that length."""
    num_layers = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return module
    raise InternalError(f"{model.config.model_type}: no list of {num_layers} layers found; it cannot be served")


def add_slots(
    model: PreTrainedModel, paths: Sequence[str], limits: EngineLimits, step: StepState
) -> tuple[dict[str, SlotLinear], SlotWriter]:
    """Replace the linears at `paths` by slot linears; returns those by path, and what writes to their slots."""
    device = next(model.parameters()).device
    # One tensor for the scaling of all modules, so that a slot is written with one copy. Rows begin at multiples of 64
    # bytes, because a compiled graph may assume of every module what was true of the first.
    padded_slots = -(-limits.num_slots // 16) * 16
    scales_MS = torch.zeros(len(paths), padded_slots, dtype=torch.float32, device=device)[:, : limits.num_slots]
    slot_linears: dict[str, SlotLinear] = {}
    for path, scale_S in zip(paths, scales_MS, strict=True):
        linear = model.get_submodule(path)
        assert isinstance(linear, nn.Linear)
        slot_linears[path] = SlotLinear(linear, scale_S, limits.slot_rank, step)
        model.set_submodule(path, slot_linears[path])
    return slot_linears, SlotWriter(slot_linears, scales_MS)


def add_caches(model: PreTrainedModel, limits: EngineLimits, step: StepState) -> list[KvCache]:
    """Give every attention module its cache, one block larger than the engine knows, for padding."""
    num_positions = (limits.num_blocks + 1) * limits.block_tokens
    caches: list[KvCache] = []
    parameter = next(model.parameters())
    for module, num_kv_heads, head_size in find_attention_modules(model):
        cache = KvCache(num_positions, num_kv_heads, head_size, parameter.dtype, parameter.device)
        module.hotslot_attention = PagedAttention(cache, step, limits.block_tokens)
        caches.append(cache)
    AttentionInterface.register(ATTENTION_NAME, attention_interface)
    return caches


def compile_layers(model: PreTrainedModel, compile_module: Callable[[nn.Module], None]) -> None:
    """Compile each decoder layer by itself, and the head.

    One graph serves all layers, so a bucket costs one layer's compilation instead of the whole model's.
    """
    for layer in find_layers(model):
        compile_module(layer)
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    dense_head = DenseLinear(head)
    model.set_output_embeddings(dense_head)
    compile_module(dense_head)
