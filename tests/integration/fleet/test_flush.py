"""Redis loses its memory under load: nothing is loaded twice for it, and placements are whole again within a lease."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace

from hotslot.contract.control import WorkerState
from hotslot.contract.placement import Tier
from hotslot.errors import CoordinationUnavailableError
from hotslot.ids import DEFAULT_TENANT, Digest, new_worker_id
from hotslot.local.embedded_valkey import EmbeddedValkey, embedded_valkey
from shared.coordination.connection import RedisConnection, RedisOptions
from shared.coordination.directory import Directory
from shared.fleet.records import ReportedLoad, Resident
from tests.integration.coordination.fleet import Member as Claim
from tests.integration.fleet.conftest import SPEC, Catalog
from tests.support.echo_model import EchoModel, echo_model, voice
from tests.support.fleet import LEASE_S, Member, fleet_of, joined
from tests.support.patient_redis import patient
from tests.support.slow_proxy import SlowProxy, slow_proxy
from tests.support.waiting import until, until_async

NUM_WORKERS = 3
NUM_ADAPTERS = 24
NUM_CLIENTS = 6
LONG_LEASE_S = 15.0
"""Long enough that Redis can be away within it, also on a busy machine."""


def roomy() -> EchoModel:
    """With a row for every client: a worker that is full sends requests on, and that is no matter of Redis."""
    return echo_model(max_running=NUM_CLIENTS)


@dataclass
class Shown:
    """What Redis shows of a fleet."""

    directory: Directory

    async def is_whole(self, members: list[Member]) -> bool:
        """Whether that is what each worker holds, and nothing else."""
        try:
            return await self._workers() == {m.worker_id for m in members} and all(
                [await self._is_whole(member) for member in members]
            )
        except CoordinationUnavailableError:
            return False

    async def _workers(self) -> set[str]:
        return {record.info.worker_id for record in (await self.directory.workers(SPEC.digest)).workers}

    async def _is_whole(self, member: Member) -> bool:
        held = {held.digest for held in member.worker.parts.provider.tiers.holdings.of_tenant(DEFAULT_TENANT)}
        told = {p.resident.digest for p in await self.directory.residency(SPEC.digest, member.worker.worker_id)}
        placed = await self.directory.placements(SPEC.digest, sorted(held))
        here = {digest for digest, found in placed.items() if any(p.worker_id == member.worker_id for p in found)}
        return held == told == here


@dataclass
class Redis:
    """A Redis at one address, behind which servers come and go."""

    proxy: SlowProxy
    server: EmbeddedValkey
    stack: ExitStack
    meanwhile: Callable[[], Awaitable[None]]
    """What to wait for while no server is there."""

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.proxy.port}"

    async def flush(self) -> None:
        """Three times, the second and third as soon as a worker is back."""
        async with RedisConnection(patient(self.server.url)) as connection:
            for _ in range(3):
                await connection.run(lambda client: client.flushall())
                await until_async(lambda: self._is_somebody_there(connection))
            await connection.run(lambda client: client.flushall())

    async def restart(self) -> None:
        """The server is killed, and another one starts there, which knows nothing."""
        os.kill(self.server.pid, signal.SIGKILL)
        await self.meanwhile()
        self.server = self.stack.enter_context(embedded_valkey(port=self.server.port))

    async def fail_over(self, *, in_step: bool) -> None:
        """A replica takes over: one that has followed, or one that has not heard of anything yet."""
        replica = self.stack.enter_context(embedded_valkey())
        async with RedisConnection(patient(replica.url)) as connection:
            if in_step:
                async with RedisConnection(patient(self.server.url)) as primary:
                    await primary.run(lambda client: client.config_set("repl-diskless-sync-delay", 0))
                await connection.run(lambda client: client.config_set("repl-diskless-load", "on-empty-db"))
                await connection.run(lambda client: client.replicaof("127.0.0.1", self.server.port))
                await until_async(lambda: self._follows(connection))
                await connection.run(lambda client: client.replicaof("NO", "ONE"))
        os.kill(self.server.pid, signal.SIGKILL)
        await self.meanwhile()
        self.proxy.target_port, self.server = replica.port, replica

    @staticmethod
    async def _is_somebody_there(connection: RedisConnection) -> bool:
        return bool((await Directory(connection).workers(SPEC.digest)).workers)

    @staticmethod
    async def _follows(connection: RedisConnection) -> bool:
        said = await connection.run(lambda client: client.info("replication"))
        return bool(said["master_link_status"] == "up")


@asynccontextmanager
async def own_redis(meanwhile: Callable[[], Awaitable[None]]) -> AsyncIterator[Redis]:
    with ExitStack() as stack:
        server = stack.enter_context(embedded_valkey())
        async with slow_proxy(server.port) as proxy:
            yield Redis(proxy, server, stack, meanwhile)


@contextmanager
def asking(members: list[Member], store: Catalog, names: list[str], answers: list[str]) -> Iterator[None]:
    """Clients that ask any worker for any adapter, one request after the other."""

    async def one(number: int) -> None:
        chance = random.Random(number)
        calls = [await member.calls() for member in members]
        while True:
            name = chance.choice(names)
            answer = await chance.choice(calls).generate(name)
            assert answer.text == voice(store.digests[name])
            answers.append(name)

    tasks = [asyncio.create_task(one(number)) for number in range(NUM_CLIENTS)]
    try:
        yield
    finally:
        for task in tasks:
            assert not task.done(), task.exception()
            task.cancel()


def loads(members: list[Member]) -> int:
    """Weights that were pulled from the store and decoded, over the whole fleet."""
    return sum(len(member.model.decoder.decoded) for member in members)


FAULTS: dict[str, Callable[[Redis], Awaitable[None]]] = {
    "flushed": Redis.flush,
    "restarted": Redis.restart,
    "failed over": lambda redis: redis.fail_over(in_step=True),
    "failed over to an empty one": lambda redis: redis.fail_over(in_step=False),
}


async def test_a_loss_under_load_is_healed_within_a_lease_and_costs_no_loads(store: Catalog) -> None:
    names = [f"bot-{number}" for number in range(NUM_ADAPTERS)]
    for number, name in enumerate(names):
        await store.push(name, 100 + number)
    answers: list[str] = []

    async def more_answers() -> None:
        seen = len(answers)
        await until(lambda: len(answers) >= seen + 2 * NUM_ADAPTERS)

    async with (
        own_redis(meanwhile=more_answers) as redis,
        RedisConnection(RedisOptions(redis.url)) as connection,
        fleet_of(NUM_WORKERS, store.endpoint, redis.url, roomy, lease_s=LONG_LEASE_S) as members,
    ):
        shown = Shown(Directory(connection))
        for number, name in enumerate(names):
            await (await members[number % NUM_WORKERS].calls()).generate(name)
        with asking(members, store, names, answers):
            await until_async(lambda: shown.is_whole(members))
            for name, fault in FAULTS.items():
                await fault(redis)
                await until_async(lambda: shown.is_whole(members), timeout_s=LONG_LEASE_S)
                await more_answers()
                assert loads(members) == NUM_ADAPTERS, f"{name}: loaded again, or on another worker"


async def test_a_worker_that_died_with_redis_is_given_up_when_its_lease_ends(
    store: Catalog, redis_url: str, redis: RedisConnection
) -> None:
    async with joined(store.endpoint, redis_url) as front:
        view = front.router.view
        info = replace(view.me, worker_id=new_worker_id(), endpoint="127.0.0.1:1", epoch=1)
        held = Resident(Digest(store.digests["one"]), Tier.HOST)
        dead = Claim(redis, info, lease_s=LEASE_S)
        lease = await dead.fleet_member.announce(WorkerState.READY, ReportedLoad())
        await dead.report(held)

        async def known() -> tuple[set[str], list[str]]:
            sight = await view.look([held.digest])
            assert sight is not None
            return set(sight.fleet.workers), [placement.worker_id for placement in sight.placements[held.digest]]

        async def both_are_known() -> bool:
            return await known() == ({front.worker_id, info.worker_id}, [info.worker_id])

        await until_async(both_are_known)
        await redis.run(lambda client: client.flushall())

        async def is_given_up() -> bool:
            is_kept = await both_are_known()
            assert is_kept or (await Directory(redis).workers(SPEC.digest)).time_s >= lease.expire_time_s
            return await known() == ({front.worker_id}, [])

        await until_async(is_given_up)
