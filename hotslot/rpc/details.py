"""Attributes of errors as `google.rpc` details, and back.

| declared as  | detail                                                                                        |
|--------------|-----------------------------------------------------------------------------------------------|
| FIELDS       | BadRequest: field, description                                                                |
| VIOLATIONS   | BadRequest: subject as field, code as reason, message as description; ErrorInfo.metadata:     |
|              | found_<i>, expected_<i>                                                                       |
| RESOURCE     | ResourceInfo: resource_name                                                                   |
| PRECONDITION | PreconditionFailure: reason as type, subject                                                  |
| QUOTA        | QuotaFailure: subject, message as description                                                 |
| RETRY        | RetryInfo: retry_delay                                                                        |
| TEXT, NUMBER | ErrorInfo.metadata, by the attribute's name                                                   |

The ErrorInfo stands twice: under the domain now, and under the earlier one.

Details travel in HTTP/2 trailers, which peers limit to 8 KiB by default. Violations that do not fit are grouped where
they differ in their subject alone. Entries that still do not fit are left out from the end; ErrorInfo.metadata
`omitted` counts them and the message says so. An error that fits is carried exactly.
"""

import bisect
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from google.protobuf.message import Message
from google.rpc import error_details_pb2 as pb  # type: ignore[import-untyped]
from google.rpc import status_pb2

from hotslot.errors import FieldViolation, HotslotError, Violation
from hotslot.errors.details import Detail
from hotslot.errors.violations import grouped

DOMAIN = "hotslot.dev"
EARLIER_DOMAIN = "hotslot"
"""Domain by which clients and workers of earlier releases know an ErrorInfo of ours: they pass over any other. It is
read, and written beside the one now, until none of them is left."""
MAX_STATUS_BYTES = 7_000
"""Most bytes of the trailers on the wire: 8 KiB less room for other metadata."""
MAX_MESSAGE_BYTES = 1_200
"""Most bytes of the message, percent-encoded as it is in `grpc-message`."""
_MAX_ENTRIES = 512
"""More than fit, however short they are."""
MAX_TEXT_LENGTH = 500
"""Characters of one text inside a detail."""


@dataclass(frozen=True, slots=True)
class _Form:
    """One kind of detail with one value of an error."""

    message: type[Message]
    pack: Callable[[Any, HotslotError], Message]
    """Message of the value and its error."""
    unpack: Callable[[Any], Any]


def _retry_info(retry_after_s: float) -> Any:
    retry: Any = pb.RetryInfo()
    retry.retry_delay.FromMicroseconds(max(0, round(retry_after_s * 1e6)))
    return retry


_FORMS = {
    Detail.RESOURCE: _Form(
        pb.ResourceInfo,
        lambda value, error: pb.ResourceInfo(resource_name=_clip(value)),
        lambda message: message.resource_name,
    ),
    Detail.PRECONDITION: _Form(
        pb.PreconditionFailure,
        lambda value, error: pb.PreconditionFailure(violations=[{"type": error.reason, "subject": _clip(value)}]),
        lambda message: "".join(violation.subject for violation in message.violations[:1]),
    ),
    Detail.QUOTA: _Form(
        pb.QuotaFailure,
        lambda value, error: pb.QuotaFailure(
            violations=[{"subject": _clip(value), "description": _clip(error.message)}]
        ),
        lambda message: "".join(violation.subject for violation in message.violations[:1]),
    ),
    Detail.RETRY: _Form(
        pb.RetryInfo,
        lambda value, error: _retry_info(value),
        lambda message: message.retry_delay.ToMicroseconds() / 1e6,
    ),
}
_EMPTY: dict[Detail, Any] = {Detail.FIELDS: (), Detail.VIOLATIONS: (), Detail.RETRY: None, Detail.NUMBER: 0}
"""Values of attributes that a status does not carry; others are empty texts."""
_IN_METADATA = (Detail.TEXT, Detail.NUMBER)


def encode(error: HotslotError, *, code: int, reason: str) -> status_pb2.Status:
    """A status with every attribute of the error, as far as it fits."""
    info, others = pb.ErrorInfo(reason=reason, domain=DOMAIN), list[Message]()
    listed: Sequence[FieldViolation] | Sequence[Violation] | None = None
    for name, detail in error.carries.items():
        value = getattr(error, name)
        if detail in _IN_METADATA:
            info.metadata[name] = _clip(str(value))
        elif detail in _FORMS and value is not None:
            others.append(_FORMS[detail].pack(value, error))
        elif detail not in _FORMS:
            listed = value
    if listed is None:
        return _status(code, _message(error.message, 0), [info, *others])
    entries = [_as_entry(item) for item in listed[:_MAX_ENTRIES]]
    status = _with_entries(error, code, info, others, entries, len(listed))
    is_cut = (found := error_info(status)) is not None and "omitted" in found.metadata
    if not is_cut or Detail.VIOLATIONS not in error.carries.values():
        return status
    groups = grouped(cast(Sequence[Violation], listed))
    return _with_entries(error, code, info, others, groups, len(groups))


def _as_entry(item: FieldViolation | Violation) -> Violation:
    return item if isinstance(item, Violation) else Violation("", item.field, "", "", item.description)


def _with_entries(
    error: HotslotError,
    code: int,
    bare_info: pb.ErrorInfo,
    others: list[Message],
    entries: Sequence[Violation],
    num_entries: int,
) -> status_pb2.Status:
    """The status with as many of `num_entries` as fit. Fields have only a subject and a message."""
    info, bad_request = pb.ErrorInfo(), pb.BadRequest()
    info.CopyFrom(bare_info)
    # With the longest possible note about what was left out; made once, since it takes longest.
    message = _message(error.message, num_entries)
    for index, entry in enumerate(entries):
        bad_request.field_violations.append(_entry(entry.subject, entry.message, entry.code))
        if entry.code:
            info.metadata[f"found_{index}"] = _clip(entry.found)
            info.metadata[f"expected_{index}"] = _clip(entry.expected)
        if _wire_bytes(_status(code, message, [info, bad_request, *others])) > MAX_STATUS_BYTES:
            _leave_out_last(info, bad_request)
            break
    while True:
        omitted = num_entries - len(bad_request.field_violations)
        if omitted:
            info.metadata["omitted"] = str(omitted)
        all_details = [info, bad_request, *others] if entries else [info, *others]
        status = _status(code, _message(error.message, omitted), all_details)
        # A cut between characters, and the number itself, may make a text longer than it was measured.
        if _wire_bytes(status) <= MAX_STATUS_BYTES or not bad_request.field_violations:
            return status
        _leave_out_last(info, bad_request)


def _leave_out_last(info: pb.ErrorInfo, bad_request: pb.BadRequest) -> None:
    index = len(bad_request.field_violations) - 1
    del bad_request.field_violations[index]
    info.metadata.pop(f"found_{index}", None)
    info.metadata.pop(f"expected_{index}", None)


def error_info(status: status_pb2.Status) -> pb.ErrorInfo | None:
    """The ErrorInfo of our domain, or else of the earlier one, if there is one."""
    earlier: pb.ErrorInfo | None = None
    for detail in status.details:
        info = pb.ErrorInfo()
        if not detail.Unpack(info):
            continue
        if info.domain == DOMAIN:
            return info
        if info.domain == EARLIER_DOMAIN and earlier is None:
            earlier = info
    return earlier


def _for_earlier_releases(info: pb.ErrorInfo) -> pb.ErrorInfo:
    """The same under the earlier domain, less what would leave room for fewer violations: their messages say it too."""
    kept = {name: text for name, text in info.metadata.items() if not name.startswith(("found_", "expected_"))}
    return pb.ErrorInfo(reason=info.reason, domain=EARLIER_DOMAIN, metadata=kept)


def clear_attributes(error: HotslotError) -> None:
    """Give every attribute that the error's class carries its empty value."""
    for name, detail in error.carries.items():
        setattr(error, name, _EMPTY.get(detail, ""))


def decode_into(error: HotslotError, status: status_pb2.Status, info: pb.ErrorInfo) -> None:
    """Set the attributes that the details carry; what is missing keeps its empty value."""
    for name, detail in error.carries.items():
        if detail in _FORMS:
            form = _FORMS[detail]
            found = _find(status, form.message)
            if found is not None:
                setattr(error, name, form.unpack(found))
        elif detail in _IN_METADATA:
            text = info.metadata.get(name, "")
            if detail is Detail.TEXT or text.isdecimal():
                setattr(error, name, text if detail is Detail.TEXT else int(text))
        elif (bad_request := _find(status, pb.BadRequest)) is not None:
            setattr(error, name, tuple(_LISTED[detail](bad_request.field_violations, info.metadata)))


def _find(status: status_pb2.Status, kind: type[Message]) -> Any:
    """The detail of a kind; None where there is none."""
    found: Any = kind()
    return found if any(detail.Unpack(found) for detail in status.details) else None


def _fields_from(entries: Sequence[Any], metadata: Mapping[str, str]) -> Iterator[FieldViolation]:
    return (FieldViolation(entry.field, entry.description) for entry in entries)


def _violations_from(entries: Sequence[Any], metadata: Mapping[str, str]) -> Iterator[Violation]:
    for index, entry in enumerate(entries):
        found, expected = metadata.get(f"found_{index}", ""), metadata.get(f"expected_{index}", "")
        yield Violation(entry.reason, entry.field, found, expected, entry.description)


_LISTED: dict[Detail, Callable[[Sequence[Any], Mapping[str, str]], Iterator[Any]]] = {
    Detail.FIELDS: _fields_from,
    Detail.VIOLATIONS: _violations_from,
}


def _entry(field: str, description: str, reason: str = "") -> pb.BadRequest.FieldViolation:
    return pb.BadRequest.FieldViolation(field=_clip(field), description=_clip(description), reason=_clip(reason))


def _message(message: str, omitted: int) -> str:
    note = f" (and {omitted} more)" if omitted else ""
    return _fit(message, MAX_MESSAGE_BYTES - len(note) - 9) + note


def _status(code: int, message: str, details: list[Message]) -> status_pb2.Status:
    status = status_pb2.Status(code=code, message=message)
    for detail in details:
        status.details.add().Pack(detail)
        if isinstance(detail, pb.ErrorInfo):
            status.details.add().Pack(_for_earlier_releases(detail))
    return status


def _fit(text: str, limit_bytes: int) -> str:
    """The text, or as much of its beginning as fits when percent-encoded, with an ellipsis."""
    if len(text) <= limit_bytes and len(urllib.parse.quote(text)) <= limit_bytes:
        return text
    # Every character takes a byte at least.
    size = bisect.bisect_right(
        range(min(len(text), limit_bytes)), limit_bytes, key=lambda last: len(urllib.parse.quote(text[: last + 1]))
    )
    return text[:size] + "…"


def _clip(text: str) -> str:
    return text if len(text) <= MAX_TEXT_LENGTH else text[: MAX_TEXT_LENGTH - 1] + "…"


def _wire_bytes(status: status_pb2.Status) -> int:
    """Bytes in the trailers: the message percent-encoded, and the status in base64 (which holds it again)."""
    size_bytes: int = status.ByteSize()
    return len(urllib.parse.quote(status.message)) + (size_bytes + 2) // 3 * 4
