"""Signed records in a real Redis: of both ages side by side, replayed, rotated, and claims that fence or do not."""

import asyncio
import itertools
import time
from pathlib import Path
from typing import Any

import pytest

from hotslot.contract.control import WorkerState
from hotslot.contract.placement import Tier
from hotslot.errors import StaleEpochError
from hotslot.ids import WorkerId
from shared.coordination.belief import MAX_SKEW_S
from shared.coordination.connection import RedisConnection
from shared.coordination.directory import Directory
from shared.coordination.directory_functions import MAX_TEXT_BYTES
from shared.coordination.keys import PoolKeys
from shared.coordination.member import FleetMember
from shared.coordination.member_functions import claims, overrule
from shared.coordination.seals import Doubt, RecordSeals
from shared.fleet.records import ReportedLoad, WorkerReport
from shared.pool_secret import PoolSecret
from tests.integration.coordination.fleet import LEASE_S, POOL, Member, digest, joined, member_of, put, resident, worker
from tests.integration.coordination.test_rolling_update import INFO, RESIDENTS, earlier
from tests.support.forger import secret_in
from tests.support.waiting import until, until_async

KEYS = PoolKeys.of(POOL)
RESIDENT = resident(1)


def seals_of_lines(folder: Path, *names: str, **kwargs: Any) -> RecordSeals:
    path = folder / ("-".join(names) + ".secrets")
    path.write_text("\n".join(f"{name:*<40}" for name in names), "utf-8")
    return RecordSeals(PoolSecret(path), **kwargs)


@pytest.fixture
def seals(tmp_path: Path) -> RecordSeals:
    return RecordSeals(PoolSecret(secret_in(tmp_path)))


def signing(
    redis: RedisConnection,
    seals: RecordSeals,
    name: str,
    *,
    epoch: int = 1,
    lease_s: float = LEASE_S,
    endpoint: str | None = None,
) -> FleetMember:
    report = WorkerReport(WorkerState.READY, ReportedLoad(), ())
    info = worker(name, epoch=epoch, endpoint=endpoint)
    return member_of(redis, info, lambda: report, lease_s=lease_s, seals=seals)


async def beat(member: FleetMember) -> None:
    await member.announce(WorkerState.READY, ReportedLoad())
    assert await member.report([RESIDENT], 1)


async def ids(directory: Directory) -> list[str]:
    return [record.info.worker_id for record in (await directory.workers(POOL)).workers]


async def holders(directory: Directory) -> list[str]:
    found = (await directory.placements(POOL, [digest(1)]))[digest(1)]
    assert all(p.resident == RESIDENT for p in found)
    return sorted(p.worker_id for p in found)


async def test_signed_and_unsigned_workers_share_a_pool_while_it_is_given_its_secret(
    redis: RedisConnection, seals: RecordSeals, tmp_path: Path
) -> None:
    await beat(signing(redis, seals, "w-signed"))
    await joined(redis, "w-unsigned", RESIDENT)
    both = ["w-signed", "w-unsigned"]
    without = Directory(redis)
    lenient = Directory(redis, RecordSeals(PoolSecret(secret_in(tmp_path)), believes_unsigned=True))
    for directory in (without, lenient):
        assert await ids(directory) == both
        assert await holders(directory) == both
    strict = Directory(redis, seals)
    assert await ids(strict) == ["w-signed"]
    assert await holders(strict) == ["w-signed"]
    assert strict.doubts == {Doubt.UNSIGNED: 2}
    refused = [each for each in redis.readings() if each.name == "hotslot_redis_records_refused_total"]
    assert [(each.labels, each.value) for each in refused] == [(("unsigned",), 2)]


async def test_the_earlier_release_and_readers_without_a_secret_pass_signatures_over(
    redis: RedisConnection, seals: RecordSeals
) -> None:
    """The earlier release's scripts hand out our texts as they are, and its decoding is that of a reader without."""
    it = Member(redis, INFO, seals=seals)
    await it.announce()
    await it.report(*RESIDENTS)
    assert any(f'"worker_id":"{INFO.worker_id}"' in str(part) for part in await earlier(redis, "workers"))
    without = Directory(redis)
    (record,) = (await without.workers(POOL)).workers
    assert (record.info, record.load) == (INFO, ReportedLoad())
    assert {p.resident for p in await without.residency(POOL, INFO.worker_id)} == set(RESIDENTS)


async def test_a_watcher_is_told_what_is_signed_alone(redis: RedisConnection, seals: RecordSeals) -> None:
    directory = Directory(redis, seals)
    start = await directory.revision(POOL)
    await joined(redis, "w-unsigned", RESIDENT)
    member = signing(redis, seals, "w-signed")
    await beat(member)
    read = await directory.changes(POOL, start)
    assert [(c.worker_id, c.before, c.after) for c in read.changes] == [("w-signed", None, RESIDENT)]
    await member.report([resident(1, Tier.HOST)], 2)
    await member.release()
    later = (await directory.changes(POOL, read.next_revision)).changes
    host = resident(1, Tier.HOST)
    assert [(c.before, c.after) for c in later] == [(RESIDENT, host), (host, None)]


async def test_the_record_of_a_worker_that_is_gone_is_believed_no_longer_than_its_lease(
    redis: RedisConnection, seals: RecordSeals
) -> None:
    """Its address may be another's by then."""
    now_s = [0.0]
    directory = Directory(redis, seals, lambda: now_s[0])
    member = signing(redis, seals, "w-gone")
    await beat(member)
    assert await ids(directory) == ["w-gone"]
    key = KEYS.worker(WorkerId("w-gone"))
    kept = await redis.run(lambda client: client.hgetall(key))
    await beat(member)
    assert await ids(directory) == ["w-gone"]
    newest = await redis.run(lambda client: client.hgetall(key))
    await member.release()
    assert await ids(directory) == []

    async def show(fields: dict[str, str]) -> None:
        await redis.run(lambda client: client.hset(key, mapping={**fields, "lease_until_ms": str(10**14)}))
        await redis.run(lambda client: client.zadd(KEYS.leases, {"w-gone": 10**14}))

    now_s[0] += 5
    await show(kept)
    assert await ids(directory) == []
    assert directory.doubts[Doubt.REPLAYED] == 1
    await show(newest)
    assert await ids(directory) == ["w-gone"], "its lease could still run"
    now_s[0] += LEASE_S
    assert await ids(directory) == []
    assert directory.doubts[Doubt.SILENT] == 1
    await redis.run(lambda client: client.delete(key, KEYS.leases))


async def test_a_signed_newer_start_fences_and_an_unsigned_one_does_not(
    redis: RedisConnection, seals: RecordSeals
) -> None:
    older = signing(redis, seals, "w-old", epoch=5, endpoint="pod:1")
    await beat(older)
    # Unsigned, and larger than any epoch.
    await Member(redis, worker("w-false", epoch=2**52, endpoint="pod:1")).announce()
    await beat(older)
    directory = Directory(redis, seals)
    assert await ids(directory) == ["w-old"]
    newer = signing(redis, seals, "w-new", epoch=6, endpoint="pod:1")
    await beat(newer)
    with pytest.raises(StaleEpochError, match="epoch 6"):
        await older.announce(WorkerState.READY, ReportedLoad())
    assert await ids(directory) == ["w-new"]


async def test_a_signed_claim_from_long_ago_does_not_fence(redis: RedisConnection, seals: RecordSeals) -> None:
    """A record of a start that has ended, which Redis was asked to keep."""
    older = signing(redis, seals, "w-old", epoch=5, endpoint="pod:1")
    then = RecordSeals(seals._secret, clock=lambda: time.time() - LEASE_S - MAX_SKEW_S - 1)
    await beat(signing(redis, then, "w-new", epoch=6, endpoint="pod:1"))
    await beat(older)
    assert await ids(Directory(redis, seals)) == ["w-old"]


async def test_a_claim_for_another_place_or_without_a_larger_epoch_does_not_fence(
    redis: RedisConnection, seals: RecordSeals
) -> None:
    mine = signing(redis, seals, "w-mine", epoch=5, endpoint="pod:1")
    await beat(signing(redis, seals, "w-elsewhere", epoch=9, endpoint="pod:2"))
    await beat(signing(redis, seals, "w-older", epoch=4, endpoint="pod:3"))
    for holder in ("w-elsewhere", "w-older"):
        await put(redis, KEYS.endpoint("pod:1"), {"worker_id": holder, "epoch": 99})
        await beat(mine)
    assert "w-mine" in await ids(Directory(redis, seals))


async def test_a_start_that_claims_the_place_while_another_claim_is_judged_keeps_it(
    redis: RedisConnection, seals: RecordSeals
) -> None:
    mine = worker("w-old", epoch=5, endpoint="pod:1")
    await Member(redis, worker("w-false", epoch=2**52, endpoint="pod:1")).announce()
    endpoint = KEYS.endpoint(mine.endpoint)
    place: dict[str, Any] = {"worker": KEYS.worker(mine.worker_id), "endpoint": endpoint, "prefix": KEYS.prefix}
    held, there = await claims(redis, **place, worker_id=mine.worker_id, max_bytes=MAX_TEXT_BYTES)
    await redis.run(lambda client: client.delete(endpoint))
    await beat(signing(redis, seals, "w-new", epoch=6, endpoint="pod:1"))
    judged: dict[str, Any] = {"held_token": held.token, "held_epoch": held.epoch, "held_load": held.load}
    judged |= {"there_id": there.worker_id, "there_epoch": there.epoch, "there_load": there.load}
    await overrule(redis, **place, token="mine", **judged, max_bytes=MAX_TEXT_BYTES)
    assert await redis.run(lambda client: client.hget(endpoint, "worker_id")) == "w-new"
    with pytest.raises(StaleEpochError, match="epoch 6"):
        await signing(redis, seals, "w-old", epoch=5, endpoint="pod:1").announce(WorkerState.READY, ReportedLoad())


async def test_while_the_secret_is_changed_every_worker_is_believed_at_every_step(
    redis: RedisConnection, tmp_path: Path
) -> None:
    """All workers and readers at one stage or the next, as a rollout leaves them."""
    stages = [seals_of_lines(tmp_path, *names) for names in (["old"], ["old", "new"], ["new", "old"], ["new"])]
    for now, after in itertools.pairwise(stages):
        await redis.run(lambda client: client.flushall())
        await beat(signing(redis, now, "w-1"))
        await beat(signing(redis, after, "w-2"))
        for reader in (now, after):
            assert await ids(Directory(redis, reader)) == ["w-1", "w-2"]
            assert await holders(Directory(redis, reader)) == ["w-1", "w-2"]
    await redis.run(lambda client: client.flushall())
    await beat(signing(redis, stages[0], "w-1"))
    assert await ids(Directory(redis, stages[-1])) == []


async def test_one_reader_follows_the_secret_as_its_file_changes(redis: RedisConnection, tmp_path: Path) -> None:
    path = tmp_path / "pool.secret"
    path.write_text(f"{'old':*<40}\n", "utf-8")
    directory = Directory(redis, RecordSeals(PoolSecret(path)))
    await beat(signing(redis, seals_of_lines(tmp_path, "new"), "w-1"))
    assert await holders(directory) == []
    path.write_text(f"{'new':*<40}\n{'old':*<40}\n", "utf-8")

    async def is_believed() -> bool:
        return await holders(directory) == ["w-1"] and await ids(directory) == ["w-1"]

    await until_async(is_believed)
    path.write_text(f"{'another':*<40}\n", "utf-8")

    async def is_refused() -> bool:
        return await holders(directory) == []

    await until_async(is_refused)


async def test_heartbeats_overrule_a_claim_that_is_repeated_all_the_time(
    redis: RedisConnection, seals: RecordSeals
) -> None:
    member = signing(redis, seals, "w-1", lease_s=1.0)
    task = asyncio.create_task(member.run())
    await member.until_connected()
    false = Member(redis, worker("w-false", epoch=2**52, endpoint="w-1:50052"))
    for _ in range(20):
        await false.announce()
        member.nudge()
        await asyncio.sleep(0.05)
    assert not task.done()
    await until(lambda: member.connected)
    directory = Directory(redis, seals)
    await until_async(lambda: has(directory, "w-1"))
    await member.leave()
    await task


async def has(directory: Directory, worker_id: str) -> bool:
    return worker_id in await ids(directory)
