"""Measures a worker's start, from the process to ready: with no compiled code at all, and with its own of before.

`python -m tools.bench.start [--quick]` prints one JSON object. The model's files are in the page cache in both.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from hotslot import WorkerClient
from tests.support.stack import Stack
from worker_service.demo_model import BASE_MODEL, ensure_model


async def stages_of(endpoint: str) -> dict[str, float]:
    """Seconds of each stage of a worker's start, as it tells them."""
    async with WorkerClient(endpoint) as worker:
        status = await worker.status()
    return {stage.name: round(stage.duration_s, 2) for stage in status.startup}


def start_once(stack: Stack, cache_dir: Path) -> dict[str, Any]:
    """One start, with the settings that a worker has by default."""
    began_s = time.perf_counter()
    worker = stack.start_worker(ensure_model(), model_name=BASE_MODEL, cache_dir=str(cache_dir))
    ready_s = time.perf_counter() - began_s
    stages = asyncio.run(stages_of(worker.spec.endpoint))
    worker.kill()
    stack.workers.remove(worker)
    return {"ready_s": ready_s, "stages_s": stages}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer warm starts")
    warm_starts = 2 if parser.parse_args().quick else 5
    with tempfile.TemporaryDirectory() as folder, Stack(Path(folder)) as stack:
        stack.start_store()
        cache_dir = Path(folder) / "cache"
        cold = start_once(stack, cache_dir)
        warm = [start_once(stack, cache_dir) for _ in range(warm_starts)]
    result = {"cold": cold, "warm": warm[0] | {"ready_s": statistics.median(start["ready_s"] for start in warm)}}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
