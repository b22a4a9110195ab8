"""Fields of a publication and of a retention, as callers give them, in their messages."""

from collections.abc import Mapping, Sequence
from numbers import Integral, Real

from hotslot.clients.rpc import checked_timeout
from hotslot.codec import build, mismatch
from hotslot.errors import InvalidRequestError
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.references import parse_reference


def version_request(
    reference: str,
    base_model: str = "",
    *,
    labels: Mapping[str, str] | None = None,
    tag_etag: str = "",
    annotations: Mapping[str, object] | None = None,
    tags: Sequence[str] = (),
    keep: int | None = None,
) -> pb.CreateVersionRequest:
    """Message of a version to create, without its files; raises InvalidReferenceError and InvalidRequestError."""
    parse_reference(reference)
    fields = {
        "base_model": base_model,
        "labels": labels or {},
        "tag_etag": tag_etag,
        "annotations": annotation_texts(annotations or {}),
        "tags": tags,
        "keep_versions": keep,
    }
    return build(pb.CreateVersionRequest, fields, reference=reference)


def annotation_texts(annotations: Mapping[str, object]) -> dict[str, object]:
    """Annotations as texts: numbers as Python writes them, truth in lower case; anything else is for `build` to refuse.

    A number may be of another kind than Python's own, such as numpy's: it is what it says of itself as one.
    """
    if not isinstance(annotations, Mapping):
        raise InvalidRequestError([mismatch("annotations", annotations, "a mapping of names to texts or numbers")])
    found: dict[str, object] = {}
    for key, value in annotations.items():
        if isinstance(value, bool):
            found[key] = str(value).lower()
        elif isinstance(value, Real):
            found[key] = str(int(value)) if isinstance(value, Integral) else repr(float(value))
        else:
            found[key] = value
    return found


def retention_fields(keep_versions: int | None, untagged_ttl_s: float | None) -> dict[str, object]:
    """Fields of a retention; raises InvalidRequestError for what is no number of seconds."""
    if untagged_ttl_s is None:
        return {"keep_versions": keep_versions}
    seconds = checked_timeout(untagged_ttl_s, "untagged_ttl_s")
    return {"keep_versions": keep_versions, "untagged_ttl": {"seconds": int(seconds), "nanos": int(seconds % 1 * 1e9)}}
