"""The one table between error classes and gRPC statuses, with both directions.

A reason stands for exactly one class, so a client gets the class that the server raised, with the same message and
attributes. How attributes travel as `google.rpc` details is in `hotslot.rpc.details`.
"""

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
    """Row of the table: the status, reason and details of one error class."""

    error: type[HotslotError]
    code: grpc.StatusCode
    reason: str
    """Stable and machine-readable; unique in the table."""


# A class that only groups others has a row too: it is what a status without our details turns into.
STATUS_TABLE: tuple[StatusRow, ...] = (
    StatusRow(errors.HotslotError, Code.UNKNOWN, "UNKNOWN"),
    StatusRow(errors.InvalidRequestError, Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
    StatusRow(errors.InvalidReferenceError, Code.INVALID_ARGUMENT, "INVALID_REFERENCE"),
    StatusRow(errors.InvalidPageTokenError, Code.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN"),
    StatusRow(errors.InvalidEndpointError, Code.INVALID_ARGUMENT, "INVALID_ENDPOINT"),
    StatusRow(errors.EmptyPromptError, Code.INVALID_ARGUMENT, "EMPTY_PROMPT"),
    StatusRow(errors.PromptTooLongError, Code.INVALID_ARGUMENT, "PROMPT_TOO_LONG"),
    StatusRow(errors.InvalidAdapterError, Code.INVALID_ARGUMENT, "INVALID_ADAPTER"),
    StatusRow(errors.UnsupportedAdapterError, Code.FAILED_PRECONDITION, "UNSUPPORTED_ADAPTER"),
    StatusRow(errors.BaseModelMismatchError, Code.FAILED_PRECONDITION, "BASE_MODEL_MISMATCH"),
    StatusRow(errors.RankTooLargeError, Code.FAILED_PRECONDITION, "RANK_TOO_LARGE"),
    StatusRow(errors.NotFoundError, Code.NOT_FOUND, "NOT_FOUND"),
    StatusRow(errors.AdapterNotFoundError, Code.NOT_FOUND, "ADAPTER_NOT_FOUND"),
    StatusRow(errors.TagNotFoundError, Code.NOT_FOUND, "TAG_NOT_FOUND"),
    StatusRow(errors.VersionNotFoundError, Code.NOT_FOUND, "VERSION_NOT_FOUND"),
    StatusRow(errors.PolicyNotFoundError, Code.NOT_FOUND, "POLICY_NOT_FOUND"),
    StatusRow(errors.BlobNotFoundError, Code.NOT_FOUND, "BLOB_NOT_FOUND"),
    StatusRow(errors.BaseModelNotFoundError, Code.NOT_FOUND, "BASE_MODEL_NOT_FOUND"),
    StatusRow(errors.SourceNotFoundError, Code.NOT_FOUND, "SOURCE_NOT_FOUND"),
    StatusRow(errors.CompiledCodeNotFoundError, Code.NOT_FOUND, "COMPILED_CODE_NOT_FOUND"),
    StatusRow(errors.AdapterNotLoadedError, Code.NOT_FOUND, "ADAPTER_NOT_LOADED"),
    StatusRow(errors.ConflictError, Code.ABORTED, "CONFLICT"),
    StatusRow(errors.EtagMismatchError, Code.ABORTED, "ETAG_MISMATCH"),
    StatusRow(errors.SourceChangedError, Code.ABORTED, "SOURCE_CHANGED"),
    StatusRow(errors.StaleEpochError, Code.ABORTED, "STALE_EPOCH"),
    StatusRow(errors.UploadBusyError, Code.ABORTED, "UPLOAD_BUSY"),
    StatusRow(errors.PreconditionError, Code.FAILED_PRECONDITION, "FAILED_PRECONDITION"),
    StatusRow(errors.VersionInUseError, Code.FAILED_PRECONDITION, "VERSION_IN_USE"),
    StatusRow(errors.BaseModelNameTakenError, Code.FAILED_PRECONDITION, "BASE_MODEL_NAME_TAKEN"),
    StatusRow(errors.BaseModelInUseError, Code.FAILED_PRECONDITION, "BASE_MODEL_IN_USE"),
    StatusRow(errors.NotDeletedError, Code.FAILED_PRECONDITION, "NOT_DELETED"),
    StatusRow(errors.AdapterPinnedError, Code.FAILED_PRECONDITION, "ADAPTER_PINNED"),
    StatusRow(errors.CompiledCodeMismatchError, Code.FAILED_PRECONDITION, "COMPILED_CODE_MISMATCH"),
    StatusRow(errors.ModelNotServableError, Code.FAILED_PRECONDITION, "MODEL_NOT_SERVABLE"),
    StatusRow(errors.ClientMisuseError, Code.FAILED_PRECONDITION, "CLIENT_MISUSE"),
    StatusRow(errors.ClientClosedError, Code.FAILED_PRECONDITION, "CLIENT_CLOSED"),
    StatusRow(errors.ForkedClientError, Code.FAILED_PRECONDITION, "CLIENT_FORKED"),
    StatusRow(errors.WrongLoopError, Code.FAILED_PRECONDITION, "CLIENT_IN_ANOTHER_LOOP"),
    StatusRow(errors.ForbiddenError, Code.PERMISSION_DENIED, "FORBIDDEN"),
    StatusRow(errors.SourceForbiddenError, Code.PERMISSION_DENIED, "SOURCE_FORBIDDEN"),
    StatusRow(errors.DigestMismatchError, Code.DATA_LOSS, "DIGEST_MISMATCH"),
    StatusRow(errors.BlobLostError, Code.DATA_LOSS, "BLOB_LOST"),
    StatusRow(errors.CompiledCodeRefusedError, Code.DATA_LOSS, "COMPILED_CODE_REFUSED"),
    StatusRow(errors.CatalogDamagedError, Code.DATA_LOSS, "CATALOG_DAMAGED"),
    StatusRow(errors.RangeError, Code.OUT_OF_RANGE, "OUT_OF_RANGE"),
    StatusRow(errors.BadOffsetError, Code.OUT_OF_RANGE, "BAD_OFFSET"),
    StatusRow(errors.RevisionCompactedError, Code.OUT_OF_RANGE, "REVISION_COMPACTED"),
    StatusRow(errors.ExhaustedError, Code.RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED"),
    StatusRow(errors.QuotaExceededError, Code.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED"),
    StatusRow(errors.SlotsFullError, Code.RESOURCE_EXHAUSTED, "SLOTS_FULL"),
    StatusRow(errors.QueueFullError, Code.RESOURCE_EXHAUSTED, "QUEUE_FULL"),
    StatusRow(errors.UnavailableError, Code.UNAVAILABLE, "UNAVAILABLE"),
    StatusRow(errors.DrainingError, Code.UNAVAILABLE, "DRAINING"),
    StatusRow(errors.StoreUnavailableError, Code.UNAVAILABLE, "STORE_UNAVAILABLE"),
    StatusRow(errors.StoreBusyError, Code.UNAVAILABLE, "STORE_BUSY"),
    StatusRow(errors.SourceUnavailableError, Code.UNAVAILABLE, "SOURCE_UNAVAILABLE"),
    StatusRow(errors.CoordinationUnavailableError, Code.UNAVAILABLE, "COORDINATION_UNAVAILABLE"),
    StatusRow(errors.CoordinationForbiddenError, Code.UNAVAILABLE, "COORDINATION_FORBIDDEN"),
    StatusRow(errors.AdaptersDisabledError, Code.UNAVAILABLE, "ADAPTERS_DISABLED"),
    StatusRow(errors.StreamStalledError, Code.UNAVAILABLE, "STREAM_STALLED"),
    StatusRow(errors.EngineFailedError, Code.UNAVAILABLE, "ENGINE_FAILED"),
    StatusRow(errors.NoWorkersError, Code.UNAVAILABLE, "NO_WORKERS"),
    StatusRow(errors.RequestDeadlineError, Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
    StatusRow(errors.RequestCancelledError, Code.CANCELLED, "CANCELLED"),
    StatusRow(errors.NotImplementedYetError, Code.UNIMPLEMENTED, "NOT_IMPLEMENTED"),
    StatusRow(errors.InternalError, Code.INTERNAL, "INTERNAL"),
    StatusRow(errors.StepFailedError, Code.INTERNAL, "STEP_FAILED"),
    StatusRow(errors.NonFiniteLogitsError, Code.INTERNAL, "NON_FINITE_LOGITS"),
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
    Code.UNAUTHENTICATED: errors.ForbiddenError,
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
