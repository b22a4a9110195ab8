"""Records of the catalog, as the rest of the store sees them. Times are seconds since the epoch."""

from dataclasses import dataclass, field

from hotslot.contract.admission_warning import AdmissionWarning
from hotslot.contract.catalog import AdapterEventKind
from hotslot.formats.base_spec import BaseSpec
from hotslot.formats.manifest import Manifest
from hotslot.ids import AdapterName, Digest, TagName, TenantId
from shared.fleet.replica_policy import ReplicaPolicy
from store_service.catalog.retention import NO_RETENTION, RetentionPolicy

PINNED_LABEL = ("hotslot.pinned", "true")
"""On an adapter: the weights of its versions stay on the store's local disk."""

MAX_ANNOTATIONS = 32
"""Most annotations of one version."""

MAX_LABELS = 64
"""Most labels of one adapter, so that its message stays within what clients take."""


@dataclass(frozen=True, slots=True)
class CatalogState:
    """Identity and progress of a catalog."""

    id: str
    """Tells it from all others; empty where there is no catalog."""
    num_changes: int
    """Changes of all tenants, since the beginning: a copy has fewer than what it was copied from has later."""


@dataclass(frozen=True, slots=True)
class TagRecord:
    """A movable pointer to a version."""

    name: TagName
    digest: Digest
    etag: str
    update_time_s: float
    revision: int = field(default=0, compare=False)
    """Revision of the tenant's catalog with the write that returned this; 0 where it was only read."""


Annotations = tuple[tuple[str, str], ...]
"""Annotations of a version by key."""


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A version about to enter the catalog."""

    manifest: Manifest
    base_model: str
    """Name under which the base model was known."""
    source: str
    """Origin of the checkpoint: "upload", "hf:org/name@commit", "dir:…"."""
    config_json: str
    annotations: Annotations = ()
    """An empty value removes one, where the version is there already."""


@dataclass(frozen=True, slots=True)
class VersionSummary:
    """Summary of a version for listings: everything that does not take its manifest."""

    adapter: AdapterName
    digest: Digest
    base_model: str
    base_model_digest: Digest
    weights_digest: Digest
    weights_size_bytes: int
    max_rank: int
    dtype: str
    source: str
    create_time_s: float
    tags: tuple[TagName, ...] = ()
    annotations: Annotations = ()


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """A version of an adapter."""

    adapter: AdapterName
    digest: Digest
    manifest: Manifest
    base_model: str
    source: str
    config_json: str
    create_time_s: float
    tags: tuple[TagName, ...] = ()
    annotations: Annotations = ()
    warnings: tuple[AdmissionWarning, ...] = field(default=(), compare=False)
    """Told to whom publishes it; the catalog does not keep them."""
    revision: int = field(default=0, compare=False)
    """Revision of the tenant's catalog with the write that returned this; 0 where it was only read."""


@dataclass(frozen=True, slots=True)
class ShareRecord:
    """Tenants that may read and use an adapter besides its owner."""

    adapter: AdapterName
    tenants: tuple[str, ...]
    all_tenants: bool
    update_time_s: float | None
    revision: int = field(default=0, compare=False)
    """Revision of the tenant's catalog with the write that returned this; 0 where it was only read."""


@dataclass(frozen=True, slots=True)
class PolicyRecord:
    """Decision of an adapter's owner about the workers that it may be on."""

    adapter: AdapterName
    policy: ReplicaPolicy
    etag: str
    update_time_s: float
    retention: RetentionPolicy = NO_RETENTION
    revision: int = field(default=0, compare=False)
    """Revision of the tenant's catalog with the write that returned this; 0 where it was only read."""


@dataclass(frozen=True, slots=True)
class PinnedRecord:
    """Version that `latest` points at, of an adapter that is pinned."""

    tenant: TenantId
    digest: Digest
    record: PolicyRecord


@dataclass(frozen=True, slots=True)
class Resolution:
    """Version that a reference stood for."""

    version: VersionRecord
    policy: PolicyRecord | None
    """The adapter's; None where it goes by the defaults."""
    revision: int
    """Revision of the tenant's catalog when this held."""


@dataclass(frozen=True, slots=True)
class WeightsUse:
    """A version, as the keeper of its weights sees it."""

    tenant: TenantId
    weights_digest: Digest
    source: str
    base_model_digest: Digest
    is_pinned: bool
    """Its adapter has the label `hotslot.pinned=true`."""


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """An adapter with its tags."""

    name: AdapterName
    etag: str
    num_versions: int
    labels: dict[str, str]
    create_time_s: float
    update_time_s: float
    delete_time_s: float | None = None
    purge_time_s: float | None = None
    tags: tuple[TagRecord, ...] = ()
    newest: VersionSummary | None = None
    latest_version: VersionRecord | None = None
    """The newest one in full, where a single adapter was asked for."""
    revision: int = field(default=0, compare=False)
    """Revision of the tenant's catalog with the write that returned this; 0 where it was only read."""


@dataclass(frozen=True, slots=True)
class BaseModelRecord:
    """A base model as it was registered."""

    spec: BaseSpec
    create_time_s: float
    owner: TenantId | None = field(default=None, compare=False)
    """Tenant that the name belongs to; none where that was not written down when it was registered."""
    is_superseded: bool = field(default=False, compare=False)
    """The name stands for another base model by now; this one is known by digest only."""


@dataclass(frozen=True, slots=True)
class CatalogEvent:
    """One change, at its revision, or one announcement of a publication under way, at revision 0."""

    revision: int
    kind: AdapterEventKind
    adapter: AdapterName
    tag: TagName | None
    digest: Digest | None
    time_s: float
    manifest_json: bytes = b""
    """Manifest of an announced version."""


@dataclass(frozen=True, slots=True)
class AdapterFilter:
    """Filter of a listing of adapters."""

    base_model: str = ""
    """Name or digest; empty means any."""
    labels: dict[str, str] = field(default_factory=dict)
    name_prefix: str = ""
    show_deleted: bool = False
