"""Turns a plain transformers model into one with slots and a paged cache, compiled layer by layer."""

import mmap
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from worker_service.engine.limits import EngineLimits
from worker_service.model.attention import ATTENTION_NAME, KvCache, PagedAttention, attention_interface
from worker_service.model.attention_sites import find_attention_sites
from worker_service.model.huge_pages import into_huge_pages, zeros_into_huge_pages
from worker_service.model.int8_weights import Int8Embedding, Int8Weights
from worker_service.model.linear_group import LinearGroup, find_groups, in_groups
from worker_service.model.slot_embedding import SlotEmbedding
from worker_service.model.slot_linear import DenseLinear, SlotLinear
from worker_service.model.slot_writer import SlotWriter
from worker_service.model.step_state import StepState
from worker_service.model.targets import SlotTargets, as_linear, find_layers


def add_slots(
    model: PreTrainedModel, targets: SlotTargets, limits: EngineLimits, step: StepState, int8: Int8Weights
) -> tuple[dict[str, SlotLinear], dict[str, SlotEmbedding], SlotWriter]:
    """Replace the targets by modules with slots; returns those by the spec's path, and what writes to their slots.

    `int8` are the weights that are kept in 8 bits; with any, the embedding reads its rows from them too.
    """
    device = next(model.parameters()).device
    by_path = {targets.path_of(linear): linear for linear in targets.linears}
    groups = find_groups(model, by_path) if step.columns is not None else []
    targets = replace(targets, linears=tuple(by_path[path] for path in in_groups(list(by_path), groups)))
    paths = [module.path for module in targets.modules]
    # One tensor for the scaling of all modules, so that a slot is written with one copy; one more for the ranks of
    # biases. Rows begin at multiples of 64 bytes, because a compiled graph may assume of every module what was true of
    # the first.
    scales_MS = _aligned_rows(len(paths), limits.num_slots, device)
    ones_MC = _aligned_rows(len(paths), limits.num_slots * limits.slot_rank, device)
    ones_MSK = ones_MC.view(len(paths), limits.num_slots, limits.slot_rank)
    shares = dict(zip(paths, zip(scales_MS, ones_MSK, strict=True), strict=True))
    slot_embeddings: dict[str, SlotEmbedding] = {}
    if targets.embedding is not None:
        embedding = model.get_input_embeddings()
        assert isinstance(embedding, nn.Embedding)
        slot_embeddings[targets.embedding.path] = SlotEmbedding(embedding, *shares[targets.embedding.path], step)
        model.set_input_embeddings(slot_embeddings[targets.embedding.path])
    _use_int8_rows(model, int8)
    slot_linears: dict[str, SlotLinear] = {}
    for target in targets.linears:
        module = model.get_submodule(targets.path_of(target))
        share, kept = shares[target.path], int8.get(module.weight)
        linear = as_linear(module)
        slot_linears[target.path] = SlotLinear(linear, *share, step, step.gates_TS, step.columns, kept)
        model.set_submodule(targets.path_of(target), slot_linears[target.path])
    if targets.head is not None:
        head = model.get_output_embeddings()
        assert isinstance(head, nn.Linear)
        share, kept = shares[targets.head.path], int8.get(head.weight)
        slot_linears[targets.head.path] = SlotLinear(head, *share, step, step.row_gates_RS, step.row_columns, kept)
        model.set_output_embeddings(slot_linears[targets.head.path])
    if step.with_kernels:
        for layer in find_layers(model):
            _use_kernels(layer, int8)
    modules: dict[str, SlotLinear | SlotEmbedding] = {**slot_embeddings, **slot_linears}
    slots = [tensor for module in modules.values() for tensor in (module.a_CI, module.b_CO)]
    into_huge_pages([*model.parameters(), *(weight.q_OI for weight in int8.values())])
    zeros_into_huge_pages(slots)
    for group in groups:
        assert step.columns is not None
        first = paths.index(by_path[group[0]].path)
        rows = slice(first, first + len(group))
        linears = [slot_linears[by_path[path].path] for path in group]
        LinearGroup(linears, scales_MS[rows], ones_MSK[rows], step.columns)
    writer = SlotWriter(modules, scales_MS, ones_MSK, has_kernels=step.with_kernels)
    return slot_linears, slot_embeddings, writer


def _use_int8_rows(model: PreTrainedModel, int8: Int8Weights) -> None:
    """Have the embedding read rows in 8 bits, where it has them."""
    found = model.get_input_embeddings()
    embedding = found.base if isinstance(found, SlotEmbedding) else found
    if not isinstance(embedding, nn.Embedding) or embedding.weight not in int8:
        return
    narrow = Int8Embedding(embedding, int8[embedding.weight])
    if isinstance(found, SlotEmbedding):
        found.base = narrow
    else:
        model.set_input_embeddings(narrow)


def _use_kernels(layer: nn.Module, int8: Int8Weights) -> None:
    """Let the linears that have no slots, too, be computed by the kernels for few tokens."""
    plain = [path for path, module in layer.named_modules() if type(module) is nn.Linear]
    for path in plain:
        linear = layer.get_submodule(path)
        assert isinstance(linear, nn.Linear)
        layer.set_submodule(path, DenseLinear(linear, has_kernels=True, int8=int8.get(linear.weight)))


def _aligned_rows(num_rows: int, num_columns: int, device: torch.device) -> torch.Tensor:
    """Zeros, fp32, whose rows begin at multiples of 64 bytes."""
    return torch.zeros(num_rows, -(-num_columns // 16) * 16, device=device)[:, :num_columns]


def add_caches(
    model: PreTrainedModel, limits: EngineLimits, step: StepState, on_mapped: Callable[[mmap.mmap], None]
) -> list[KvCache]:
    """Give every attention module its cache, one block larger than the engine knows, for padding.

    `on_mapped` is given their memory where it is in huge pages, of which none is taken from the system yet.
    """
    num_positions = (limits.num_blocks + 1) * limits.block_tokens
    caches: list[KvCache] = []
    parameter = next(model.parameters())
    for site in find_attention_sites(model, limits.max_sequence_tokens):
        cache = KvCache(
            num_positions, site.num_kv_heads, site.head_size, parameter.dtype, parameter.device, is_zeroed=False
        )
        site.module.hotslot_attention = PagedAttention(cache, step, limits.block_tokens)
        caches.append(cache)
    zeros_into_huge_pages([tensor for cache in caches for tensor in (cache.k_NGD, cache.v_NGD)], on_mapped)
    AttentionInterface.register(ATTENTION_NAME, attention_interface)
    return caches


def compile_layers(
    model: PreTrainedModel, compile_module: Callable[[nn.Module], None], *, with_kernels: bool, int8: Int8Weights
) -> None:
    """Compile each decoder layer by itself, and the head.

    One graph serves all layers, so a bucket costs one layer's compilation instead of the whole model's.
    """
    for layer in find_layers(model):
        compile_module(layer)
    head = model.get_output_embeddings()
    if not isinstance(head, SlotLinear):
        assert isinstance(head, nn.Linear)
        head = DenseLinear(head, has_kernels=with_kernels, int8=int8.get(head.weight))
        model.set_output_embeddings(head)
    compile_module(head)
