"""Leases, fencing, residency and the directory over a real Valkey, on one node and on a cluster."""

from typing import Any

import pytest
from structlog.testing import capture_logs

from hotslot.contract.control import WorkerState
from hotslot.contract.placement import Tier
from hotslot.errors import RevisionCompactedError, StaleEpochError
from shared.coordination.connection import RedisConnection
from shared.coordination.directory import Directory
from shared.coordination.keys import MAX_CHANGES, POOLS, PoolKeys
from shared.fleet.records import ReportedLoad
from tests.integration.coordination.fleet import LEASE_S, POOL, Member, all_keys, digest, joined, resident, worker
from tests.support.waiting import until_async

SHORT_LEASE_S = 5.0
"""Ends while a test waits for that, and not before a busy machine has looked at it."""


async def ids(directory: Directory) -> list[str]:
    return [record.info.worker_id for record in (await directory.workers(POOL)).workers]


async def test_a_worker_is_listed_as_it_announced_itself(redis: RedisConnection) -> None:
    load = ReportedLoad(3, 2, 8, 4, 16, 0.25)
    member = Member(redis, worker())
    await member.announce(WorkerState.DRAINING, load)
    view = await Directory(redis).workers(POOL)
    (record,) = view.workers
    assert record.info == worker()
    assert (record.state, record.load, record.residency_revision) == (WorkerState.DRAINING, load, 0)
    assert 0 < record.lease_expire_time_s - view.time_s <= LEASE_S


async def test_pools_are_never_mixed(redis: RedisConnection) -> None:
    other = digest(99)
    await joined(redis, "w-1", resident(1))
    await joined(redis, "w-2", resident(1), pool=other)
    directory = Directory(redis)
    assert await ids(directory) == ["w-1"]
    assert [r.info.worker_id for r in (await directory.workers(other)).workers] == ["w-2"]
    assert [p.worker_id for p in (await directory.placements(POOL, [digest(1)]))[digest(1)]] == ["w-1"]
    assert await directory.pools() == sorted([POOL, other])


async def test_a_lease_that_is_not_renewed_ends_and_its_placements_with_it(redis: RedisConnection) -> None:
    directory = Directory(redis)
    short = Member(redis, worker("w-short"), lease_s=SHORT_LEASE_S)
    await short.announce()
    await short.report(resident(1))
    await joined(redis, "w-long", resident(1))
    assert len((await directory.placements(POOL, [digest(1)]))[digest(1)]) == 2

    async def only_the_long_one() -> bool:
        return await ids(directory) == ["w-long"]

    await until_async(only_the_long_one)
    assert [p.worker_id for p in (await directory.placements(POOL, [digest(1)]))[digest(1)]] == ["w-long"]


async def test_a_neighbours_heartbeat_removes_what_a_dead_worker_left(redis: RedisConnection) -> None:
    dead = Member(redis, worker("w-dead"), lease_s=0.2)
    await dead.announce()
    await dead.report(resident(1), resident(2))
    neighbour = await joined(redis, "w-1")

    async def swept() -> bool:
        await neighbour.announce()
        return not any("w-dead" in key or "placements" in key for key in await all_keys(redis))

    await until_async(swept)


async def test_release_removes_every_trace_at_once(redis: RedisConnection) -> None:
    member = await joined(redis, "w-1", resident(1), resident(2))
    assert await member.release()
    left = await all_keys(redis)
    assert all(key.endswith((":changes", ":since", ":pools")) for key in left), left
    assert not await member.release()


async def test_an_older_start_at_the_same_endpoint_is_fenced_out(redis: RedisConnection) -> None:
    old = Member(redis, worker("w-old", epoch=1, endpoint="pod:1"))
    new = Member(redis, worker("w-new", epoch=2, endpoint="pod:1"))
    await old.announce()
    await old.report(resident(1))
    await new.announce()
    directory = Directory(redis)
    assert await ids(directory) == ["w-new"]
    assert (await directory.placements(POOL, [digest(1)]))[digest(1)] == ()
    with pytest.raises(StaleEpochError, match="epoch 2"):
        await old.announce()
    assert not await old.report(resident(1))
    assert not await old.release()
    assert await ids(directory) == ["w-new"]


async def test_an_older_start_that_was_forgotten_with_a_flush_is_fenced_out_again(redis: RedisConnection) -> None:
    old = Member(redis, worker("w-old", epoch=1, endpoint="pod:1"))
    new = Member(redis, worker("w-new", epoch=2, endpoint="pod:1"))
    await old.announce()
    await new.announce()
    await redis.run(lambda client: client.flushall())
    await old.announce()
    await new.announce()
    assert await ids(Directory(redis)) == ["w-new"]
    with pytest.raises(StaleEpochError, match="epoch 2"):
        await old.announce()


async def test_redis_says_since_when_it_has_known_a_pool_without_a_gap(redis: RedisConnection) -> None:
    directory = Directory(redis)

    async def since() -> str:
        view, placed = await directory.workers(POOL), await directory.placements_view(POOL, [digest(1)])
        assert view.since == placed.since
        assert 0 <= placed.time_s - view.time_s < LEASE_S
        return view.since

    assert await since() == ""
    first = await joined(redis, "w-1", resident(1))
    began = await since()
    await joined(redis, "w-2", resident(1))
    await first.release()
    assert await since() == began
    await redis.run(lambda client: client.flushall())
    assert await since() == ""
    await first.announce()
    assert await since() > began


async def test_the_longest_lease_says_for_how_long_a_pool_is_known(redis: RedisConnection) -> None:
    key = PoolKeys.of(POOL).since

    async def lives_ms() -> int:
        return int(await redis.run(lambda client: client.pttl(key)))

    short = Member(redis, worker("w-short"), lease_s=10.0)
    await short.announce()
    assert 0 < await lives_ms() < 10_000
    await joined(redis, "w-long")
    await short.announce()
    assert 10_000 < await lives_ms() < LEASE_S * 1_000


async def test_a_pool_is_known_for_as_long_as_anybody_may_believe_in_a_worker_that_left(redis: RedisConnection) -> None:
    member = await joined(redis, "w-1")
    (record,) = (await Directory(redis).workers(POOL)).workers
    await member.release()
    assert (
        await redis.run(lambda client: client.pexpiretime(PoolKeys.of(POOL).since)) >= record.lease_expire_time_s * 1e3
    )


async def test_another_process_cannot_use_a_worker_id_that_is_taken(redis: RedisConnection) -> None:
    owner = Member(redis, worker("w-1", epoch=1))
    await owner.announce()
    impostor = Member(redis, worker("w-1", epoch=2))
    with pytest.raises(StaleEpochError):
        await impostor.announce()
    assert not await impostor.report(resident(1))
    assert not await impostor.release()
    await owner.announce()


async def test_a_report_needs_a_lease(redis: RedisConnection) -> None:
    member = Member(redis, worker())
    assert not await member.report(resident(1))
    assert await all_keys(redis) == []


async def test_a_report_replaces_the_one_before(redis: RedisConnection) -> None:
    member = await joined(redis, "w-1", resident(1), resident(2, Tier.HOST, pinned=True))
    directory = Directory(redis)
    found = await directory.placements(POOL, [digest(2), digest(1), digest(3)])
    assert [p.resident for p in found[digest(2)]] == [resident(2, Tier.HOST, pinned=True)]
    assert found[digest(3)] == ()
    assert await member.announce() == 1
    await member.report(resident(2, Tier.SLOT), resident(3))
    found = await directory.placements(POOL, [digest(1), digest(2), digest(3)])
    assert found[digest(1)] == ()
    assert [p.resident.tier for p in found[digest(2)]] == [Tier.SLOT]
    assert {p.resident.digest for p in await directory.residency(POOL, member.info.worker_id)} == {digest(2), digest(3)}
    assert await member.announce() == 2


async def test_thousands_of_residents_fit_in_one_report(redis: RedisConnection) -> None:
    member = await joined(redis, "w-1", *(resident(n) for n in range(3000)))
    assert len(await Directory(redis).residency(POOL, member.info.worker_id)) == 3000
    await member.report()
    assert await Directory(redis).residency(POOL, member.info.worker_id) == ()


async def test_every_key_expires(redis: RedisConnection) -> None:
    directory = Directory(redis)
    await directory.revision(POOL)
    member = await joined(redis, "w-1", resident(1), resident(2))
    await joined(redis, "w-2", resident(2))
    await member.report(resident(2), resident(3))
    await directory.changes(POOL, await directory.revision(POOL))
    keys = await all_keys(redis)
    assert all(key.startswith(PoolKeys.of(POOL).prefix + ":") for key in keys if key != POOLS), "one slot for a pool"
    kinds = {key.split("}:")[1].split(":")[0] for key in keys}
    assert kinds == {"worker", "endpoint", "leases", "residency", "placements", "changes", "since", "pools"}

    async def lives_ms(client: Any) -> dict[str, int]:
        return {key: await client.pttl(key) for key in keys}

    lives = await redis.run(lives_ms)
    assert all(0 < life_ms <= LEASE_S * 8 * 1000 for life_ms in lives.values()), lives


async def test_changes_follow_a_revision_in_order_and_without_gaps(redis: RedisConnection) -> None:
    directory = Directory(redis)
    start = await directory.revision(POOL)
    member = await joined(redis, "w-1", resident(1))
    await member.report(resident(1, Tier.HOST), resident(2))
    await member.release()
    read = await directory.changes(POOL, start)
    seen = [(c.digest, c.before and c.before.tier, c.after and c.after.tier) for c in read.changes]
    assert seen[0] == (digest(1), None, Tier.SLOT)
    assert set(seen[1:3]) == {(digest(1), Tier.SLOT, Tier.HOST), (digest(2), None, Tier.SLOT)}
    assert set(seen[3:]) == {(digest(1), Tier.HOST, None), (digest(2), Tier.SLOT, None)}
    revisions = [c.revision for c in read.changes]
    assert revisions == sorted(revisions)
    assert revisions[0] > start
    assert revisions[-1] == read.next_revision == await directory.revision(POOL)
    assert (await directory.changes(POOL, read.next_revision)).changes == ()
    assert read.settled_revision >= read.next_revision


async def test_an_unchanged_report_changes_nothing_for_watchers(redis: RedisConnection) -> None:
    directory = Directory(redis)
    member = await joined(redis, "w-1", resident(1))
    start = await directory.revision(POOL)
    await member.report(resident(1))
    await member.announce()
    assert (await directory.changes(POOL, start)).changes == ()


async def test_a_watcher_learns_that_its_revision_is_gone(redis: RedisConnection) -> None:
    directory = Directory(redis)
    member = await joined(redis, "w-1", resident(1))
    start = await directory.revision(POOL)
    await redis.run(lambda client: client.flushall())
    with pytest.raises(RevisionCompactedError):
        await directory.changes(POOL, start)
    await member.announce()
    await member.report(resident(1))
    with pytest.raises(RevisionCompactedError):
        await directory.changes(POOL, start)


async def test_history_is_bounded_and_says_when_it_was_cut(redis: RedisConnection) -> None:
    directory, keys = Directory(redis), PoolKeys.of(POOL)
    member = await joined(redis, "w-1", resident(0))
    start = await directory.revision(POOL)
    filler = f"""
        for i = 1, {MAX_CHANGES - 5} do
          redis.call('XADD', KEYS[1], '*', 'worker', 'w', 'changes', '[]')
        end"""
    await redis.run(lambda client: client.eval(filler, 1, keys.changes))
    assert (await directory.changes(POOL, start)).more
    for number in range(10):
        await member.report(resident(number))
    assert await redis.run(lambda client: client.xlen(keys.changes)) == MAX_CHANGES
    with pytest.raises(RevisionCompactedError):
        await directory.changes(POOL, start)


async def test_watching_alone_notices_that_the_last_worker_died(redis: RedisConnection) -> None:
    directory = Directory(redis)
    start = await directory.revision(POOL)
    last = Member(redis, worker(), lease_s=0.2)
    await last.announce()
    await last.report(resident(1))

    async def ended() -> bool:
        return [c.after for c in (await directory.changes(POOL, start)).changes][-1:] == [None]

    await until_async(ended)


@pytest.mark.parametrize("endpoint", ["fd00::1:7500", "nonsense", "0.0.0.0:7500", "host:0", "[fe80::1%eth0]:7500"])
async def test_a_worker_whose_address_nobody_can_dial_is_left_out_and_logged_once(
    redis: RedisConnection, endpoint: str
) -> None:
    await Member(redis, worker("w-0", endpoint=endpoint)).announce()
    await joined(redis, "w-1")
    directory = Directory(redis)
    with capture_logs() as logs:
        assert await ids(directory) == ["w-1"]
        assert await ids(directory) == ["w-1"]
    (entry,) = logs
    assert (entry["event"], entry["worker_id"]) == ("worker_left_out", "w-0")
    assert endpoint in entry["why"]
