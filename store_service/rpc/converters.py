"""Records to messages and back."""

from collections.abc import Iterable, Mapping
from functools import lru_cache

from hotslot.errors import FieldViolation, InvalidRequestError, Violation
from hotslot.formats.base_spec import BaseModule, BaseSpec, ModuleKind, check_spec
from hotslot.formats.manifest import Manifest
from hotslot.ids import Digest, parse_digest
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.rpc.times import to_timestamp
from store_service.admission.admit import Verdict
from store_service.catalog.records import (
    AdapterRecord,
    BaseModelRecord,
    Event,
    EventKind,
    Resolution,
    TagRecord,
    VersionRecord,
    VersionSummary,
)
from store_service.imports.progress import Progress, Stage
from store_service.rpc.admission_convert import details_of, warnings_to_pb
from store_service.rpc.policies_convert import policy_to_pb
from store_service.sources.sources import FolderLocation, HubLocation

_KIND_TO_PB = {
    ModuleKind.LINEAR: pb.BASE_MODULE_KIND_LINEAR,
    ModuleKind.EMBEDDING: pb.BASE_MODULE_KIND_EMBEDDING,
}
_KIND_FROM_PB = {number: kind for kind, number in _KIND_TO_PB.items()}
_STAGE_TO_PB = {
    Stage.QUEUED: pb.IMPORT_STAGE_QUEUED,
    Stage.RESOLVING: pb.IMPORT_STAGE_RESOLVING,
    Stage.FETCHING: pb.IMPORT_STAGE_FETCHING,
    Stage.VALIDATING: pb.IMPORT_STAGE_VALIDATING,
    Stage.PUBLISHING: pb.IMPORT_STAGE_PUBLISHING,
}
_EVENT_TO_PB = {
    EventKind.VERSION_CREATED: pb.ADAPTER_EVENT_KIND_VERSION_CREATED,
    EventKind.VERSION_DELETED: pb.ADAPTER_EVENT_KIND_VERSION_DELETED,
    EventKind.TAG_MOVED: pb.ADAPTER_EVENT_KIND_TAG_MOVED,
    EventKind.TAG_DELETED: pb.ADAPTER_EVENT_KIND_TAG_DELETED,
    EventKind.ADAPTER_DELETED: pb.ADAPTER_EVENT_KIND_ADAPTER_DELETED,
    EventKind.ADAPTER_UNDELETED: pb.ADAPTER_EVENT_KIND_ADAPTER_UNDELETED,
    EventKind.POLICY_CHANGED: pb.ADAPTER_EVENT_KIND_POLICY_CHANGED,
    EventKind.LABELS_CHANGED: pb.ADAPTER_EVENT_KIND_LABELS_CHANGED,
}

MAX_ENCODED = 64
"""Manifests that are kept as messages; encoding hundreds of modules takes a millisecond."""


def files_of(files: Iterable[pb.UploadedFile]) -> Mapping[str, Digest]:
    """Uploaded files by name; raises InvalidRequestError with every field at fault."""
    problems: list[FieldViolation] = []
    found: dict[str, Digest] = {}
    for index, file in enumerate(files):
        if not file.path or file.path in found:
            problems.append(FieldViolation(f"files[{index}].path", f"{file.path!r} is empty or stands twice"))
        try:
            found[file.path] = parse_digest(file.digest, field=f"files[{index}].digest")
        except InvalidRequestError as exc:
            problems.extend(exc.fields)
    if problems:
        raise InvalidRequestError(problems)
    return found


def base_spec_of(message: pb.BaseModel) -> BaseSpec:
    """Raises InvalidRequestError, also when a digest is given that is not the spec's."""
    spec = BaseSpec(
        name=message.name,
        model_type=message.model_type,
        weights_fingerprint=message.weights_fingerprint,
        modules=tuple(
            BaseModule(
                module.path,
                _KIND_FROM_PB.get(module.kind, ModuleKind.LINEAR),
                module.in_features,
                module.out_features,
                module.values_digest,
            )
            for module in message.modules
        ),
        details=details_of(message),
    )
    unspecified = [
        FieldViolation(f"modules[{index}].kind", "must be linear or embedding")
        for index, module in enumerate(message.modules)
        if module.kind not in _KIND_FROM_PB
    ]
    if unspecified:
        raise InvalidRequestError(unspecified)
    check_spec(spec)
    if message.digest and message.digest != spec.digest:
        problem = f"found {message.digest}, the spec's is {spec.digest}"
        raise InvalidRequestError([FieldViolation("digest", problem)])
    return spec


def source_of(request: pb.ImportAdapterRequest) -> HubLocation | FolderLocation:
    """Location to import from; raises InvalidRequestError when the request does not say."""
    match request.WhichOneof("source"):
        case "hub":
            return HubLocation(request.hub.repo_id, request.hub.revision, request.hub.subfolder)
        case "directory":
            return FolderLocation(request.directory.path)
        case _:
            raise InvalidRequestError([FieldViolation("source", "must be hub or directory")])


def import_event_to_pb(event: Progress | VersionRecord) -> pb.ImportAdapterResponse:
    """Progress, or at last the version."""
    if isinstance(event, VersionRecord):
        return pb.ImportAdapterResponse(version=version_to_pb(event), warnings=warnings_to_pb(event.warnings))
    return pb.ImportAdapterResponse(
        progress=pb.ImportProgress(
            stage=_STAGE_TO_PB[event.stage], done_bytes=event.done_bytes, total_bytes=event.total_bytes
        )
    )


def verdict_to_pb(verdict: Verdict) -> pb.ValidateAdapterResponse:
    """Encode the verdict of admission."""
    response = pb.ValidateAdapterResponse(
        valid=verdict.manifest is not None,
        violations=[violation_to_pb(violation) for violation in verdict.violations],
        warnings=warnings_to_pb(verdict.warnings),
    )
    if verdict.manifest is not None:
        response.manifest.CopyFrom(manifest_to_pb(verdict.manifest))
        response.digest = verdict.manifest.digest
    return response


def revision_of(revision: int) -> int:
    """A revision to watch from; raises InvalidRequestError."""
    if revision < 0:
        raise InvalidRequestError([FieldViolation("from_revision", f"found {revision}, expected 0 or more")])
    return revision


def base_model_to_pb(record: BaseModelRecord) -> pb.BaseModel:
    """A registered base model."""
    spec = record.spec
    return pb.BaseModel(
        name=spec.name,
        digest=spec.digest,
        model_type=spec.model_type,
        weights_fingerprint=spec.weights_fingerprint,
        modules=[
            pb.BaseModule(
                path=m.path,
                kind=_KIND_TO_PB[m.kind],
                in_features=m.in_features,
                out_features=m.out_features,
                values_digest=m.values_digest,
            )
            for m in spec.modules
        ],
        create_time=to_timestamp(record.create_time_s),
        superseded=record.is_superseded,
    )


def manifest_to_pb(manifest: Manifest) -> pb.Manifest:
    """A version's description, with its modules."""
    return _encoded(manifest)[0]


@lru_cache(maxsize=MAX_ENCODED)
def _encoded(manifest: Manifest) -> tuple[pb.Manifest, bytes]:
    """A manifest as a message, which stays unchanged, and as canonical bytes."""
    return _manifest_to_pb(manifest), manifest.canonical_json()


def _manifest_to_pb(manifest: Manifest) -> pb.Manifest:
    return pb.Manifest(
        base_model_digest=manifest.base_model_digest,
        weights_digest=manifest.weights_digest,
        weights_size_bytes=manifest.weights_size_bytes,
        modules=[
            pb.AdapterModule(path=m.path, rank=m.rank, scaling=m.scaling, has_bias=m.has_bias) for m in manifest.modules
        ],
        max_rank=manifest.max_rank,
        dtype=manifest.dtype,
        end_token_ids=manifest.end_token_ids,
    )


def version_to_pb(record: VersionRecord) -> pb.Version:
    """A version with its manifest's canonical bytes."""
    manifest, manifest_json = _encoded(record.manifest)
    return pb.Version(
        adapter=record.adapter,
        digest=record.digest,
        manifest=manifest,
        manifest_json=manifest_json,
        source=record.source,
        create_time=to_timestamp(record.create_time_s),
        tags=record.tags,
        base_model=record.base_model,
        config_json=record.config_json,
    )


def resolution_to_pb(resolution: Resolution) -> pb.ResolveAdapterResponse:
    """Encode the version that a reference stood for."""
    return pb.ResolveAdapterResponse(
        version=version_to_pb(resolution.version),
        revision=resolution.revision,
        policy=policy_to_pb(resolution.policy) if resolution.policy is not None else None,
    )


def version_summary_to_pb(record: VersionSummary) -> pb.Version:
    """A version for listings: without its modules, their canonical bytes and the config."""
    return pb.Version(
        adapter=record.adapter,
        digest=record.digest,
        manifest=pb.Manifest(
            base_model_digest=record.base_model_digest,
            weights_digest=record.weights_digest,
            weights_size_bytes=record.weights_size_bytes,
            max_rank=record.max_rank,
            dtype=record.dtype,
        ),
        source=record.source,
        create_time=to_timestamp(record.create_time_s),
        tags=record.tags,
        base_model=record.base_model,
    )


def tag_to_pb(record: TagRecord) -> pb.Tag:
    """A tag."""
    return pb.Tag(
        name=record.name,
        digest=record.digest,
        etag=record.etag,
        update_time=to_timestamp(record.update_time_s),
    )


def adapter_to_pb(record: AdapterRecord) -> pb.Adapter:
    """An adapter with its tags and its newest version, the latter as `version_to_pb` has it."""
    message = adapter_summary_to_pb(record)
    if record.latest_version is not None:
        message.latest_version.CopyFrom(version_to_pb(record.latest_version))
    return message


def adapter_summary_to_pb(record: AdapterRecord) -> pb.Adapter:
    """An adapter for listings: its newest version as `version_summary_to_pb` has it."""
    message = pb.Adapter(
        name=record.name,
        tags=[tag_to_pb(tag) for tag in record.tags],
        num_versions=record.num_versions,
        labels=record.labels,
        create_time=to_timestamp(record.create_time_s),
        update_time=to_timestamp(record.update_time_s),
        etag=record.etag,
    )
    if record.delete_time_s is not None and record.purge_time_s is not None:
        message.delete_time.CopyFrom(to_timestamp(record.delete_time_s))
        message.purge_time.CopyFrom(to_timestamp(record.purge_time_s))
    if record.newest is not None:
        message.latest_version.CopyFrom(version_summary_to_pb(record.newest))
    return message


def violation_to_pb(violation: Violation) -> pb.Violation:
    """One thing that is wrong."""
    return pb.Violation(
        code=violation.code,
        subject=violation.subject,
        found=violation.found,
        expected=violation.expected,
        message=violation.message,
    )


def event_to_pb(event: Event) -> pb.WatchAdaptersResponse:
    """One change."""
    return pb.WatchAdaptersResponse(
        revision=event.revision,
        kind=_EVENT_TO_PB[event.kind],
        adapter=event.adapter,
        tag=event.tag or "",
        digest=event.digest or "",
        event_time=to_timestamp(event.time_s),
    )
