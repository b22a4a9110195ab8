"""A watch over several pools sends changes so that every revision can be resumed from."""

from contextlib import aclosing
from typing import Any

from hotslot.ids import DEFAULT_TENANT, Digest, WorkerId
from shared.coordination.directory import ChangesRead
from shared.fleet.records import PlacedVersion, PlacementChange, PoolView
from store_service.placement.watch import WatchEvent, watch_placements
from tests.integration.coordination.fleet import POOL, digest, resident

OTHER_POOL = digest(999)


def change(revision: int, number: int) -> PlacementChange:
    return PlacementChange(revision, WorkerId("w-1"), digest(number), None, resident(number))


class ScriptedDirectory:
    """Answers each read of a pool's changes with the next prepared one, then with nothing new."""

    def __init__(self, reads: dict[Digest, list[ChangesRead]]) -> None:
        self._reads = reads

    async def revision(self, pool: Digest) -> int:
        return 1

    async def workers(self, pool: Digest) -> PoolView:
        return PoolView((), 0.0, "")

    async def residency(self, pool: Digest, worker_id: WorkerId) -> tuple[PlacedVersion, ...]:
        return ()

    async def changes(self, pool: Digest, after: int) -> ChangesRead:
        reads = self._reads[pool]
        return reads.pop(0) if reads else ChangesRead((), after, 1_000, False)


async def watched(reads: dict[Digest, list[ChangesRead]], count: int) -> list[tuple[int, Digest]]:
    directory: Any = ScriptedDirectory(reads)

    async def pools() -> list[Digest]:
        return [POOL, OTHER_POOL]

    events: list[WatchEvent] = []
    async with aclosing(watch_placements(directory, pools, DEFAULT_TENANT, 1, poll_s=0)) as watch:
        async for event in watch:
            events.append(event)
            if len(events) == count:
                break
    return [(event.revision, event.placement.resident.digest) for event in events]


async def test_a_change_waits_for_a_pool_that_may_still_have_an_earlier_one() -> None:
    reads = {
        # The first pool was read at 10, the second a moment later: 15 is known before 12 is.
        POOL: [ChangesRead((), 1, 10, False), ChangesRead((change(12, 2),), 12, 30, False)],
        OTHER_POOL: [ChangesRead((change(15, 1),), 15, 20, False), ChangesRead((), 15, 30, False)],
    }
    assert await watched(reads, 2) == [(12, digest(2)), (15, digest(1))]


async def test_only_the_last_of_the_changes_with_one_revision_carries_it() -> None:
    reads = {
        POOL: [ChangesRead((change(5, 1), change(5, 2), change(7, 3)), 7, 30, False)],
        OTHER_POOL: [ChangesRead((change(5, 4),), 5, 30, False)],
    }
    assert await watched(reads, 4) == [(1, digest(1)), (1, digest(2)), (5, digest(4)), (7, digest(3))]


async def test_a_pool_with_more_to_read_holds_the_others_back() -> None:
    reads = {
        POOL: [ChangesRead((change(3, 1),), 3, 3, True), ChangesRead((change(4, 2),), 4, 30, False)],
        OTHER_POOL: [ChangesRead((change(9, 3),), 9, 30, False)],
    }
    assert await watched(reads, 3) == [(3, digest(1)), (4, digest(2)), (9, digest(3))]
