"""Workers, residents and digests for the tests of coordination."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from hotslot.contract.control import WorkerState
from hotslot.contract.placement import Tier
from hotslot.ids import Digest, WorkerId, digest_of
from shared.coordination.connection import RedisConnection
from shared.coordination.member import FleetMember
from shared.coordination.seals import RecordSeals
from shared.fleet.records import ReportedLoad, Resident, WorkerInfo, WorkerReport
from shared.loops import Loops

POOL = digest_of(b"base")
LEASE_S = 30.0


def digest(number: int) -> Digest:
    return digest_of(b"adapter %d" % number)


def resident(number: int, tier: Tier = Tier.SLOT, **kwargs: Any) -> Resident:
    return Resident(digest(number), tier, name=f"acme/a{number}", **kwargs)


def worker(name: str = "w-1", *, epoch: int = 1, endpoint: str | None = None, pool: Digest = POOL) -> WorkerInfo:
    return WorkerInfo(
        worker_id=WorkerId(name),
        endpoint=endpoint or f"{name}:50052",
        base_model_digest=pool,
        base_model="org/model",
        dtype="bfloat16",
        slot_rank=16,
        start_time_s=1_700_000_000.5,
        epoch=epoch,
    )


async def issued(epoch: int) -> int:
    return epoch


def member_of(
    redis: RedisConnection,
    info: WorkerInfo,
    observe: Callable[[], WorkerReport],
    *,
    lease_s: float = LEASE_S,
    seals: RecordSeals | None = None,
) -> FleetMember:
    """A member whose epoch is the one that its info has already."""
    return FleetMember(redis, info, lambda: issued(info.epoch), observe, lease_s=lease_s, seals=seals)


class Member:
    """A worker's write side, driven by hand."""

    def __init__(
        self, redis: RedisConnection, info: WorkerInfo, *, lease_s: float = LEASE_S, seals: RecordSeals | None = None
    ) -> None:
        self.info = info
        report = WorkerReport(WorkerState.READY, ReportedLoad(), ())
        self.fleet_member = member_of(redis, info, lambda: report, lease_s=lease_s, seals=seals)
        self.describe, self.touch_pool = self.fleet_member.describe, self.fleet_member.touch_pool
        self.release = self.fleet_member.release
        self.token = self.fleet_member._token
        self.revision = 0

    async def announce(self, state: WorkerState = WorkerState.READY, load: ReportedLoad | None = None) -> int:
        return (await self.fleet_member.announce(state, load or ReportedLoad())).residency_revision

    async def report(self, *residents: Resident) -> bool:
        self.revision += 1
        return await self.fleet_member.report(residents, self.revision)


@asynccontextmanager
async def beating(member: FleetMember) -> AsyncIterator[FleetMember]:
    """A member whose heartbeats run until the block is left."""
    async with Loops() as loops:
        loops.essential("member", member.run, member.leave)
        yield member


async def joined(redis: RedisConnection, name: str, *residents: Resident, **kwargs: Any) -> Member:
    member = Member(redis, worker(name, **kwargs))
    await member.announce()
    await member.touch_pool()
    await member.report(*residents)
    return member


async def all_keys(redis: RedisConnection) -> list[str]:
    async def scan(client: Any) -> list[str]:
        return sorted([key async for key in client.scan_iter("*")])

    return await redis.run(scan)


async def put(redis: RedisConnection, key: str, fields: Mapping[str, Any]) -> None:
    """Write fields of a hash by hand; it ends with the test's lease."""

    async def write(client: Any) -> None:
        await client.hset(key, mapping=fields)
        await client.pexpire(key, round(LEASE_S * 1e3))

    await redis.run(write)
