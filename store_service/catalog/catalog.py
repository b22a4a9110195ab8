"""The seam to the catalog. Every method is one transaction; all of them block, so call them from a thread."""

from typing import Protocol

from hotslot.ids import AdapterName, Digest, TagName, TenantId
from hotslot.references import Reference
from store_service.catalog.records import (
    AdapterFilter,
    AdapterRecord,
    Event,
    NewVersion,
    Resolution,
    TagRecord,
    VersionRecord,
    VersionSummary,
    WeightsUse,
)
from store_service.content.ownership import CatalogState


class Catalog(Protocol):
    """Adapters, versions and tags; a tenant sees its own only.

    Everything that changes an adapter also writes an event, at the tenant's next revision, in the same transaction.
    Any method may raise StoreUnavailableError, and CatalogDamagedError when a row is not what was written.
    """

    def create_version(
        self,
        tenant: TenantId,
        name: AdapterName,
        version: NewVersion,
        *,
        tag: TagName | None,
        new_labels: dict[str, str],
        tag_etag: str,
        requires_base: bool = False,
    ) -> tuple[VersionRecord, bool]:
        """Add a version, and move a tag to it; the flag is false where the version was there. Labels are merged;
        an empty value removes one.

        Raises EtagMismatchError, InvalidRequestError for more than MAX_LABELS, and, where it `requires_base`,
        BaseModelNotFoundError for one that is not registered (any more); nothing is changed then.
        """

    def get_adapter(self, tenant: TenantId, name: AdapterName) -> AdapterRecord:
        """Raises AdapterNotFoundError."""

    def list_adapters(
        self, tenant: TenantId, wanted: AdapterFilter, *, limit: int, after: tuple[str, int]
    ) -> tuple[list[tuple[int, AdapterRecord]], int]:
        """Adapters by name, each with its position, and the tenant's revision.

        `after` is the name and position of the last one known; ("", 0) means from the beginning.
        """

    def list_versions(
        self, tenant: TenantId, name: AdapterName, *, limit: int, before: int
    ) -> list[tuple[int, VersionSummary]]:
        """Versions, newest first, each with its position; `before` 0 means from the newest.

        Raises AdapterNotFoundError.
        """

    def resolve(self, tenant: TenantId, reference: Reference) -> Resolution:
        """Resolve a reference to the version that it stands for now.

        Raises AdapterNotFoundError, TagNotFoundError, VersionNotFoundError.
        """

    def set_tag(self, tenant: TenantId, name: AdapterName, tag: TagName, digest: Digest, *, etag: str) -> TagRecord:
        """Raises AdapterNotFoundError, VersionNotFoundError, EtagMismatchError."""

    def delete_tag(self, tenant: TenantId, name: AdapterName, tag: TagName, *, etag: str) -> None:
        """Raises AdapterNotFoundError, TagNotFoundError, EtagMismatchError."""

    def delete_adapter(self, tenant: TenantId, name: AdapterName, *, etag: str, grace_s: float) -> AdapterRecord:
        """Hide an adapter; it can be brought back within the grace. Raises as `get_adapter`, EtagMismatchError."""

    def undelete_adapter(self, tenant: TenantId, name: AdapterName) -> AdapterRecord:
        """Raises AdapterNotFoundError (never there, or purged) and NotDeletedError."""

    def delete_version(self, tenant: TenantId, name: AdapterName, digest: Digest, *, force: bool) -> None:
        """Raises AdapterNotFoundError, VersionNotFoundError, VersionInUseError."""

    def purge(self) -> int:
        """Remove for good what was deleted longer ago than its grace; returns how many adapters went."""

    def weights_size_bytes(self, tenant: TenantId, digest: Digest) -> int | None:
        """The size of a weights blob; None where no version of an adapter that is not deleted has it."""

    def weights_uses(self, of: tuple[TenantId, Digest] | None = None) -> list[WeightsUse]:
        """All versions by their weights, or those of one blob, newest first; deleted adapters' included."""

    def referenced_weights(self) -> set[tuple[TenantId, Digest]]:
        """The weights blobs of all versions, deleted adapters' included."""

    def events_after(self, tenant: TenantId, revision: int, *, limit: int) -> list[Event]:
        """Events in order. Raises RevisionCompactedError when some after `revision` are gone, or it lies ahead."""

    def state(self) -> CatalogState:
        """State of this catalog: its id and the number of its changes."""

    def revision(self, tenant: TenantId) -> int:
        """The tenant's newest revision; 0 before the first change."""
