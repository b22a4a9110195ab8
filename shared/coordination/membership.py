"""A worker's place in the fleet: leases with owner tokens, fenced by epochs."""

from dataclasses import dataclass

from hotslot.errors import StaleEpochError
from shared.coordination.connection import RedisConnection
from shared.coordination.encoding import encode_info, encode_load
from shared.coordination.keys import POOLS, RETENTION_LEASES, SINCE_LEASES, PoolKeys
from shared.coordination.scripts import ANNOUNCE, RELEASE, TOUCH_POOL
from shared.fleet.records import WorkerInfo, WorkerLoad, WorkerState


@dataclass(frozen=True, slots=True)
class Lease:
    """What a renewal answers."""

    expire_time_s: float
    """On Redis's clock."""
    residency_revision: int
    """Of the report that Redis holds; 0 when it holds none, so that a whole one is due."""


class Membership:
    """Announces one worker. `token` proves that a later call comes from the same process."""

    def __init__(self, connection: RedisConnection, info: WorkerInfo, token: str, *, lease_s: float) -> None:
        self._connection = connection
        self._info = info
        self._token = token
        self._lease_ms = round(lease_s * 1e3)
        self._retention_ms = self._lease_ms * RETENTION_LEASES
        self._keys = PoolKeys.of(info.base_model_digest)

    def describe(self, info: WorkerInfo) -> None:
        """Announce this from now on; who it is about must be the same."""
        same = ("worker_id", "endpoint", "base_model_digest", "epoch")
        assert all(getattr(info, name) == getattr(self._info, name) for name in same), "another worker"
        self._info = info

    async def announce(self, state: WorkerState, load: WorkerLoad) -> Lease:
        """Take the lease, or renew it.

        Raises StaleEpochError when a newer start holds this endpoint or this worker_id, and
        CoordinationUnavailableError.
        """
        info, keys = self._info, self._keys
        answer = await self._connection.evaluate(
            ANNOUNCE,
            [
                keys.worker(info.worker_id),
                keys.endpoint(info.endpoint),
                keys.leases,
                keys.changes,
                keys.since,
                keys.residency(info.worker_id),
            ],
            [
                keys.prefix,
                info.worker_id,
                self._token,
                info.epoch,
                encode_info(info),
                state.value,
                encode_load(load),
                self._lease_ms,
                self._retention_ms,
                round(self._lease_ms * SINCE_LEASES),
            ],
        )
        if answer[0] == "stale":
            raise StaleEpochError(f"worker {info.worker_id} at {info.endpoint}", int(answer[1]), info.epoch)
        return Lease(int(answer[1]) / 1e3, int(answer[2]))

    async def touch_pool(self) -> None:
        """Keep the worker's pool in the list of pools, which is in another slot than the pool itself."""
        await self._connection.evaluate(TOUCH_POOL, [POOLS], ["", self._info.base_model_digest, self._retention_ms])

    async def release(self) -> bool:
        """Give the lease back and remove every trace; False if it was not held any more."""
        info, keys = self._info, self._keys
        released = await self._connection.evaluate(
            RELEASE,
            [keys.worker(info.worker_id), keys.endpoint(info.endpoint), keys.since],
            [keys.prefix, info.worker_id, self._token, self._retention_ms, self._lease_ms],
        )
        return bool(released)
