"""`python -m tools.bench.step_parts`: processor time of a decoding step by its parts, in microseconds a step.

The engine takes its turns in this thread over the real model, with one thread, so that nothing is computed elsewhere.
Blocks of steps alternate between those that go through the model's forward and those that make its calls alone, so that
whatever else the machine does falls on both alike. Prints one JSON object of medians.
"""

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import structlog

from tools.bench.serving import Load, prompt_of
from worker_service.demo_model import BASE_MODEL, default_cache_dir, ensure_model
from worker_service.engine.core import EngineCore
from worker_service.model import runner as runner_module
from worker_service.model.loading import load_model
from worker_service.model.options import LoadedModel, ModelOptions
from worker_service.model.whole_forwards import WholeForwards

BUCKETS = (1, 8, 32)
BLOCK_STEPS = 40
FORWARD, CALLS = "through the forward", "its calls alone"
PARTS = ("plan", "model", "sampling", "engine")


class PartClock:
    """Processor time of this thread within functions, by name."""

    def __init__(self) -> None:
        self._spent_ns: dict[str, int] = defaultdict(int)

    def watch(self, owner: Any, attribute: str, name: str) -> None:
        """Count an attribute's calls from now on."""
        function = getattr(owner, attribute)

        def call(*arguments: Any, **named: Any) -> Any:
            began_ns = time.thread_time_ns()
            try:
                return function(*arguments, **named)
            finally:
                self._spent_ns[name] += time.thread_time_ns() - began_ns

        setattr(owner, attribute, call)

    def take(self) -> dict[str, float]:
        """Parts since the last time, in microseconds; the functions contain each other."""
        spent_ns, self._spent_ns = self._spent_ns, defaultdict(int)
        plan, logits, sampling = spent_ns["plan"], spent_ns["logits"], spent_ns["sampling"]
        parts = plan, logits - plan, sampling, spent_ns["turn"] - logits - sampling
        return {name: part / 1e3 for name, part in zip(PARTS, parts, strict=True)}


@contextmanager
def through_forward(forwards: WholeForwards) -> Iterator[None]:
    """Have steps go through the model's forward, to the programs of layers and head."""
    kept = dict(forwards._calls)
    forwards.forget()
    try:
        yield
    finally:
        forwards._calls.update(kept)


def measure(loaded: LoadedModel, core: EngineCore, clock: PartClock, num_rows: int, rounds: int) -> dict[str, Any]:
    """Medians of a step's parts, with and without the model's forward."""
    forwards = loaded.runner.forwards
    assert forwards is not None, "the kernels are there"
    assert forwards.kinds, "the forward's calls are known"
    found: dict[str, list[dict[str, float]]] = {FORWARD: [], CALLS: []}
    for _ in range(rounds):
        for name, steps in found.items():
            load = Load(core)
            with through_forward(forwards) if name == FORWARD else nullcontext():
                for _ in range(num_rows):
                    load.submit(None, prompt_of(load), BLOCK_STEPS + 8)
                while not all(load.token_times_s.values()):
                    load.turn()
                for _ in range(BLOCK_STEPS):
                    clock.take()
                    load.turn()
                    steps.append(clock.take())
                load.finish()
    return {
        name: {part: round(statistics.median([step[part] for step in steps]), 1) for part in PARTS}
        for name, steps in found.items()
    }


def main() -> None:
    """Load the model, measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--rows", default="1,8", help="numbers of rows, by commas")
    arguments = parser.parse_args()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    options = ModelOptions(
        model=str(ensure_model()), model_name=BASE_MODEL, num_slots=8, max_sequences=8, kv_tokens=8192,
        max_sequence_tokens=1024, token_buckets=BUCKETS, cache_dir=default_cache_dir(), num_threads=1,
    )  # fmt: skip
    loaded = load_model(options)
    core, clock = EngineCore(loaded.runner, loaded.limits, time.monotonic), PartClock()
    clock.watch(core, "turn", "turn")
    clock.watch(loaded.runner, "_logits", "logits")
    clock.watch(loaded.runner, "prepare", "plan")
    clock.watch(runner_module, "sample", "sampling")
    rows = map(int, arguments.rows.split(","))
    print(json.dumps({f"{n} rows": measure(loaded, core, clock, n, arguments.rounds) for n in rows}, indent=1))


if __name__ == "__main__":
    main()
