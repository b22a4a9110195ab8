"""Workers around a model that computes nothing, in processes of their own, and both paces of a measurement of them."""

import argparse
import asyncio
import json
import os
import sys
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hotslot.local.child_processes import free_port
from hotslot.rpc.channel import open_channel
from shared.server.grpc_server import READINESS
from tests.support.echo_worker import Calls
from tests.support.waiting import until_async
from tools.bench.processes import log_errors_only

STEP_S = 0.005


@asynccontextmanager
async def worker(
    store: str, redis_url: str, model: str, endpoint: str = ""
) -> AsyncIterator[tuple[Calls, psutil.Process]]:
    """One ready process around an echo model, and a client of it."""
    endpoint = endpoint or f"127.0.0.1:{free_port()}"
    settings = {"listen": endpoint, "store": store, "redis_url": redis_url, "model": model}
    environment = {**os.environ, **{f"HOTSLOT_{name.upper()}": value for name, value in settings.items() if value}}
    command = (sys.executable, "-m", "tests.support.echo_process", "--log-level", "error")
    process = await asyncio.create_subprocess_exec(*command, env=environment, stderr=DEVNULL)
    try:
        async with open_channel(endpoint) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)

            async def is_ready() -> bool:
                request = health_pb2.HealthCheckRequest(service=READINESS)
                response = await health.Check(request, timeout=30, wait_for_ready=True)
                return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

            await until_async(is_ready, timeout_s=60)
            yield Calls(channel), psutil.Process(process.pid)
    finally:
        process.kill()
        await process.wait()


def cpu_s(process: psutil.Process) -> float:
    """Processor time that it took so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


async def _both_paces(measure: Callable[[float, int, int], Awaitable[Mapping[str, float]]], *, quick: bool) -> Any:
    rounds, requests = (3, 50) if quick else (9, 300)
    return {
        f"paced, {STEP_S * 1e3:g} ms a step": await measure(STEP_S, rounds, requests),
        "unpaced": await measure(0.0, rounds, requests),
    }


def main(description: str, measure: Callable[[float, int, int], Awaitable[Mapping[str, float]]]) -> None:
    """The command of a measurement by seconds a step, rounds and requests: paced like a model, then as fast as it goes.

    Prints one JSON object.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    quick = parser.parse_args().quick
    log_errors_only()
    print(json.dumps(asyncio.run(_both_paces(measure, quick=quick)), indent=2))
