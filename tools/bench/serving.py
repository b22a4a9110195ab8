"""Measures the engine under load on the real model: swaps beside running rows, and more adapters than slots.

`python -m tools.bench.serving [--quick]` prints one JSON object. The engine takes its turns in this thread; every
variant runs in rounds beside the others, so that drift hits them alike.
"""

import argparse
import itertools
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import structlog
import torch

from hotslot.contract.generation import Sampling
from tools.bench.hot_swap import random_adapter
from worker_service.demo_model import BASE_MODEL, default_cache_dir, ensure_model
from worker_service.engine.core import EngineCore
from worker_service.engine.messages import (
    Activate,
    AdapterUse,
    SequenceFinished,
    SequenceId,
    StopRules,
    Submit,
    TokenReady,
)
from worker_service.model.loading import load_model
from worker_service.model.options import LoadedModel, ModelOptions
from worker_service.model.weights import HostAdapter

ROWS = 8
SLOTS = 10
"""Eight that rows use and two to swap beside them."""
PROMPT_TOKENS = 24
ZIPF_EXPONENT = 1.0
TIMES_SLOTS = (4, 16)
"""Adapters by slots."""


@dataclass
class Load:
    """Sequences in an engine, with the times of their tokens."""

    core: EngineCore
    ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    submitted_s: dict[SequenceId, float] = field(default_factory=dict)
    token_times_s: dict[SequenceId, list[float]] = field(default_factory=dict)
    on_finished: Callable[[], None] = lambda: None

    def submit(self, adapter: HostAdapter | None, prompt: Sequence[int], max_tokens: int) -> None:
        """Queue one sequence that is as long as it may be."""
        sequence_id = SequenceId(next(self.ids))
        self.submitted_s[sequence_id] = time.perf_counter()
        self.token_times_s[sequence_id] = []
        uses = (AdapterUse(adapter, 1.0),) if adapter is not None else ()
        self.core.handle(Submit(sequence_id, tuple(prompt), uses, Sampling(), StopRules(max_tokens), 0.0))

    def turn(self) -> None:
        """One turn of the engine; notes when tokens came."""
        for event in self.core.turn():
            match event:
                case TokenReady(sequence_id):
                    self.token_times_s[sequence_id].append(time.perf_counter())
                case SequenceFinished():
                    self.on_finished()
                case _:
                    raise AssertionError(event)

    def finish(self) -> None:
        """Until nothing is left to do."""
        while not self.core.idle:
            self.turn()

    def gaps_s(self) -> list[float]:
        """Times between the tokens of each sequence."""
        return [after - before for times in self.token_times_s.values() for before, after in itertools.pairwise(times)]

    def first_tokens_s(self) -> list[float]:
        """Times to the first token."""
        return [times[0] - self.submitted_s[sequence_id] for sequence_id, times in self.token_times_s.items()]


def measure_swaps(loaded: LoadedModel, *, num_tokens: int, rounds: int) -> dict[str, float]:
    """Gaps between tokens of eight rows with eight adapters, while others are swapped without pause and while not."""
    adapters = [random_adapter(loaded, number) for number in range(ROWS)]
    others = itertools.cycle([random_adapter(loaded, number) for number in range(ROWS, ROWS + 4)])
    gaps_s: dict[bool, list[float]] = {False: [], True: []}
    num_swaps = 0
    for _ in range(rounds):
        for swapping in (False, True):
            load = Load(EngineCore(loaded.runner, loaded.limits, time.monotonic))
            for adapter in adapters:
                load.submit(adapter, prompt_of(load), num_tokens)
            while not all(load.token_times_s.values()):
                load.turn()

            def swapped(_: object, load: Load = load) -> None:
                nonlocal num_swaps
                num_swaps += 1
                if not load.core.idle:
                    load.core.handle(Activate(next(others), False, swapped))

            if swapping:
                load.core.handle(Activate(next(others), False, swapped))
            while any(len(times) < num_tokens for times in load.token_times_s.values()):
                load.turn()
            gaps_s[swapping] += load.gaps_s()
            load.finish()
    quiet, busy = gaps_s[False], gaps_s[True]
    return {
        "swaps": num_swaps,
        "gap_p50_ms": 1e3 * statistics.median(quiet),
        "gap_p99_ms": 1e3 * float(np.percentile(quiet, 99)),
        "gap_max_ms": 1e3 * max(quiet),
        "gap_p50_while_swapping_ms": 1e3 * statistics.median(busy),
        "gap_p99_while_swapping_ms": 1e3 * float(np.percentile(busy, 99)),
        "gap_max_while_swapping_ms": 1e3 * max(busy),
    }


def measure_oversubscription(loaded: LoadedModel, *, num_requests: int, rounds: int) -> dict[str, dict[str, float]]:
    """TTFT of a closed loop of eight clients, with as many adapters as slots and with 4 and 16 times as many."""
    chooser = random.Random(7)
    adapters = [random_adapter(loaded, number) for number in range(max(TIMES_SLOTS) * SLOTS)]
    zipf = [1 / (rank + 1) ** ZIPF_EXPONENT for rank in range(len(adapters))]

    def uniform(count: int) -> Callable[[], HostAdapter]:
        return lambda: chooser.choice(adapters[:count])

    def by_zipf(count: int) -> Callable[[], HostAdapter]:
        return lambda: chooser.choices(adapters[:count], zipf[:count])[0]

    variants = {"resident": uniform(SLOTS)}
    for times in TIMES_SLOTS:
        variants |= {f"{times}x_uniform": uniform(times * SLOTS), f"{times}x_zipf": by_zipf(times * SLOTS)}
    first_s: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, choose in variants.items():
            load = Load(EngineCore(loaded.runner, loaded.limits, time.monotonic))
            left = num_requests

            def next_request(load: Load = load, choose: Callable[[], HostAdapter] = choose) -> None:
                nonlocal left
                if left:
                    left -= 1
                    load.submit(choose(), prompt_of(load), 16)

            load.on_finished = next_request
            for _ in range(ROWS):
                next_request()
            load.finish()
            # The first requests of a round find empty slots.
            first_s[name] += load.first_tokens_s()[2 * SLOTS :]
    return {
        name: {
            "ttft_p50_ms": 1e3 * statistics.median(found),
            "ttft_p99_ms": 1e3 * float(np.percentile(found, 99)),
            "ttft_max_ms": 1e3 * max(found),
        }
        for name, found in first_s.items()
    }


def prompt_of(load: Load) -> list[int]:
    """A prompt like no other, so that the prefix cache has no part in this."""
    number = len(load.submitted_s)
    return [5 + (number * 31 + position * 7) % 9000 for position in range(PROMPT_TOKENS)]


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    quick = parser.parse_args().quick
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    loaded = load_model(
        ModelOptions(
            model=str(ensure_model()),
            model_name=BASE_MODEL,
            num_slots=SLOTS,
            max_sequences=ROWS,
            kv_tokens=8192,
            max_sequence_tokens=1024,
            token_buckets=(1, 8, 64),
            cache_dir=default_cache_dir(),
        )
    )
    swaps = measure_swaps(loaded, num_tokens=32 if quick else 128, rounds=2 if quick else 5)
    over = measure_oversubscription(loaded, num_requests=100 if quick else 120, rounds=1 if quick else 3)
    results: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "swaps_beside_rows": swaps,
        "more_adapters_than_slots": over,
        "recompiles": loaded.runner.recompiles,
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
