"""Downloads: one content is fetched once, however many imports want it at the same time."""

import asyncio
import secrets
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hotslot.contract.catalog import TransferProgress, TransferStage
from hotslot.ids import TenantId
from store_service.admission.admit import Checkpoint
from store_service.execution.offload import Offload
from store_service.sources.source import FixedCheckpoint

REPORT_EVERY_S = 0.1

ProgressListener = Callable[[TransferProgress], None]
_Key = tuple[TenantId, str]


QUEUED = TransferProgress(TransferStage.QUEUED)


@dataclass
class _Download:
    """One fetch, and the imports that use what it brings."""

    progress: TransferProgress = QUEUED
    listeners: list[ProgressListener] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)
    held: AsyncExitStack = field(default_factory=AsyncExitStack)
    """Its turn and its folder."""
    task: "asyncio.Task[Checkpoint] | None" = None

    def advance(self, progress: TransferProgress) -> None:
        self.progress = progress
        for listener in self.listeners:
            listener(progress)


class Downloads:
    """Fetches contents into folders of its own, a bounded number at a time. Lives on the event loop.

    A download keeps its turn, and its files, until the last import that uses it has left: the disk never holds more
    than `max_downloads` checkpoints on their way.
    """

    def __init__(self, scratch: Path, max_downloads: int) -> None:
        self._scratch = scratch
        self._threads = Offload("fetch", max_downloads)
        self._turns = asyncio.Semaphore(max_downloads)
        self._downloads: dict[_Key, _Download] = {}
        self._ending: set[asyncio.Task[None]] = set()
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)

    @asynccontextmanager
    async def fetched(
        self, tenant: TenantId, content: FixedCheckpoint, listener: ProgressListener
    ) -> AsyncIterator[Checkpoint]:
        """A content's files, for as long as the block; joins a download of the same that is under way.

        Raises as `FixedCheckpoint.fetch`. When the last one who waits leaves, the download is cancelled.
        """
        key = (tenant, content.key)
        download = self._downloads.get(key)
        if download is None:
            download = self._downloads[key] = _Download()
            download.task = asyncio.create_task(self._fetch(download, content))
            download.task.add_done_callback(lambda task: self._forget_failed(key, download, task))
        assert download.task is not None
        download.listeners.append(listener)
        listener(download.progress)
        try:
            yield await asyncio.shield(download.task)
        finally:
            download.listeners.remove(listener)
            if not download.listeners:
                self._forget(key, download)
                ending = asyncio.create_task(_end(download))
                self._ending.add(ending)
                ending.add_done_callback(self._ending.discard)
                await asyncio.shield(ending)

    async def close(self) -> None:
        """Wait until everything that was fetched is gone; every import has ended before."""
        if self._ending:
            await asyncio.wait(self._ending)
        self._threads.close()

    async def _fetch(self, download: _Download, content: FixedCheckpoint) -> Checkpoint:
        await download.held.enter_async_context(self._turns)
        target = self._scratch / secrets.token_hex(16)
        download.held.push_async_callback(asyncio.to_thread, shutil.rmtree, target, ignore_errors=True)
        reports = _Reports(download, content.size_bytes)
        reports.tell()

        def fetch() -> Checkpoint:
            target.mkdir()
            return content.fetch(target, reports.add, download.cancelled)

        try:
            return await self._threads.to_its_end(fetch)
        finally:
            reports.close()

    def _forget(self, key: _Key, download: _Download) -> None:
        if self._downloads.get(key) is download:
            del self._downloads[key]

    def _forget_failed(self, key: _Key, download: _Download, task: "asyncio.Task[Checkpoint]") -> None:
        """Forget a download that failed, so that later imports do not hear of the failure, but fetch anew."""
        if task.cancelled() or task.exception() is not None:
            self._forget(key, download)


class _Reports:
    """Carries a thread's reports to the event loop, the newest one now and then, and the last one always."""

    def __init__(self, download: _Download, total_bytes: int) -> None:
        self._download = download
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._is_due = False
        self._is_closed = False

    def add(self, done_bytes: int) -> None:
        """Called by the thread."""
        self._done_bytes = done_bytes
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon_threadsafe(self._loop.call_later, REPORT_EVERY_S, self.tell)

    def tell(self) -> None:
        """Pass the newest report on."""
        self._is_due = False
        if not self._is_closed:
            total_bytes = max(self._total_bytes, self._done_bytes)
            self._download.advance(TransferProgress(TransferStage.FETCHING, self._done_bytes, total_bytes))

    def close(self) -> None:
        """Pass the last report on."""
        self.tell()
        self._is_closed = True


async def _end(download: _Download) -> None:
    """Stop a download, and only then take its folder away."""
    assert download.task is not None
    download.cancelled.set()
    download.task.cancel()
    await asyncio.wait([download.task])
    await download.held.aclose()
