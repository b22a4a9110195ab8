"""Brings versions from the store into host memory: once for all who wait, several side by side.

A load lives as long as somebody waits for it. Its failure goes to all who wait; only what can never succeed (the
checkpoint itself is wrong for this worker) is remembered, and only briefly, so that a crowd asking for it does not
pull it again and again.
"""

import asyncio
import functools
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from hotslot.errors import HotslotError, InvalidAdapterError
from hotslot.formats.manifest import Manifest
from hotslot.ids import Digest, TenantId
from worker_service.adapters.host_tier import HostTier, Reservation
from worker_service.adapters.version import AdapterVersion
from worker_service.engine.messages import AdapterWeights

log = structlog.get_logger(__name__)

MAX_REMEMBERED_FAILURES = 1_000

FlightKey = tuple[TenantId, Digest]
"""Loads are shared within a tenant only: what the store says to one is not another's business."""


class BlobReader(Protocol):
    """Where weights come from."""

    async def read_blob(self, tenant: TenantId, digest: Digest, size_bytes: int) -> bytes | bytearray | memoryview:
        """All bytes of a blob, verified; raises HotslotError."""
        ...


class WeightsDecoder(Protocol):
    """Turns a verified blob into what the engine copies into slots."""

    def check(self, manifest: Manifest) -> None:
        """Refuse, before a byte is pulled, what this worker cannot serve. Raises InvalidAdapterError's kinds."""
        ...

    def decode(self, manifest: Manifest, blob: bytes | bytearray | memoryview) -> AdapterWeights:
        """Decode what `check` lets pass; heavy. Raises InvalidAdapterError and its kinds."""
        ...


@dataclass(frozen=True, slots=True)
class LoaderLimits:
    """The bounds of a loader."""

    max_parallel: int = 4
    """Loads at a time; more wait."""
    failure_ttl_s: float = 2.0
    """How long a permanent failure is remembered."""


@dataclass(slots=True)
class _Flight:
    """One load under way, and how many wait for it."""

    task: "asyncio.Task[None]"
    waiters: int = 0


@dataclass(slots=True)
class Loader:
    """Loads under way over one host tier. Belongs to one event loop."""

    source: BlobReader
    decoder: WeightsDecoder
    tier: HostTier
    limits: LoaderLimits
    executor: Executor
    """Where decoding runs."""
    clock: Callable[[], float] = time.monotonic
    _flights: dict[FlightKey, _Flight] = field(default_factory=dict)
    _failures: OrderedDict[FlightKey, tuple[float, InvalidAdapterError]] = field(default_factory=OrderedDict)
    _turns: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self._turns = asyncio.Semaphore(self.limits.max_parallel)

    @property
    def loading(self) -> frozenset[Digest]:
        """Digests on their way."""
        return frozenset(digest for _, digest in self._flights)

    async def acquire(self, version: AdapterVersion) -> AdapterWeights:
        """The version's weights, held in the host tier until `release`; loads them if need be.

        Raises the store's errors, the decoder's, and QuotaExceededError when host memory has no room.
        """
        key = (version.tenant, version.digest)
        weights = self.tier.acquire(version.digest)
        if weights is not None:
            return weights
        self._raise_remembered(key)
        flight = self._flights.get(key)
        if flight is None:
            flight = _Flight(asyncio.create_task(self._load(version), name=f"load {version.digest}"))
            self._flights[key] = flight
        flight.waiters += 1
        try:
            await asyncio.shield(flight.task)
            weights = self.tier.acquire(version.digest)
            assert weights is not None, "the load holds it while somebody waits"
            return weights
        finally:
            flight.waiters -= 1
            if not flight.waiters:
                self._end_flight(key, flight)

    def release(self, digest: Digest) -> None:
        """End one `acquire`."""
        self.tier.release(digest)

    async def close(self) -> None:
        """Cancel what is under way and wait until it has ended."""
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _end_flight(self, key: FlightKey, flight: _Flight) -> None:
        """The last waiter turns out the light: an unfinished load is cancelled, whoever comes next starts anew."""
        del self._flights[key]
        if not flight.task.done():
            flight.task.cancel()
        elif not flight.task.cancelled() and flight.task.exception() is None:
            self.tier.release(key[1])

    async def _load(self, version: AdapterVersion) -> None:
        """Pull, verify, decode and commit one version; it is held until the last waiter has its own hold."""
        started = self.clock()
        manifest = version.manifest
        try:
            self.decoder.check(manifest)
            async with self._turns:
                reservation = self.tier.reserve(version.digest, manifest.weights_size_bytes)
                try:
                    await self._fetch(version, reservation)
                finally:
                    self.tier.cancel(reservation)
        except InvalidAdapterError as exc:
            self._remember((version.tenant, version.digest), exc)
            raise
        except HotslotError as exc:
            log.warning("load_failed", digest=version.digest, reference=str(version.reference), why=exc.message)
            raise
        log.info(
            "loaded",
            digest=version.digest,
            reference=str(version.reference),
            size_bytes=manifest.weights_size_bytes,
            duration_ms=round((self.clock() - started) * 1e3, 3),
        )

    async def _fetch(self, version: AdapterVersion, reservation: Reservation) -> None:
        manifest = version.manifest
        blob = await self.source.read_blob(version.tenant, manifest.weights_digest, manifest.weights_size_bytes)
        loop = asyncio.get_running_loop()
        decoding = loop.run_in_executor(self.executor, functools.partial(self.decoder.decode, manifest, blob))
        try:
            weights = await asyncio.shield(decoding)
        except asyncio.CancelledError:
            # A thread cannot be interrupted: its memory counts until it has ended.
            await asyncio.wait([decoding])
            raise
        self.tier.commit(reservation, weights)
        self.tier.acquire(version.digest)

    def _remember(self, key: FlightKey, error: InvalidAdapterError) -> None:
        log.warning("load_refused", digest=key[1], why=error.message)
        self._failures[key] = (self.clock() + self.limits.failure_ttl_s, error)
        self._failures.move_to_end(key)
        while len(self._failures) > MAX_REMEMBERED_FAILURES:
            self._failures.popitem(last=False)

    def _raise_remembered(self, key: FlightKey) -> None:
        remembered = self._failures.get(key)
        if remembered is None:
            return
        until, error = remembered
        if self.clock() < until:
            raise error.with_traceback(None)
        del self._failures[key]
