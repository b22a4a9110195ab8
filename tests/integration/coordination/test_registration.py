"""A registered worker through restarts, flushes and freezes of a real Valkey."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from hotslot.contract.control import WorkerState
from hotslot.contract.placement import Tier
from hotslot.errors import CoordinationUnavailableError
from hotslot.local.embedded_valkey import EmbeddedValkey, embedded_valkey
from shared.coordination.connection import RedisConnection, RedisOptions
from shared.coordination.directory import Directory
from shared.coordination.member import _MIN_INTERVAL_S, FleetMember
from shared.fleet.records import ReportedLoad, Resident, WorkerInfo, WorkerReport
from shared.loops import Loops
from tests.integration.coordination.fleet import POOL, Member, all_keys, digest, member_of, resident, worker
from tests.support.patient_redis import patient
from tests.support.waiting import until, until_async

LEASE_S = 4.0
"""Long beside what a busy machine takes for a heartbeat, of which a lease has three."""


@pytest.fixture(autouse=True)
async def empty(request: pytest.FixtureRequest) -> None:
    """The shared servers still hold what other tests left."""
    for name in ("valkey", "valkey_node"):
        if name in request.fixturenames:
            async with RedisConnection(patient(request.getfixturevalue(name).url)) as redis:
                await redis.run(lambda client: client.flushall())


class FakeWorker:
    """What a worker would report."""

    def __init__(self, *residents: Resident) -> None:
        self.state = WorkerState.READY
        self.load = ReportedLoad(max_sequences=4)
        self.residents = residents
        self.observed = 0

    def observe(self) -> WorkerReport:
        self.observed += 1
        return WorkerReport(self.state, self.load, tuple(self.residents))


class Rig:
    """One registered worker and a reader of its own."""

    def __init__(self, fake: FakeWorker, registration: FleetMember, redis: RedisConnection, loops: Loops) -> None:
        self.fake, self.registration, self.redis, self.loops = fake, registration, redis, loops
        self.directory = Directory(redis)

    async def whole(self) -> bool:
        """Whether the fleet's picture is the worker's own."""
        try:
            workers = (await self.directory.workers(POOL)).workers
            if [record.info.worker_id for record in workers] != ["w-1"]:
                return False
            digests = [r.digest for r in self.fake.residents]
            found = await self.directory.placements(POOL, digests)
            return [p.resident for d in digests for p in found[d]] == list(self.fake.residents)
        except CoordinationUnavailableError:
            return False


@asynccontextmanager
async def rig(server: EmbeddedValkey, fake: FakeWorker, info: WorkerInfo | None = None) -> AsyncIterator[Rig]:
    options = RedisOptions(server.url, command_timeout_s=1.0)
    async with (
        RedisConnection(options) as redis,
        RedisConnection(options) as reader,
        Loops() as loops,
    ):
        registration = member_of(redis, info or worker(), fake.observe, lease_s=LEASE_S)
        loops.essential("member", registration.run, registration.leave)
        yield Rig(fake, registration, reader, loops)


async def test_it_registers_reports_and_leaves_nothing_behind(valkey: EmbeddedValkey) -> None:
    fake = FakeWorker(resident(1), resident(2, Tier.HOST, pinned=True))
    async with rig(valkey, fake) as it:
        await until_async(it.whole)
        await until(lambda: it.registration.connected)
        assert await it.directory.pools() == [POOL]
    assert not it.registration.connected
    async with RedisConnection(patient(valkey.url)) as redis:
        assert all(key.endswith((":changes", ":since", ":pools")) for key in await all_keys(redis))


async def test_the_lease_is_renewed_for_as_long_as_it_runs(valkey_node: EmbeddedValkey) -> None:
    async with rig(valkey_node, FakeWorker(resident(1))) as it:
        await until_async(it.whole)
        deadline = asyncio.get_running_loop().time() + LEASE_S * 1.5
        while asyncio.get_running_loop().time() < deadline:
            assert await it.whole()
            await asyncio.sleep(0.05)


async def test_a_nudge_brings_a_change_out_long_before_the_next_heartbeat(valkey_node: EmbeddedValkey) -> None:
    async with rig(valkey_node, FakeWorker(resident(1))) as it:
        await until_async(it.whole)
        it.fake.residents = (resident(1, Tier.HOST), resident(5))
        it.fake.state = WorkerState.DRAINING
        it.registration.nudge()
        await until_async(it.whole, timeout_s=LEASE_S / 4)
        (record,) = (await it.directory.workers(POOL)).workers
        assert record.state is WorkerState.DRAINING


async def test_nudges_at_any_rate_cost_a_bounded_number_of_heartbeats(valkey_node: EmbeddedValkey) -> None:
    async with rig(valkey_node, FakeWorker()) as it:
        await it.registration.until_connected()
        loop = asyncio.get_running_loop()
        before, began_s = it.fake.observed, loop.time()
        for _ in range(100):
            it.registration.nudge()
            await asyncio.sleep(0.002)
        assert it.fake.observed - before <= 5 + (loop.time() - began_s) / _MIN_INTERVAL_S


async def test_moves_between_slots_and_host_memory_are_told_with_the_heartbeats(valkey_node: EmbeddedValkey) -> None:
    async with rig(valkey_node, FakeWorker(resident(1), resident(2))) as it:
        await until_async(it.whole)
        (before,) = (await it.directory.workers(POOL)).workers
        ended_s = asyncio.get_running_loop().time() + LEASE_S
        moves = 0
        while asyncio.get_running_loop().time() < ended_s:
            moves += 1
            it.fake.residents = (resident(1, (Tier.SLOT, Tier.HOST)[moves % 2]), resident(2))
            it.registration.nudge()
            await asyncio.sleep(0.005)
        (after,) = (await it.directory.workers(POOL)).workers
        assert moves > 20
        assert after.residency_revision - before.residency_revision <= 5
        await until_async(it.whole, timeout_s=LEASE_S)


async def test_a_version_that_is_in_two_tiers_counts_in_the_faster_one(valkey_node: EmbeddedValkey) -> None:
    async with rig(valkey_node, FakeWorker(resident(1, Tier.HOST), resident(1, Tier.SLOT))) as it:
        await it.registration.until_connected()

        async def in_slot() -> bool:
            found = (await it.directory.placements(POOL, [digest(1)]))[digest(1)]
            return [p.resident.tier for p in found] == [Tier.SLOT]

        await until_async(in_slot)


async def test_a_flushed_redis_is_whole_again_within_one_lease(valkey: EmbeddedValkey) -> None:
    async with rig(valkey, FakeWorker(*(resident(n) for n in range(50)))) as it:
        await until_async(it.whole)
        await it.redis.run(lambda client: client.flushall())
        await until_async(it.whole, timeout_s=LEASE_S)


async def test_single_keys_that_were_lost_come_back_with_the_next_whole_report(valkey_node: EmbeddedValkey) -> None:
    async with rig(valkey_node, FakeWorker(resident(1))) as it:
        await until_async(it.whole)
        lost = [key for key in await all_keys(it.redis) if "placements" in key]
        await it.redis.run(lambda client: client.delete(*lost))
        assert not await it.whole()
        await until_async(it.whole, timeout_s=LEASE_S * 3)


async def test_a_redis_that_is_away_at_the_start_is_waited_for() -> None:
    with embedded_valkey() as server:
        pass
    async with rig(server, FakeWorker(resident(1))) as it:
        await until(lambda: it.fake.observed >= 2)
        assert not it.registration.connected
        with embedded_valkey(port=server.port):
            await until_async(it.whole, timeout_s=LEASE_S)
            await until(lambda: it.registration.connected)


async def test_a_restarted_redis_is_whole_again_within_one_lease() -> None:
    with embedded_valkey() as server:
        fake = FakeWorker(resident(1), resident(2))
        async with rig(server, fake) as it:
            await until_async(it.whole)
            os.kill(server.pid, signal.SIGKILL)
            await until(lambda: not it.registration.connected)
            with embedded_valkey(port=server.port):
                await until_async(it.whole, timeout_s=LEASE_S)
                await until(lambda: it.registration.connected)


async def test_a_redis_that_was_frozen_past_the_lease_is_whole_again_within_one_lease() -> None:
    with embedded_valkey() as server:
        async with rig(server, FakeWorker(resident(1))) as it:
            await until_async(it.whole)
            os.kill(server.pid, signal.SIGSTOP)
            await until(lambda: not it.registration.connected)
            await asyncio.sleep(LEASE_S)
            os.kill(server.pid, signal.SIGCONT)
            await until_async(it.whole, timeout_s=LEASE_S)
            await until(lambda: it.registration.connected)


async def test_leaving_while_redis_is_frozen_takes_bounded_time() -> None:
    with embedded_valkey() as server:
        async with asyncio.timeout(60):
            async with rig(server, FakeWorker()) as it:
                await it.registration.until_connected()
                os.kill(server.pid, signal.SIGSTOP)


async def test_a_worker_whose_place_was_taken_is_told(valkey_node: EmbeddedValkey) -> None:
    async with rig(valkey_node, FakeWorker(resident(1)), worker("w-1", epoch=1, endpoint="pod:1")) as it:
        await until_async(it.whole)
        newer = Member(it.redis, worker("w-2", epoch=2, endpoint="pod:1"))
        await newer.announce()
        error = await asyncio.wait_for(it.loops.until_failed(), LEASE_S)
        assert "epoch 2" in str(error)
        assert not it.registration.connected
    async with RedisConnection(patient(valkey_node.url)) as redis:
        workers = (await Directory(redis).workers(POOL)).workers
    assert [record.info.worker_id for record in workers] == ["w-2"]
