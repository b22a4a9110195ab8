"""The targets of the placement, on a small simulated fleet; `make simulate` has the large ones."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from tests.simulation.bound import fewest_cold_loads
from tests.simulation.decisions import moved_by_a_join
from tests.simulation.metrics import Figures, figures
from tests.simulation.scenarios import Scenario, scenarios
from tests.simulation.simulator import Simulation
from tests.simulation.traffic import Demand, Trace
from tests.simulation.worker import WorkerSize

SCENARIOS = scenarios(16, warm_up_s=120.0, duration_s=240.0)
CASES = [
    ("zipf", 1),
    ("zipf", 2),
    ("flash crowd", 3),
    ("rolling restart", 4),
    ("10 % lost at once", 5),
    ("diurnal", 6),
    ("stale hints", 7),
]


@cache
def run(name: str, policy: str, seed: int) -> Figures:
    scenario = SCENARIOS[name]
    return figures(scenario, Simulation(scenario, policy, seed).run())


@pytest.mark.parametrize(("name", "seed"), CASES)
def test_cold_loads_are_near_an_oracles_and_load_is_even(name: str, seed: int) -> None:
    ours, oracles = run(name, "hotslot", seed), run(name, "oracle", seed)
    assert ours.cold_loads <= 1.2 * oracles.cold_loads
    assert ours.max_over_mean_load <= 1.3
    assert abs(ours.requests - oracles.requests) < 0.01 * oracles.requests


def test_a_fleet_that_changes_nothing_moves_nothing() -> None:
    assert run("zipf", "hotslot", 1).churn_per_minute < 0.01


@pytest.mark.parametrize("seed", [1, 2])
def test_a_flushed_redis_costs_hardly_a_load(seed: int) -> None:
    assert run("Redis flushed", "hotslot", seed).cold_loads <= 1.005 * run("zipf", "hotslot", seed).cold_loads


def test_policies_differ_as_they_must() -> None:
    """Else the simulation would measure nothing."""
    assert run("zipf", "round robin", 1).cold_loads > 3 * run("zipf", "hotslot", 1).cold_loads
    assert run("zipf", "rendezvous", 1).max_over_mean_load > 3 * run("zipf", "hotslot", 1).max_over_mean_load


def test_a_run_is_the_same_for_the_same_seed() -> None:
    scenario = scenarios(4, warm_up_s=30.0, duration_s=130.0)["10 % lost at once"]
    one, other = (figures(scenario, Simulation(scenario, "hotslot", 7).run()) for _ in range(2))
    assert one == other


def test_a_join_moves_its_share() -> None:
    assert moved_by_a_join(20, 4_000) <= 1.5


def test_the_bound_is_that_of_a_cache_that_knows_the_future() -> None:
    adapters = np.array([0, 1, 2, 0, 1, 3, 0, 1, 2])
    trace = Trace(np.arange(9.0), adapters, np.ones(9))
    scenario = Scenario("bound", Demand(4, 0.0, 0.5), 1, WorkerSize(host_adapters=2), warm_up_s=0.0)
    # With room for two, one of 0 and 1 is always kept, and 2 and 3 pass through in place of the other.
    assert fewest_cold_loads(scenario, trace) == 7
    assert fewest_cold_loads(replace(scenario, size=WorkerSize(host_adapters=3)), trace) == 5
