"""What lies under our keys in another type or form is passed over by readers and replaced by the next heartbeat."""

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from hotslot.contract.control import WorkerState
from hotslot.errors import RevisionCompactedError
from hotslot.ids import WorkerId
from hotslot.local.embedded_valkey import EmbeddedValkey
from shared.coordination.connection import RedisConnection
from shared.coordination.directory import Directory
from shared.coordination.keys import POOLS, PoolKeys
from shared.fleet.records import ReportedLoad, WorkerReport
from shared.loops import Loops
from tests.integration.coordination.fleet import POOL, Member, digest, joined, member_of, resident, worker
from tests.support.patient_redis import patient
from tests.support.waiting import until_async

KEYS = PoolKeys.of(POOL)
WORKER_ID = WorkerId("w-1")
BY_NAME: dict[str, tuple[str, str]] = {
    "worker": (KEYS.worker(WORKER_ID), "hash"),
    "endpoint": (KEYS.endpoint("w-1:50052"), "hash"),
    "since": (KEYS.since, "string"),
    "leases": (KEYS.leases, "zset"),
    "residency": (KEYS.residency(WORKER_ID), "hash"),
    "placements": (KEYS.placements(digest(1)), "hash"),
    "changes": (KEYS.changes, "stream"),
    "pools": (POOLS, "zset"),
}
FOREIGN: dict[str, list[Any]] = {
    "string": ["SET", "garbage"],
    "hash": ["HSET", "garbage", "garbage"],
    "zset": ["ZADD", "7", "garbage"],
    "stream": ["XADD", "*", "garbage", "garbage"],
    "list": ["RPUSH", "garbage"],
    "set": ["SADD", "garbage"],
}
GARBAGE = (
    b"", b"garbage", b"\xff\xfe\x00", b"null", b"[]", b"{}", b"-1", b"1.5", b"1e999", b"NaN", b"9" * 40, b"[" * 5000,
    b'{"worker_id": 5, "endpoint": [], "epoch": "x"}', b'["slot", 0, 5, {}]', b'["slot", 0, "t", "n", 1e400, 7]',
    b'["slot", 0, "\\ud800", "n"]', b'[["sha256:x", "", "y"]]', b"[[1, 2, 3]]", b'[["a", "b"]]',
)  # fmt: skip


def test_every_key_that_is_built_is_tried() -> None:
    built = {name for name in vars(PoolKeys) if not name.startswith("_")} - {"prefix", "of"}
    assert set(BY_NAME) == built | {"pools"}


async def command(redis: RedisConnection, *words: Any) -> Any:
    return await redis.run(lambda client: client.execute_command(*words))


async def put_foreign(redis: RedisConnection, key: str, kind: str) -> None:
    name, *rest = FOREIGN[kind]
    await command(redis, "DEL", key)
    await command(redis, name, key, *rest)


async def read_all(directory: Directory, member: Member) -> None:
    """Every read; none may fail, whatever it finds."""
    await directory.pools()
    await directory.workers(POOL)
    await directory.placements(POOL, [digest(1), digest(2)])
    await directory.residency(POOL, member.info.worker_id)
    try:
        await directory.changes(POOL, 0)
    except RevisionCompactedError:
        await directory.changes(POOL, await directory.revision(POOL))


async def beat(member: Member) -> None:
    """A heartbeat, with the report that it asks for."""
    known = await member.announce()
    if known != member.revision:
        await member.touch_pool()
        await member.report(resident(1), resident(2))


async def is_whole(directory: Directory) -> bool:
    workers = (await directory.workers(POOL)).workers
    placements = await directory.placements(POOL, [digest(1), digest(2)])
    residency = await directory.residency(POOL, WORKER_ID)
    return (
        [record.info.worker_id for record in workers] == [WORKER_ID]
        and [[p.resident for p in placements[digest(n)]] for n in (1, 2)] == [[resident(1)], [resident(2)]]
        and {p.resident.digest for p in residency} == {digest(1), digest(2)}
        and await directory.pools() == [POOL]
    )


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("name", BY_NAME)
async def test_another_type_is_passed_over_and_replaced(redis: RedisConnection, name: str, kind: str) -> None:
    key, own = BY_NAME[name]
    member = await joined(redis, WORKER_ID, resident(1), resident(2))
    directory = Directory(redis)
    assert await command(redis, "TYPE", key) == own
    await put_foreign(redis, key, kind)
    with capture_logs() as logs:
        for _ in range(3):
            await read_all(directory, member)
    told = [entry for entry in logs if entry["event"] == "unreadable_in_redis"]
    assert len(told) == len({entry["place"] for entry in told}), "each place is told of once"
    if kind == "list" and name in ("worker", "leases", "residency", "placements"):
        assert told
    await beat(member)
    if name in ("placements", "pools"):
        # These are written by reports alone.
        await member.touch_pool()
        await member.report(resident(1), resident(2))
    await member.report(resident(1), resident(2), resident(3))
    await member.report(resident(1), resident(2))
    assert await is_whole(directory)
    assert await command(redis, "TYPE", key) == own
    assert await command(redis, "PTTL", key) > 0
    await directory.changes(POOL, await directory.revision(POOL))
    assert await member.release()


async def fields_of(redis: RedisConnection, key: str, own: str) -> list[str]:
    found: list[str] = await command(redis, "HKEYS", key) if own == "hash" else []
    return [*found, "foreign"]


async def spoil(redis: RedisConnection, key: str, own: str, name: str, garbage: bytes) -> None:
    """Write garbage into a key of the right type, which expires as before."""
    if own == "hash":
        await command(redis, "HSET", key, name, garbage)
    elif own == "string":
        await command(redis, "SET", key, garbage, "KEEPTTL")
    elif own == "zset":
        await command(redis, "ZADD", key, "+inf", garbage)
        await command(redis, "ZADD", key, "-inf", WORKER_ID if key == KEYS.leases else POOL)
    else:
        await command(redis, "XADD", key, "*", "worker", garbage, "changes", garbage)
        await command(redis, "XADD", key, "*", garbage, garbage)


@pytest.mark.parametrize("name", BY_NAME)
async def test_other_bytes_are_passed_over_and_replaced(redis: RedisConnection, name: str) -> None:
    key, own = BY_NAME[name]
    member = await joined(redis, WORKER_ID, resident(1), resident(2))
    directory = Directory(redis)
    for field in await fields_of(redis, key, own):
        for garbage in GARBAGE:
            await spoil(redis, key, own, field, garbage)
            await read_all(directory, member)
            await beat(member)
            await member.touch_pool()
            assert await member.report(resident(1), resident(2)), (field, garbage)
            await read_all(directory, member)
            assert await is_whole(directory), (field, garbage)


async def test_a_stream_that_ends_in_a_far_future_is_begun_anew(redis: RedisConnection) -> None:
    member = await joined(redis, WORKER_ID, resident(1))
    await command(redis, "XADD", KEYS.changes, f"{2**64 - 1}-{2**64 - 1}", "worker", "x", "changes", "[]")
    assert await member.report(resident(2))
    directory = Directory(redis)
    revision = await directory.revision(POOL)
    assert revision < 2**63
    assert await member.report(resident(3))
    read = await directory.changes(POOL, revision)
    assert {change.digest for change in read.changes} == {digest(2), digest(3)}


@pytest.mark.parametrize("name", ["worker", "endpoint", "since"])
async def test_what_never_ends_is_not_ours(redis: RedisConnection, name: str) -> None:
    key, _ = BY_NAME[name]
    member = await joined(redis, WORKER_ID, resident(1))
    await command(redis, "PERSIST", key)
    if name != "since":
        await command(redis, "HSET", key, "epoch", 2**60, "token", "another", "worker_id", "another")
    await member.announce()
    assert 0 < await command(redis, "PTTL", key) <= 30_000


@pytest.mark.parametrize("name", BY_NAME)
async def test_the_heartbeats_of_a_registered_worker_replace_it(valkey_node: EmbeddedValkey, name: str) -> None:
    key, own = BY_NAME[name]
    lease_s = 0.9
    report = WorkerReport(WorkerState.READY, ReportedLoad(max_sequences=4), (resident(1), resident(2)))
    async with RedisConnection(patient(valkey_node.url)) as redis:
        await command(redis, "FLUSHALL")
        directory = Directory(redis)
        async with Loops() as loops:
            member = member_of(redis, worker(WORKER_ID), lambda: report, lease_s=lease_s)
            loops.essential("member", member.run, member.leave)

            async def is_ours() -> bool:
                # There is no stream while nothing changes.
                kinds = (own, "none") if name == "changes" else (own,)
                return await is_whole(directory) and await command(redis, "TYPE", key) in kinds

            await until_async(is_ours)
            await put_foreign(redis, key, "list")
            fenced = asyncio.create_task(loops.until_failed())
            await until_async(is_ours)
            assert not fenced.done()
            fenced.cancel()
