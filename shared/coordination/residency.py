"""A worker's report of everything that it holds, replaced as a whole."""

from collections.abc import Iterable

from shared.coordination.connection import RedisConnection
from shared.coordination.encoding import encode_resident
from shared.coordination.keys import RETENTION_LEASES, PoolKeys
from shared.coordination.scripts import REPORT
from shared.fleet.records import Resident, WorkerInfo


class Residency:
    """Reports for one worker. Every report is whole, so a lost one is healed by the next."""

    def __init__(self, connection: RedisConnection, info: WorkerInfo, token: str, *, lease_s: float) -> None:
        self._connection = connection
        self._info = info
        self._token = token
        self._retention_ms = round(lease_s * 1e3) * RETENTION_LEASES
        self._keys = PoolKeys.of(info.base_model_digest)

    async def report(self, residents: Iterable[Resident], revision: int) -> bool:
        """Replace what the fleet knows of this worker; False if its lease is not held (announce first)."""
        arguments: list[str | int] = [
            self._keys.prefix,
            self._info.worker_id,
            self._token,
            revision,
            self._retention_ms,
        ]
        for resident in residents:
            arguments += [resident.digest, encode_resident(resident)]
        worker_id = self._info.worker_id
        accepted = await self._connection.evaluate(
            REPORT, [self._keys.worker(worker_id), self._keys.residency(worker_id)], arguments
        )
        return bool(accepted)
