"""The contract's values of what the catalog and the fleet hold, and the messages of those that are asked for often."""

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache

from hotslot.codec import to_proto
from hotslot.contract.admission_warning import AdmissionWarning
from hotslot.contract.catalog import (
    Adapter,
    AdapterEvent,
    AdapterPolicy,
    BaseModel,
    PinnedVersion,
    Tag,
    TransferProgress,
    Version,
)
from hotslot.contract.moments import moment
from hotslot.formats.manifest import Manifest
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from store_service.admission.admit import Verdict
from store_service.catalog.records import (
    AdapterRecord,
    BaseModelRecord,
    CatalogEvent,
    PinnedRecord,
    PolicyRecord,
    Resolution,
    TagRecord,
    VersionRecord,
    VersionSummary,
)

MAX_ENCODED = 64
"""Versions that are kept as messages; encoding hundreds of modules takes a millisecond."""


def version_of(record: VersionRecord) -> Version:
    """A version with its manifest's canonical bytes."""
    manifest = record.manifest
    return Version(
        adapter=record.adapter,
        digest=record.digest,
        base_model=record.base_model,
        base_model_digest=manifest.base_model_digest,
        max_rank=manifest.max_rank,
        dtype=manifest.dtype,
        weights_digest=manifest.weights_digest,
        weights_size_bytes=manifest.weights_size_bytes,
        modules=manifest.modules,
        source=record.source,
        create_time=moment(record.create_time_s),
        tags=record.tags,
        config_json=record.config_json,
        end_token_ids=manifest.end_token_ids,
        signer=manifest.signer,
        manifest_json=manifest.canonical_json(),
        annotations=dict(record.annotations),
    )


@lru_cache(maxsize=MAX_ENCODED)
def version_message(record: VersionRecord) -> pb.Version:
    """The message of a version, which is never changed."""
    return to_proto(pb.Version, version_of(record))


def summary_of(record: VersionSummary) -> Version:
    """A version for listings: without its modules, their canonical bytes and the config."""
    return Version(
        adapter=record.adapter,
        digest=record.digest,
        base_model=record.base_model,
        base_model_digest=record.base_model_digest,
        max_rank=record.max_rank,
        dtype=record.dtype,
        weights_digest=record.weights_digest,
        weights_size_bytes=record.weights_size_bytes,
        modules=(),
        source=record.source,
        create_time=moment(record.create_time_s),
        tags=record.tags,
        config_json="",
        annotations=dict(record.annotations),
    )


def tag_of(record: TagRecord) -> Tag:
    """A tag."""
    return Tag(record.name, record.digest, record.etag, moment(record.update_time_s))


def adapter_of(record: AdapterRecord) -> Adapter:
    """An adapter with its tags, and its newest version as far as the record has it."""
    newest = summary_of(record.newest) if record.newest is not None else None
    is_deleted = record.delete_time_s is not None and record.purge_time_s is not None
    return Adapter(
        name=record.name,
        tags=tuple(map(tag_of, record.tags)),
        num_versions=record.num_versions,
        labels=record.labels,
        create_time=moment(record.create_time_s),
        update_time=moment(record.update_time_s),
        etag=record.etag,
        delete_time=moment(record.delete_time_s or 0) if is_deleted else None,
        purge_time=moment(record.purge_time_s or 0) if is_deleted else None,
        latest_version=version_of(record.latest_version) if record.latest_version is not None else newest,
    )


def adapter_message(record: AdapterRecord) -> pb.Adapter:
    """The message of an adapter."""
    return to_proto(pb.Adapter, adapter_of(record))


def policy_of(record: PolicyRecord) -> AdapterPolicy:
    """An adapter's policy."""
    policy = record.policy
    return AdapterPolicy(
        adapter=record.adapter,
        min_replicas=policy.min_replicas,
        max_replicas=policy.max_replicas or 0,
        pinned=policy.pinned,
        etag=record.etag,
        update_time=moment(record.update_time_s),
        keep_versions=record.retention.keep_versions,
        untagged_ttl_s=record.retention.untagged_ttl_s or 0.0,
    )


def pinned_of(record: PinnedRecord) -> PinnedVersion:
    """A version that workers should hold."""
    return PinnedVersion(record.tenant, record.digest, policy_of(record.record))


def resolution_message(resolution: Resolution) -> pb.ResolveAdapterResponse:
    """The message of what a reference stood for."""
    policy = resolution.policy
    return pb.ResolveAdapterResponse(
        version=version_message(resolution.version),
        revision=resolution.revision,
        policy=to_proto(pb.AdapterPolicy, policy_of(policy)) if policy is not None else None,
    )


def event_of(event: CatalogEvent) -> AdapterEvent:
    """A change of the catalog."""
    return AdapterEvent(
        event.revision,
        event.kind,
        event.adapter,
        event.tag or "",
        event.digest or "",
        moment(event.time_s),
        event.manifest_json,
    )


def base_model_of(record: BaseModelRecord) -> BaseModel:
    """A registered base model, without the details that only admission reads."""
    return BaseModel(
        spec=replace(record.spec, details=None),
        digest=record.spec.digest,
        create_time=moment(record.create_time_s),
        superseded=record.is_superseded,
    )


def import_message(event: TransferProgress | VersionRecord) -> pb.ImportAdapterResponse:
    """Progress of an import, or at last its version."""
    if isinstance(event, VersionRecord):
        warnings = warning_messages(event.warnings)
        return pb.ImportAdapterResponse(version=version_message(event), warnings=warnings, revision=event.revision)
    return pb.ImportAdapterResponse(progress=to_proto(pb.ImportProgress, event))


def verdict_message(verdict: Verdict) -> pb.ValidateAdapterResponse:
    """Verdict of admission on a dry run."""
    manifest: Manifest | None = verdict.manifest
    return pb.ValidateAdapterResponse(
        valid=manifest is not None,
        violations=[to_proto(pb.Violation, violation) for violation in verdict.violations],
        manifest=to_proto(pb.Manifest, manifest) if manifest is not None else None,
        digest=manifest.digest if manifest is not None else "",
        warnings=warning_messages(verdict.warnings),
    )


def warning_messages(warnings: Iterable[AdmissionWarning]) -> list[pb.Warning]:
    """Warnings as messages."""
    return [to_proto(pb.Warning, warning) for warning in warnings]
