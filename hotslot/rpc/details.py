"""Details of errors: attributes to `google.rpc` messages, and back.

| attribute                                   | detail                                                          |
|---------------------------------------------|-----------------------------------------------------------------|
| InvalidRequestError.fields                  | BadRequest: field, description                                  |
| InvalidAdapterError.violations              | BadRequest: subject as field, code as reason, message as        |
|                                             | description; ErrorInfo.metadata: found_<i>, expected_<i>        |
| NotFoundError.resource                      | ResourceInfo: resource_name                                     |
| PreconditionError.subject                   | PreconditionFailure: reason as type, subject                    |
| ExhaustedError.subject                      | QuotaFailure: subject                                           |
| retry_after_s                               | RetryInfo: retry_delay                                          |
| found, expected (BadOffset, DigestMismatch) | ErrorInfo.metadata: found, expected                             |

Details travel in HTTP/2 trailers, which peers limit to 8 KiB by default. Violations that do not fit are grouped where
they differ in their subject alone. Entries that still do not fit are left out from the end; ErrorInfo.metadata
`omitted` counts them and the message says so. An error that fits is carried exactly.
"""

import bisect
import urllib.parse
from collections.abc import Sequence

from google.protobuf.message import Message
from google.rpc import error_details_pb2 as pb  # type: ignore[import-untyped]
from google.rpc import status_pb2

from hotslot import errors
from hotslot.errors import FieldViolation, HotslotError, Violation
from hotslot.violations import grouped

DOMAIN = "hotslot"
MAX_STATUS_BYTES = 7_000
"""Most bytes of the trailers on the wire: 8 KiB less room for other metadata."""
MAX_MESSAGE_BYTES = 1_200
"""Most bytes of the message, percent-encoded as it is in `grpc-message`."""
_MAX_FIELDS = 512
"""More fields of a request than fit, however short they are."""
MAX_TEXT_LENGTH = 500
"""Characters of one text inside a detail."""


def encode(error: HotslotError, *, code: int, reason: str) -> status_pb2.Status:
    """A status with every attribute of the error, as far as it fits."""
    info = pb.ErrorInfo(reason=reason, domain=DOMAIN)
    others = _small_details(error, reason)
    if isinstance(error, errors.BadOffsetError | errors.DigestMismatchError):
        info.metadata["found"] = _clip(str(error.found))
        info.metadata["expected"] = _clip(str(error.expected))

    if isinstance(error, errors.InvalidRequestError):
        fields = [Violation("", f.field, "", "", f.description) for f in error.fields[:_MAX_FIELDS]]
        return _with_entries(error, code, info, others, fields, len(error.fields))
    if isinstance(error, errors.InvalidAdapterError):
        status = _with_entries(error, code, info, others, error.violations, len(error.violations))
        is_cut = (found := error_info(status)) is not None and "omitted" in found.metadata
        groups = grouped(error.violations) if is_cut else []
        return _with_entries(error, code, info, others, groups, len(groups)) if is_cut else status
    return _status(code, _message(error.message, 0), [info, *others])


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
    """The ErrorInfo of our domain, if there is one."""
    info = pb.ErrorInfo()
    for detail in status.details:
        if detail.Unpack(info) and info.domain == DOMAIN:
            return info
    return None


def clear_attributes(error: HotslotError) -> None:
    """Give every attribute of the error's class its empty value."""
    if isinstance(error, errors.InvalidRequestError):
        error.fields = ()
    if isinstance(error, errors.InvalidAdapterError):
        error.violations = ()
    if isinstance(error, errors.NotFoundError):
        error.resource = ""
    if isinstance(error, errors.PreconditionError | errors.ExhaustedError):
        error.subject = ""
    if isinstance(error, errors.ExhaustedError | errors.UnavailableError):
        error.retry_after_s = None
    if isinstance(error, errors.BadOffsetError):
        error.found = error.expected = 0
    if isinstance(error, errors.DigestMismatchError):
        error.found = error.expected = ""


def decode_into(error: HotslotError, status: status_pb2.Status, info: pb.ErrorInfo) -> None:
    """Set the attributes that the details carry; what is missing keeps its empty value."""
    bad_request, resource, retry = pb.BadRequest(), pb.ResourceInfo(), pb.RetryInfo()
    precondition, quota = pb.PreconditionFailure(), pb.QuotaFailure()
    for detail in status.details:
        if detail.Unpack(bad_request):
            entries = bad_request.field_violations
            if isinstance(error, errors.InvalidRequestError):
                error.fields = tuple(FieldViolation(e.field, e.description) for e in entries)
            elif isinstance(error, errors.InvalidAdapterError):
                error.violations = tuple(
                    Violation(
                        code=e.reason,
                        subject=e.field,
                        found=info.metadata.get(f"found_{index}", ""),
                        expected=info.metadata.get(f"expected_{index}", ""),
                        message=e.description,
                    )
                    for index, e in enumerate(entries)
                )
        elif detail.Unpack(resource) and isinstance(error, errors.NotFoundError):
            error.resource = resource.resource_name
        elif detail.Unpack(precondition) and isinstance(error, errors.PreconditionError):
            error.subject = "".join(v.subject for v in precondition.violations[:1])
        elif detail.Unpack(quota) and isinstance(error, errors.ExhaustedError):
            error.subject = "".join(v.subject for v in quota.violations[:1])
        elif detail.Unpack(retry) and isinstance(error, errors.ExhaustedError | errors.UnavailableError):
            error.retry_after_s = retry.retry_delay.ToMicroseconds() / 1e6
    found, expected = info.metadata.get("found", ""), info.metadata.get("expected", "")
    if isinstance(error, errors.DigestMismatchError):
        error.found, error.expected = found, expected
    if isinstance(error, errors.BadOffsetError) and found.isdecimal() and expected.isdecimal():
        error.found, error.expected = int(found), int(expected)


def _small_details(error: HotslotError, reason: str) -> list[Message]:
    small: list[Message] = []
    if isinstance(error, errors.NotFoundError):
        small.append(pb.ResourceInfo(resource_name=_clip(error.resource)))
    if isinstance(error, errors.PreconditionError):
        failure = pb.PreconditionFailure.Violation(type=reason, subject=_clip(error.subject))
        small.append(pb.PreconditionFailure(violations=[failure]))
    if isinstance(error, errors.ExhaustedError):
        small.append(pb.QuotaFailure(violations=[pb.QuotaFailure.Violation(subject=_clip(error.subject))]))
    if isinstance(error, errors.ExhaustedError | errors.UnavailableError) and error.retry_after_s is not None:
        retry = pb.RetryInfo()
        retry.retry_delay.FromMicroseconds(max(0, round(error.retry_after_s * 1e6)))
        small.append(retry)
    return small


def _entry(field: str, description: str, reason: str = "") -> pb.BadRequest.FieldViolation:
    return pb.BadRequest.FieldViolation(field=_clip(field), description=_clip(description), reason=_clip(reason))


def _message(message: str, omitted: int) -> str:
    note = f" (and {omitted} more)" if omitted else ""
    return _fit(message, MAX_MESSAGE_BYTES - len(note) - 9) + note


def _status(code: int, message: str, details: list[Message]) -> status_pb2.Status:
    status = status_pb2.Status(code=code, message=message)
    for detail in details:
        status.details.add().Pack(detail)
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
