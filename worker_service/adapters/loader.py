"""Brings versions from the store into host memory: once for all who wait, several side by side.

A load lives as long as a request waits for it. Its failure goes to all who wait; only what can never succeed (the
checkpoint itself is wrong for this worker) is remembered, and only briefly, so that a crowd asking for it does not
pull it again and again.
"""

import asyncio
import functools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Protocol

import structlog
from cachetools import TTLCache

from hotslot.errors import HotslotError, InvalidAdapterError
from hotslot.formats.manifest import Manifest
from hotslot.ids import Digest, TenantId
from hotslot.single_flight import SingleFlight
from hotslot.tracing import current_span, span
from shared.identity.parties import PARTY
from shared.metrics.numbers import Measured, Spreads, Tally
from worker_service.adapters.holdings import Holdings
from worker_service.adapters.load_turns import LoadTurns
from worker_service.adapters.version import AdapterVersion
from worker_service.engine.messages import AdapterWeights

log = structlog.get_logger(__name__)

MAX_REMEMBERED_FAILURES = 1_000

FlightKey = tuple[TenantId, Digest]
"""Loads are shared within a tenant only: what the store says to one is not another's business."""


class BlobReader(Protocol):
    """Source of weights blobs."""

    async def read_blob(self, tenant: TenantId, digest: Digest, size_bytes: int) -> bytes | bytearray | memoryview:
        """All bytes of a blob, verified; raises HotslotError."""
        ...


class BlobDecoder(Protocol):
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
    """Time for which a permanent failure is remembered."""


class Loader:
    """Loads under way into one worker's holdings. Belongs to one event loop."""

    def __init__(
        self,
        source: BlobReader,
        decoder: BlobDecoder,
        holdings: Holdings,
        limits: LoaderLimits,
        executor: Executor,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Decoding runs on the executor."""
        self._holdings = holdings
        self._source = source
        self._decoder = decoder
        self._executor = executor
        self._clock = clock
        self._flights: SingleFlight[FlightKey, AdapterWeights] = SingleFlight(ends_unwanted=True)
        self._failures: TTLCache[FlightKey, InvalidAdapterError] = TTLCache(
            MAX_REMEMBERED_FAILURES, limits.failure_ttl_s, timer=clock
        )
        self._turns = LoadTurns(limits.max_parallel)
        self._durations = Spreads("hotslot_adapter_load_seconds", [("fetch",)])
        self._outcomes = Tally("hotslot_adapter_loads_total", [("loaded",), ("refused",), ("failed",)])
        self._bytes = Tally("hotslot_adapter_fetched_bytes_total")

    async def acquire(self, version: AdapterVersion) -> AdapterWeights:
        """The version's weights, held until the holdings' `release`; loads them if need be.

        Raises the store's errors, the decoder's, and QuotaExceededError when host memory has no room.
        """
        # Held while it waits, so that what the load brings stays.
        weights = self._holdings.hold(version.digest, version.tenant)
        if weights is not None and self._holdings.is_read(version.tenant, version.digest):
            return weights
        # What another tenant brought is brought once more, so that its being there shows in no time.
        key = (version.tenant, version.digest)
        try:
            refused = self._failures.get(key)
            if refused is not None:
                raise refused.with_traceback(None)
            current_span().set({"hotslot.load.shared": key in self._flights})
            return await self._flights.run(key, lambda: self._load(version))
        except BaseException:
            self._holdings.release(version.digest, version.tenant)
            raise

    def readings(self) -> Iterator[Measured]:
        """Numbers of the loads."""
        for numbers in (self._durations, self._outcomes, self._bytes):
            yield from numbers.readings()

    def is_at_hand(self, tenant: TenantId, digest: Digest) -> bool:
        """True for a version that a tenant has brought here, or is bringing."""
        return self._holdings.is_read(tenant, digest) or (tenant, digest) in self._flights

    async def close(self) -> None:
        """Cancel what is under way and wait until it has ended."""
        await self._flights.close()

    async def _load(self, version: AdapterVersion) -> AdapterWeights:
        """Pull, verify, decode and commit one version."""
        started = self._clock()
        manifest = version.manifest
        try:
            self._decoder.check(manifest)
            async with AsyncExitStack() as stack:
                with span("hotslot.load.turn"):
                    await stack.enter_async_context(self._turns.turn(PARTY.get()))
                is_there = self._holdings.is_resident(version.digest)
                size_bytes = 0 if is_there else manifest.weights_size_bytes
                room = self._holdings.reserve(version.digest, size_bytes, version.tenant)
                try:
                    weights = self._holdings.commit(room, await self._fetch(version))
                    self._holdings.note_read(version.tenant, version.digest)
                finally:
                    self._holdings.cancel(room)
        except InvalidAdapterError as exc:
            log.warning("load_refused", digest=version.digest, why=exc.message)
            self._failures[version.tenant, version.digest] = exc
            self._outcomes.add("refused")
            raise
        except HotslotError as exc:
            log.warning("load_failed", digest=version.digest, reference=str(version.reference), why=exc.message)
            self._outcomes.add("failed")
            raise
        self._outcomes.add("loaded")
        self._bytes.add(by=manifest.weights_size_bytes)
        self._durations.add(self._clock() - started, "fetch")
        log.info(
            "loaded",
            digest=version.digest,
            reference=str(version.reference),
            size_bytes=manifest.weights_size_bytes,
            duration_ms=round((self._clock() - started) * 1e3, 3),
        )
        return weights

    async def _fetch(self, version: AdapterVersion) -> AdapterWeights:
        manifest = version.manifest
        blob = await self._source.read_blob(version.tenant, manifest.weights_digest, manifest.weights_size_bytes)
        loop = asyncio.get_running_loop()
        decoding = loop.run_in_executor(self._executor, functools.partial(self._decoder.decode, manifest, blob))
        try:
            with span("hotslot.load.decode", {"hotslot.adapter.digest": version.digest}):
                return await asyncio.shield(decoding)
        except asyncio.CancelledError:
            # A thread cannot be interrupted: its memory counts until it has ended.
            await asyncio.wait([decoding])
            raise
