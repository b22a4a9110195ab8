"""Requests that take more than their fields: checked, as the catalog and the importer take them."""

from collections.abc import Iterable, Mapping

from hotslot.codec import from_proto
from hotslot.contract.catalog import BaseModel
from hotslot.errors import FieldViolation, InvalidRequestError
from hotslot.formats.base_spec import BaseSpec, check_spec
from hotslot.ids import Digest, parse_digest
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.references import Reference, parse_own_reference, parse_reference
from shared.fleet.replica_policy import ReplicaPolicy
from store_service.publication import Publication
from store_service.sources.sources import FolderLocation, HubLocation, Location, UrlLocation

MAX_REPLICAS = 10_000


def references_of(texts: Iterable[str]) -> list[Reference]:
    """All references of a request; raises InvalidReferenceError for the first that is none."""
    return [parse_reference(text) for text in texts]


def revision_of(revision: int) -> int:
    """A revision to watch from; raises InvalidRequestError."""
    if revision < 0:
        raise InvalidRequestError([FieldViolation("from_revision", f"found {revision}, expected 0 or more")])
    return revision


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


def source_of(request: pb.ImportAdapterRequest) -> Location:
    """Location to import from; raises InvalidRequestError when the request does not say."""
    match request.WhichOneof("source"):
        case "hub":
            return HubLocation(request.hub.repo_id, request.hub.revision, request.hub.subfolder)
        case "directory":
            return FolderLocation(request.directory.path)
        case "url":
            return UrlLocation(request.url.url, request.url.digest)
        case _:
            raise InvalidRequestError([FieldViolation("source", "must be hub, directory or url")])


def imported(request: pb.ImportAdapterRequest) -> Publication:
    """Publication that an import asks for; its source is known once it is resolved. Raises InvalidReferenceError."""
    reference, labels = parse_own_reference(request.reference), dict(request.labels)
    return Publication(reference=reference, base_model=request.base_model, source="", labels=labels)


def replica_policy_of(request: pb.SetAdapterPolicyRequest) -> ReplicaPolicy:
    """A policy to set. Raises InvalidRequestError with every field at fault."""
    least, most = request.min_replicas, request.max_replicas
    problems = []
    if not 0 <= least <= MAX_REPLICAS:
        problems.append(FieldViolation("min_replicas", f"found {least}, expected 0 to {MAX_REPLICAS}"))
    if most and not max(least, 1) <= most <= MAX_REPLICAS:
        expected = f"expected 0 for no bound, or {max(least, 1)} to {MAX_REPLICAS}"
        problems.append(FieldViolation("max_replicas", f"found {most}, {expected}"))
    if problems:
        raise InvalidRequestError(problems)
    return ReplicaPolicy(least, most or None, request.pinned)


def base_spec_of(message: pb.BaseModel) -> BaseSpec:
    """A base model to register. Raises InvalidRequestError, also when a digest is given that is not the spec's."""
    unspecified = [
        FieldViolation(f"modules[{index}].kind", "must be linear or embedding")
        for index, module in enumerate(message.modules)
        if module.kind not in (pb.BASE_MODULE_KIND_LINEAR, pb.BASE_MODULE_KIND_EMBEDDING)
    ]
    if unspecified:
        raise InvalidRequestError(unspecified)
    spec = from_proto(BaseModel, message).spec
    check_spec(spec)
    if message.digest and message.digest != spec.digest:
        problem = f"found {message.digest}, the spec's is {spec.digest}"
        raise InvalidRequestError([FieldViolation("digest", problem)])
    return spec
