"""The read side: which workers there are, and who holds a version."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import structlog
from redis import exceptions

from hotslot.endpoints import advertised_endpoint
from hotslot.errors import InvalidEndpointError, RevisionCompactedError
from hotslot.ids import Digest, WorkerId, is_digest
from shared.coordination import directory_functions
from shared.coordination.belief import Beliefs
from shared.coordination.connection import RedisConnection
from shared.coordination.directory_functions import REVISION_SEQUENCES, stream_id
from shared.coordination.distrust import Distrust
from shared.coordination.encoding import decode_changes, decode_resident, decode_worker
from shared.coordination.keys import POOLS, PoolKeys
from shared.coordination.seals import Doubt, RecordSeals, SignedBeat
from shared.coordination.unreadable import Unreadable
from shared.fleet.records import PlacedVersion, PlacementChange, PlacementsView, PoolView, Resident, WorkerRecord

_WATCH_RETENTION_MS = 60_000
_CHANGES_PER_READ = 100
_MAX_TOLD = 1_000
MAX_POOLS = 1_000
"""Pools that are read, those with the newest signs."""
_MAX_DECODED = 16_384

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


@dataclass(frozen=True, slots=True)
class _ReadRecord:
    """A worker's record, and the fields that it was decoded from."""

    fields: Mapping[str, str]
    record: WorkerRecord
    stamp: SignedBeat | None


class Directory:
    """Reads only, and passes over what is not ours; every method raises CoordinationUnavailableError.

    With the pool's secret, only what its workers have signed is ours (`seals.py`).
    """

    def __init__(
        self,
        connection: RedisConnection,
        seals: RecordSeals | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._seals = seals or RecordSeals()
        self._clock = clock
        self._beliefs = Beliefs()
        self._distrust = Distrust(connection.refused_records)
        self._told: set[WorkerId] = set()
        """Workers of which it was logged that they cannot be dialled."""
        self._unreadable = Unreadable()
        self._records: dict[Digest, dict[str, _ReadRecord]] = {}
        """Workers' records of the last read, by pool and worker_id: each is read several times between heartbeats."""
        self._records_by: tuple[bytes, ...] = ()
        """Keys that they were checked by."""
        self._decoded: dict[tuple[Digest, str, str, str], Resident] = {}
        """Residents that were checked and decoded, by pool, worker_id, digest and text: most are read again and again,
        and a signature takes longer to check than to find here."""
        self._decoded_by: tuple[bytes, ...] = ()
        """Keys that they were checked by."""

    @property
    def doubts(self) -> Mapping[Doubt, int]:
        """Records that were not believed, by reason."""
        return self._distrust.counts

    async def pools(self) -> list[Digest]:
        """The base model digests that workers serve or served lately."""
        return await self._connection.run(_list_pools, [POOLS])

    async def workers(self, pool: Digest) -> PoolView:
        """All workers of a pool in one call; for a decision per request keep the answer a while."""
        keys = PoolKeys.of(pool)
        read = await directory_functions.workers(
            self._connection, leases=keys.leases, since=keys.since, prefix=keys.prefix
        )
        if (secrets := self._seals.keys) is not self._records_by:
            self._records, self._records_by = {}, secrets
        known, found = self._records.pop(pool, {}), {}
        for worker_id, fields in read.fields:
            before = known.get(worker_id)
            if before is None or before.fields != fields:
                before = self._worker(pool, worker_id, fields, read.time_s)
            if before is not None:
                found[worker_id] = before
        if found and len(self._records) < MAX_POOLS:
            self._records[pool] = found
        believed = self._believed(found.values())
        reachable = sorted(filter(self._can_be_dialled, believed), key=lambda r: r.info.worker_id)
        return PoolView(tuple(reachable), read.time_s, read.since)

    def _worker(self, pool: Digest, worker_id: str, fields: Mapping[str, str], time_s: float) -> _ReadRecord | None:
        """A worker's record with what it signed of the moment; None, and a log line, for what is not ours."""
        place = f"worker {worker_id}"
        texts = (fields.get(name, "") for name in ("info", "state", "load"))
        stamp = self._seals.check_worker(pool, worker_id, *texts)
        if isinstance(stamp, Doubt):
            self._distrust.count(place, stamp)
            return None

        def decode() -> WorkerRecord:
            record = decode_worker(fields)
            if (record.info.worker_id, record.info.base_model_digest) != (worker_id, pool):
                raise ValueError("it describes another worker")
            if stamp is None:
                return record
            # The end of the lease is Redis's word, and how long it may be is the worker's.
            latest_s = time_s + stamp.lease_ms / 1e3
            return replace(record, lease_expire_time_s=min(record.lease_expire_time_s, latest_s))

        record = self._unreadable.read(place, decode)
        return None if record is None else _ReadRecord(fields, record, stamp)

    def _believed(self, found: Collection[_ReadRecord]) -> list[WorkerRecord]:
        """Records to go by: those that are no replays."""
        signed = [(each.record, each.stamp) for each in found if each.stamp is not None]
        believed = [each.record for each in found if each.stamp is None]
        doubts = self._beliefs.doubts(signed, self._clock(), self._seals.clock())
        for (record, _), doubt in zip(signed, doubts, strict=True):
            if doubt is None:
                believed.append(record)
            else:
                self._distrust.count(f"worker {record.info.worker_id}", doubt)
        return believed

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
            digest: self._placed(pool, ((worker_id, digest, value) for worker_id, value in held))
            for digest, held in zip(unique, read.found, strict=True)
        }
        return PlacementsView(placements, read.time_s, read.since)

    async def residency(self, pool: Digest, worker_id: WorkerId) -> tuple[PlacedVersion, ...]:
        """Everything that a worker reported, by digest."""
        keys = PoolKeys.of(pool)
        stored = await directory_functions.residency(
            self._connection, residency=keys.residency(worker_id), prefix=keys.prefix
        )
        return self._placed(pool, ((worker_id, digest, value) for digest, value in sorted(stored)))

    def _placed(self, pool: Digest, stored: Iterable[tuple[str, str, str]]) -> tuple[PlacedVersion, ...]:
        """Placements from worker_id, digest and value."""
        if (secrets := self._seals.keys) is not self._decoded_by:
            self._decoded, self._decoded_by = {}, secrets
        placed = []
        for worker_id, digest, value in stored:
            resident = self._decoded.get((pool, worker_id, digest, value)) or self._resident(
                pool, worker_id, digest, value
            )
            if resident is not None:
                placed.append(PlacedVersion(WorkerId(worker_id), resident))
        return tuple(placed)

    def _resident(self, pool: Digest, worker_id: str, digest: str, value: str) -> Resident | None:
        place = f"{digest} on {worker_id}"
        if (doubt := self._seals.check_resident(pool, worker_id, digest, value)) is not None:
            self._distrust.count(place, doubt)
            return None
        resident = self._unreadable.read(place, partial(decode_resident, digest, value))
        if resident is not None:
            if len(self._decoded) >= _MAX_DECODED:
                self._decoded.clear()
            self._decoded[pool, worker_id, digest, value] = resident
        return resident

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
            found = self._unreadable.read(f"change {revision}", partial(self._entry, pool, revision, fields))
            changes += found or []
        newest = read.entries[-1][0] if read.entries else after
        more = len(read.entries) == _CHANGES_PER_READ
        # Something may still happen in the millisecond of the read.
        settled = newest if more else max(newest, read.time_ms * REVISION_SEQUENCES - 1)
        return ChangesRead(tuple(changes), newest, settled, more)

    def _entry(self, pool: Digest, revision: int, fields: Mapping[str, str]) -> list[PlacementChange]:
        """Changes of an entry of the stream, less what no worker of the pool has signed."""
        worker_id = fields["worker"]

        def is_signed(digest: str, value: str) -> bool:
            doubt = self._seals.check_resident(pool, worker_id, digest, value)
            if doubt is not None:
                self._distrust.count(f"change {revision}", doubt)
            return doubt is None

        return decode_changes(revision, worker_id, fields["changes"], is_signed)

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


async def _list_pools(client: Any) -> list[Digest]:
    try:
        found: list[str] = await client.zrange(POOLS, -MAX_POOLS, -1)
    except exceptions.ResponseError as exc:
        if not str(exc).startswith("WRONGTYPE"):
            raise
        return []
    return sorted(Digest(digest) for digest in found if is_digest(digest))
