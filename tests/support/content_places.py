"""Places that keep content, behind one face, so that one suite asks the same of all of them."""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from hotslot.errors import DigestMismatchError, HotslotError, QuotaExceededError
from hotslot.ids import Digest, TenantId, hex_of
from store_service.admission.settings import AdmissionLimits
from store_service.catalog.catalog import Catalog
from store_service.content.keyed import KeyedContent
from store_service.content.keys import BlobKey, blob_name
from store_service.content.objects import ObjectBlobs
from store_service.content.origins import Origins
from store_service.content.published import PublishedBlobs
from store_service.content.reading import ContentReader
from store_service.content.recovery import Recovery
from store_service.content.verified import Verified
from store_service.execution.offload import Offload
from store_service.sources.hub.folder import HubOptions
from store_service.sources.sources import Sources
from tests.support.blob_cache import cached_blobs
from worker_service.adapters.disk_files import DiskFiles

TENANT = TenantId("acme")


class ContentPlace(Protocol):
    """The face."""

    repairs: bool
    """Damage is repaired from where it can be had again."""
    verifies: bool
    """No bytes are given out that are not their digest's; else they are sealed, and their readers verify."""

    async def put(self, digest: Digest, data: bytes) -> bool:
        """Write content; false where it was refused, for whatever reason."""

    async def get(self, digest: Digest, size_bytes: int) -> bytes | None:
        """All bytes of content; None where it is not there, or not whole and lost."""

    def remove(self, digest: Digest) -> None:
        """Remove content."""

    def file(self, digest: Digest) -> Path:
        """The file that holds the content, to be damaged."""

    def staged(self) -> list[Path]:
        """Files that are being written, or were left behind."""

    def used_bytes(self) -> int:
        """Bytes that count against the budget, as the disk has them."""

    def dying_writer(self) -> str:
        """A program that writes half of something into the place and gets killed."""

    def reopened(self) -> "ContentPlace":
        """The place as the next process finds it."""

    async def close(self) -> None:
        """Let go of its threads."""


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []


@dataclass
class _Sizes:
    """A catalog that knows how large each blob is, and no source of any."""

    sizes: dict[BlobKey, int] = field(default_factory=dict)

    def readable_weights(self, tenant: TenantId, digest: Digest) -> tuple[TenantId, int] | None:
        size_bytes = self.sizes.get((tenant, digest))
        return (tenant, size_bytes) if size_bytes is not None else None

    def weights_uses(self, key: BlobKey | None = None) -> list[Any]:
        return []


class _Damage:
    """A list that nothing reads."""

    def add(self, tenant: TenantId, digest: Digest) -> None:
        """Forget it."""


class StorePlace:
    """The store's blobs, read as its streams read them."""

    verifies = True

    def __init__(
        self, folder: Path, url: str | None, budget_bytes: int, *, loses_disk: bool = False, catalog: Any = None
    ) -> None:
        """One that `loses_disk` has nothing but object storage to read from."""
        self._arguments = (folder, url, budget_bytes)
        self._loses_disk = loses_disk
        self.folder = folder
        self.repairs = url is not None and not loses_disk
        self.catalog = catalog or _Sizes()
        self.blobs = cached_blobs(
            folder / "data", ObjectBlobs(url) if url is not None else None, budget_bytes=budget_bytes
        )
        self._objects = folder / "objects"
        self.offload = Offload("place", 2)
        real = cast(Catalog, self.catalog)
        sources = Sources(import_roots=(), max_bytes=1, hub=HubOptions(), hub_token_tenants=())
        origins = Origins(real, cast(Any, None), self.blobs, sources, AdmissionLimits(), folder / "restores", _Damage())
        self._recovery = Recovery(PublishedBlobs(real, self.blobs), origins, self.offload, max_restores=2)
        self.reader = ContentReader(self._recovery, self.offload, Verified(0))

    async def put(self, digest: Digest, data: bytes) -> bool:
        return await asyncio.to_thread(self._put, digest, data)

    def _put(self, digest: Digest, data: bytes) -> bool:
        try:
            writer = self.blobs.writer(TENANT)
        except QuotaExceededError:
            return False
        try:
            writer.reserve(len(data))
            writer.write(data[: len(data) // 2])
            writer.write(memoryview(data)[len(data) // 2 :])
            writer.publish(digest, len(data))
        except (DigestMismatchError, QuotaExceededError):
            return False
        finally:
            writer.close()
        self.catalog.sizes[TENANT, digest] = len(data)
        return True

    async def get(self, digest: Digest, size_bytes: int) -> bytes | None:
        return await self.get_range(digest, 0, 0)

    async def get_range(self, digest: Digest, offset: int, limit: int) -> bytes | None:
        if self._loses_disk:
            (self.folder / "data" / blob_name((TENANT, digest))).unlink(missing_ok=True)
        with suppress(HotslotError):
            chunks = self.reader.read(TENANT, digest, offset, limit, lambda data, offset, size_bytes: data)
            return b"".join([chunk async for chunk in chunks])
        return None

    def remove(self, digest: Digest) -> None:
        self.blobs.delete(TENANT, digest)

    def file(self, digest: Digest) -> Path:
        root = self._objects if self._loses_disk else self.folder / "data"
        return root / blob_name((TENANT, digest))

    def staged(self) -> list[Path]:
        return _files(self.folder / "data" / "stages")

    def used_bytes(self) -> int:
        return sum(path.stat().st_size for path in _files(self.folder / "data" / "blobs")) + sum(
            path.stat().st_size for path in self.staged()
        )

    def dying_writer(self) -> str:
        return (
            "from tests.support.blob_cache import cached_blobs; "
            f"cached_blobs(Path({str(self.folder / 'data')!r})).writer('acme').write(b'half')"
        )

    def reopened(self) -> "StorePlace":
        return StorePlace(*self._arguments, loses_disk=self._loses_disk, catalog=self.catalog)

    async def close(self) -> None:
        await self._recovery.close()
        self.offload.close()


class KeyedPlace:
    """Content under a key, which the store believes to be its digest's here."""

    repairs = verifies = False

    def __init__(self, folder: Path, budget_bytes: int) -> None:
        self._arguments = (folder, budget_bytes)
        self._folder = folder
        self._keyed = KeyedContent(folder, TENANT, budget_bytes)

    async def put(self, digest: Digest, data: bytes) -> bool:
        return await asyncio.to_thread(self._put, digest, data)

    def _put(self, digest: Digest, data: bytes) -> bool:
        try:
            writer = self._keyed.writer(digest, len(data))
        except QuotaExceededError:
            return False
        try:
            writer.write(data)
            writer.publish(digest, len(data))
        except (DigestMismatchError, QuotaExceededError):
            return False
        finally:
            writer.close()
        return True

    async def get(self, digest: Digest, size_bytes: int) -> bytes | None:
        with suppress(HotslotError), self._keyed.open(digest)[0] as file:
            return file.read()
        return None

    def remove(self, digest: Digest) -> None:
        self.file(digest).unlink()

    def file(self, digest: Digest) -> Path:
        return self._folder / TENANT / hex_of(digest)

    def staged(self) -> list[Path]:
        return _files(self._folder / ".stages")

    def used_bytes(self) -> int:
        return sum(path.stat().st_size for path in _files(self._folder))

    def dying_writer(self) -> str:
        return (
            "from store_service.content.keyed import KeyedContent; "
            f"KeyedContent(Path({str(self._folder)!r}), 'acme', 1000).writer('sha256:' + 64 * '0', 10).write(b'half')"
        )

    def reopened(self) -> "KeyedPlace":
        return KeyedPlace(*self._arguments)

    async def close(self) -> None:
        """Nothing is held."""


class WorkerDiskPlace:
    """A worker's disk tier."""

    repairs = False
    verifies = True

    def __init__(self, folder: Path, budget_bytes: int) -> None:
        self._arguments = (folder, budget_bytes)
        self._folder = folder
        self._files = DiskFiles(folder, budget_bytes)

    async def put(self, digest: Digest, data: bytes) -> bool:
        try:
            return await asyncio.to_thread(self._files.write, digest, data)
        except OSError:
            return False

    async def get(self, digest: Digest, size_bytes: int) -> bytes | None:
        found = await asyncio.to_thread(self._files.read, digest, size_bytes)
        return bytes(found) if found is not None else None

    def remove(self, digest: Digest) -> None:
        self._files.remove(hex_of(digest))

    def file(self, digest: Digest) -> Path:
        return self._folder / hex_of(digest)

    def staged(self) -> list[Path]:
        return list(self._folder.glob(".stage-*"))

    def used_bytes(self) -> int:
        return sum(path.stat().st_size for path in _files(self._folder))

    def dying_writer(self) -> str:
        return (
            "import fcntl; from hotslot.content_files import StagedFile; "
            f"staged = StagedFile(Path({str(self._folder / '.stage-00')!r})); fcntl.flock(staged.fileno(), 2); "
            "staged.write(b'half')"
        )

    def reopened(self) -> "WorkerDiskPlace":
        return WorkerDiskPlace(*self._arguments)

    async def close(self) -> None:
        """Nothing is held."""


def killed(program: str) -> list[str]:
    """The command of a program that is killed where it ends."""
    return [
        sys.executable,
        "-c",
        f"import os, signal\nfrom pathlib import Path\n{program}\nos.kill(os.getpid(), signal.SIGKILL)",
    ]


@contextmanager
def nearly_full_disk(max_file_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond so many bytes: the kernel refuses as a full disk's would."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
