"""Adapters of different ranks in one fleet: placement by what each occupies, beside placement with all ranks alike.

`python -m tools.simulation.ranks` prints one JSON object; some three minutes on one core.
"""

import json
from dataclasses import asdict, replace
from statistics import mean
from typing import Any

from shared.fleet.policy_options import DEFAULT_POLICY, PolicyOptions
from tools.simulation.decisions import decision_us
from tools.simulation.metrics import figures
from tools.simulation.scenarios import scenarios
from tools.simulation.simulator import Simulation
from tools.simulation.worker import WorkerSize

NUM_WORKERS = 32
SEEDS = (1, 2)
SLOTS = (1, 1, 2, 4)
"""Ranks 8, 16, 32 and 64 at a slot rank of 16."""
SIZE = WorkerSize(slots=64, host_adapters=128)
"""Slots for rows that all run the largest adapters; host memory for as many adapters of the mean size as elsewhere."""
NAMES = ("zipf", "flash crowd", "diurnal")
SHOWN = ("cold_loads", "max_over_mean_load", "worst_max_over_mean_load", "delay_p99_ms", "replicas_of_top_10")


def measure(name: str, options: PolicyOptions) -> dict[str, float]:
    """Means over the seeds of one scenario; loaded slots are what was copied, by size."""
    rows = []
    for seed in SEEDS:
        scenario = replace(scenarios(NUM_WORKERS, warm_up_s=180.0, duration_s=300.0)[name], size=SIZE, slots=SLOTS)
        outcome = Simulation(scenario, "hotslot", seed, options).run()
        found = asdict(figures(scenario, outcome))
        rows.append({"loaded_slots": float(outcome.loaded_slots), **{key: found[key] for key in SHOWN}})
    return {key: round(mean(row[key] for row in rows), 2) for key in rows[0]}


def main() -> None:
    """Measure and print."""
    alike = replace(DEFAULT_POLICY, slots_exponent=0.0)
    found: dict[str, Any] = {
        name: {"by size": measure(name, DEFAULT_POLICY), "all ranks alike": measure(name, alike)} for name in NAMES
    }
    print(json.dumps({**found, "decision_us, 1,000 workers": decision_us(1_000)}, indent=2))


if __name__ == "__main__":
    main()
