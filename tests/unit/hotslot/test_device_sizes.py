"""Sizes of a worker follow from its device: what is set stays, what is not fits into the memory."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotslot.capacity import WorkerShape, device_memory, memory_of, shape_on
from hotslot.device_sizes import CUDA_BUCKETS, STEP_BYTES, USED_SHARE, DeviceMemory, WorkerSizes, sizes_for
from hotslot.errors import InvalidRequestError
from hotslot.formats.model_sizes import ModelSizes

GIB = 2**30
LLAMA_8B = DeviceMemory(
    kind="cuda",
    free_bytes=0,
    slot_bytes=84 * 10**6,
    staging_bytes=65 * 84 * 10**6 // 16,
    kv_token_bytes=128 * 1024,
    block_tokens=256,
    context_tokens=131072,
    min_slots=4,
)


def test_a_cpu_has_the_sizes_that_it_always_had() -> None:
    cpu = replace(LLAMA_8B, kind="cpu", block_tokens=16)
    assert sizes_for(cpu, WorkerSizes()) == WorkerSizes((1, 4, 8, 32, 128), 8, 8, 16384)
    assert sizes_for(cpu, WorkerSizes(kv_tokens=32)).max_sequences == 2
    assert sizes_for(cpu, WorkerSizes(token_buckets=(1, 4))).max_sequences == 4


@pytest.mark.parametrize(
    ("free_gib", "slots", "kv_tokens", "rows"),
    # Beside 15 GiB of weights: a card of 24, of 80 and of 141 GiB.
    [(8, 8, 40960, 32), (64, 64, 393216, 128), (125, 64, 851968, 128)],
)
def test_an_8b_model_fills_a_gpu(free_gib: int, slots: int, kv_tokens: int, rows: int) -> None:
    found = sizes_for(replace(LLAMA_8B, free_bytes=free_gib * GIB), WorkerSizes())
    assert found == WorkerSizes(CUDA_BUCKETS, slots, rows, kv_tokens)


sizes = st.builds(
    DeviceMemory,
    kind=st.just("cuda"),
    free_bytes=st.integers(0, 200 * GIB),
    slot_bytes=st.integers(1, GIB),
    staging_bytes=st.integers(0, GIB),
    kv_token_bytes=st.integers(1, 2**20),
    block_tokens=st.sampled_from([16, 256]),
    context_tokens=st.sampled_from([64, 2048, 131072]),
    min_slots=st.integers(1, 64),
)
wanted = st.builds(
    WorkerSizes,
    token_buckets=st.sampled_from([(), (1, 8), (1, 64)]),
    num_slots=st.sampled_from([0, 0, 3, 100]),
    max_sequences=st.sampled_from([0, 0, 1, 8]),
    kv_tokens=st.sampled_from([0, 0, 4096, 2**20]),
)


@given(sizes, wanted)
def test_what_is_set_stays_and_the_rest_fits_the_memory(device: DeviceMemory, asked: WorkerSizes) -> None:
    try:
        found = sizes_for(device, asked)
    except InvalidRequestError:
        assert not asked.kv_tokens, "what is set is not judged"
        return
    for name in ("token_buckets", "num_slots", "max_sequences", "kv_tokens"):
        assert getattr(asked, name) in (getattr(found, name), 0, ())
        assert getattr(found, name)
    assert found.num_slots >= device.min_slots or asked.num_slots
    if not asked.kv_tokens:
        used = found.num_slots * device.slot_bytes + (found.kv_tokens + device.block_tokens) * device.kv_token_bytes
        assert used + device.staging_bytes + STEP_BYTES <= device.free_bytes * USED_SHARE
    if not asked.token_buckets:
        assert found.token_buckets[-1] <= min(device.context_tokens, found.kv_tokens)
    if not asked.max_sequences:
        assert found.max_sequences <= found.token_buckets[-1]
        assert found.max_sequences <= -(-found.kv_tokens // device.block_tokens)


def test_a_gpu_that_is_too_small_is_told_what_is_needed() -> None:
    with pytest.raises(InvalidRequestError, match=r"kv_tokens.* bytes are free beside the weights, \d+ are needed"):
        sizes_for(replace(LLAMA_8B, free_bytes=2 * GIB), WorkerSizes())


@given(st.integers(20, 120), st.integers(0, 1 << 27))
def test_memory_that_differs_a_little_gives_mostly_the_same_sizes(free_gib: int, more: int) -> None:
    found = {
        sizes_for(replace(LLAMA_8B, free_bytes=free_gib * GIB + step * more // 8), WorkerSizes()) for step in range(8)
    }
    assert len(found) <= 2


def test_a_plan_has_the_sizes_that_the_worker_chooses() -> None:
    model = ModelSizes("8b", 8 * 10**9, 2 * 10**6, 65536)
    shape = shape_on(
        "cuda",
        80 * GIB,
        model,
        WorkerShape(num_slots=0, kv_tokens=0, block_tokens=0, max_sequences=0, max_bucket=0),
        64,
    )
    memory = device_memory("cuda", 80 * GIB, model, 2, 16, 64, 256, 131072)
    found = sizes_for(memory, WorkerSizes())
    assert (shape.num_slots, shape.kv_tokens, shape.max_sequences) == (
        found.num_slots,
        found.kv_tokens,
        found.max_sequences,
    )
    assert (shape.block_tokens, shape.max_bucket) == (256, found.token_buckets[-1])
    used = memory_of(model, shape, rank=16, num_held=1).device_bytes
    assert 0.75 * 80 * GIB < used < 80 * GIB * USED_SHARE
    kept = shape_on("cuda", 80 * GIB, model, replace(shape, num_slots=5), 64)
    assert (kept.num_slots, kept.kv_tokens) == (5, shape.kv_tokens)


@pytest.mark.parametrize(("kind", "memory", "named"), [("tpu", 1, "--device"), ("cuda", 0, "--memory-gib")])
def test_a_plan_names_what_it_lacks(kind: str, memory: int, named: str) -> None:
    with pytest.raises(InvalidRequestError, match=named):
        shape_on(kind, memory, ModelSizes("m", 1, 1, 1), WorkerShape(), 64)
