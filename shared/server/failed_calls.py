"""Ends of calls that failed: the error that the caller hears of, and its status on the wire."""

import asyncio
import secrets
from typing import Any, NoReturn

import grpc
import structlog

from hotslot.errors import HotslotError, InternalError, NotImplementedYetError, StoreBusyError
from hotslot.rpc.status import DETAILS_KEY, row_for, to_status

log = structlog.get_logger(__name__)

# When gRPC's own retries of a call that is safe to retry may come: https://github.com/grpc/proposal/blob/master/A6-client-retries.md
PUSHBACK_KEY = "grpc-retry-pushback-ms"


def as_error(exc: Exception, method: str, context: Any) -> HotslotError:
    """The error that an exception of a handler is; a bug of ours is logged under an incident id."""
    if isinstance(exc, HotslotError):
        return exc
    if isinstance(exc, NotImplementedError) and context.code() is grpc.StatusCode.UNIMPLEMENTED:
        # The generated base class raises this for a method that the servicer does not define.
        return NotImplementedYetError(method.removeprefix("/"))
    incident = secrets.token_hex(6)
    log.error("incident", incident=incident, method=method, exc_info=exc)
    return InternalError(f"internal error; the server's log has the details under incident {incident}")


async def abort(context: Any, error: HotslotError) -> NoReturn:
    """End the call with the error's rich status; raises."""
    status = to_status(error)
    trailing = [*(context.trailing_metadata() or ()), (DETAILS_KEY, status.SerializeToString())]
    if isinstance(error, StoreBusyError) and error.retry_after_s is not None:
        # Not for all who say when to come again: of several servers another one may be asked at once.
        trailing.append((PUSHBACK_KEY, str(round(error.retry_after_s * 1e3))))
    try:
        await context.abort(row_for(error).code, status.message, tuple(trailing))
    except grpc.aio.InternalError as exc:
        # The caller has gone, and gRPC could not send the status.
        raise asyncio.CancelledError from exc
    raise AssertionError("a call goes on after its end")
