"""Cost of metrics to a step: `python -m tools.bench.observed_steps` prints one JSON object.

The real model decodes in this process; blocks of steps alternate between no metrics, metrics, and metrics that are
scraped over HTTP once a second, and twenty times a second, as pickers of inference gateways do. The order of the blocks
changes each round, so that whatever else the machine does falls on all alike.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from hotslot.contract.generation import Sampling
from hotslot.ids import DEFAULT_TENANT, Digest
from shared.metrics.calls import ServerCalls
from shared.metrics.endpoint import observed
from shared.metrics.settings import Observed
from shared.metrics.table import WORKER
from shared.server.counters import Counters
from shared.transport_settings import Transport
from worker_service.demo_model import BASE_MODEL, default_cache_dir, ensure_model
from worker_service.engine.core import EngineCore
from worker_service.engine.listener import ActivationReport, SequenceReport, SilentListener, StepReport
from worker_service.engine.messages import NO_LOGPROBS, SequenceId, StopRules, Submit
from worker_service.engine.numbers import EngineNumbers
from worker_service.model.loading import load_model
from worker_service.model.options import ModelOptions

ROWS = 8
BUCKETS = (1, 4, 8, 32)
BLOCK_STEPS = 12
METHODS = 40
OFF, ON, SCRAPED, PICKED = "off", "on", "on, scraped each second", "on, scraped twenty times a second"
SCRAPES_PER_S = {OFF: 0.0, ON: 0.0, SCRAPED: 1.0, PICKED: 20.0}


class SwitchedListener:
    """Hands on what it hears, to the engine's numbers or to none, at the same cost."""

    def __init__(self, numbers: EngineNumbers) -> None:
        self.target: EngineNumbers | SilentListener = numbers

    def stepped(self, report: StepReport) -> None:
        self.target.stepped(report)

    def ended(self, report: SequenceReport) -> None:
        self.target.ended(report)

    def activated(self, report: ActivationReport) -> None:
        self.target.activated(report)

    def evicted(self, digest: Digest) -> None:
        self.target.evicted(digest)


class Scraper:
    """Scrapes from a thread of its own, as often as it is told; its cost is the client's and the server's."""

    def __init__(self, numbers: EngineNumbers) -> None:
        self._numbers = numbers
        self._per_s = 0.0
        self._wake, self._ends = threading.Event(), threading.Event()
        self.num_scrapes = self.num_bytes = 0

    def pace(self, per_s: float) -> None:
        """Scrape so often from now on."""
        self._per_s = per_s
        self._wake.set()

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=lambda: asyncio.run(self._serve()))]
        threads[0].start()
        try:
            yield
        finally:
            self._ends.set()
            self._wake.set()
            threads[0].join()

    async def _serve(self) -> None:
        calls = ServerCalls(Counters())
        for number in range(METHODS):
            calls.started(f"/bench/{number}")
            calls.ended(f"/bench/{number}", "OK", "", 0.01, 100, 100)
        sources = [self._numbers.readings, calls.readings]
        settings = Observed(metrics_listen="127.0.0.1:0")
        async with (
            observed(WORKER, settings, Transport(), sources) as metrics,
            httpx2.AsyncClient(trust_env=False) as client,
        ):
            while not self._ends.is_set():
                if not self._per_s:
                    await asyncio.to_thread(self._wake.wait, 1.0)
                    self._wake.clear()
                    continue
                answer = await client.get(f"http://127.0.0.1:{metrics.port}/metrics")
                self.num_scrapes, self.num_bytes = self.num_scrapes + 1, len(answer.content)
                await asyncio.sleep(1 / self._per_s)


def filled(core: EngineCore, first: int) -> int:
    """Submit a sequence for each row; returns the next free id."""
    for number in range(first, first + ROWS):
        core.handle(
            Submit(
                sequence_id=SequenceId(number),
                prompt_token_ids=tuple(range(10, 26)),
                adapters=(),
                sampling=Sampling(temperature=0.0),
                stop=StopRules(max_tokens=400, min_tokens=400, stop_token_ids=frozenset()),
                arrival_s=time.monotonic(),
                deadline_s=None,
                priority=0,
                tenant=DEFAULT_TENANT,
                logprobs=NO_LOGPROBS,
            )
        )
    return first + ROWS


def measure(core: EngineCore, switch: SwitchedListener, numbers: EngineNumbers, seconds: float) -> dict[str, Any]:
    """Medians of steps, by what was on, and of the differences between blocks of one round."""
    steps: dict[str, list[float]] = {name: [] for name in SCRAPES_PER_S}
    rounds: dict[str, list[float]] = {name: [] for name in SCRAPES_PER_S}
    scraper, order, next_id = Scraper(numbers), random.Random(1), 1
    with scraper.running():
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            names = list(SCRAPES_PER_S)
            order.shuffle(names)
            for name in names:
                switch.target = SilentListener() if name == OFF else numbers
                scraper.pace(SCRAPES_PER_S[name])
                block = []
                for _ in range(BLOCK_STEPS):
                    if core.idle:
                        next_id = filled(core, next_id)
                        core.turn()
                    began_s = time.perf_counter()
                    core.turn()
                    block.append(time.perf_counter() - began_s)
                steps[name] += block
                rounds[name].append(statistics.median(block))
    off = rounds[OFF]
    return {
        "rows": ROWS,
        "scrapes": scraper.num_scrapes,
        "scrape_bytes": scraper.num_bytes,
        "rounds": len(off),
        "step_ms": {name: round(1e3 * statistics.median(values), 4) for name, values in steps.items()},
        "over_off_percent": {
            name: round(100 * statistics.median(v / o - 1 for v, o in zip(values, off, strict=True)), 3)
            for name, values in rounds.items()
            if name != OFF
        },
        "listener_us": listener_us(),
    }


def listener_us(repetitions: int = 200_000) -> float:
    """Microseconds of the listener for a step, by itself."""
    numbers, report = EngineNumbers(BUCKETS), StepReport(0.02, 0.0001, ROWS, ROWS, 0)
    began_s = time.perf_counter()
    for _ in range(repetitions):
        numbers.stepped(report)
    return round(1e6 * (time.perf_counter() - began_s) / repetitions, 3)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="Time of the measurement.")
    parser.add_argument("--without-kernels", action="store_true", help="Leave few tokens on CPU to torch.")
    arguments = parser.parse_args()
    folder = ensure_model()
    loaded = load_model(
        ModelOptions(
            model=str(folder),
            model_name=BASE_MODEL,
            num_slots=4,
            kv_tokens=8192,
            max_sequence_tokens=1024,
            token_buckets=BUCKETS,
            cache_dir=default_cache_dir(),
            cpu_kernels=not arguments.without_kernels,
        )
    )
    numbers = EngineNumbers(BUCKETS)
    switch = SwitchedListener(numbers)
    core = EngineCore(loaded.runner, loaded.limits, time.monotonic, listener=switch)
    print(json.dumps(measure(core, switch, numbers, arguments.seconds), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
