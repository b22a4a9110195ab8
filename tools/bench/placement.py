"""Measures placement: `python -m tools.bench.placement` prints one JSON object.

The time of a decision among a thousand workers, and cold loads against those of an oracle in two of the simulation's
scenarios: the plain one, and the one in which routers know least. `make simulate` has them all.
"""

import json
import os
from concurrent.futures import ProcessPoolExecutor

from tools.simulation.__main__ import COMPARED, SimulationJob, run
from tools.simulation.decisions import decision_us
from tools.simulation.metrics import Figures

NUM_WORKERS = 1000
SIMULATED_WORKERS = 32
SCENARIOS = ("zipf", "stale hints")


def cold_loads_over_oracles() -> dict[str, float]:
    """Cold loads of a request by those of the oracle, by scenario."""
    jobs = [SimulationJob(SIMULATED_WORKERS, scenario, policy, 1) for scenario in SCENARIOS for policy in COMPARED]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        rates = [found.cold_load_rate for found in pool.map(run, jobs) if isinstance(found, Figures)]
    return {name: ours / oracles for name, ours, oracles in zip(SCENARIOS, rates[::2], rates[1::2], strict=True)}


if __name__ == "__main__":
    found = {"workers": NUM_WORKERS, "decision_us": decision_us(NUM_WORKERS)}
    print(json.dumps({**found, "cold_loads_over_oracles": cold_loads_over_oracles()}))
