"""A worker as a member of its fleet: its epoch, lease, load and residency, through every outage of Redis and the store.

    member = FleetMember(redis, info, store.issue_epoch, observe, lease_s=10.0)
    ...                   # `run` in a task; member.nudge() after a change that others should see soon
    await member.leave()  # gives the lease back

Joining takes as long as it takes: the store hands out the epoch that fences the worker, Redis keeps its lease, and
neither is needed for serving. A heartbeat renews the lease every third of it. When Redis does not know the worker's
newest residency, because it changed, was flushed or the lease had ended, the heartbeat is followed by a whole report.
"""

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import replace

import structlog

from hotslot.backoff import Backoff
from hotslot.contract.control import WorkerState
from hotslot.errors import CoordinationUnavailableError, StaleEpochError
from shared.coordination.claims import settle_claims
from shared.coordination.connection import RedisConnection
from shared.coordination.distrust import Distrust
from shared.coordination.encoding import encode_info, encode_load, encode_resident
from shared.coordination.keys import POOLS, REPORT_LEASES, RETENTION_LEASES, SINCE_LEASES, PoolKeys
from shared.coordination.member_functions import Lease, NewerStart, announce, release, report, touch_pool
from shared.coordination.seals import Doubt, RecordSeals
from shared.fleet.records import ReportedLoad, Resident, WorkerInfo, WorkerReport
from shared.fleet.reporting import ReportSchedule, by_digest
from shared.loops import happens, until_it_works
from shared.metrics.numbers import Measured, Tally

log = structlog.get_logger(__name__)

DEFAULT_LEASE_S = 10.0
HEARTBEATS_PER_LEASE = 3
RELEASE_TIMEOUT_S = 2.0
MAX_OVERRULED = 3
"""Attempts of one heartbeat at a place that is claimed without a signature."""
_BACKOFF = Backoff(0.1, 10.0)
_MIN_INTERVAL_S = 0.05
"""Between two heartbeats, however often nudged."""


class FleetMember:
    """One start of one worker. Belongs to one event loop."""

    def __init__(
        self,
        redis: RedisConnection,
        info: WorkerInfo,
        issue_epoch: Callable[[], Awaitable[int]],
        observe: Callable[[], WorkerReport],
        *,
        lease_s: float = DEFAULT_LEASE_S,
        seals: RecordSeals | None = None,
    ) -> None:
        """The epoch of `info` is replaced by the one that is issued. `seals` signs, and checks who claims its place.

        `observe` tells the worker's state, load and residents; it is called for every heartbeat and must not block.
        """
        self._redis = redis
        self._info = info
        self._issue_epoch = issue_epoch
        self._observe = observe
        self._token = secrets.token_hex(16)
        """Proves that a later call comes from the same process."""
        self._seals = seals or RecordSeals()
        self._beat_number = 0
        self._distrust = Distrust(redis.refused_records)
        self._keys = PoolKeys.of(info.base_model_digest)
        self._lease_ms = round(lease_s * 1e3)
        self._heartbeat_s = lease_s / HEARTBEATS_PER_LEASE
        self._schedule = ReportSchedule(self._heartbeat_s, lease_s * REPORT_LEASES)
        self._connected = asyncio.Event()
        self._nudged = asyncio.Event()
        self._leaving = asyncio.Event()
        self._beating = False
        self._ended = asyncio.Event()
        self._heartbeats = Tally("hotslot_heartbeats_total", [("ok",), ("failed",)])
        self._losses = Tally("hotslot_lease_losses_total")

    def readings(self) -> Iterator[Measured]:
        """Numbers of the membership."""
        yield from self._heartbeats.readings()
        yield from self._losses.readings()
        yield Measured("hotslot_fleet_connected", self.connected)

    @property
    def connected(self) -> bool:
        """True if the last heartbeat reached Redis. The worker serves either way; readiness may say so."""
        return self._connected.is_set()

    async def until_connected(self) -> None:
        """Return once a heartbeat has reached Redis."""
        await self._connected.wait()

    def describe(self, info: WorkerInfo) -> None:
        """Tell more of the same worker, with the next heartbeat; its epoch stays the one that was issued."""
        same = ("worker_id", "endpoint", "base_model_digest")
        assert all(getattr(info, name) == getattr(self._info, name) for name in same), "another worker"
        self._info = replace(info, epoch=self._info.epoch)
        self.nudge()

    def nudge(self) -> None:
        """Send the next heartbeat soon: a state changed, an adapter came or went. May be called at any rate."""
        self._nudged.set()

    async def run(self) -> None:
        """Join, and stay until `leave`; raises StaleEpochError when a newer start has taken this worker's place."""
        epoch = await until_it_works(self._issue_epoch, "no_epoch_yet")
        self._info = replace(self._info, epoch=epoch)
        log.info("joining", epoch=epoch, endpoint=self._info.endpoint)
        self._beating = True
        try:
            await self._beat_until_leaving()
        finally:
            self._connected.clear()
            self._ended.set()

    async def leave(self) -> None:
        """End the heartbeats and give the lease back, in bounded time; again is harmless."""
        if self._leaving.is_set():
            return
        self._leaving.set()
        self._nudged.set()
        if not self._beating:
            return
        # Not cancelled: a heartbeat under way would go on and could take the lease again after the release.
        await happens(self._ended, RELEASE_TIMEOUT_S)
        try:
            async with asyncio.timeout(RELEASE_TIMEOUT_S):
                await self.release()
        except (CoordinationUnavailableError, TimeoutError) as exc:
            log.warning("lease_not_given_back", why=str(exc))

    async def announce(self, state: WorkerState, load: ReportedLoad) -> Lease:
        """Take the lease, or renew it.

        Raises StaleEpochError when a newer start holds this endpoint or this worker_id, and
        CoordinationUnavailableError. With the pool's secret a claim counts that a worker of the pool has signed; any
        other is removed.
        """
        for _ in range(MAX_OVERRULED):
            answer = await self._take(state, load)
            if isinstance(answer, Lease):
                return answer
            await self._yield_or_overrule(answer)
        raise CoordinationUnavailableError(
            f"Redis refuses the lease of worker {self._info.worker_id} for claims that no worker of its pool has "
            "signed, again and again: see who else writes there",
            retry_after_s=1.0,
        )

    async def _take(self, state: WorkerState, load: ReportedLoad) -> Lease | NewerStart:
        info, keys = self._info, self._keys
        info_text = encode_info(info)
        self._beat_number += 1
        load_text = self._seals.seal_load(
            info.base_model_digest,
            info.worker_id,
            info_text,
            state.value,
            encode_load(load),
            self._lease_ms,
            self._beat_number,
        )
        return await announce(
            self._redis,
            worker=keys.worker(info.worker_id),
            endpoint=keys.endpoint(info.endpoint),
            leases=keys.leases,
            changes=keys.changes,
            since=keys.since,
            residency=keys.residency(info.worker_id),
            prefix=keys.prefix,
            worker_id=info.worker_id,
            token=self._token,
            epoch=str(info.epoch),
            info=info_text,
            state=state.value,
            load=load_text,
            lease_ms=self._lease_ms,
            retention_ms=self._lease_ms * RETENTION_LEASES,
            since_ms=round(self._lease_ms * SINCE_LEASES),
        )

    async def _yield_or_overrule(self, refused: NewerStart) -> None:
        """Raise StaleEpochError for a newer start that is one; remove other claims, as far as they are still there."""
        info = self._info
        who = f"worker {info.worker_id} at {info.endpoint}"
        if self._seals.believes_unsigned:
            raise StaleEpochError(who, refused.epoch, info.epoch)
        newer = await settle_claims(self._redis, self._keys, info, self._token, self._seals)
        if newer is not None:
            raise StaleEpochError(who, newer, info.epoch)
        self._distrust.count(f"claim of {info.endpoint}", Doubt.FORGED)

    async def report(self, residents: Iterable[Resident], revision: int) -> bool:
        """Replace what the fleet knows of this worker; False if its lease is not held (announce first)."""
        pool, worker_id = self._info.base_model_digest, self._info.worker_id
        texts = ((each.digest, encode_resident(each)) for each in residents)
        return await report(
            self._redis,
            worker=self._keys.worker(self._info.worker_id),
            residency=self._keys.residency(self._info.worker_id),
            prefix=self._keys.prefix,
            worker_id=self._info.worker_id,
            token=self._token,
            revision=revision,
            retention_ms=self._lease_ms * RETENTION_LEASES,
            residents=[
                part
                for digest, text in texts
                for part in (digest, self._seals.seal_resident(pool, worker_id, digest, text))
            ],
        )

    async def touch_pool(self) -> None:
        """Keep the worker's pool in the list of pools, which is in another slot than the pool itself."""
        digest, retention_ms = self._info.base_model_digest, self._lease_ms * RETENTION_LEASES
        await touch_pool(self._redis, pools=POOLS, prefix="", base_model_digest=digest, retention_ms=retention_ms)

    async def release(self) -> bool:
        """Give the lease back and remove every trace; False if it was not held any more."""
        return await release(
            self._redis,
            worker=self._keys.worker(self._info.worker_id),
            endpoint=self._keys.endpoint(self._info.endpoint),
            since=self._keys.since,
            prefix=self._keys.prefix,
            worker_id=self._info.worker_id,
            token=self._token,
            retention_ms=self._lease_ms * RETENTION_LEASES,
            lease_ms=self._lease_ms,
        )

    async def _beat_until_leaving(self) -> None:
        failures = 0
        while not self._leaving.is_set():
            self._nudged.clear()
            try:
                await self._beat()
            except CoordinationUnavailableError as exc:
                failures += 1
                if self._connected.is_set() or failures == 1:
                    log.warning("coordination_lost", why=str(exc))
                    self._losses.add()
                self._heartbeats.add("failed")
                self._connected.clear()
            else:
                if failures:
                    log.info("coordination_back", failures=failures)
                failures = 0
                self._connected.set()
                self._heartbeats.add("ok")
            await self._pause(failures)

    async def _beat(self) -> None:
        seen = self._observe()
        lease = await self.announce(seen.state, seen.load)
        residents, now_s = by_digest(seen.residents), asyncio.get_running_loop().time()
        revision = self._schedule.due(residents, lease.residency_revision, now_s)
        if revision is None:
            return
        # The list of pools is in another slot, so it is kept by a call of its own; this often is enough.
        await self.touch_pool()
        if await self.report(residents.values(), revision):
            self._schedule.accepted(now_s)

    async def _pause(self, failures: int) -> None:
        """Until the next heartbeat is due; a little less than a third of the lease, so that workers do not march."""
        wait_s = self._heartbeat_s * random.uniform(0.8, 1.0)
        if failures:
            # Nudges change nothing while Redis is away.
            await happens(self._leaving, min(wait_s, _BACKOFF.pause_s(failures - 1)))
            return
        await happens(self._leaving, min(wait_s, _MIN_INTERVAL_S))
        # Leaving nudges as well.
        await happens(self._nudged, wait_s - _MIN_INTERVAL_S)
