"""Keeps one worker registered: lease, load and residency, through every outage of Redis.

    async with WorkerRegistration(connection, info, observe) as registration:
        ...                      # registration.nudge() after a change that others should see soon
    # leaving the block gives the lease back

A heartbeat renews the lease every third of it. When Redis does not know the worker's newest residency, because it
changed, was flushed or the lease had ended, the heartbeat is followed by a whole report; how often, is bounded.
"""

import asyncio
import random
import secrets
from collections.abc import Callable, Iterable

import structlog

from hotslot.errors import CoordinationUnavailableError, StaleEpochError
from hotslot.ids import Digest
from shared.coordination.connection import RedisConnection
from shared.coordination.keys import REPORT_LEASES
from shared.coordination.membership import Membership
from shared.coordination.residency import Residency
from shared.fleet.records import Resident, Tier, WorkerInfo, WorkerReport

log = structlog.get_logger(__name__)

DEFAULT_LEASE_S = 10.0
HEARTBEATS_PER_LEASE = 3
_IN_MEMORY = (Tier.SLOT, Tier.HOST)
_FIRST_RETRY_S = 0.1
_MIN_INTERVAL_S = 0.05
"""Between two heartbeats, however often nudged."""
_DETAILS_SHARE = 0.75
"""Of the time between heartbeats, the least between two reports that tell only which versions are in slots, or who used
them last: they go with a heartbeat. A report is whole, and in a busy worker such details change all the time."""
_RELEASE_TIMEOUT_S = 2.0


class WorkerRegistration:
    """A background task between `async with` and its end."""

    def __init__(
        self,
        connection: RedisConnection,
        info: WorkerInfo,
        observe: Callable[[], WorkerReport],
        *,
        lease_s: float = DEFAULT_LEASE_S,
    ) -> None:
        """`observe` is called on the event loop for every heartbeat and must not block."""
        token = secrets.token_hex(16)
        self._info = info
        self._observe = observe
        self._membership = Membership(connection, info, token, lease_s=lease_s)
        self._residency = Residency(connection, info, token, lease_s=lease_s)
        self._heartbeat_s = lease_s / HEARTBEATS_PER_LEASE
        self._report_every_s = lease_s * REPORT_LEASES
        self._reported: dict[Digest, Resident] = {}
        self._revision = 0
        self._reported_at_s = float("-inf")
        self._connected = asyncio.Event()
        self._nudged = asyncio.Event()
        self._stopping = asyncio.Event()
        self._fenced: asyncio.Future[StaleEpochError] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        """Whether the last heartbeat reached Redis. The worker serves either way; readiness may say so."""
        return self._connected.is_set()

    async def until_connected(self) -> None:
        """Return once a heartbeat has reached Redis."""
        await self._connected.wait()

    async def until_fenced(self) -> StaleEpochError:
        """Return when a newer start has taken this worker's place: this one must stop serving and end."""
        assert self._fenced is not None, "used outside of `async with`"
        return await asyncio.shield(self._fenced)

    def describe(self, info: WorkerInfo) -> None:
        """Tell more of the same start of the same worker, with the next heartbeat."""
        self._membership.describe(info)
        self.nudge()

    def nudge(self) -> None:
        """Send the next heartbeat soon: a state changed, an adapter came or went. May be called at any rate."""
        self._nudged.set()

    async def __aenter__(self) -> "WorkerRegistration":
        self._fenced = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(self._fenced), name="worker-registration")
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._task is not None
        # Not cancelled: a heartbeat under way would go on and could take the lease again after the release.
        self._stopping.set()
        await asyncio.wait([self._task], timeout=_RELEASE_TIMEOUT_S)
        self._task.cancel()
        try:
            async with asyncio.timeout(_RELEASE_TIMEOUT_S):
                await self._membership.release()
        except (CoordinationUnavailableError, TimeoutError) as exc_release:
            log.warning("the lease could not be given back and will run out", error=str(exc_release))
        self._connected.clear()

    async def _run(self, fenced: asyncio.Future[StaleEpochError]) -> None:
        failures = 0
        while not self._stopping.is_set():
            self._nudged.clear()
            try:
                await self._beat()
            except CoordinationUnavailableError as exc:
                failures += 1
                if self._connected.is_set() or failures == 1:
                    log.warning("coordination lost; serving what is resident", error=str(exc))
                self._connected.clear()
            except StaleEpochError as exc:
                log.error("fenced out", error=str(exc))
                self._connected.clear()
                fenced.set_result(exc)
                return
            else:
                if failures:
                    log.info("coordination is back", failures=failures)
                failures = 0
                self._connected.set()
            await self._pause(failures)

    async def _beat(self) -> None:
        report = self._observe()
        lease = await self._membership.announce(report.state, report.load)
        residents = _by_digest(report.residents)
        now_s = asyncio.get_running_loop().time()
        age_s = now_s - self._reported_at_s
        is_unknown = not self._revision or lease.residency_revision != self._revision
        if is_unknown or urgent(residents.values()) != urgent(self._reported.values()):
            is_due = True
        elif residents != self._reported:
            is_due = age_s >= self._heartbeat_s * _DETAILS_SHARE
        else:
            is_due = age_s >= self._report_every_s
        if not is_due:
            return
        if residents != self._reported or not self._revision:
            self._revision += 1
            self._reported = residents
        # The list of pools is in another slot, so it is kept by a call of its own; this often is enough.
        await self._membership.touch_pool()
        if await self._residency.report(residents.values(), self._revision):
            self._reported_at_s = now_s

    async def _pause(self, failures: int) -> None:
        """Until the next heartbeat is due; a little less than a third of the lease, so that workers do not march."""
        wait_s = self._heartbeat_s * random.uniform(0.8, 1.0)
        if failures:
            # Nudges change nothing while Redis is away.
            backoff_s = _FIRST_RETRY_S * 2 ** min(failures - 1, 16) * random.uniform(0.5, 1.0)
            await _first([self._stopping], min(wait_s, backoff_s))
            return
        await _first([self._stopping], min(wait_s, _MIN_INTERVAL_S))
        await _first([self._stopping, self._nudged], wait_s - _MIN_INTERVAL_S)


async def _first(events: list[asyncio.Event], timeout_s: float) -> None:
    """Wait for any of the events, or until the time is over."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=max(0.0, timeout_s), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def urgent(residents: Iterable[Resident]) -> dict[Digest, tuple[bool, bool, float]]:
    """What others should hear of soon: what is in memory, whether it stays, and how much it is wanted."""
    return {r.digest: (r.tier in _IN_MEMORY, r.pinned, r.demand) for r in residents}


def _by_digest(residents: Iterable[Resident]) -> dict[Digest, Resident]:
    """One for each digest: the one in the fastest tier."""
    fastest: dict[Digest, Resident] = {}
    for resident in residents:
        known = fastest.get(resident.digest)
        if known is None or resident.tier.distance < known.tier.distance:
            fastest[resident.digest] = resident
    return fastest
