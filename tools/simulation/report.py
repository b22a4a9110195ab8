"""Report of the simulation, as a page and a plot."""

from pathlib import Path
from typing import Any

import matplotlib as mpl

from tools.simulation.hints import HEARTBEAT_S, LEASE_HEARTBEATS, PULSE_S
from tools.simulation.scenarios import ADAPTERS_PER_WORKER, CROWD, UTILISATION
from tools.simulation.simulator import POLICIES
from tools.simulation.traffic import SERVICE_S
from tools.simulation.worker import STORE_LOAD_S, WorkerSize

COMPARABLE_ABOVE = 0.01
"""Cold loads of the oracle by requests, below which the ratio to them says nothing."""
COLOURS = ("#c1121f", "#2a6f97", "#f4a261", "#8d99ae", "#6a994e", "#bc6c25")


def render(results: dict[str, Any]) -> str:
    """SIMULATION.md."""
    lines = [
        "# Simulation",
        "",
        "Written by `make simulate`. The code that decides is the real one (`shared/fleet`); workers, clock, "
        "requests and Redis are simulated. Figures are means over seeds.",
        "",
        "## Targets",
        "",
        *targets(results),
        "",
        "![cold loads, load and delay by scenario and policy](docs/simulation.svg)",
        "",
        *_what_is_simulated(),
    ]
    for fleet, by_scenario in sorted(results["fleets"].items(), key=lambda item: int(item[0])):
        lines += ["", f"## {fleet} workers, {int(fleet) * ADAPTERS_PER_WORKER:,} adapters", ""]
        lines += [
            "| scenario | policy | cold loads | of requests | by the oracle's | load max/mean (worst) | churn %/min "
            "| delay p50, p99 ms | replicas: top 10, all | Redis ops / request |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for scenario, by_policy in by_scenario.items():
            lines += _rows(scenario, by_policy)
    return "\n".join([*lines, ""])


def _what_is_simulated() -> list[str]:
    size = WorkerSize()
    return f"""## The simulation

- A worker has {size.rows} rows, {size.slots} slots, host memory for {size.host_adapters} adapters (least recently used
  out; {2 * ADAPTERS_PER_WORKER} where all fit), and {size.parallel_loads} loads at once of {STORE_LOAD_S} s each. There
  are {ADAPTERS_PER_WORKER} adapters for each worker.
- Requests are Poisson and occupy a row for {SERVICE_S:.0f} s in the mean (gamma, coefficient of variation 0.7).
  {UTILISATION:.0%} of all rows are busy; Zipf's exponent is 1; a flash crowd keeps {CROWD:.0%} of the fleet busy.
- Routers see what workers reported: loads at heartbeats ({HEARTBEAT_S:.1f} s, at once when they jumped by half of the
  rows), residency and demand within {PULSE_S:.0f} s, the pool as it was up to 0.5 s ago. All look at the same moment,
  which is the worst case for a herd. With *stale hints* they look every 5 s, and heartbeats are 10 s apart.
- Requests of a lost worker are retried. It is replaced after 60 s; its lease of {LEASE_HEARTBEATS * HEARTBEAT_S:.0f} s
  runs out by itself.

**The oracle** knows every adapter's rate beforehand, and every worker's state exactly and at once. It assigns adapters
offline, so that expected loads are equal, cuts those worth more than half a worker into pieces, changes little when
workers come and go, sends a request to the least busy of the adapter's workers, and never loads an adapter elsewhere.
Eviction is the workers' own, least recently used, as with all policies. **The bound** is no policy but the misses of
one cache as large as all host memories together that knows all future requests: no placement and no eviction does
better.

**Churn** is loads of an adapter that another worker had in memory, by all placements, a minute, over the last two
minutes. **Load** is the largest of the workers' mean loads in a minute by their mean, as a mean over the minutes, and
the worst. **Delay** is from a request's arrival to its row.""".split("\n")


def targets(results: dict[str, Any]) -> list[str]:
    """The table of targets."""
    rows = [
        (int(fleet), scenario, by_policy["hotslot"], by_policy["oracle"])
        for fleet, by_scenario in results["fleets"].items()
        for scenario, by_policy in by_scenario.items()
    ]
    comparable = [row for row in rows if row[3]["cold_load_rate"] >= COMPARABLE_ABOVE]
    others = [row for row in rows if row[3]["cold_load_rate"] < COMPARABLE_ABOVE]
    coldest = max(comparable, key=lambda row: _ratio(row[2], row[3]))
    fullest = max(rows, key=lambda row: row[2]["max_over_mean_load"])
    steady = max((row for row in rows if row[1].startswith("zipf")), key=lambda row: row[2]["churn_per_minute"])
    decisions = results["decision_us"]
    found = [
        (
            "cold loads by the oracle's",
            "≤ 1.2",
            f"at most {_ratio(coldest[2], coldest[3]):.2f} ({coldest[1]}, {coldest[0]} workers)"
            + "".join(
                f"; {scenario} ({fleet} workers): {ours['cold_load_rate']:.2%} of requests, the oracle "
                f"{oracle['cold_load_rate']:.2%}"
                for fleet, scenario, ours, oracle in others
            ),
        ),
        (
            "max/mean load",
            "≤ 1.3",
            f"at most {fullest[2]['max_over_mean_load']:.2f} ({fullest[1]}, {fullest[0]} workers)",
        ),
        ("churn in steady state", "≈ 0", f"{steady[2]['churn_per_minute']:.2%} of placements a minute ({steady[1]})"),
        (
            "adapters moved by a join",
            "≤ 1.5 / N",
            ", ".join(f"{moved:.2f} / {n}" for n, moved in results["moved_by_a_join"].items()),
        ),
        (
            "decision at 1,000 workers, median; the first two find the order of a new version",
            "≤ 50 µs",
            ", ".join(f"{name}: {took:.0f} µs" for name, took in decisions.items()),
        ),
    ]
    return ["| what | target | found |", "|---|---|---|", *(f"| {a} | {b} | {c} |" for a, b, c in found)]


def _rows(scenario: str, by_policy: dict[str, Any]) -> list[str]:
    oracle = by_policy["oracle"]
    lines = []
    for policy in POLICIES:
        row = by_policy.get(policy)
        if row is None:
            continue
        lines.append(
            f"| {scenario if policy == POLICIES[0] else ''} | {policy} | {row['cold_loads']:,.0f} "
            f"| {row['cold_load_rate']:.2%} | {_ratio(row, oracle):.2f} | {row['max_over_mean_load']:.2f} "
            f"({row['worst_max_over_mean_load']:.2f}) | {row['churn_per_minute']:.2%} "
            f"| {row['delay_p50_ms']:,.0f}, {row['delay_p99_ms']:,.0f} "
            f"| {row['replicas_of_top_10']:.1f}, {row['replicas']:.2f} | {row['redis_ops_per_request']:.2f} |"
        )
    if "bound" in by_policy:
        cold = by_policy["bound"]["cold_loads"]
        lines.append(f"| | bound | {cold:,} | | {cold / max(1.0, oracle['cold_loads']):.2f} | | | | | |")
    return lines


def _ratio(row: dict[str, Any], oracle: dict[str, Any]) -> float:
    return float(row["cold_load_rate"] / max(oracle["cold_load_rate"], 1e-9))


def plot(results: dict[str, Any], path: Path) -> None:
    """A panel each for cold loads, load and delay, of the small fleet."""
    mpl.use("svg")
    from matplotlib import pyplot

    mpl.rcParams["svg.hashsalt"] = "hotslot"
    _, by_scenario = min(results["fleets"].items(), key=lambda item: int(item[0]))
    panels = (
        ("cold_load_rate", "cold loads by requests", 1.0),
        ("max_over_mean_load", "max / mean load", 1.0),
        ("delay_p99_ms", "delay, p99, s", 1e-3),
    )
    figure, axes = pyplot.subplots(1, len(panels), figsize=(11, 4.4), layout="constrained", sharey=True)
    places = range(len(by_scenario))
    for ax, (name, label, scale) in zip(axes, panels, strict=True):
        for policy, colour in zip(reversed(POLICIES), reversed(COLOURS), strict=True):
            values = [by_policy[policy][name] * scale for by_policy in by_scenario.values()]
            ax.plot(values, places, "o", label=policy, color=colour, markersize=7 if policy == POLICIES[0] else 5)
        ax.set_xscale("log")
        ax.set_xlabel(label)
        ax.grid(axis="both", color="#dddddd")
    axes[0].set_yticks(list(places), list(by_scenario))
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside upper center", ncols=len(POLICIES), frameon=False)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
