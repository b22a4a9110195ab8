"""A worker process around the echo model, with a client of it."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hotslot.local.child_processes import free_port
from hotslot.rpc.channel import ChannelOptions, open_channel
from shared.server.grpc_server import LIVENESS, READINESS
from tests.support.echo_worker import Calls

SERVING = health_pb2.HealthCheckResponse.SERVING


class WorkerProcess:
    """One process and a client of it."""

    def __init__(self, process: Process, channel: grpc.aio.Channel, endpoint: str) -> None:
        self.process = process
        self.endpoint = endpoint
        self.calls = Calls(channel)
        self._health: Any = health_pb2_grpc.HealthStub(channel)

    async def is_serving(self, name: str) -> bool:
        try:
            response = await self._health.Check(health_pb2.HealthCheckRequest(service=name), timeout=20)
        except grpc.RpcError:
            return False
        return bool(response.status == SERVING)

    async def is_ready(self) -> bool:
        return await self.is_serving(READINESS)

    async def is_alive(self) -> bool:
        return await self.is_serving(LIVENESS)

    async def exit_code(self) -> int:
        async with asyncio.timeout(60):
            return await self.process.wait()


@asynccontextmanager
async def running_process(store_endpoint: str, **settings: str) -> AsyncIterator[WorkerProcess]:
    endpoint = settings.pop("listen", "") or f"127.0.0.1:{free_port()}"
    settings = {"listen": endpoint, "store": store_endpoint, "model": "quick", "lease_s": "3", **settings}
    environment = {**os.environ, **{f"HOTSLOT_{name.upper()}": value for name, value in settings.items()}}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.echo_process", env=environment, stderr=PIPE
    )
    try:
        async with open_channel(endpoint, ChannelOptions(max_attempts=1)) as channel:
            yield WorkerProcess(process, channel, endpoint)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
