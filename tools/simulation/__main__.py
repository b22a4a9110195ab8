"""`make simulate`: every scenario with every policy; writes build/simulation.json, SIMULATION.md and its plot."""

import argparse
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tools.simulation.bound import fewest_cold_loads
from tools.simulation.decisions import decision_us, moved_by_a_join
from tools.simulation.metrics import Figures, figures, together
from tools.simulation.report import plot, render
from tools.simulation.scenarios import scenarios
from tools.simulation.simulator import POLICIES, Simulation

ROOT = Path(__file__).resolve().parents[2]
COMPARED = ("hotslot", "oracle")
LARGE_SCENARIOS = ("zipf", "flash crowd", "10 % lost at once")
BOUND = "bound"
"""Not a policy: what none can go below."""


@dataclass(frozen=True, slots=True)
class SimulationJob:
    """One run."""

    num_workers: int
    scenario: str
    policy: str
    seed: int
    warm_up_s: float = 180.0
    duration_s: float = 300.0


def main() -> None:
    """Run, then write the files; `--quick` prints the table of a small fleet and writes nothing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small fleet and one seed; print the report only")
    parser.add_argument("--largest", action="store_true", help="also 1,000 workers: some minutes more")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at once")
    arguments = parser.parse_args()
    started = time.monotonic()
    jobs = [*largest_jobs()] if arguments.largest else []
    jobs += quick_jobs() if arguments.quick else all_jobs()
    results = simulate(jobs, arguments.jobs)
    results["wall_s"] = round(time.monotonic() - started)
    if arguments.quick:
        print(render(results))
        return
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    (build / "simulation.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (ROOT / "SIMULATION.md").write_text(render(results), encoding="utf-8")
    plot(results, ROOT / "docs" / "simulation.svg")
    print("written: build/simulation.json, SIMULATION.md, docs/simulation.svg", file=sys.stderr)


def all_jobs() -> Iterator[SimulationJob]:
    """Few large runs first, since they take longest; then small ones with several seeds."""
    for scenario in LARGE_SCENARIOS:
        for policy in COMPARED:
            yield SimulationJob(250, scenario, policy, 1)
    yield from _jobs(32, seeds=2, other_seeds=1)


def largest_jobs() -> Iterator[SimulationJob]:
    """A thousand workers; the longer warm-up is for the burst of a whole fleet that starts empty under full load."""
    for policy in COMPARED:
        yield SimulationJob(1_000, LARGE_SCENARIOS[0], policy, 1, 420.0, 180.0)


def quick_jobs() -> Iterator[SimulationJob]:
    """Everything once, small."""
    yield from _jobs(16, seeds=1, other_seeds=1)


def _jobs(num_workers: int, seeds: int, other_seeds: int) -> Iterator[SimulationJob]:
    for scenario in scenarios(num_workers):
        for policy in POLICIES:
            for seed in range(1, 1 + (seeds if policy in COMPARED else other_seeds)):
                yield SimulationJob(num_workers, scenario, policy, seed)
        yield SimulationJob(num_workers, scenario, BOUND, 1)


def simulate(jobs: list[SimulationJob], processes: int) -> dict[str, Any]:
    """The figures of each fleet size, scenario and policy, together over the seeds."""
    found: dict[SimulationJob, Figures | int] = {}
    with ProcessPoolExecutor(processes) as pool:
        waiting = {pool.submit(run, job): job for job in jobs}
        for number, future in enumerate(as_completed(waiting), 1):
            job = waiting[future]
            found[job] = future.result()
            print(f"{number}/{len(jobs)} {job.num_workers} workers, {job.scenario}, {job.policy}", file=sys.stderr)
    runs: dict[tuple[int, str, str], list[Figures]] = defaultdict(list)
    fleets: dict[str, dict[str, dict[str, Any]]] = defaultdict(lambda: defaultdict(dict))
    for job in jobs:
        outcome = found[job]
        scenario = fleets[str(job.num_workers)][job.scenario]
        if isinstance(outcome, int):
            scenario[BOUND] = {"cold_loads": outcome}
            continue
        runs[job.num_workers, job.scenario, job.policy].append(outcome)
    for (num_workers, scenario_name, policy), outcomes in runs.items():
        row = {**together(outcomes), "seeds": len(outcomes), "runs": [asdict(outcome) for outcome in outcomes]}
        fleets[str(num_workers)][scenario_name][policy] = row
    return {
        "fleets": {size: dict(by_scenario) for size, by_scenario in fleets.items()},
        "decision_us": decision_us(1_000),
        "moved_by_a_join": {n: moved_by_a_join(n) for n in (8, 32, 200, 1_000)},
    }


def run(job: SimulationJob) -> Figures | int:
    """One run, in a process of its own."""
    scenario = scenarios(job.num_workers, warm_up_s=job.warm_up_s, duration_s=job.duration_s)[job.scenario]
    if job.policy == BOUND:
        return fewest_cold_loads(scenario, scenario.trace(job.seed))
    return figures(scenario, Simulation(scenario, job.policy, job.seed).run())


if __name__ == "__main__":
    main()
