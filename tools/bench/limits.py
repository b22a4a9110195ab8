"""Measures the machine's limits: the speed at which memory is read and copied, by one thread and by all.

`python -m tools.bench.limits` prints one JSON object. Reading is what bounds decoding; the best of several ways of
reading counts, since none of them is sure to be the machine's best.
"""

import json
import os
import statistics
import time
from collections.abc import Callable

import torch

SIZE_BYTES = 512 * 2**20
"""Much more than any cache."""
ROUNDS = 7


def gb_s(call: Callable[[], object], num_bytes: int, rounds: int = ROUNDS) -> list[float]:
    """Rates of several calls after one that does not count."""
    call()
    rates = []
    for _ in range(rounds):
        began_s = time.perf_counter()
        call()
        rates.append(num_bytes / 1e9 / (time.perf_counter() - began_s))
    return rates


def ways_of_reading(source: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Calls that read a vector of float32, of a multiple of 4,096 elements, once."""
    whole, matrix, vector = source.view(torch.int32), source.view(-1, 4096), torch.ones(4096)
    return {
        "sum": source.sum,
        "dot": lambda: torch.dot(source, source),
        "matrix by vector": lambda: torch.mv(matrix, vector),
        "maximum": whole.max,
    }


def measure() -> dict[str, object]:
    """Rates in GB/s by number of threads."""
    source = torch.ones(SIZE_BYTES // 4)
    target = torch.empty_like(source)
    reads = ways_of_reading(source)
    found: dict[str, object] = {}
    for threads in sorted({1, len(os.sched_getaffinity(0))}):
        torch.set_num_threads(threads)
        read = {name: statistics.median(gb_s(call, SIZE_BYTES)) for name, call in reads.items()}
        best = max(read, key=read.__getitem__)
        # A copy reads and writes: its bytes are counted once, as those of a hot-swap are.
        copies = gb_s(lambda: target.copy_(source), SIZE_BYTES)
        found[str(threads)] = {
            "read_gb_s": read[best],
            "read_by": best,
            "reads_gb_s": read,
            "copy_gb_s": statistics.median(copies),
        }
    return found


if __name__ == "__main__":
    print(json.dumps(measure()))
