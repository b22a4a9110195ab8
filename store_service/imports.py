"""Imports: fetch, admit, publish; those who want the same share one, and may leave and come back."""

import asyncio
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import structlog

from shared.ids import TenantId
from store_service.catalog.records import VersionRecord
from store_service.offload import Offload
from store_service.registry import Publication, Registry
from store_service.sources.source import Fetched, Source

log = structlog.get_logger(__name__)

REPORT_EVERY_S = 0.1


class Stage(StrEnum):
    """What an import is doing."""

    QUEUED = "queued"
    RESOLVING = "resolving"
    FETCHING = "fetching"
    VALIDATING = "validating"
    PUBLISHING = "publishing"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an import is."""

    stage: Stage
    done_bytes: int = 0
    total_bytes: int = 0


@dataclass
class _Import:
    """One import under way, with everybody who waits for it."""

    progress: Progress = Progress(Stage.QUEUED)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)
    num_watchers: int = 0
    task: "asyncio.Task[VersionRecord] | None" = None

    def advance(self, progress: Progress) -> None:
        self.progress = progress
        self.changed.set()
        self.changed = asyncio.Event()


class Importer:
    """Runs imports, a bounded number at a time. Lives on the event loop."""

    def __init__(
        self, registry: Registry, scratch: Path, admission: Offload, *, max_imports: int, linger_s: float = 30.0
    ) -> None:
        self._registry = registry
        self._scratch = scratch
        self._admission = admission
        self._fetching = Offload("fetch", max_imports)
        self._free = asyncio.Semaphore(max_imports)
        self._linger_s = linger_s
        self._imports: dict[tuple[TenantId, str, str], _Import] = {}
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)

    async def run(
        self, tenant: TenantId, source: Source, publication: Publication
    ) -> AsyncGenerator[Progress | VersionRecord]:
        """Progress, then the version; joins an import of the same that is under way.

        An import whose last watcher left goes on for `linger_s`, so that the watcher can come back.
        """
        key = (tenant, source.key, repr(publication))
        job = self._imports.get(key)
        if job is None:
            job = self._imports[key] = _Import()
            job.task = asyncio.create_task(self._work(job, tenant, source, publication))
            job.task.add_done_callback(lambda task: self._finished(key, task))
        assert job.task is not None
        job.num_watchers += 1
        try:
            while not job.task.done():
                yield job.progress
                waiting = asyncio.ensure_future(job.changed.wait())
                await asyncio.wait([waiting, job.task], return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
            yield job.task.result()
        finally:
            job.num_watchers -= 1
            if not job.num_watchers and not job.task.done():
                asyncio.get_running_loop().call_later(self._linger_s, _cancel_if_abandoned, job)

    def _finished(self, key: tuple[TenantId, str, str], task: "asyncio.Task[VersionRecord]") -> None:
        self._imports.pop(key, None)
        if not task.cancelled() and task.exception() is not None:
            log.info("import failed", source=key[1], error=str(task.exception()))

    async def close(self) -> None:
        """Stop all imports; what they had fetched goes."""
        jobs = list(self._imports.values())
        for job in jobs:
            job.cancelled.set()
        tasks = [job.task for job in jobs if job.task is not None]
        if tasks:
            await asyncio.wait(tasks)
        self._fetching.close()

    async def _work(self, job: _Import, tenant: TenantId, source: Source, publication: Publication) -> VersionRecord:
        async with self._free:
            target = Path(tempfile.mkdtemp(dir=self._scratch))
            try:
                job.advance(Progress(Stage.RESOLVING))
                fetched = await self._fetch(job, source, target)
                job.advance(Progress(Stage.VALIDATING, job.progress.done_bytes, job.progress.total_bytes))
                record, _ = await self._admission(
                    self._registry.publish, tenant, fetched.checkpoint, publication.from_origin(fetched.origin)
                )
                return record
            finally:
                await asyncio.to_thread(shutil.rmtree, target, ignore_errors=True)

    async def _fetch(self, job: _Import, source: Source, target: Path) -> Fetched:
        loop = asyncio.get_running_loop()
        last_s = 0.0

        def report(done_bytes: int, total_bytes: int) -> None:
            nonlocal last_s
            now_s = time.monotonic()
            if done_bytes == total_bytes or now_s - last_s >= REPORT_EVERY_S:
                last_s = now_s
                loop.call_soon_threadsafe(job.advance, Progress(Stage.FETCHING, done_bytes, total_bytes))

        return await self._fetching(source.fetch, target, report, job.cancelled)


def _cancel_if_abandoned(job: _Import) -> None:
    if not job.num_watchers:
        job.cancelled.set()
