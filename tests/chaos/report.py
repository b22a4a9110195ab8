"""The figures of a run, as a table."""

from collections import Counter
from collections.abc import Sequence

from tests.chaos.faults import Faults
from tests.chaos.traffic import Traffic


def table(traffic: Traffic, faults: Faults, moves: int) -> str:
    """What was asked, what became of it, and how long recoveries took."""
    late = [age_s for age_s in traffic.staleness_s if age_s]
    kinds = Counter(failure.kind for failure in traffic.failures)
    rows = [
        ("requests", f"{traffic.asked}"),
        ("answered", f"{traffic.answered}"),
        *((f"failed: {kind}", str(count)) for kind, count in sorted(kinds.items())),
        ("never ended", f"{traffic.asked - traffic.ended}"),
        ("wrong tokens or digests", f"{len(traffic.wrong)}"),
        ("latency p50 / p99 / max", _spread(traffic.latencies_s)),
        ("tag moves", f"{moves}"),
        ("answers of a version that was not the newest", f"{len(late)}"),
        ("their staleness p50 / p99 / max", _spread(late)),
        ("workers that served", f"{len(traffic.served_by)}"),
        *((f"whole after: {name}", f"{len(times)} ×, {_spread(times)}") for name, times in faults.recovery_s.items()),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _spread(values_s: Sequence[float]) -> str:
    if not values_s:
        return "none"
    ordered = sorted(values_s)
    picked = (ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)], ordered[-1])
    return " / ".join(f"{value_s:.2f} s" for value_s in picked)
