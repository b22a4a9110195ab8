"""A fleet of processes that faults are done to, and how whole others see it."""

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hotslot import WorkerClient
from hotslot.contract.control import AdapterTier, WorkerState
from hotslot.errors import CoordinationUnavailableError
from hotslot.ids import Digest, WorkerId
from hotslot.local.children import Child
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.rpc.channel import ChannelOptions
from shared.coordination.connection import RedisConnection, RedisOptions
from shared.coordination.directory import Directory
from tests.support.checkpoints import adapter
from tests.support.echo_model import echo_model
from tests.support.service_proxy import ServiceProxy, service_proxy
from tests.support.stack import Stack, is_running
from tests.support.store import StoreClient, bring, dial
from tests.support.waiting import until, until_async

SPEC = echo_model().spec
READY_S = 60.0
EXIT_S = 45.0
PUSHES_AT_ONCE = 8
CHANGING_SHARE = 0.25
"""Of what a worker holds, how much may have come or gone since its report while it is under load."""


class Fleet:
    """Valkey, a store and workers, each a process; use it with `async with`."""

    def __init__(self, folder: Path, **settings: str) -> None:
        """Settings of the workers; `lease_s` must be among them."""
        self.lease_s = float(settings["lease_s"])
        self.stack = Stack(folder)
        self.lost_s: list[tuple[float, float]] = []
        """From when until when a worker was not there, without having said so: killed, or silent past its lease."""
        self.pids: list[int] = []
        self.workers: dict[Child, tuple[WorkerId, WorkerClient]] = {}
        """Those that should be there."""
        self.proxy: ServiceProxy
        self.store: StoreClient
        self.directory: Directory
        self.redis: RedisConnection
        self._settings = settings
        self.store_settings = {"log_level": "warning"}
        """Settings that the store will be started with."""
        self._exit = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.enter_context(self.stack)
            # In this thread, which outlives it.
            child = self.stack.start_store(**self.store_settings)
            self.pids += [child.pid, self.stack.valkey_pid]
            self.store = await stack.enter_async_context(dial(child.spec.endpoint))
            await self.store.register(SPEC)
            self.redis = await stack.enter_async_context(RedisConnection(RedisOptions(self.stack.redis_url)))
            self.directory = Directory(self.redis)
            self.proxy = await stack.enter_async_context(service_proxy())
            self._exit = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exit.__aexit__(kind, exc, trace)

    @property
    def store_child(self) -> Child:
        assert self.stack.store is not None
        return self.stack.store

    def left_over(self) -> list[int]:
        """Processes that should have ended with the fleet."""
        return [pid for pid in self.pids if is_running(pid)]

    async def push(self, names: Sequence[str], first_seed: int) -> list[str]:
        """Adapters, each other than all others; their digests."""
        turns = asyncio.Semaphore(PUSHES_AT_ONCE)

        async def one(name: str, seed: int) -> str:
            async with turns:
                # The configs are all the same file, which several bring at once.
                drafted = adapter(spec=SPEC, seed=seed).files()
                files = [await bring(self.store, path, data) for path, data in drafted.items()]
                request = pb.CreateVersionRequest(reference=name, files=files, base_model=SPEC.digest)
                return str((await self.store.call("CreateVersion", request)).version.digest)

        return await asyncio.gather(*(one(name, first_seed + number) for number, name in enumerate(names)))

    async def add_workers(self, count: int = 1) -> list[Child]:
        """Start workers and wait until they are ready and called through the service."""
        children = [self.stack.launch_echo_worker(**self._settings) for _ in range(count)]
        for child in children:
            self.pids.append(child.pid)
            self.proxy.add(child.spec.endpoint)
        await until(lambda: {child.spec.endpoint for child in children} <= set(self.proxy.ready), READY_S)
        for child in children:
            client = WorkerClient(child.spec.endpoint, ChannelOptions(max_attempts=1))
            self._exit.push_async_callback(client.close)
            self.workers[child] = (WorkerId((await client.status()).worker_id), client)
        return children

    def kill(self, child: Child) -> None:
        """SIGKILL a worker, in the middle of whatever it does."""
        now_s = time.monotonic()
        self.lost_s.append((now_s, now_s))
        child.kill()
        self._forget(child)

    async def drain(self, child: Child) -> int:
        """SIGTERM a worker; its exit code once it has ended."""
        child.terminate()
        await until(lambda: child.exit_code() is not None, EXIT_S)
        self._forget(child)
        code = child.exit_code()
        assert code is not None
        return code

    def _forget(self, child: Child) -> None:
        self.proxy.remove(child.spec.endpoint)
        del self.workers[child]

    async def freeze(self, pid: int, duration_s: float) -> None:
        """Stop a process for a while."""
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(duration_s)
        finally:
            os.kill(pid, signal.SIGCONT)

    async def freeze_worker(self, child: Child, duration_s: float) -> None:
        """Stop a worker past its lease; others take it for dead after a while and cut what it streams through them."""
        began_s = time.monotonic()
        await self.freeze(child.pid, duration_s)
        self.lost_s.append((began_s, time.monotonic()))

    def restart_valkey(self) -> None:
        """Kill Valkey and start it again, empty."""
        self.stack.restart_valkey()
        self.pids.append(self.stack.valkey_pid)

    async def restart_store(self, away_s: float) -> None:
        """Kill the store, and start it again later."""
        self.store_child.kill()
        await asyncio.sleep(away_s)
        child = self.stack.start_again(self.store_child)
        self.pids.append(child.pid)
        await until_async(lambda: asyncio.to_thread(child.is_ready), READY_S)

    async def time_to_whole(self) -> float:
        """Wait until Redis shows exactly the workers that there are, with what they hold; how long that took."""
        began_s = time.monotonic()
        await until_async(self.is_whole, READY_S)
        return time.monotonic() - began_s

    async def is_whole(self, changing_share: float = CHANGING_SHARE) -> bool:
        """Whether others know of all workers and what they hold, less what changes while it is looked at.

        A worker lists only what the tenant asked it for, so what it preloaded may be known of and not listed.
        """
        wanted = {worker_id: WorkerState.READY for worker_id, _ in self.workers.values()}
        try:
            records = (await self.directory.workers(SPEC.digest)).workers
            if {record.info.worker_id: record.state for record in records} != wanted:
                return False
            return all([await self._is_reported(*entry, changing_share) for entry in self.workers.values()])
        except CoordinationUnavailableError:
            return False

    async def _is_reported(self, worker_id: WorkerId, client: WorkerClient, changing_share: float) -> bool:
        told = {p.resident.digest for p in await self.directory.residency(SPEC.digest, worker_id)}
        held = await held_by(client)
        return len(held - told) <= changing_share * len(held)

    async def lasting_keys(self) -> list[str]:
        """Keys in Redis that would never expire."""

        async def read(client: Any) -> list[str]:
            return [key async for key in client.scan_iter("*") if await client.ttl(key) == -1]

        return await self.redis.run(read)

    async def num_keys(self) -> int:
        """Keys in Redis."""

        async def read(client: Any) -> int:
            return int(await client.dbsize())

        return await self.redis.run(read)

    async def in_use(self) -> list[str]:
        """What workers hold for requests, although none is asked."""
        found = []
        for worker_id, client in self.workers.values():
            status, held = await client.status(), await client.list_adapters()
            queue, kv = status.queue, status.kv
            users = sum(a.users for a in held.adapters)
            counts = (queue.running_sequences, queue.waiting_sequences, queue.loading_requests, users)
            if any((*counts, status.slots.in_use, kv.num_blocks - kv.free_blocks, status.recompiles)):
                found.append(f"{worker_id}: {status}, {users} users")
        return found


async def held_by(client: WorkerClient) -> set[Digest]:
    """What a worker has in memory."""
    adapters = (await client.list_adapters()).adapters
    return {Digest(a.digest) for a in adapters if a.tier not in (AdapterTier.LOADING, AdapterTier.UNSPECIFIED)}
