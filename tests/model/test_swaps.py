"""Swaps without pause: nothing is recompiled, nothing moves in memory, and what is there after is exact."""

import random
from typing import Any

import pytest
import torch

from hotslot.contract.generation import Sampling
from tests.model.driver import Driver
from tests.model.random_adapters import random_adapter
from worker_service.engine.messages import Segment
from worker_service.model.options import LoadedModel
from worker_service.model.weights import HostAdapter

pytestmark = pytest.mark.model

NUM_SWAPS = 200
HALF_OF_RANKS = 16
"""Of the largest adapter's: two such fit beside it."""


def test_two_hundred_swaps_recompile_nothing_and_move_nothing(
    driver: Driver, loaded: LoadedModel, adapters: dict[str, HostAdapter], reference: dict[str, list[dict[str, Any]]]
) -> None:
    before = loaded.runner.addresses()
    rng = random.Random(0)
    for number in range(NUM_SWAPS):
        if number % 25 == 0:
            # Some swaps happen slice by slice between the steps of rows that run, which leave half of the slots free.
            half = [adapter for adapter in adapters.values() if adapter.max_rank <= HALF_OF_RANKS]
            other = random_adapter(loaded, number, HALF_OF_RANKS)
            driver.submit([1, 2, 3, number], ((rng.choice(half), 1.0),), max_tokens=20)
            driver.submit([5, 6, 7, number], ((other, rng.uniform(-2, 2)),), max_tokens=6)
            driver.turn()
        # Made only where it is the chosen one: its numbers take longer to draw than the swap.
        chosen = rng.choice([*adapters.values(), None])
        driver.activate(chosen if chosen is not None else random_adapter(loaded, number))
    driver.finish()

    assert loaded.runner.recompiles == 0
    assert loaded.runner.addresses() == before
    for name in ("json", "french", "base"):
        expected = reference[name][0]
        mix = () if name == "base" else ((adapters[name], 1.0),)
        sequence_id = driver.submit(expected["prompt_ids"], mix, max_tokens=16)
        driver.finish()
        assert driver.token_ids(sequence_id) == expected["greedy_ids"][:16], name
    assert loaded.runner.recompiles == 0


def test_a_running_sequence_finishes_on_the_version_it_began_with(
    driver: Driver, adapters: dict[str, HostAdapter], reference: dict[str, list[dict[str, Any]]]
) -> None:
    old, new = reference["pirate"][0], reference["pirate-v2"][0]
    begun = driver.submit(old["prompt_ids"], ((adapters["pirate"], 1.0),), max_tokens=32)
    for _ in range(6):
        driver.turn()
    driver.activate(adapters["pirate-v2"])
    later = driver.submit(new["prompt_ids"], ((adapters["pirate-v2"], 1.0),), max_tokens=32)
    driver.finish()
    assert driver.token_ids(begun) == old["greedy_ids"][:32]
    assert driver.token_ids(later) == new["greedy_ids"][:32]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_whatever_a_slot_computes_changes_no_bit_of_another_row(
    value: float, driver: Driver, loaded: LoadedModel, adapters: dict[str, HostAdapter]
) -> None:
    def rows() -> list[Segment]:
        slots = {name: holder.slots for name, holder in held.items()}
        return [
            Segment((5, 6, 7), 0, (0,), (), Sampling()),
            Segment((5, 6, 7), 0, (1,), tuple((s, 1.0) for s in slots["json"]), Sampling()),
            Segment((5, 6, 7), 0, (2,), tuple((s, 1.0) for s in slots["poison"]), Sampling()),
        ]

    poison = random_adapter(loaded, 1000)
    held = {"json": driver.activate(adapters["json"]), "poison": driver.activate(poison)}
    clean = loaded.runner.logits(rows())[:3].clone()
    for linear in loaded.runner.slot_linears.values():
        for slot in held["poison"].slots:
            linear.a_CI[slot * linear.slot_rank : (slot + 1) * linear.slot_rank].fill_(value)
    poisoned = loaded.runner.logits(rows())[:3].clone()
    for _ in loaded.runner.write_slots(held["poison"].slots, poison):
        pass
    assert torch.equal(clean[:2], poisoned[:2]), "another row changed"
    assert not torch.equal(clean[2], poisoned[2]), "the poisoned row did not change, so nothing was shown"
