"""Thousands of random loads, swaps, mixes and evictions on a compiled model: nothing is compiled and nothing moves."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from hotslot.contract.generation import Sampling
from tests.model.architectures import CASES
from tests.model.driver import Driver
from tests.model.exact_adapters import evict, prompt_of, snapshot_of
from tests.model.random_adapters import random_adapter
from tests.model.tiny_worker import apart, load_tiny
from tests.support.tiny_models import Architecture, save_model
from worker_service.engine.core import EngineCore
from worker_service.engine.messages import SampledToken, Segment
from worker_service.model.cpu import library
from worker_service.model.options import LoadedModel
from worker_service.model.weights import HostAdapter

KERNELS, OPERATORS = 8, 32
"""Tokens of a step: one bucket for our CPU kernels, and one for torch's operators."""
CHECK_EVERY = 50


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose head size the attention kernel takes."""
    found = CASES["llama"].architecture
    config = {**found.config, "head_dim": library.HEAD_SIZE_MULTIPLE}
    return save_model(tmp_path_factory.mktemp("base"), Architecture(found.config_class, config))


@pytest.fixture(scope="module")
def loaded(base: Path) -> Iterator[LoadedModel]:
    """Compiled for steps that our CPU kernels compute."""
    assert KERNELS <= library.MATRIX_TOKENS < OPERATORS
    with apart():
        made = load_tiny(base, compile=True, token_buckets=(KERNELS,))
        assert library.are_loaded()
        yield made


@pytest.fixture(scope="module")
def loaded_for_operators(base: Path) -> Iterator[LoadedModel]:
    """Compiled for steps that torch's operators compute."""
    with apart():
        yield load_tiny(base, compile=True, token_buckets=(OPERATORS,))


@pytest.mark.parametrize(
    "num_operations", [500, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_random_loads_swaps_mixes_and_evictions_compile_nothing_and_move_nothing(
    num_operations: int, loaded: LoadedModel
) -> None:
    runner, rng = loaded.runner, random.Random(num_operations)
    driver = Driver(EngineCore(runner, loaded.limits, lambda: 0.0))
    addresses, graphs = runner.addresses(), counters["stats"]["unique_graphs"]
    # One slot each, so that the order of sums does not depend on which slots they got.
    known = [random_adapter(loaded, 10**6 + number, max_rank=loaded.limits.slot_rank) for number in range(3)]
    expected = [answer(driver, adapter) for adapter in (None, *known)]
    resident: list[HostAdapter] = []
    done = dict.fromkeys(("load", "swap", "mix", "evict"), 0)
    for number in range(num_operations):
        operation = rng.choice(list(done))
        if operation == "load" or not resident:
            resident.append(random_adapter(loaded, number))
            bring(driver, resident[-1])
        elif operation == "swap":
            old = resident.pop(rng.randrange(len(resident)))
            evict(driver, old)
            resident.append(random_adapter(loaded, number, old.max_rank))
            bring(driver, resident[-1])
        elif operation == "mix":
            small = [adapter for adapter in resident if adapter.max_rank <= loaded.limits.slot_rank] + known
            uses = [(adapter, rng.uniform(-2, 2)) for adapter in rng.sample(small, rng.randint(1, 3))]
            driver.submit(prompt_of(number), uses, max_tokens=rng.randint(1, 6))
            driver.turn()
        else:
            evict(driver, resident.pop(rng.randrange(len(resident))))
        done[operation] += 1
        resident = resident[-6:]
        if number % CHECK_EVERY == CHECK_EVERY - 1:
            driver.finish()
            assert [answer(driver, adapter) for adapter in (None, *known)] == expected
    driver.finish()
    assert min(done.values()) > num_operations // 8
    assert runner.recompiles == 0
    assert counters["stats"]["unique_graphs"] == graphs
    assert runner.addresses() == addresses


def bring(driver: Driver, adapter: HostAdapter) -> None:
    """Bring it into slots once sequences that run leave it enough, since an engine refuses what does not fit."""
    limits = driver.core.limits
    while sum(len(h.slots) for h in snapshot_of(driver).holders if h.users) > limits.num_slots - limits.slots_for(
        adapter.max_rank
    ):
        driver.turn()
    driver.activate(adapter)


def answer(driver: Driver, adapter: HostAdapter | None) -> list[SampledToken]:
    """Tokens and log-probabilities, alone in the batch and without anything cached."""
    core = driver.core
    fresh = Driver(EngineCore(core._runner, core.limits, lambda: 0.0))
    row = fresh.submit(prompt_of(1), [(adapter, 1.0)] if adapter is not None else [], max_tokens=3)
    fresh.finish()
    return fresh.tokens[row]


def rows_of(loaded: LoadedModel, names: Sequence[str], num_tokens: int) -> list[torch.Tensor]:
    """The logits of rows that read the slot of their name, with `num_tokens` tokens each."""
    slots = {"base": (), "good": ((0, 1.0),), "poisoned": ((1, 1.0), (2, 0.5))}
    segments = [
        Segment(tuple(range(5, 5 + num_tokens)), 0, tuple(range(5 * row, 5 * row + 5)), slots[name], Sampling())
        for row, name in enumerate(names)
    ]
    return list(loaded.runner.logits(segments)[: len(names)].clone())


VALUES = [float("nan"), float("inf"), -float("inf"), 1e38]
TOGETHER = ("base", "good", "poisoned")


@pytest.mark.parametrize("value", VALUES)
def test_with_kernels_a_poisoned_row_changes_no_bit_of_another_wherever_it_stands(
    value: float, loaded: LoadedModel
) -> None:
    """Up to `MATRIX_TOKENS` tokens a step our kernels compute each token by itself and read only slots that are on:
    bits are the same whatever stands beside a row, and B may be poisoned too."""
    num_tokens = KERNELS // 3
    write_all(loaded)
    clean = rows_of(loaded, TOGETHER, num_tokens)
    poison(loaded, value, with_b=True)
    poisoned = rows_of(loaded, TOGETHER, num_tokens)
    without = rows_of(loaded, ("base", "good"), num_tokens)
    behind = rows_of(loaded, ("poisoned", "base", "good"), num_tokens)[1:]
    for others in (poisoned[:2], without, behind):
        assert all(torch.equal(a, b) for a, b in zip(clean[:2], others, strict=True)), "another row changed"
    assert not torch.equal(clean[2], poisoned[2]), "the poisoned row did not change, so nothing was shown"


@pytest.mark.slow
@pytest.mark.parametrize("value", VALUES)
def test_with_operators_a_poisoned_row_changes_no_bit_of_a_batch_of_the_same_shape(
    value: float, loaded_for_operators: LoadedModel
) -> None:
    """Matrix products of more tokens may sum in an order that depends on where a row stands, so bits are the same only
    for rows that stay where they are. B of every slot is multiplied by 0, so loading keeps it finite."""
    loaded, num_tokens = loaded_for_operators, OPERATORS // 3
    write_all(loaded)
    clean = rows_of(loaded, TOGETHER, num_tokens)
    poison(loaded, value, with_b=False)
    poisoned = rows_of(loaded, TOGETHER, num_tokens)
    behind = rows_of(loaded, ("poisoned", "base", "good"), num_tokens)[1:]
    assert all(torch.equal(a, b) for a, b in zip(clean[:2], poisoned[:2], strict=True)), "another row changed"
    assert not torch.equal(clean[2], poisoned[2]), "the poisoned row did not change, so nothing was shown"
    for alone, after in zip(clean[:2], behind, strict=True):
        torch.testing.assert_close(alone, after, atol=1e-4, rtol=0)


def write_all(loaded: LoadedModel) -> None:
    """Three adapters of one slot each."""
    for slot in range(3):
        for _ in loaded.runner.write_slots([slot], random_adapter(loaded, slot, loaded.limits.slot_rank)):
            pass


def poison(loaded: LoadedModel, value: float, *, with_b: bool) -> None:
    """Overwrite the slots of the poisoned row, in every module."""
    for linear in loaded.runner.slot_linears.values():
        for slot in (1, 2):
            a_KI, b_KO = linear.slot(slot)
            a_KI.fill_(value)
            if with_b:
                b_KO.fill_(value)
            linear.scale_S[slot] = 1.0
