"""Figures of a run, and of several runs with different seeds together."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from tools.simulation.scenarios import Scenario
from tools.simulation.simulator import SimulatedOutcome


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of one run."""

    requests: float
    cold_loads: float
    cold_load_rate: float
    """Cold loads by requests."""
    churn_per_minute: float
    """Loads of adapters that another worker had, by all placements, a minute: in the last two minutes."""
    max_over_mean_load: float
    """Largest of the workers' mean loads over their mean, in a window of a minute; the mean over the windows."""
    worst_max_over_mean_load: float
    mean_load: float
    delay_p50_ms: float
    """From a request's arrival to its row, with everything that it waits for."""
    delay_p99_ms: float
    replicas_of_top_10: float
    """Workers that have each of the ten most wanted adapters, at the end."""
    replicas: float
    """The same for all adapters that any worker has."""
    redis_ops_per_request: float
    failovers: float


def figures(scenario: Scenario, outcome: SimulatedOutcome) -> Figures:
    """Compute the figures of one run."""
    delays_ms = np.array(outcome.delays_s) * 1e3
    held = [replicas for replicas in outcome.replicas if replicas]
    last = int(scenario.duration_s // 60)
    return Figures(
        requests=outcome.requests,
        cold_loads=outcome.cold_loads,
        cold_load_rate=outcome.cold_loads / outcome.requests,
        churn_per_minute=sum(outcome.avoidable_by_minute[last - 2 : last]) / 2 / sum(held),
        max_over_mean_load=float(np.mean(outcome.imbalances)),
        worst_max_over_mean_load=max(outcome.imbalances),
        mean_load=float(np.mean(outcome.mean_loads)),
        delay_p50_ms=float(np.percentile(delays_ms, 50)),
        delay_p99_ms=float(np.percentile(delays_ms, 99)),
        replicas_of_top_10=float(np.mean(outcome.replicas[:10])),
        replicas=sum(held) / len(held),
        redis_ops_per_request=outcome.num_ops / outcome.requests,
        failovers=outcome.failovers,
    )


def together(runs: Sequence[Figures]) -> dict[str, float]:
    """Means over the seeds, and the worst of the worst."""
    rows = [asdict(run) for run in runs]
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    means["worst_max_over_mean_load"] = max(row["worst_max_over_mean_load"] for row in rows)
    return means
