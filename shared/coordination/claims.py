"""Claims of a worker's place: only a newer start that a worker of the pool has signed takes it; others are removed."""

from hotslot.ids import WorkerId
from shared.coordination.belief import doubt_of_time
from shared.coordination.connection import RedisConnection
from shared.coordination.directory_functions import MAX_TEXT_BYTES
from shared.coordination.encoding import decode_info
from shared.coordination.keys import PoolKeys
from shared.coordination.member_functions import Claim, claims, overrule
from shared.coordination.seals import Doubt, RecordSeals
from shared.coordination.unreadable import FORM_ERRORS
from shared.fleet.records import WorkerInfo


async def settle_claims(
    redis: RedisConnection, keys: PoolKeys, mine: WorkerInfo, token: str, seals: RecordSeals
) -> int | None:
    """Epoch of the newer start that holds this worker's place, or None once other claims of it are removed.

    Raises CoordinationUnavailableError.
    """
    worker, endpoint = keys.worker(mine.worker_id), keys.endpoint(mine.endpoint)
    held, there = await claims(
        redis,
        worker=worker,
        endpoint=endpoint,
        prefix=keys.prefix,
        worker_id=mine.worker_id,
        max_bytes=MAX_TEXT_BYTES,
    )
    for claim in (held, there):
        if (newer := newer_epoch(claim, mine, seals)) is not None:
            return newer
    await overrule(
        redis,
        worker=worker,
        endpoint=endpoint,
        prefix=keys.prefix,
        token=token,
        held_token=held.token,
        held_epoch=held.epoch,
        held_load=held.load,
        there_id=there.worker_id,
        there_epoch=there.epoch,
        there_load=there.load,
        max_bytes=MAX_TEXT_BYTES,
    )
    return None


def newer_epoch(claim: Claim, mine: WorkerInfo, seals: RecordSeals) -> int | None:
    """Epoch of a start that takes the place of `mine`: signed, of this moment, at its endpoint or by its worker_id.

    None for any other claim. The epoch is that of the signed record: the one beside it in Redis is not signed.
    """
    pool = mine.base_model_digest
    stamp = seals.check_worker(pool, claim.worker_id, claim.info, claim.state, claim.load)
    if stamp is None or isinstance(stamp, Doubt) or doubt_of_time(stamp, seals.clock()) is not None:
        return None
    try:
        info = decode_info(claim.info)
    except FORM_ERRORS:
        return None
    is_there = info.endpoint == mine.endpoint or info.worker_id == mine.worker_id
    is_same = (info.worker_id, info.base_model_digest) == (WorkerId(claim.worker_id), pool)
    return info.epoch if is_there and is_same and info.epoch > mine.epoch else None
