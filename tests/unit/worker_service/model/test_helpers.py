"""Threads of the kernels: all items of a call are made once, whoever else calls, and with any number of threads."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from worker_service.demo_model import default_cache_dir
from worker_service.model.cpu import library

CALLS = 200


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    assert library.load_kernels(default_cache_dir()), "this machine has a C++ compiler"


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def inputs_of(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sizes differ from call to call, so an item of another call is noticed."""
    generator = torch.Generator().manual_seed(number)
    num_out = 96 * (1 + number % 7) + number % 5
    return torch.randn(1 + number % 4, 64, generator=generator), torch.randn(num_out, 64, generator=generator)


def product(number: int) -> torch.Tensor:
    x_TI, w_OI = inputs_of(number)
    y_TO: torch.Tensor = torch.ops.hotslot_cpu.linear(x_TI, w_OI, None)
    return y_TO


@pytest.fixture(scope="module")
def alone() -> list[torch.Tensor]:
    """Results of one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found = [product(number) for number in range(CALLS)]
    torch.set_num_threads(before)
    return found


@pytest.mark.parametrize("num_threads", [2, 5, 3])
def test_threads_change_no_bit(num_threads: int, alone: list[torch.Tensor]) -> None:
    torch.set_num_threads(num_threads)
    for number in range(CALLS):
        assert torch.equal(product(number), alone[number]), number


def test_callers_beside_each_other_get_their_own_results(alone: list[torch.Tensor]) -> None:
    torch.set_num_threads(3)

    def all_products(first: int) -> list[int]:
        torch.set_num_threads(3)
        order = [(first + number) % CALLS for number in range(CALLS)]
        return [number for number in order if not torch.equal(product(number), alone[number])]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(all_products, range(0, CALLS, CALLS // 4))) == [[], [], [], []]


def test_copies_are_shared_too() -> None:
    torch.set_num_threads(4)
    sources = [torch.full((1 + number,), float(number)) for number in range(50)]
    targets = [torch.zeros_like(source) for source in sources]
    torch.ops.hotslot_cpu.copy_all(targets, sources)
    assert all(torch.equal(target, source) for target, source in zip(targets, sources, strict=True))
