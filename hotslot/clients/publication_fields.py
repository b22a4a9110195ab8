"""Fields of a publication and of a retention, as callers give them, in their messages."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from numbers import Integral, Real
from typing import Any

from hotslot.clients.rpc import checked_timeout
from hotslot.codec import build, mismatch
from hotslot.errors import FieldViolation, InvalidRequestError
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.references import parse_reference

PUSH_ARGUMENTS = {"keep_versions": "keep"}
"""Fields that a caller of `push` knows by another name."""
PUBLISH_ARGUMENTS = PUSH_ARGUMENTS | {"annotations": "metadata"}

_FIELD = re.compile(r"(?:version\.)?(\w+)(.*)", re.DOTALL)


@contextmanager
def naming(arguments: Mapping[str, str]) -> Iterator[None]:
    """Have errors name what the caller gave: the argument where the message's field is called otherwise.

    A version that goes in a message with its files is `version` there, and of no interest to the caller.
    """
    try:
        yield
    except InvalidRequestError as exc:
        fields = tuple(replace(field, field=_argument(field.field, arguments)) for field in exc.fields)
        if fields == exc.fields:
            raise
        raise InvalidRequestError(fields) from exc


def _argument(field: str, arguments: Mapping[str, str]) -> str:
    found = _FIELD.fullmatch(field)
    return arguments.get(found[1], found[1]) + found[2] if found else field


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
    if not isinstance(reference, str):
        raise InvalidRequestError([mismatch("reference", reference, "a text, name[:tag]")])
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

    A number may be of another kind than Python's own, such as numpy's, or a tensor of no dimensions, as a loss is.
    """
    if not isinstance(annotations, Mapping):
        raise InvalidRequestError([mismatch("annotations", annotations, "a mapping of names to texts or numbers")])
    found: dict[str, object] = {}
    for key, value in annotations.items():
        try:
            found[key] = _text_of(value)
        except (ValueError, OverflowError, RuntimeError) as exc:  # more digits than Python writes, or no value at all
            raise InvalidRequestError([FieldViolation(f"annotations[{key!r}]", str(exc))]) from exc
    return found


def _text_of(value: Any) -> object:
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Real):
        return str(int(value)) if isinstance(value, Integral) else repr(float(value))
    return value


def retention_fields(keep_versions: int | None, untagged_ttl_s: float | None) -> dict[str, object]:
    """Fields of a retention; raises InvalidRequestError for what is no number of seconds."""
    if untagged_ttl_s is None:
        return {"keep_versions": keep_versions}
    seconds = checked_timeout(untagged_ttl_s, "untagged_ttl_s")
    return {"keep_versions": keep_versions, "untagged_ttl": {"seconds": int(seconds), "nanos": int(seconds % 1 * 1e9)}}
