"""Workers of one fleet in this process: the real start over the echo model, with a real store and a real Redis."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from hotslot.ids import DEFAULT_TENANT, TenantId, new_worker_id
from hotslot.rpc.channel import ChannelOptions, open_channel
from hotslot.rpc.tenant import FORWARDED_KEY
from shared.loops import Loops
from shared.server.grpc_server import RpcServer, ServerOptions, serve
from shared.settings import RedisUrl
from tests.support.echo_model import EchoModel, echo_model
from tests.support.echo_worker import ADDRESS, Calls
from worker_service.app import services
from worker_service.ending import ProcessEnding
from worker_service.front.worker import ServingWorker
from worker_service.routing.fleet_view import ViewLimits
from worker_service.routing.router import Router
from worker_service.settings import WorkerSettings
from worker_service.starting import Host, start

LEASE_S = 4.0
VIEW_LIMITS = ViewLimits(refresh_s=0.1, patience_s=1.0)
"""Patient enough for a machine that does other things, too."""


@dataclass
class Member:
    """One worker that has joined."""

    worker: ServingWorker
    server: RpcServer
    model: EchoModel
    stack: AsyncExitStack
    loops: Loops

    @property
    def worker_id(self) -> str:
        return self.worker.worker_id

    @property
    def endpoint(self) -> str:
        return f"{ADDRESS}:{self.server.port}"

    @property
    def router(self) -> Router:
        assert self.worker.router is not None
        return self.worker.router

    @property
    def in_flight(self) -> int:
        """Requests that it serves itself."""
        return self.worker.in_flight

    async def calls(self, tenant: TenantId = DEFAULT_TENANT, *, marked: bool = False) -> Calls:
        """A client; no retries, so that a test sees every error. Marked, as another worker would call."""
        pairs = ((FORWARDED_KEY, "anybody"),) if marked else ()
        options = ChannelOptions(tenant=tenant, max_attempts=1, metadata=pairs)
        return Calls(await self.stack.enter_async_context(open_channel(self.endpoint, options)))


@asynccontextmanager
async def joined(
    store_endpoint: str, redis_url: str, model: EchoModel | None = None, **settings: Any
) -> AsyncIterator[Member]:
    """A worker of the fleet, ready, until the block is left; it leaves at once and loses what it runs."""
    model = model or echo_model()
    worker = ServingWorker(new_worker_id())
    chosen: dict[str, Any] = {"lease_s": LEASE_S, "staleness_s": 0.05, "host_cache_bytes": 2**20, **settings}
    options = WorkerSettings(
        model="echo", listen=f"{ADDRESS}:0", store=store_endpoint, redis_url=RedisUrl(redis_url), **chosen
    )
    server_options = ServerOptions(grace_s=0.0)
    async with (
        serve(services(worker), server_options, observers=()) as server,
        AsyncExitStack() as stack,
        Loops() as loops,
    ):
        host = Host(options, worker, server, stack, loops, ProcessEnding(), VIEW_LIMITS)
        await start(host, lambda: model.spec, lambda _: model)
        stack.callback(model.runner.gate.set)
        yield Member(worker, server, model, stack, loops)


@asynccontextmanager
async def fleet_of(
    count: int, store_endpoint: str, redis_url: str, model: Callable[[], EchoModel] = echo_model, **settings: Any
) -> AsyncIterator[list[Member]]:
    """Several workers that all know each other."""
    async with AsyncExitStack() as stack:
        members = [
            await stack.enter_async_context(joined(store_endpoint, redis_url, model(), **settings))
            for _ in range(count)
        ]
        await until_known(members)
        yield members


async def until_known(members: list[Member]) -> None:
    """Wait until each of these sees them all, and nobody else, as ready."""
    wanted = {member.worker_id for member in members}
    async with asyncio.timeout(60):
        for member in members:
            while True:
                sight = await member.router.view.look([])
                if sight is not None and set(sight.fleet.workers) == wanted:
                    break
                await asyncio.sleep(0.02)
