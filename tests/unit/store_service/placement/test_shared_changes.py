"""However many watch a pool, it is read once a time, and each watch gets what it would have read."""

import asyncio
from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hotslot.ids import Digest, WorkerId
from shared.coordination.directory import ChangesRead
from shared.fleet.records import PlacementChange
from store_service.placement.shared_changes import FRESH_S, SharedChanges

POOL = Digest(f"sha256:{1:064x}")


class Pool:
    """Changes of one pool, and how often they were read."""

    def __init__(self, *revisions: int) -> None:
        self.revisions = list(revisions)
        self.reads: Counter[int] = Counter()

    async def revision(self, pool: Digest) -> int:
        return max(self.revisions, default=0)

    async def changes(self, pool: Digest, after: int) -> ChangesRead:
        self.reads[after] += 1
        new = [revision for revision in self.revisions if revision > after]
        found = tuple(PlacementChange(revision, WorkerId("w"), POOL, None, None) for revision in new)
        await asyncio.sleep(0)
        newest = found[-1].revision if found else after
        return ChangesRead(found, newest, max(newest, 1_000), False)


def shared(pool: Any) -> tuple[SharedChanges, list[float]]:
    now = [0.0]
    return SharedChanges(pool, lambda: now[0]), now


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(0, 40))
async def test_a_hundred_watches_wherever_they_begin_read_a_pool_once(begins: list[int], newest: int) -> None:
    pool = Pool(*range(1, newest + 1))
    changes, _ = shared(pool)
    found = await asyncio.gather(*(changes(POOL, begin) for begin in begins))
    for begin, read in zip(begins, found, strict=True):
        assert [change.revision for change in read.changes] == list(range(begin + 1, newest + 1))
        assert read.next_revision == max(begin, newest)
    assert sum(count for after, count in pool.reads.items() if after >= newest) <= 1
    again = await asyncio.gather(*(changes(POOL, read.next_revision) for read in found))
    assert not any(read.changes for read in again)
    assert sum(count for after, count in pool.reads.items() if after >= newest) <= 1


async def test_what_comes_is_read_once_it_is_due() -> None:
    pool = Pool(5)
    changes, now = shared(pool)
    positions = [5] * 20
    for revision in (7, 9, 12):
        pool.revisions.append(revision)
        now[0] += FRESH_S
        found = await asyncio.gather(*(changes(POOL, position) for position in positions))
        assert {tuple(change.revision for change in read.changes) for read in found} == {(revision,)}
        positions = [read.next_revision for read in found]
    assert pool.reads.total() == 3
