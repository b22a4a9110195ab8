"""Formulas of capacity, against the bytes that workers' models really have."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from hotslot.capacity import WorkerShape, memory_of
from hotslot.formats.model_sizes import sizes_of
from tests.model.tiny_worker import SLOT_RANK, apart, decoded, load_tiny
from tests.support.tiny_models import make_adapter, make_model
from worker_service.demo_model import BASE_MODEL, ensure_model
from worker_service.model.options import LoadedModel

NUM_SLOTS, KV_TOKENS, BLOCK_TOKENS = 6, 500, 16


def model_bytes(loaded: LoadedModel) -> int:
    """Bytes of all parameters, each once, however many modules share it."""
    model = loaded.runner._model
    storages = {parameter.data_ptr(): parameter.nbytes for parameter in model.parameters()}
    return sum(storages.values())


def slot_bytes(loaded: LoadedModel) -> int:
    slots = [*loaded.runner.slot_linears.values(), *loaded.runner.slot_embeddings.values()]
    return sum(
        buffer.nbytes
        for module in slots
        for name, buffer in module.named_buffers(recurse=False)
        if name.startswith(("a_", "b_"))
    )


def kv_bytes(loaded: LoadedModel) -> int:
    return sum(cache.k_NGD.nbytes + cache.v_NGD.nbytes for cache in loaded.runner._caches)


def shape_of(loaded: LoadedModel, dtype: str) -> WorkerShape:
    limits = loaded.limits
    return WorkerShape(dtype, limits.num_slots, limits.slot_rank, KV_TOKENS, limits.block_tokens, limits.max_running)


@pytest.mark.parametrize(
    ("architecture", "targets"),
    [
        ("llama", ()),
        ("qwen3", ("all-linear", "ENDS", "lm_head")),
        ("gemma3", ("q_proj", "ENDS")),
        ("gpt_neox", ()),
    ],
)
def test_a_tiny_models_bytes_are_those_of_the_formulas(
    architecture: str, targets: Sequence[str], tmp_path: Path
) -> None:
    names = tuple("embed_tokens" if name == "ENDS" else name for name in targets)
    base = make_model(tmp_path / "base", architecture, is_tied=False)
    with apart():
        loaded = load_tiny(
            base, num_slots=NUM_SLOTS, kv_tokens=KV_TOKENS, block_tokens=BLOCK_TOKENS, target_modules=names
        )
    memory = memory_of(sizes_of(base, "tiny", names), shape_of(loaded, "float32"), rank=SLOT_RANK, num_held=1)
    assert model_bytes(loaded) == memory.weights_bytes
    assert slot_bytes(loaded) == memory.slots_bytes
    assert kv_bytes(loaded) == memory.kv_bytes
    if not names:
        for rank in (1, 6):
            folder = make_adapter(base, tmp_path / f"rank-{rank}", r=rank, target_modules="all-linear")
            weights = decoded(loaded, folder)
            expected = memory_of(sizes_of(base, "tiny"), shape_of(loaded, "float32"), rank=rank, num_held=1)
            assert weights.size_bytes == expected.adapter_bytes
            assert loaded.limits.slots_for(weights.max_rank) == expected.slots_per_adapter


@pytest.mark.model
@pytest.mark.slow
def test_smollm2s_bytes_are_those_of_the_formulas() -> None:
    folder = ensure_model()
    with apart():
        loaded = load_tiny(
            folder,
            model_name=BASE_MODEL,
            dtype="bfloat16",
            num_slots=NUM_SLOTS,
            slot_rank=16,
            max_rank=64,
            kv_tokens=KV_TOKENS,
            block_tokens=BLOCK_TOKENS,
        )
    memory = memory_of(sizes_of(folder, BASE_MODEL), shape_of(loaded, "bfloat16"), rank=16, num_held=1)
    assert model_bytes(loaded) == memory.weights_bytes
    assert slot_bytes(loaded) == memory.slots_bytes == NUM_SLOTS * memory.slot_bytes
    assert kv_bytes(loaded) == memory.kv_bytes
    assert next(iter(loaded.runner.slot_linears.values())).a_CI.dtype is torch.bfloat16
