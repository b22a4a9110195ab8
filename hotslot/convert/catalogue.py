"""Catalogue messages to and from the client's types."""

from collections.abc import Iterable, Sequence

from hotslot.contract.admission_warning import AdmissionWarning
from hotslot.contract.catalogue import (
    Adapter,
    AdapterEvent,
    AdapterEventKind,
    AdapterPolicy,
    BaseModel,
    ResolvedAdapter,
    Tag,
    TransferProgress,
    TransferStage,
    ValidationReport,
    Version,
)
from hotslot.convert.messages import Form, build
from hotslot.convert.scalars import enum_field, time_or_none
from hotslot.errors import Violation
from hotslot.formats.base_spec import BaseModule, BaseSpec, ModuleKind
from hotslot.formats.manifest import AdapterModule, parse_manifest
from hotslot.ids import Digest
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb


def tag_from(message: pb.Tag) -> Tag:
    """Decode a tag."""
    return Tag(message.name, Digest(message.digest), message.etag, time_or_none(message, "update_time"))


def version_from(message: pb.Version) -> Version:
    """Decode a version; raises DigestMismatchError when its manifest is not what its digest says."""
    manifest = message.manifest
    modules = tuple(AdapterModule(m.path, m.rank, m.scaling, m.has_bias) for m in manifest.modules)
    if message.manifest_json:
        modules = parse_manifest(message.manifest_json, Digest(message.digest)).modules
    return Version(
        adapter=message.adapter,
        digest=Digest(message.digest),
        base_model=message.base_model,
        base_model_digest=Digest(manifest.base_model_digest),
        max_rank=manifest.max_rank,
        dtype=manifest.dtype,
        weights_digest=Digest(manifest.weights_digest),
        weights_size_bytes=manifest.weights_size_bytes,
        modules=modules,
        source=message.source,
        create_time=time_or_none(message, "create_time"),
        tags=tuple(message.tags),
        config_json=message.config_json,
    )


def adapter_from(message: pb.Adapter) -> Adapter:
    """Decode an adapter."""
    return Adapter(
        name=message.name,
        tags=tuple(tag_from(tag) for tag in message.tags),
        num_versions=message.num_versions,
        labels=dict(message.labels),
        create_time=time_or_none(message, "create_time"),
        update_time=time_or_none(message, "update_time"),
        etag=message.etag,
        delete_time=time_or_none(message, "delete_time"),
        purge_time=time_or_none(message, "purge_time"),
        latest_version=version_from(message.latest_version) if message.HasField("latest_version") else None,
    )


def policy_from(message: pb.AdapterPolicy) -> AdapterPolicy:
    """Decode an adapter's policy."""
    return AdapterPolicy(
        adapter=message.adapter,
        min_replicas=message.min_replicas,
        max_replicas=message.max_replicas,
        pinned=message.pinned,
        etag=message.etag,
        update_time=time_or_none(message, "update_time"),
    )


def resolved_from(message: pb.ResolveAdapterResponse) -> ResolvedAdapter:
    """Decode what a reference stood for."""
    policy = policy_from(message.policy) if message.HasField("policy") else None
    return ResolvedAdapter(version_from(message.version), message.revision, policy)


def report_from(message: pb.ValidateAdapterResponse) -> ValidationReport:
    """Decode what admission said."""
    manifest = message.manifest
    return ValidationReport(
        valid=message.valid,
        violations=tuple(Violation(v.code, v.subject, v.found, v.expected, v.message) for v in message.violations),
        digest=Digest(message.digest) if message.digest else None,
        base_model_digest=Digest(manifest.base_model_digest) if manifest.base_model_digest else None,
        max_rank=manifest.max_rank,
        dtype=manifest.dtype,
        num_modules=len(manifest.modules),
        weights_size_bytes=manifest.weights_size_bytes,
        warnings=warnings_from(message.warnings),
    )


def warnings_from(messages: Iterable[pb.Warning]) -> tuple[AdmissionWarning, ...]:
    """Decode what the owner of a checkpoint should know."""
    return tuple(AdmissionWarning(message.code, message.message) for message in messages)


def refusal_of(violations: Sequence[Violation]) -> ValidationReport:
    """The report on a checkpoint of which nothing more is known than what is wrong with it."""
    return ValidationReport(
        valid=False,
        violations=tuple(violations),
        digest=None,
        base_model_digest=None,
        max_rank=0,
        dtype="",
        num_modules=0,
        weights_size_bytes=0,
    )


def event_from(message: pb.WatchAdaptersResponse) -> AdapterEvent:
    """Decode a change of the catalogue."""
    return AdapterEvent(
        revision=message.revision,
        kind=enum_field(message, "kind", AdapterEventKind),
        adapter=message.adapter,
        tag=message.tag,
        digest=message.digest,
        event_time=time_or_none(message, "event_time"),
    )


def progress_from(message: pb.ImportProgress) -> TransferProgress:
    """Decode an import's progress; a stage that this client does not know shows as queued."""
    stage = enum_field(message, "stage", TransferStage, unknown=TransferStage.QUEUED)
    return TransferProgress(stage, message.done_bytes, message.total_bytes)


def base_model_from(message: pb.BaseModel) -> BaseModel:
    """Decode a base model."""
    spec = BaseSpec(
        name=message.name,
        model_type=message.model_type,
        weights_fingerprint=message.weights_fingerprint,
        modules=tuple(
            BaseModule(
                m.path,
                ModuleKind.EMBEDDING if m.kind == pb.BASE_MODULE_KIND_EMBEDDING else ModuleKind.LINEAR,
                m.in_features,
                m.out_features,
                m.values_digest,
            )
            for m in message.modules
        ),
    )
    return BaseModel(spec, Digest(message.digest), time_or_none(message, "create_time"), message.superseded)


def registration_to(spec: BaseSpec, *, move: bool) -> pb.RegisterBaseModelRequest:
    """Encode a base model's spec; raises InvalidRequestError."""
    return build(pb.RegisterBaseModelRequest, {"base_model": spec, "move": move}, FORMS)


def _spec_fields(spec: BaseSpec) -> dict[str, object]:
    return {
        "name": spec.name,
        "digest": spec.digest,
        "model_type": spec.model_type,
        "weights_fingerprint": spec.weights_fingerprint,
        "modules": spec.modules,
        "details_json": spec.details.to_json() if spec.details is not None else "",
    }


def _module_fields(module: BaseModule) -> dict[str, object]:
    return {
        "path": module.path,
        "kind": _KINDS.get(module.kind),
        "in_features": module.in_features,
        "out_features": module.out_features,
        "values_digest": module.values_digest,
    }


_KINDS = {
    ModuleKind.LINEAR: pb.BASE_MODULE_KIND_LINEAR,
    ModuleKind.EMBEDDING: pb.BASE_MODULE_KIND_EMBEDDING,
}
FORMS = {
    pb.BaseModel.DESCRIPTOR: Form(BaseSpec, _spec_fields),
    pb.BaseModule.DESCRIPTOR: Form(BaseModule, _module_fields),
}
"""Types of the client in the place of messages."""
