"""Following the placements of one tenant: the state that there is, then every change, in order and resumable.

A watch may be resumed from any message's revision. So a change is sent only once nothing with a smaller revision can
follow from any pool; of several changes with one revision only the last carries it, the others the one before; and of
the state that is sent first only the last message carries the revision it stands for, the others 0.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import groupby

from hotslot.ids import Digest, TenantId
from shared.coordination.directory import ChangesRead, Directory
from shared.fleet.records import PlacedVersion, PlacementChange

POLL_S = 0.2
ReadChanges = Callable[[Digest, int], Awaitable[ChangesRead]]


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One message of a watch."""

    revision: int
    """To resume from after this message."""
    placement: PlacedVersion
    removed: bool = False


@dataclass(slots=True)
class _Followed:
    """Position of a watch."""

    revision: int
    """Revision of the last message; nothing up to it is missing."""
    positions: dict[Digest, int] = field(default_factory=dict)
    pending: list[PlacementChange] = field(default_factory=list)


async def watch_placements(
    directory: Directory,
    pools: Callable[[], Awaitable[list[Digest]]],
    tenant: TenantId,
    from_revision: int,
    *,
    poll_s: float = POLL_S,
    changes: ReadChanges | None = None,
) -> AsyncGenerator[WatchEvent, None]:
    """Never ends. `pools` says which pools to follow now, and `changes` reads those of one; else the directory does.

    Raises RevisionCompactedError when a revision is not known any more (also in the middle, when Redis lost its
    memory: the caller begins again from 0), and CoordinationUnavailableError.
    """
    at = _Followed(from_revision)
    followed = await pools()
    if from_revision:
        at.positions = dict.fromkeys(followed, from_revision)
    else:
        last: PlacedVersion | None = None
        for pool in followed:
            at.positions[pool] = await directory.revision(pool)
            async with aclosing(_state(directory, pool, tenant)) as state:
                async for placement in state:
                    if last is not None:
                        yield WatchEvent(0, last)
                    last = placement
        at.revision = min(at.positions.values(), default=0)
        if last is not None:
            yield WatchEvent(at.revision, last)
    while True:
        settled, more = await _read(changes or directory.changes, at)
        for event in _settled_events(at, settled, tenant):
            yield event
        if more:
            continue
        await asyncio.sleep(poll_s)
        for pool in await pools():
            if pool not in at.positions:
                at.positions[pool] = await directory.revision(pool)
                async with aclosing(_state(directory, pool, tenant)) as state:
                    async for placement in state:
                        yield WatchEvent(at.revision, placement)


async def _state(directory: Directory, pool: Digest, tenant: TenantId) -> AsyncGenerator[PlacedVersion, None]:
    for record in (await directory.workers(pool)).workers:
        for placement in await directory.residency(pool, record.info.worker_id):
            resident = placement.resident.seen_by(tenant)
            if resident is not None:
                yield PlacedVersion(placement.worker_id, resident)


async def _read(changes: ReadChanges, at: _Followed) -> tuple[int, bool]:
    """Take in what is new; returns the revision up to which nothing more will come, and whether to read on at once."""
    settled, more = [], False
    for pool, position in at.positions.items():
        read = await changes(pool, position)
        at.positions[pool] = read.next_revision
        at.pending += read.changes
        settled.append(read.settled_revision)
        more |= read.more
    return min(settled, default=0), more


def _settled_events(at: _Followed, settled: int, tenant: TenantId) -> list[WatchEvent]:
    """The events of everything pending up to a revision; what is later stays pending."""
    ready = sorted((c for c in at.pending if c.revision <= settled), key=lambda c: c.revision)
    at.pending = [c for c in at.pending if c.revision > settled]
    events: list[WatchEvent] = []
    for revision, group in groupby(ready, key=lambda c: c.revision):
        seen = [event for change in group for event in _visible(change, tenant, at.revision)]
        at.revision = revision
        if seen:
            seen[-1] = WatchEvent(revision, seen[-1].placement, seen[-1].removed)
        events += seen
    return events


def _visible(change: PlacementChange, tenant: TenantId, revision: int) -> list[WatchEvent]:
    """Part of a change that a tenant may see: the one that happened under its own name."""
    before = change.before.seen_by(tenant) if change.before is not None else None
    after = change.after.seen_by(tenant) if change.after is not None else None
    if after is not None:
        return [WatchEvent(revision, PlacedVersion(change.worker_id, after))] if after != before else []
    if before is not None:
        return [WatchEvent(revision, PlacedVersion(change.worker_id, before), removed=True)]
    return []
