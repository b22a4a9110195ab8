"""Capacity: the fit of a step's cost, and plans that follow from it."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotslot.capacity import StepCost, WorkerShape, Workload, fit_step_cost, memory_of, plan, slots_per_adapter
from hotslot.formats.model_sizes import ModelSizes

SIZES = ModelSizes("tiny", num_parameters=1000, slot_features=100, kv_features=10)
SHAPE = WorkerShape()
COST = StepCost(0.010, 0.001)


@given(st.floats(1e-4, 1.0), st.floats(0.0, 0.01), st.lists(st.integers(1, 4096), min_size=2, max_size=8, unique=True))
def test_a_line_is_found_again(base_s: float, per_token_s: float, tokens: list[int]) -> None:
    real = StepCost(base_s, per_token_s)
    found = fit_step_cost([(count, real.seconds(count)) for count in tokens])
    for count in tokens:
        assert found.seconds(count) == pytest.approx(real.seconds(count), rel=1e-6)


@given(st.lists(st.tuples(st.integers(1, 4096), st.floats(1e-4, 10.0)), min_size=1, max_size=8))
def test_whatever_was_measured_no_step_costs_less_than_nothing(steps: list[tuple[int, float]]) -> None:
    found = fit_step_cost(steps)
    assert found.base_s >= 0
    assert found.per_token_s >= 0
    assert all(found.seconds(tokens) > 0 for tokens, _ in steps)


def test_noise_of_a_tenth_moves_the_fit_by_no_more() -> None:
    rng = random.Random(1)
    steps = [(tokens, COST.seconds(tokens) * rng.uniform(0.9, 1.1)) for tokens in (1, 4, 8, 32, 128) * 4]
    found = fit_step_cost(steps)
    for tokens in (1, 8, 128):
        assert found.seconds(tokens) == pytest.approx(COST.seconds(tokens), rel=0.1)


@pytest.mark.parametrize("steps", [[], [(0, 1.0)], [(1, 0.0)], [(1, -1.0)]])
def test_what_is_no_measurement_is_refused(steps: list[tuple[int, float]]) -> None:
    with pytest.raises(ValueError, match="measured steps"):
        fit_step_cost(steps)


def test_a_plan_by_hand() -> None:
    found = plan(SIZES, SHAPE, Workload(100, 40, requests_per_s=10, prompt_tokens=300, answer_tokens=100), COST)
    # Two buckets of 128 and one of 44 tokens; then 100 steps of 8 rows.
    prefill_s, decode_s = 2 * 0.138 + 0.054, 0.018
    per_request_s = prefill_s + 100 * decode_s / 8
    assert found.requests_per_s_per_worker == pytest.approx(0.7 / per_request_s)
    assert found.answer_s == pytest.approx(prefill_s + 100 * decode_s)
    assert found.replicas == math.ceil(10 * per_request_s / 0.7)
    assert found.memory.slots_per_adapter == 3
    assert found.memory.slot_bytes == 16 * 100 * 2
    assert found.memory.adapter_bytes == 40 * 100 * 2
    assert found.memory.kv_bytes == (1024 + 1) * 16 * 10 * 2
    assert found.adapters_per_worker == math.ceil(100 * 1.5 / found.replicas)


@given(st.integers(1, 100_000), st.integers(1, 512), st.floats(0, 1000), st.integers(1, 4000), st.integers(1, 2000))
def test_more_of_anything_never_takes_less(
    num_adapters: int, rank: int, requests_per_s: float, prompt_tokens: int, answer_tokens: int
) -> None:
    workload = Workload(num_adapters, rank, requests_per_s, prompt_tokens, answer_tokens)
    found = plan(SIZES, SHAPE, workload, COST)
    busier = plan(SIZES, SHAPE, Workload(num_adapters, rank, 2 * requests_per_s, prompt_tokens, answer_tokens), COST)
    larger = plan(SIZES, SHAPE, Workload(num_adapters, rank + 1, requests_per_s, prompt_tokens, answer_tokens), COST)
    assert busier.replicas >= found.replicas
    assert larger.memory.adapter_bytes > found.memory.adapter_bytes
    assert larger.memory.slots_per_adapter >= found.memory.slots_per_adapter
    assert found.adapters_per_worker <= num_adapters
    assert found.replicas * found.adapters_per_worker >= num_adapters
    rate = found.requests_per_s_per_worker
    assert rate is not None
    assert found.replicas * rate >= requests_per_s * 0.999


def test_without_steps_nothing_is_said_about_time() -> None:
    found = plan(SIZES, SHAPE, Workload(10, 16, 100), None)
    assert (found.replicas, found.requests_per_s_per_worker, found.answer_s) == (1, None, None)
    assert memory_of(SIZES, SHAPE, 16, 10).host_cache_bytes == found.memory.host_cache_bytes


@given(st.integers(1, 8192), st.integers(1, 1024))
def test_an_adapter_takes_the_slots_that_hold_its_ranks(rank: int, slot_rank: int) -> None:
    count = slots_per_adapter(rank, slot_rank)
    assert (count - 1) * slot_rank < rank <= count * slot_rank
