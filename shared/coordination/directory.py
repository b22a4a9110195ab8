"""The read side: which workers there are, and who holds a version."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
from redis import exceptions

from hotslot.endpoints import advertised_endpoint
from hotslot.errors import InvalidEndpointError, RevisionCompactedError
from hotslot.ids import Digest, WorkerId, is_digest
from shared.coordination import directory_functions
from shared.coordination.connection import RedisConnection
from shared.coordination.directory_functions import REVISION_SEQUENCES, stream_id
from shared.coordination.encoding import decode_changes, decode_resident, decode_worker
from shared.coordination.keys import POOLS, PoolKeys
from shared.coordination.unreadable import Unreadable
from shared.fleet.records import PlacedVersion, PlacementChange, PlacementsView, PoolView, WorkerRecord

_WATCH_RETENTION_MS = 60_000
_CHANGES_PER_READ = 100
_MAX_TOLD = 1_000

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ChangesRead:
    """Changes that a watcher got in one read."""

    changes: tuple[PlacementChange, ...]
    next_revision: int
    """To read from next time."""
    settled_revision: int
    """No change that is still unread will have a revision up to this one."""
    more: bool
    """True if there is more to read at once."""


class Directory:
    """Reads only, and passes over what is not ours; every method raises CoordinationUnavailableError."""

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection
        self._told: set[WorkerId] = set()
        """Workers of which it was logged that they cannot be dialled."""
        self._unreadable = Unreadable()

    async def pools(self) -> list[Digest]:
        """The base model digests that workers serve or served lately."""
        found: list[str] = await self._connection.run(_list_pools, [POOLS])
        return sorted(Digest(digest) for digest in found if is_digest(digest))

    async def workers(self, pool: Digest) -> PoolView:
        """All workers of a pool in one call; for a decision per request keep the answer a while."""
        keys = PoolKeys.of(pool)
        read = await directory_functions.workers(
            self._connection, leases=keys.leases, since=keys.since, prefix=keys.prefix
        )
        records = [self._worker(pool, worker_id, fields) for worker_id, fields in read.fields]
        readable = [record for record in records if record is not None]
        reachable = sorted(filter(self._can_be_dialled, readable), key=lambda r: r.info.worker_id)
        return PoolView(tuple(reachable), read.time_s, read.since)

    def _worker(self, pool: Digest, worker_id: str, fields: Mapping[str, str]) -> WorkerRecord | None:
        def decode() -> WorkerRecord:
            record = decode_worker(fields)
            if (record.info.worker_id, record.info.base_model_digest) != (worker_id, pool):
                raise ValueError("it describes another worker")
            return record

        return self._unreadable.read(f"worker {worker_id}", decode)

    async def placements(self, pool: Digest, digests: Sequence[Digest]) -> Mapping[Digest, tuple[PlacedVersion, ...]]:
        """Placements of these versions: one call, and work by the number of holders, not by the size of the fleet."""
        return (await self.placements_view(pool, digests)).placements if digests else {}

    async def placements_view(self, pool: Digest, digests: Sequence[Digest]) -> PlacementsView:
        """The same with what tells whether Redis has lost its memory."""
        keys = PoolKeys.of(pool)
        unique = list(dict.fromkeys(digests))
        read = await directory_functions.placements(
            self._connection,
            since=keys.since,
            placements=[keys.placements(digest) for digest in unique],
            prefix=keys.prefix,
        )
        placements = {
            digest: self._placed((worker_id, digest, value) for worker_id, value in held)
            for digest, held in zip(unique, read.found, strict=True)
        }
        return PlacementsView(placements, read.time_s, read.since)

    async def residency(self, pool: Digest, worker_id: WorkerId) -> tuple[PlacedVersion, ...]:
        """Everything that a worker reported, by digest."""
        keys = PoolKeys.of(pool)
        stored = await directory_functions.residency(
            self._connection, residency=keys.residency(worker_id), prefix=keys.prefix
        )
        return self._placed((worker_id, digest, value) for digest, value in sorted(stored))

    def _placed(self, stored: Iterable[tuple[str, str, str]]) -> tuple[PlacedVersion, ...]:
        """Placements from worker_id, digest and value."""
        placed = []
        for worker_id, digest, value in stored:
            resident = self._unreadable.read(f"{digest} on {worker_id}", partial(decode_resident, digest, value))
            if resident is not None:
                placed.append(PlacedVersion(WorkerId(worker_id), resident))
        return tuple(placed)

    async def revision(self, pool: Digest) -> int:
        """Revision of a pool's last change: read this, then the state, then the changes from here."""
        keys = PoolKeys.of(pool)
        return await directory_functions.tail(
            self._connection, changes=keys.changes, prefix=keys.prefix, retention_ms=_WATCH_RETENTION_MS
        )

    async def changes(self, pool: Digest, after: int) -> ChangesRead:
        """Changes after a revision, in order.

        Raises RevisionCompactedError when that is not known any more: trimmed, flushed or expired.
        """
        keys = PoolKeys.of(pool)
        read = await directory_functions.changes(
            self._connection,
            changes=keys.changes,
            prefix=keys.prefix,
            start=stream_id(after),
            count=_CHANGES_PER_READ,
            retention_ms=_WATCH_RETENTION_MS,
        )
        # The entry that the watcher saw last must still be there: else something after it may be gone as well.
        if read.oldest_revision is None or read.oldest_revision > after:
            raise RevisionCompactedError(after, read.oldest_revision or 0)
        changes: list[PlacementChange] = []
        for revision, fields in read.entries:
            changes += self._unreadable.read(f"change {revision}", partial(_decode_entry, revision, fields)) or []
        newest = read.entries[-1][0] if read.entries else after
        more = len(read.entries) == _CHANGES_PER_READ
        # Something may still happen in the millisecond of the read.
        settled = newest if more else max(newest, read.time_ms * REVISION_SEQUENCES - 1)
        return ChangesRead(tuple(changes), newest, settled, more)

    def _can_be_dialled(self, record: WorkerRecord) -> bool:
        """True for a worker that told an address at which others reach it; of another, the log says so once."""
        worker_id, endpoint = record.info.worker_id, record.info.endpoint
        try:
            advertised_endpoint(endpoint)
        except InvalidEndpointError as exc:
            if worker_id not in self._told:
                self._told = {*self._told, worker_id} if len(self._told) < _MAX_TOLD else {worker_id}
                log.warning("worker_left_out", worker_id=worker_id, why=exc.message)
            return False
        return True


async def _list_pools(client: Any) -> list[str]:
    try:
        found: list[str] = await client.zrange(POOLS, 0, -1)
    except exceptions.ResponseError as exc:
        if not str(exc).startswith("WRONGTYPE"):
            raise
        return []
    return found


def _decode_entry(revision: int, fields: Mapping[str, str]) -> list[PlacementChange]:
    return decode_changes(revision, fields["worker"], fields["changes"])
