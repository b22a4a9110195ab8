"""Says in one line of the log, at start, when Redis is away or refuses what placement reads."""

import structlog

from hotslot.errors import CoordinationUnavailableError
from hotslot.ids import Digest, WorkerId
from shared.coordination.connection import RedisConnection
from shared.coordination.directory import Directory

log = structlog.get_logger(__name__)

NO_POOL = Digest("sha256:" + 64 * "0")


async def tell_access(connection: RedisConnection) -> None:
    """Read what is read for every listing; a failure is logged, since the store serves without Redis as well."""
    directory = Directory(connection)
    try:
        await directory.pools()
        await directory.workers(NO_POOL)
        await directory.placements(NO_POOL, [NO_POOL])
        await directory.residency(NO_POOL, WorkerId(""))
    except CoordinationUnavailableError as exc:
        log.warning("placement_not_available", why=exc.message)
