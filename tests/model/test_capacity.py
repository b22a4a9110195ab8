"""Formulas of capacity, against the bytes that workers' models really have."""

import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from hotslot.capacity import WorkerShape, fit_step_cost, memory_of
from hotslot.contract.generation import Sampling
from hotslot.formats.model_sizes import sizes_of
from tests.model.tiny_worker import SLOT_RANK, apart, decoded, load_tiny
from tests.support.tiny_models import make_adapter, make_model
from tools.bench.hot_swap import random_adapter
from worker_service.demo_model import BASE_MODEL, ensure_model
from worker_service.engine.messages import Segment
from worker_service.model.options import LoadedModel

NUM_ROWS, NUM_ROUNDS = 8, 6
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


@pytest.mark.model
@pytest.mark.slow
def test_steps_that_were_not_fitted_to_take_what_the_line_says() -> None:
    fitted, others = (1, 8, 32, 128), (2, 4, 16, 64)
    with apart():
        loaded = load_tiny(
            ensure_model(),
            model_name=BASE_MODEL,
            dtype="bfloat16",
            slot_rank=16,
            max_rank=64,
            kv_tokens=4096,
            block_tokens=BLOCK_TOKENS,
            max_sequence_tokens=1024,
            token_buckets=tuple(sorted((*fitted, *others))),
        )
    for slot in range(NUM_ROWS):
        for _ in loaded.runner.write_slots([slot], random_adapter(loaded, slot)):
            pass
    took_s: dict[int, list[float]] = {}
    for _ in range(NUM_ROUNDS):
        for tokens in (*fitted, *others):
            rows = min(tokens, NUM_ROWS)
            segments = [
                Segment((5,) * (tokens // rows), 64, tuple(range(row * 16, (row + 1) * 16)), ((row, 1.0),), Sampling())
                for row in range(rows)
            ]
            began_s = time.thread_time()
            loaded.runner.run(segments)
            took_s.setdefault(tokens, []).append(time.thread_time() - began_s)
    cost = fit_step_cost([(tokens, min(took_s[tokens])) for tokens in fitted])
    for tokens in others:
        assert cost.seconds(tokens) == pytest.approx(min(took_s[tokens]), rel=0.25), tokens
