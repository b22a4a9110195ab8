"""Bound that no placement and no eviction goes below: all host memories as one cache that knows the future (Belady,
1966).
"""

import heapq

import numpy as np

from tools.simulation.scenarios import Scenario
from tools.simulation.traffic import Trace


def fewest_cold_loads(scenario: Scenario, trace: Trace) -> int:
    """Misses after the warm-up, one for each adapter that is not in memory, whatever the load of the workers."""
    capacity = scenario.num_workers * scenario.size.host_adapters
    adapters = trace.adapter.tolist()
    following = np.full(len(adapters), len(adapters))
    last: dict[int, int] = {}
    for position in range(len(adapters) - 1, -1, -1):
        following[position] = last.get(adapters[position], len(adapters))
        last[adapters[position]] = position
    next_use: dict[int, int] = {}
    farthest: list[tuple[int, int]] = []
    misses = 0
    for position, (adapter, use, arrival_s) in enumerate(
        zip(adapters, following.tolist(), trace.arrival_s.tolist(), strict=True)
    ):
        assert position < use
        if adapter not in next_use:
            misses += arrival_s >= scenario.warm_up_s
            while len(next_use) >= capacity:
                use_of_victim, victim = heapq.heappop(farthest)
                if next_use.get(victim) == -use_of_victim:
                    del next_use[victim]
        next_use[adapter] = use
        heapq.heappush(farthest, (-use, adapter))
    return misses
