"""Origins of published blobs: object storage, or a source that pins its content.

Whatever comes is digested before it is served; bytes of another digest count as none. Everything here blocks.
"""

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import structlog

from hotslot.errors import (
    BlobLostError,
    BlobNotFoundError,
    HotslotError,
    QuotaExceededError,
    RequestCancelledError,
    UnavailableError,
)
from hotslot.ids import Digest, TenantId
from store_service.admission.admit import admit
from store_service.admission.settings import AdmissionLimits
from store_service.catalog.base_models import BaseModels
from store_service.catalog.catalog import Catalog
from store_service.catalog.records import WeightsUse
from store_service.content.index import Retention
from store_service.content.keys import BlobKey
from store_service.content.objects import ObjectBlobs
from store_service.content.store import ContentStore
from store_service.content.writer import Writer
from store_service.sources.source import stop_if
from store_service.sources.sources import HubLocation, Sources, pinned_location

log = structlog.get_logger(__name__)

LOG_EVERY_S = 10.0
OBJECTS = "object storage"

WriteCopy = Callable[[Writer, "_Progress"], object]
"""Writes a blob; its digest is checked when it is published."""


class Damage(Protocol):
    """The seam to a list of damaged objects."""

    def add(self, tenant: TenantId, digest: Digest) -> None:
        """Take one more; raises StoreUnavailableError."""


class Origins:
    """Fetches blobs again. Calls for different blobs may run at the same time, for the same one not."""

    def __init__(
        self,
        catalog: Catalog,
        base_models: BaseModels,
        blobs: ContentStore,
        sources: Sources,
        limits: AdmissionLimits,
        scratch: Path,
        damaged: Damage,
    ) -> None:
        """`damaged` hears of objects that are not, or not whole, where they should be."""
        self._damaged = damaged
        self._catalog = catalog
        self._base_models = base_models
        self._blobs = blobs
        self._sources = sources
        self._limits = limits
        self._scratch = scratch
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)

    def restore(self, key: BlobKey, cancelled: threading.Event) -> None:
        """Bring a blob to the local disk.

        Raises BlobLostError when no origin has it, StoreUnavailableError or SourceUnavailableError when one may
        have it who does not answer, QuotaExceededError, and RequestCancelledError soon after `cancelled` is set.
        """
        problems: list[str] = []
        unavailable: UnavailableError | None = None
        for name, copy in self._copies_of(key):
            try:
                self._restore_from(name, copy, key, cancelled)
                return
            except (QuotaExceededError, RequestCancelledError):
                raise
            except UnavailableError as exc:
                unavailable = unavailable or exc
            except HotslotError as exc:
                problems.append(f"{name}: {exc.message}")
                if name == OBJECTS:
                    self._damaged.add(*key)
        if unavailable is not None:
            raise unavailable
        raise BlobLostError(key[1], problems)

    def _copies_of(self, key: BlobKey) -> Iterator[tuple[str, WriteCopy]]:
        objects = self._blobs.objects
        if objects is not None:
            yield OBJECTS, lambda writer, progress: self._copy_object(objects, key, writer, progress)
        seen: set[tuple[str, Digest]] = set()
        for use in self._catalog.weights_uses(key):
            location = pinned_location(use.source)
            if location is not None and (use.source, use.base_model_digest) not in seen:
                seen.add((use.source, use.base_model_digest))
                yield use.source, self._copy_source(use, location)

    def _copy_object(self, objects: ObjectBlobs, key: BlobKey, writer: Writer, progress: "_Progress") -> None:
        found = objects.find(key, self._blobs.generation_of(key))
        if found is None:
            raise BlobNotFoundError(key[1])
        generation, size_bytes = found
        writer.reserve(size_bytes)
        for data in objects.read(key, size_bytes, generation):
            writer.write(data)
            progress.report(writer.size_bytes)

    def _copy_source(self, use: WeightsUse, location: HubLocation) -> WriteCopy:
        def copy(writer: Writer, progress: _Progress) -> None:
            base = self._base_models.get(use.base_model_digest).spec
            target = Path(tempfile.mkdtemp(dir=self._scratch))
            try:
                content = self._sources.of(use.tenant, location).resolve()
                checkpoint = content.fetch(target, progress.report, progress.cancelled)
                admit(
                    checkpoint, base, self._limits, writer.append, writer.reserve, writer, was_admitted=True
                ).require()
            finally:
                shutil.rmtree(target, ignore_errors=True)

        return copy

    def _restore_from(self, name: str, copy: WriteCopy, key: BlobKey, cancelled: threading.Event) -> None:
        progress = _Progress(name, key, cancelled)
        log.info("blob_restoring", origin=name, tenant=key[0], digest=key[1])
        writer = self._blobs.writer(key[0], is_new=False)
        try:
            copy(writer, progress)
            size_bytes = writer.size_bytes
            writer.publish(key[1], size_bytes)
            if name != OBJECTS:  # it is not there, or not whole: upkeep stores it again
                self._blobs.index.note_stored(key, is_stored=False)
        except HotslotError as exc:
            log.warning("blob_not_restored", origin=name, tenant=key[0], digest=key[1], why=exc.message)
            raise
        finally:
            writer.close()
        log.info("blob_restored", origin=name, tenant=key[0], digest=key[1], size_bytes=size_bytes)


class _Progress:
    """Tells the log now and then how far a restoration is."""

    def __init__(self, origin: str, key: BlobKey, cancelled: threading.Event) -> None:
        self._origin = origin
        self._key = key
        self.cancelled = cancelled
        self._logged_s = time.monotonic()

    def report(self, done_bytes: int) -> None:
        """Raises RequestCancelledError when it is to stop."""
        stop_if(self.cancelled)
        now_s = time.monotonic()
        if now_s - self._logged_s >= LOG_EVERY_S:
            self._logged_s = now_s
            tenant, digest = self._key
            log.info("blob_restoring", origin=self._origin, tenant=tenant, digest=digest, done_bytes=done_bytes)


def retention_of(catalog: Catalog, keys: Collection[BlobKey]) -> Mapping[BlobKey, Retention]:
    """Word of the catalog about keeping each of some blobs."""
    found: dict[BlobKey, Retention] = {}
    for use in catalog.references.uses_among(keys):
        key = use.tenant, use.weights_digest
        has_source = pinned_location(use.source) is not None
        other = found.get(key)
        if other is not None:
            found[key] = Retention(other.is_pinned or use.is_pinned, other.has_source or has_source)
        else:
            found[key] = Retention(use.is_pinned, has_source)
    return found
