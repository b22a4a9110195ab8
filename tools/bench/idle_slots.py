"""Measures the cost of slots for requests that use none: `python -m tools.bench.idle_slots [--quick]` prints JSON.

A model with slots and one with next to none, each in a process of its own, since code is compiled for one set of slots
in each; steps are taken in turn.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection

import structlog

from hotslot.contract.generation import Sampling
from worker_service.demo_model import BASE_MODEL, default_cache_dir, ensure_model
from worker_service.engine.messages import Segment
from worker_service.model.loading import load_model
from worker_service.model.options import LoadedModel, ModelOptions

ROWS = 8
CONTEXT_TOKENS = 64
"""Length of every row before the steps that are timed."""


def time_step(loaded: LoadedModel, step: int) -> float:
    """Seconds of a step of 8 rows without adapters."""
    blocks = loaded.limits.num_blocks // ROWS
    segments = [
        Segment((5,), CONTEXT_TOKENS + step, tuple(range(row * blocks, (row + 1) * blocks)), (), Sampling())
        for row in range(ROWS)
    ]
    began_s = time.perf_counter()
    loaded.runner.run(segments)
    return time.perf_counter() - began_s


def answer_with_steps(connection: Connection, options: ModelOptions) -> None:
    """Run the other process: one step for each number that it is sent, until there are no more."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    loaded = load_model(options)
    connection.send(0.0)
    while (step := connection.recv()) is not None:
        connection.send(time_step(loaded, step))


@contextmanager
def stepping(options: ModelOptions) -> Iterator[Callable[[int], float]]:
    """A model in a process of its own; calling what is yielded runs a step there and returns its seconds."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=answer_with_steps, args=(there, options))
    process.start()
    here.recv()

    def step(number: int) -> float:
        here.send(number)
        duration_s: float = here.recv()
        return duration_s

    yield step
    here.send(None)
    process.join()


def measure(options: ModelOptions, num_steps: int) -> dict[str, float]:
    """Tokens a second of both, and the median of the ratios of steps that were taken one after the other."""
    few = replace(options, num_slots=1, slot_rank=1, max_rank=1, target_modules=("v_proj",))
    with stepping(options) as with_slots, stepping(few) as without:
        for number in range(5):
            with_slots(number), without(number)
        pairs = [(with_slots(number), without(number)) for number in range(num_steps)]
    with_slots_s, without_s = zip(*pairs, strict=True)
    return {
        "with_slots_tok_s": ROWS / statistics.median(with_slots_s),
        "without_tok_s": ROWS / statistics.median(without_s),
        "with_over_without": statistics.median(without_step / with_step for with_step, without_step in pairs),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    num_steps = 60 if parser.parse_args().quick else 240
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    options = ModelOptions(
        model=str(ensure_model()),
        model_name=BASE_MODEL,
        num_slots=ROWS,
        slot_rank=16,
        kv_tokens=8192,
        max_sequence_tokens=1024,
        token_buckets=(1, 8, 64),
        cache_dir=default_cache_dir(),
    )
    print(json.dumps(measure(options, num_steps)))


if __name__ == "__main__":
    main()
