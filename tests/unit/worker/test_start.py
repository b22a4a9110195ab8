"""A worker's start: the self-test fits every bucket, and a load that fails ends the start."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.echo_model import echo_model
from worker_service.app import run
from worker_service.assembly import ServableModel
from worker_service.cache.shared_code import SharedCode
from worker_service.engine.limits import EngineLimits
from worker_service.model.self_test import PROMPT_LENGTHS, prompt_lengths
from worker_service.settings import WorkerSettings


def limits(max_running: int, max_step_tokens: int) -> EngineLimits:
    """Limits with these two, the rest as wide as needed."""
    return EngineLimits(
        num_slots=1,
        slot_rank=8,
        max_running=max_running,
        max_waiting=0,
        num_blocks=8,
        block_tokens=16,
        max_step_tokens=max_step_tokens,
        max_sequence_tokens=64,
    )


@given(st.integers(1, 64), st.integers(0, 512))
def test_the_self_test_fits_into_one_step(max_running: int, spare_tokens: int) -> None:
    lengths = prompt_lengths(limits(max_running, max_running + spare_tokens))
    assert len(lengths) == min(max_running, len(PROMPT_LENGTHS))
    assert min(lengths) >= 1
    assert sum(lengths) <= max_running + spare_tokens


def test_the_self_test_uses_its_full_prompts_where_they_fit() -> None:
    assert prompt_lengths(limits(8, 128)) == PROMPT_LENGTHS


@pytest.mark.parametrize("failure", [StopIteration(), RuntimeError("broken")])
async def test_a_load_that_fails_ends_the_start(failure: Exception) -> None:
    def load(_: SharedCode | None) -> ServableModel:
        raise failure

    settings = WorkerSettings(model="any", listen="127.0.0.1:0")
    with pytest.raises(RuntimeError):
        await asyncio.wait_for(run(settings, lambda: echo_model().spec, load), timeout=10)
