"""The catalog: adapters, tags, versions, policies, base models, events."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from hotslot.contract.admission_warning import AdmissionWarning
from hotslot.errors import Violation
from hotslot.formats.base_spec import BaseSpec
from hotslot.formats.manifest import AdapterModule, parse_manifest
from hotslot.ids import Digest, TenantId

UNPRINTED = {"printed": False}
"""Marks a field that the command leaves out of its JSON."""


@dataclass(frozen=True, slots=True)
class Tag:
    """A movable pointer to a version."""

    name: str
    digest: Digest
    etag: str
    update_time: datetime | None


@dataclass(frozen=True, slots=True)
class Version:
    """Immutable content under a name."""

    adapter: str
    digest: Digest
    base_model: str
    base_model_digest: Digest
    max_rank: int
    dtype: str
    weights_digest: Digest
    weights_size_bytes: int
    modules: tuple[AdapterModule, ...]
    """In layer order; listings may leave them out."""
    source: str
    create_time: datetime | None
    tags: tuple[str, ...]
    config_json: str
    """The fields of adapter_config.json that were admitted."""
    warnings: tuple[AdmissionWarning, ...] = ()
    """Hints for its owner; told by the import that made it, and by nothing else."""
    end_token_ids: tuple[int, ...] = field(default=(), metadata=UNPRINTED)
    """Tokens that end its answers, beside those that end the base's."""
    signer: str = ""
    """Signer of its checkpoint, where the tenant's policy asked for a signature; listings leave it out."""
    manifest_json: bytes = field(default=b"", metadata=UNPRINTED)
    """Canonical bytes of its manifest, from which `modules` were read; empty in listings."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    """Words of its publisher, such as the step of a training."""

    def verified(self) -> "Version":
        """The version with the modules of its canonical bytes, if it has these.

        Raises DigestMismatchError when they are not those of its digest, and InvalidAdapterError when they are no
        manifest that this version of hotslot understands.
        """
        if not self.manifest_json:
            return self
        return replace(self, modules=parse_manifest(self.manifest_json, self.digest).modules)


@dataclass(frozen=True, slots=True)
class Adapter:
    """A name with its tags."""

    name: str
    tags: tuple[Tag, ...]
    num_versions: int
    labels: Mapping[str, str]
    create_time: datetime | None
    update_time: datetime | None
    etag: str
    delete_time: datetime | None
    purge_time: datetime | None
    latest_version: Version | None

    def tag(self, name: str) -> Tag | None:
        """The tag of that name, if there is one."""
        return next((tag for tag in self.tags if tag.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmittedVersion:
    """Outcome of an admission that made a version, however its files came."""

    version: Version
    created: bool
    """False when the same content was already a version of this adapter."""
    warnings: tuple[AdmissionWarning, ...] = ()
    """Hints for its owner, though it was admitted."""
    revision: int = 0
    """Revision of the tenant's catalog with it, for other clients to pass on as `min_revision`; 0 from a store of a
    release that tells none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushResult(AdmittedVersion):
    """Outcome of a push."""

    uploaded_bytes: int
    """Bytes that had to be sent; files that the store already had are not sent again."""
    total_bytes: int


@dataclass(frozen=True, slots=True)
class VersionHolder:
    """A worker that had a version of a name in memory."""

    worker_id: str
    endpoint: str


@dataclass(frozen=True, slots=True)
class ReadyWorker:
    """A worker that was asked to serve what was published."""

    worker_id: str
    endpoint: str
    ready: bool
    """True if its next request of the name is served by the new version, from slots."""
    problem: str
    """The reason for which it is not, or not yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedVersion(AdmittedVersion):
    """Outcome of a publication from memory."""

    sent_bytes: int
    workers: tuple[ReadyWorker, ...] = ()
    """Workers that held the name before."""

    @property
    def is_ready(self) -> bool:
        """True if every worker that held the name before serves the new version."""
        return all(worker.ready for worker in self.workers)


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """Admission's verdict on a checkpoint, without publishing it."""

    valid: bool
    violations: tuple[Violation, ...]
    digest: Digest | None = None
    """The digest that the version would have."""
    base_model_digest: Digest | None = None
    max_rank: int = 0
    dtype: str = ""
    num_modules: int = 0
    weights_size_bytes: int = 0
    warnings: tuple[AdmissionWarning, ...] = ()
    """Hints for its owner, though they are no reason to refuse it."""


@dataclass(frozen=True, slots=True)
class ResolvedAdapter:
    """The version that a reference stood for."""

    version: Version
    revision: int
    """Revision of the catalog at which this held."""
    policy: "AdapterPolicy | None" = None
    """The adapter's; None where it goes by the defaults."""


@dataclass(frozen=True, slots=True)
class AdapterPolicy:
    """Bounds that an adapter's owner set on where it may be."""

    adapter: str
    min_replicas: int
    """Workers that share its requests out however few there are; 0 leaves it to demand."""
    max_replicas: int
    """Workers that its requests go to however many there are; 0 for no bound."""
    pinned: bool
    """Have min_replicas workers (at least one) hold `latest` in memory before any request, and keep it."""
    etag: str
    update_time: datetime | None
    keep_versions: int = 0
    """Newest versions that retention leaves; 0 with an untagged_ttl_s for none, 0 without one for all."""
    untagged_ttl_s: float = 0.0
    """Time after which retention removes further versions that no tag points at; 0 for none."""


@dataclass(frozen=True, slots=True)
class PrunedVersion:
    """A version that retention removed, or would remove."""

    adapter: str
    digest: Digest
    weights_size_bytes: int
    create_time: datetime | None


@dataclass(frozen=True, slots=True)
class PruneReport:
    """Outcome of one look at the retention of adapters."""

    versions: tuple[PrunedVersion, ...]
    """Versions that were removed, or would be."""
    num_waiting: int
    """Versions that nothing but the store's grace keeps for now."""
    num_kept: int
    more: bool
    """There were more than one answer takes."""
    revision: int = 0
    """Revision of the tenant's catalog with the removals; 0 where nothing was removed."""


@dataclass(frozen=True, slots=True)
class PinnedVersion:
    """The version that `latest` points at, of an adapter whose policy pins it."""

    tenant: TenantId
    digest: Digest
    policy: AdapterPolicy


class AdapterEventKind(StrEnum):
    """Kind of a change in the catalog."""

    UNSPECIFIED = "unspecified"
    VERSION_CREATED = "version_created"
    VERSION_DELETED = "version_deleted"
    TAG_MOVED = "tag_moved"
    TAG_DELETED = "tag_deleted"
    ADAPTER_DELETED = "adapter_deleted"
    ADAPTER_UNDELETED = "adapter_undeleted"
    POLICY_CHANGED = "policy_changed"
    LABELS_CHANGED = "labels_changed"
    ADAPTER_SHARED = "adapter_shared"
    ADAPTER_UNSHARED = "adapter_unshared"
    VERSION_COMING = "version_coming"
    """An announcement: a version is about to be published under the tag."""


@dataclass(frozen=True, slots=True)
class AdapterEvent:
    """One change of the catalog, or, for a caller that asks for them, one announcement, at revision 0."""

    revision: int
    kind: AdapterEventKind
    adapter: str
    tag: str
    digest: str
    event_time: datetime | None
    manifest_json: bytes = b""
    """Manifest of an announced version."""


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base model that the store knows."""

    spec: BaseSpec
    digest: Digest
    create_time: datetime | None = None
    superseded: bool = False
    """The name stands for another base model by now; this one is known by its digest only."""


@dataclass(frozen=True, slots=True)
class BaseModelMatch:
    """Registered base models that an adapter may be for."""

    registered: str
    """Name of the one that its config's name stands for; empty where none is registered so."""
    fitting: tuple[str, ...]
    """Names of those that its tensors fit, the ones that are called most alike first."""


class TransferStage(StrEnum):
    """Stage of a push or an import."""

    HASHING = "hashing"
    UPLOADING = "uploading"
    QUEUED = "queued"
    RESOLVING = "resolving"
    FETCHING = "fetching"
    VALIDATING = "validating"
    PUBLISHING = "publishing"


@dataclass(frozen=True, slots=True)
class TransferProgress:
    """Progress of a push or an import."""

    stage: TransferStage
    done_bytes: int = 0
    total_bytes: int = 0
    """0 while unknown."""
