"""Seals of what workers write into Redis, by the pool's secret: who else writes there is not believed.

A worker's record and each of its residents end with a seal, HMAC-SHA256 cut to 128 bits. It covers what it stands in,
the pool and the worker; of a resident also the digest; of a worker also the moment, the length of its lease and the
number of the heartbeat (`belief.py` goes by these). It lies where readers of earlier releases pass over it: as the last
member of the load, and as the last element of a resident. What Redis's scripts write themselves carries no seal and
decides nothing: it can hide a worker or a placement, and invent none.
"""

import base64
import hashlib
import hmac
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import structlog

from hotslot.ids import Digest, WorkerId
from hotslot.redis_url import redis_stays_here
from shared.pool_secret import PoolSecret, Purpose
from shared.settings import RedisUrl
from shared.transport_settings import RedisTransport

log = structlog.get_logger(__name__)

TAG_BYTES = 16
TAG_LENGTH = 22
"""Characters of a tag in base64."""
_BEFORE = ',"seal":"'
_STAMPED = re.compile(r"([0-9]{1,15})\.([0-9]{1,12})\.([0-9]{1,15})\.([A-Za-z0-9_-]{22})\"\}")
_TAG_END = re.compile(r',"([A-Za-z0-9_-]{22})"\]')


class Doubt(StrEnum):
    """Reasons not to believe a record."""

    UNSIGNED = "unsigned"
    FORGED = "signed with no secret of this pool, or for another pool, worker, version or content"
    OUT_OF_TIME = "signed too long ago, or by a clock that differs too much from this one"
    SILENT = "no newer heartbeat within its lease"
    REPLAYED = "older than a heartbeat that was seen before"
    OLDER_START = "a newer start was seen at its endpoint"


@dataclass(frozen=True, slots=True)
class SignedBeat:
    """Signed circumstances of a heartbeat."""

    at_ms: int
    """By the worker's clock, since the Unix epoch."""
    lease_ms: int
    beat: int
    """Number of the heartbeat; larger with each."""


class RecordSeals:
    """Seals and checks records. Without a secret nothing is sealed, and all is believed."""

    def __init__(
        self,
        secret: PoolSecret | None = None,
        *,
        believes_unsigned: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`believes_unsigned` is for a fleet that is being given its secret."""
        self._secret = secret
        self.believes_unsigned = believes_unsigned or secret is None
        self.clock = clock
        """Seconds since the Unix epoch."""

    @property
    def keys(self) -> tuple[bytes, ...]:
        """Keys that are accepted now, the first of which signs; none without a secret."""
        return self._secret.keys(Purpose.RECORDS) if self._secret is not None else ()

    def seal_load(
        self, pool: Digest, worker_id: WorkerId, info: str, state: str, load: str, lease_ms: int, beat: int
    ) -> str:
        """A load's text with the seal of the whole record of its worker."""
        keys = self.keys
        if not keys:
            return load
        stamp = SignedBeat(round(self.clock() * 1e3), lease_ms, beat)
        tag = _tag(keys[0], _worker_message(pool, worker_id, info, state, load, stamp))
        return f"{load[:-1]}{_BEFORE}{stamp.at_ms}.{stamp.lease_ms}.{stamp.beat}.{tag}" + '"}'

    def seal_resident(self, pool: Digest, worker_id: WorkerId, digest: Digest, resident: str) -> str:
        """A resident's text with its seal."""
        keys = self.keys
        if not keys:
            return resident
        return f'{resident[:-1]},"{_tag(keys[0], _resident_message(pool, worker_id, digest, resident))}"]'

    def check_worker(self, pool: Digest, worker_id: str, info: str, state: str, load: str) -> SignedBeat | Doubt | None:
        """Heartbeat of a record that a worker of the pool has sealed; None for one that is believed without."""
        keys = self.keys
        if not keys:
            return None
        body, mark, end = load.rpartition(_BEFORE)
        if not mark:
            return None if self.believes_unsigned else Doubt.UNSIGNED
        if (found := _STAMPED.fullmatch(end)) is None:
            return Doubt.FORGED
        stamp = SignedBeat(int(found[1]), int(found[2]), int(found[3]))
        message = _worker_message(pool, worker_id, info, state, body + "}", stamp)
        return stamp if _is_sealed(keys, message, found[4]) else Doubt.FORGED

    def check_resident(self, pool: Digest, worker_id: str, digest: str, resident: str) -> Doubt | None:
        """Reason not to believe a resident's text; None where it is believed."""
        keys = self.keys
        if not keys:
            return None
        start = len(resident) - TAG_LENGTH - 4
        if start < 0 or (found := _TAG_END.fullmatch(resident, start)) is None:
            return None if self.believes_unsigned else Doubt.UNSIGNED
        message = _resident_message(pool, worker_id, digest, resident[:start] + "]")
        return None if _is_sealed(keys, message, found[1]) else Doubt.FORGED


def seals_of(url: RedisUrl, settings: RedisTransport) -> RecordSeals:
    """Seals of a process; raises InvalidRequestError for a secret that cannot be used.

    A Redis on another machine that is believed without a secret is told of, since whoever writes there directs
    requests.
    """
    if settings.pool_secret_file is not None:
        secret = PoolSecret(settings.pool_secret_file)
        if settings.redis_unsigned:
            log.warning("redis_believed", why="HOTSLOT_REDIS_UNSIGNED is true: unsigned records are gone by, too")
        return RecordSeals(secret, believes_unsigned=settings.redis_unsigned)
    if not redis_stays_here(url.value):
        why = "without HOTSLOT_POOL_SECRET_FILE whoever writes to Redis can send requests elsewhere and end workers"
        log.warning("redis_believed", why=why)
    return RecordSeals()


def _worker_message(pool: str, worker_id: str, info: str, state: str, load: str, stamp: SignedBeat) -> bytes:
    return _message("worker", pool, worker_id, info, state, load, f"{stamp.at_ms}.{stamp.lease_ms}.{stamp.beat}")


def _resident_message(pool: str, worker_id: str, digest: str, resident: str) -> bytes:
    return _message("resident", pool, worker_id, digest, resident)


def _message(*parts: str) -> bytes:
    """Parts behind their lengths, so that none can reach into the next."""
    return "".join([f"{len(part)}:{part}" for part in parts]).encode(errors="surrogatepass")


def _tag(key: bytes, message: bytes) -> str:
    tag = hmac.digest(key, message, hashlib.sha256)[:TAG_BYTES]
    return base64.urlsafe_b64encode(tag)[:TAG_LENGTH].decode()


def _is_sealed(keys: tuple[bytes, ...], message: bytes, tag: str) -> bool:
    return any(hmac.compare_digest(_tag(key, message), tag) for key in keys)
