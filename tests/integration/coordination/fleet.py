"""Workers, residents and digests for the tests of coordination."""

from typing import Any

from hotslot.ids import Digest, WorkerId, digest_of
from shared.coordination.connection import RedisConnection
from shared.coordination.membership import Membership
from shared.coordination.residency import Residency
from shared.fleet.records import Resident, Tier, WorkerInfo, WorkerLoad, WorkerState

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


class Member:
    """A worker's write side, driven by hand."""

    def __init__(self, redis: RedisConnection, info: WorkerInfo, *, lease_s: float = LEASE_S, token: str = "") -> None:
        self.info = info
        token = token or f"token of {info.worker_id} {info.epoch}"
        self.membership = Membership(redis, info, token, lease_s=lease_s)
        self.residency = Residency(redis, info, token, lease_s=lease_s)
        self.revision = 0

    async def announce(self, state: WorkerState = WorkerState.READY, load: WorkerLoad | None = None) -> int:
        return (await self.membership.announce(state, load or WorkerLoad())).residency_revision

    def describe(self, info: WorkerInfo) -> None:
        self.membership.describe(info)

    async def touch_pool(self) -> None:
        await self.membership.touch_pool()

    async def report(self, *residents: Resident) -> bool:
        self.revision += 1
        return await self.residency.report(residents, self.revision)

    async def release(self) -> bool:
        return await self.membership.release()


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
