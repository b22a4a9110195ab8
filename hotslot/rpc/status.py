"""Errors as gRPC statuses and back, by what their classes declare.

A reason stands for exactly one class, so a client gets the class that the server raised, with the same message and
attributes. How attributes travel as `google.rpc` details is in `hotslot.rpc.details`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2  # type: ignore[import-untyped]

from hotslot import errors
from hotslot.errors import HotslotError
from hotslot.rpc import details
from hotslot.rpc.message_sizes import from_refusal

DETAILS_KEY = "grpc-status-details-bin"

Code = grpc.StatusCode


@dataclass(frozen=True, slots=True)
class StatusRow:
    """Status of one error class."""

    error: type[HotslotError]
    code: grpc.StatusCode
    reason: str
    """Unique in the table."""


def _classes(error: type[HotslotError]) -> Iterator[type[HotslotError]]:
    yield error
    for kind in error.__subclasses__():
        yield from _classes(kind)


# A class that only groups others has a row too: it is what a status without our details turns into.
STATUS_TABLE: tuple[StatusRow, ...] = tuple(
    StatusRow(error, getattr(grpc.StatusCode, error.code), error.reason)
    for error in _classes(HotslotError)
    if error is HotslotError or error.reason != error.__mro__[1].reason  # type: ignore[attr-defined]
)
_BY_ERROR = {row.error: row for row in STATUS_TABLE}
_BY_REASON = {row.reason: row for row in STATUS_TABLE}
# Statuses that gRPC itself, a proxy or a foreign server makes: they carry a code and a text only.
_BY_CODE: dict[grpc.StatusCode, type[HotslotError]] = {
    Code.INVALID_ARGUMENT: errors.InvalidRequestError,
    Code.NOT_FOUND: errors.NotFoundError,
    Code.ALREADY_EXISTS: errors.ConflictError,
    Code.ABORTED: errors.ConflictError,
    Code.FAILED_PRECONDITION: errors.PreconditionError,
    Code.PERMISSION_DENIED: errors.ForbiddenError,
    Code.UNAUTHENTICATED: errors.UnauthenticatedError,
    Code.DATA_LOSS: errors.InternalError,
    Code.OUT_OF_RANGE: errors.RangeError,
    Code.RESOURCE_EXHAUSTED: errors.ExhaustedError,
    Code.UNAVAILABLE: errors.UnavailableError,
    Code.DEADLINE_EXCEEDED: errors.RequestDeadlineError,
    # A caller that cancels its own call hears of that from asyncio; here it is a server that stops.
    Code.CANCELLED: errors.UnavailableError,
    Code.UNIMPLEMENTED: errors.NotImplementedYetError,
    Code.INTERNAL: errors.InternalError,
    Code.UNKNOWN: errors.InternalError,
}
_PLAIN_TEXT = {
    Code.UNAVAILABLE: "the server cannot be reached: ",
    Code.DEADLINE_EXCEEDED: "the deadline of the call passed: ",
    Code.CANCELLED: "the server ended the call: ",
    Code.UNIMPLEMENTED: "the server does not know this method: ",
}


def row_for(error: HotslotError) -> StatusRow:
    """The row of an error's class, or of its nearest mapped ancestor."""
    for cls in type(error).__mro__:
        row = _BY_ERROR.get(cls)
        if row is not None:
            return row
    raise AssertionError(f"{type(error).__name__} is no HotslotError")


def to_status(error: HotslotError) -> status_pb2.Status:
    """The rich status of an error, small enough for HTTP/2 trailers (`details.MAX_STATUS_BYTES`)."""
    row = row_for(error)
    return details.encode(error, code=row.code.value[0], reason=row.reason)


def from_status(status: status_pb2.Status) -> HotslotError | None:
    """The error that `to_status` was given, or None when the status is not one of ours."""
    info = details.error_info(status)
    if info is None or info.reason not in _BY_REASON:
        return None
    error = new_error(_BY_REASON[info.reason].error, status.message)
    details.decode_into(error, status, info)
    return error


def from_rpc_error(
    failure: grpc.RpcError, *, unavailable: type[errors.UnavailableError] = errors.UnavailableError
) -> HotslotError:
    """The error behind a failed call; use as `raise from_rpc_error(exc) from exc`.

    Works for asyncio and blocking calls. `unavailable` is what a server that cannot be reached, or stops, turns into,
    for example StoreUnavailableError.
    """
    call: Any = failure  # grpc's stubs do not say that every RpcError a call raises is also the call
    code: grpc.StatusCode = call.code()
    for key, value in call.trailing_metadata() or ():
        if key == DETAILS_KEY:
            try:
                error = from_status(status_pb2.Status.FromString(value))
            except DecodeError:
                break
            if error is not None:
                return error
    if code is Code.RESOURCE_EXHAUSTED:
        refused = from_refusal(call.details() or "")
        if refused is not None:
            return refused
    cls = _BY_CODE.get(code, errors.InternalError)
    if cls is errors.UnavailableError:
        cls = unavailable
    return new_error(cls, _PLAIN_TEXT.get(code, "") + (call.details() or code.name))


def new_error(cls: type[HotslotError], message: str) -> HotslotError:
    """An error of any class with this exact message and empty attributes.

    Constructors build messages from what the raiser knows; on the receiving side the message is already made.
    """
    error = cls.__new__(cls)
    HotslotError.__init__(error, message)
    details.clear_attributes(error)
    return error
