"""The catalogue as the client sees it: adapters, tags, versions, base models, events."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from hotslot.contract.admission_warning import AdmissionWarning
from hotslot.errors import Violation
from hotslot.formats.base_spec import BaseSpec
from hotslot.formats.manifest import AdapterModule
from hotslot.ids import Digest


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
    """What its owner should know; told by the import that made it, and by nothing else."""


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


@dataclass(frozen=True, slots=True)
class PushResult:
    """What a push did."""

    version: Version
    created: bool
    """False when the same content was already a version of this adapter."""
    uploaded_bytes: int
    """What had to be sent; files that the store already had are not sent again."""
    total_bytes: int
    warnings: tuple[AdmissionWarning, ...] = ()
    """What its owner should know, though it was admitted."""


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """What admission says about a checkpoint, without publishing it."""

    valid: bool
    violations: tuple[Violation, ...]
    digest: Digest | None
    """The digest that the version would have."""
    base_model_digest: Digest | None
    max_rank: int
    dtype: str
    num_modules: int
    weights_size_bytes: int
    warnings: tuple[AdmissionWarning, ...] = ()
    """What its owner should know, though it is no reason to refuse it."""


@dataclass(frozen=True, slots=True)
class ResolvedAdapter:
    """The version that a reference stood for."""

    version: Version
    revision: int
    """Revision of the catalogue at which this held."""
    policy: "AdapterPolicy | None" = None
    """The adapter's; None where it goes by the defaults."""


@dataclass(frozen=True, slots=True)
class AdapterPolicy:
    """What an adapter's owner decided about where it may be."""

    adapter: str
    min_replicas: int
    """Workers that share its requests out however few there are; 0 leaves it to demand."""
    max_replicas: int
    """Workers that its requests go to however many there are; 0 for no bound."""
    pinned: bool
    """Whether min_replicas workers (at least one) have `latest` in memory before anybody asks, and keep it."""
    etag: str
    update_time: datetime | None


class AdapterEventKind(StrEnum):
    """What happened in the catalogue."""

    UNSPECIFIED = "unspecified"
    VERSION_CREATED = "version_created"
    VERSION_DELETED = "version_deleted"
    TAG_MOVED = "tag_moved"
    TAG_DELETED = "tag_deleted"
    ADAPTER_DELETED = "adapter_deleted"
    ADAPTER_UNDELETED = "adapter_undeleted"
    POLICY_CHANGED = "policy_changed"
    LABELS_CHANGED = "labels_changed"


@dataclass(frozen=True, slots=True)
class AdapterEvent:
    """One change of the catalogue."""

    revision: int
    kind: AdapterEventKind
    adapter: str
    tag: str
    digest: str
    event_time: datetime | None


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base model that the store knows."""

    spec: BaseSpec
    digest: Digest
    create_time: datetime | None
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
    """What a push or an import is doing."""

    HASHING = "hashing"
    UPLOADING = "uploading"
    QUEUED = "queued"
    RESOLVING = "resolving"
    FETCHING = "fetching"
    VALIDATING = "validating"
    PUBLISHING = "publishing"


@dataclass(frozen=True, slots=True)
class TransferProgress:
    """How far a push or an import is."""

    stage: TransferStage
    done_bytes: int = 0
    total_bytes: int = 0
    """0 while unknown."""
