"""Imports: resolve, fetch, admit, publish; callers may leave and come back, and share what can be shared.

An import is known by what was asked for, a download by the content that this turned out to be: callers of one
request share one import, and imports of one content under different names share one download.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from hotslot.contract.catalog import TransferProgress, TransferStage
from hotslot.contract.quotas import QuotaKind
from hotslot.errors import (
    BaseModelNotFoundError,
    InvalidAdapterError,
    SourceChangedError,
    SourceNotFoundError,
    TenantQuotaError,
    UnavailableError,
)
from hotslot.ids import Digest, TenantId
from hotslot.single_flight import SingleFlight
from shared.metrics.numbers import Measured, Tally
from shared.quotas.limits import TenantLimits
from store_service.admission.admit import Checkpoint
from store_service.catalog.records import VersionRecord
from store_service.execution.fair_queue import FairQueue
from store_service.execution.offload import Offload
from store_service.imports.downloads import QUEUED, Downloads
from store_service.imports.recent import Recent
from store_service.imports.store_turns import StoreTurns
from store_service.publication import Publication
from store_service.registry import Registry
from store_service.sources.source import FixedCheckpoint, Source, stop_if

log = structlog.get_logger(__name__)

RETRY_AFTER_S = 2.0


@dataclass(frozen=True)
class ImportOptions:
    """Options of imports: their shares of the store."""

    max_imports: int = 4
    """Downloads at the same time; more wait."""
    linger_s: float = 30.0
    """Time for which an import goes on without callers."""
    refusal_ttl_s: float = 10.0
    """Time for which a refusal is repeated without asking again."""


@dataclass
class _Import:
    """One import under way, with all callers that wait for it."""

    progress: TransferProgress = QUEUED
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)
    num_watchers: int = 0
    lingering: asyncio.TimerHandle | None = None
    task: "asyncio.Task[VersionRecord] | None" = None

    def advance(self, progress: TransferProgress) -> None:
        self.progress = progress
        self.changed.set()
        self.changed = asyncio.Event()

    def enter(self, stage: TransferStage) -> None:
        self.advance(replace(self.progress, stage=stage))


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A content that was not admitted, and the base model that it was judged by."""

    error: InvalidAdapterError
    base_name: str
    base_digest: Digest


_ImportKey = tuple[object, ...]
_RefusalKey = tuple[TenantId, str, str]


class Importer:
    """Runs imports. Lives on the event loop."""

    def __init__(
        self,
        registry: Registry,
        scratch: Path,
        admission: FairQueue,
        options: ImportOptions,
        limits: TenantLimits | None = None,
        store_turns: StoreTurns | None = None,
    ) -> None:
        """`store_turns` are for a catalog that several stores may share."""
        self._store_turns = store_turns
        self._registry = registry
        self._limits = limits or TenantLimits()
        self._admission = admission
        self._options = options
        self._downloads = Downloads(scratch, options.max_imports)
        # Apart from the threads that fetch: resolving a name does not wait behind a download.
        self._resolving = Offload("resolve", options.max_imports)
        self._imports: dict[_ImportKey, _Import] = {}
        self._resolutions: SingleFlight[tuple[TenantId, str], FixedCheckpoint] = SingleFlight()
        self._absent: Recent[tuple[TenantId, str], SourceNotFoundError] = Recent(options.refusal_ttl_s)
        self._refused: Recent[_RefusalKey, _Refusal] = Recent(options.refusal_ttl_s)
        outcomes = ("published", "refused", "failed", "cancelled")
        self._outcomes = Tally("hotslot_imports_total", [(name,) for name in outcomes])

    def readings(self) -> Iterator[Measured]:
        """Numbers of imports."""
        yield Measured("hotslot_imports_running", len(self._imports))
        yield from self._outcomes.readings()

    async def run(
        self, tenant: TenantId, source: Source, publication: Publication
    ) -> AsyncGenerator[TransferProgress | VersionRecord]:
        """TransferProgress, then the version; joins an import of the same that is under way.

        An import whose last caller left goes on for `linger_s`, so that the caller can come back; then it is
        cancelled, and nothing of it stays. Raises TenantQuotaError for one more than the tenant may have under way.
        """
        key = (tenant, source.key, publication.key)
        job = self._imports.get(key)
        if job is None:
            self._check_number(tenant)
            job = self._imports[key] = _Import()
            job.task = asyncio.create_task(self._work(job, tenant, source, publication))
            job.task.add_done_callback(lambda task: self._finished(key, job, source, task))
        assert job.task is not None
        job.num_watchers += 1
        if job.lingering is not None:
            job.lingering.cancel()
        try:
            while not job.task.done():
                # Taken before the caller is told: what happens while it is being told is the next thing to tell.
                waiting = asyncio.ensure_future(job.changed.wait())
                try:
                    yield job.progress
                    await asyncio.wait([waiting, job.task], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    waiting.cancel()
            if job.task.cancelled():
                raise UnavailableError("the store is stopping; import again when it is back")
            yield job.task.result()
        finally:
            job.num_watchers -= 1
            if not job.num_watchers and not job.task.done():
                loop = asyncio.get_running_loop()
                job.lingering = loop.call_later(self._options.linger_s, self._cancel, key, job)

    async def close(self) -> None:
        """Stop all imports; what they had fetched goes."""
        jobs = dict(self._imports)
        for key, job in jobs.items():
            self._cancel(key, job)
        tasks = [job.task for job in jobs.values() if job.task is not None]
        if tasks:
            await asyncio.wait(tasks)
        await self._resolutions.settled()
        await self._downloads.close()
        self._resolving.close()

    def under_way(self, tenant: TenantId) -> int:
        """Imports of a tenant that go on, with callers or without."""
        return sum(key[0] == tenant for key in self._imports)

    def _check_number(self, tenant: TenantId) -> None:
        limit, found = self._limits.of(tenant).get(QuotaKind.IMPORTS), self.under_way(tenant)
        if limit is not None and found >= limit:
            advice = "try again when one of them has ended"
            kind = QuotaKind.IMPORTS.value
            raise TenantQuotaError(tenant, kind, limit, found, advice=advice, retry_after_s=RETRY_AFTER_S)

    def _cancel(self, key: _ImportKey, job: _Import) -> None:
        self._forget(key, job)
        job.cancelled.set()
        if job.task is not None:
            job.task.cancel()

    def _forget(self, key: _ImportKey, job: _Import) -> None:
        if self._imports.get(key) is job:
            del self._imports[key]

    def _finished(self, key: _ImportKey, job: _Import, source: Source, task: "asyncio.Task[VersionRecord]") -> None:
        self._forget(key, job)
        if job.lingering is not None:
            job.lingering.cancel()
        if task.cancelled():
            log.info("import_cancelled", source=source.key)
            self._outcomes.add("cancelled")
        elif (failure := task.exception()) is not None:
            log.info("import_failed", source=source.key, why=str(failure))
            self._outcomes.add("refused" if isinstance(failure, InvalidAdapterError) else "failed")
        else:
            self._outcomes.add("published")

    async def _work(self, job: _Import, tenant: TenantId, source: Source, publication: Publication) -> VersionRecord:
        try:
            return await self._import(job, tenant, source, publication)
        except SourceChangedError:
            # Mostly a trainer's save that has landed in between, and is whole by now.
            return await self._import(job, tenant, source, publication)

    async def _import(self, job: _Import, tenant: TenantId, source: Source, publication: Publication) -> VersionRecord:
        job.enter(TransferStage.RESOLVING)
        content = await self._resolve(tenant, source)
        refusal_key = (tenant, content.key, publication.base_model)
        await self._resolving(self._raise_if_refused, refusal_key)
        if self._store_turns is None:
            return await self._fetch_and_admit(job, tenant, content, publication, refusal_key)
        async with self._store_turns.turn(tenant, content, publication) as made:
            return made or await self._fetch_and_admit(job, tenant, content, publication, refusal_key)

    async def _fetch_and_admit(
        self,
        job: _Import,
        tenant: TenantId,
        content: FixedCheckpoint,
        publication: Publication,
        refusal_key: _RefusalKey,
    ) -> VersionRecord:
        async with self._downloads.fetched(tenant, content, job.advance) as checkpoint:
            job.enter(TransferStage.VALIDATING)
            loop = asyncio.get_running_loop()

            def admit() -> VersionRecord:
                stop_if(job.cancelled)
                return self._admit(
                    tenant,
                    checkpoint,
                    publication.from_origin(content.origin),
                    refusal_key,
                    lambda: loop.call_soon_threadsafe(job.enter, TransferStage.PUBLISHING),
                )

            # An import that is cancelled now ends when admission has ended: the files are in use until then.
            return await self._admission.to_its_end(tenant, None, admit)

    async def _resolve(self, tenant: TenantId, source: Source) -> FixedCheckpoint:
        """Resolve a source to its content of now; callers at the same time share one answer, which is not cancelled."""
        key = (tenant, source.key)
        absent = self._absent.get(key)
        if absent is not None:
            raise absent.with_traceback(None)
        return await self._resolutions.run(key, lambda: self._ask(key, source))

    async def _ask(self, key: tuple[TenantId, str], source: Source) -> FixedCheckpoint:
        try:
            return await self._resolving(source.resolve)
        except SourceNotFoundError as exc:
            if source.is_remote:
                self._absent.add(key, exc)
            raise

    def _raise_if_refused(self, key: _RefusalKey) -> None:
        """Repeat a refusal of this very content, unless its base model has become another one since."""
        refusal = self._refused.get(key)
        if refusal is None:
            return
        try:
            base_digest = self._registry.base_models.get(refusal.base_name).spec.digest
        except BaseModelNotFoundError:
            return
        if base_digest == refusal.base_digest:
            raise refusal.error.with_traceback(None)

    def _admit(
        self,
        tenant: TenantId,
        checkpoint: Checkpoint,
        publication: Publication,
        refusal_key: _RefusalKey,
        on_admitted: Callable[[], object],
    ) -> VersionRecord:
        try:
            record, _ = self._registry.publish(tenant, checkpoint, publication, on_admitted)
        except InvalidAdapterError as exc:
            base_name, base = self._registry.base_of(checkpoint, publication.base_model)
            self._refused.add(refusal_key, _Refusal(exc, base_name, base.digest))
            raise
        return record
