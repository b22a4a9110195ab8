"""The one place that decides how a failure looks over HTTP: its status, its kind, its code, and when to try again.

The body is OpenAI's, `{"error": {"message", "type", "param", "code"}}`; the code is the reason that gRPC callers get.
Details of a service's own inside (addresses, failures of ours) stay in the log.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from hotslot import errors
from hotslot.errors import FieldViolation, HotslotError, InvalidRequestError
from hotslot.rpc.status import Code, row_for

ParamOf = Callable[[str], str]
"""Name of a field of our protocol as this request calls it."""

RETRY_AFTER_S = 1.0
"""Pause that is asked for in the name of a service that is full or away and names none."""
MAX_NAMED_FIELDS = 32
_COMMANDS = re.compile(r"; `hotslot [^;]*")
"""Advice to call our command, which HTTP clients do not have."""


@dataclass(frozen=True, slots=True)
class HttpStatus:
    """Row of one gRPC code: its HTTP status, type and code."""

    status: int
    kind: str
    """OpenAI's `type`."""
    is_retried: bool = False
    """True when clients should send the same request again; OpenAI's retry on 408, 409, 429 and 5xx by themselves."""


INVALID = "invalid_request_error"
SERVER = "server_error"

HTTP_STATUSES: dict[grpc.StatusCode, HttpStatus] = {
    Code.INVALID_ARGUMENT: HttpStatus(400, INVALID),
    # Not 409, which clients retry: the same request fails again until the state changes.
    Code.FAILED_PRECONDITION: HttpStatus(400, INVALID),
    Code.OUT_OF_RANGE: HttpStatus(400, INVALID),
    Code.UNAUTHENTICATED: HttpStatus(401, "authentication_error"),
    Code.PERMISSION_DENIED: HttpStatus(403, "permission_error"),
    Code.NOT_FOUND: HttpStatus(404, "not_found_error"),
    Code.ALREADY_EXISTS: HttpStatus(409, "conflict_error"),
    Code.ABORTED: HttpStatus(409, "conflict_error", is_retried=True),
    Code.RESOURCE_EXHAUSTED: HttpStatus(429, "rate_limit_error", is_retried=True),
    Code.CANCELLED: HttpStatus(499, SERVER),
    Code.INTERNAL: HttpStatus(500, SERVER),
    Code.UNKNOWN: HttpStatus(500, SERVER),
    Code.DATA_LOSS: HttpStatus(500, SERVER),
    Code.UNIMPLEMENTED: HttpStatus(501, SERVER),
    Code.UNAVAILABLE: HttpStatus(503, SERVER, is_retried=True),
    Code.DEADLINE_EXCEEDED: HttpStatus(504, SERVER),
}

# The nearest ancestor's text stands for an error whose own message names addresses or what failed inside.
_PUBLIC_TEXTS: dict[type[HotslotError], str] = {
    errors.HotslotError: "something failed here; the log has the reason",
    errors.InternalError: "something failed here; the log has the reason",
    errors.UnavailableError: "no worker can serve this at present; try again shortly",
    errors.NoWorkersError: "no worker takes requests for this model at present; try again shortly",
    errors.EngineFailedError: "the engine that served this failed; try again",
    errors.StreamStalledError: "the stream was not read for too long and was ended",
    errors.StoreUnavailableError: "the adapter store does not answer at present; try again shortly",
    errors.CatalogBehindError: "the tenant's catalog is not at the revision of hotslot-min-revision; try again",
    errors.SourceUnavailableError: "where the adapter comes from does not answer at present; try again shortly",
    errors.CoordinationUnavailableError: "the fleet cannot be looked up at present; try again shortly",
    errors.CatalogDamagedError: "the adapter store's catalog is damaged; its operator has to restore it",
    errors.ClientMisuseError: "the gateway is stopping; try again",
}
_SHOWN = (errors.StepFailedError, errors.NonFiniteLogitsError)
"""Our own faults whose messages are made for callers."""


class ApiError(Exception):
    """A failure as HTTP clients see it."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        kind: str = INVALID,
        retry_after_s: float | None = None,
        is_retried: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.kind = kind
        self.retry_after_s = retry_after_s
        self.is_retried = is_retried

    def body(self) -> dict[str, object]:
        """JSON that is sent."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Time of the next attempt, in the headers that OpenAI's clients read."""
        told = {"x-should-retry": "true" if self.is_retried else "false"}
        if self.retry_after_s is not None:
            told["retry-after"] = str(max(1, math.ceil(self.retry_after_s)))
            told["retry-after-ms"] = str(max(1, math.ceil(self.retry_after_s * 1e3)))
        return told


class ModelNotFoundError(ApiError):
    """A model that is neither a base model that is served nor a reference."""

    def __init__(self, model: str, problem: str) -> None:
        shown = model if len(model) <= 120 else model[:117] + "…"
        message = f"the model {shown!r} does not exist: {problem}; GET /v1/models lists the models"
        super().__init__(404, "MODEL_NOT_FOUND", message, param="model", kind="not_found_error")


class StoppingError(ApiError):
    """A gateway that is on its way out."""

    def __init__(self) -> None:
        message = "the gateway is stopping; try again"
        super().__init__(503, "DRAINING", message, kind=SERVER, retry_after_s=RETRY_AFTER_S, is_retried=True)


def wrong_param(param: str, problem: str, code: str = "INVALID_REQUEST") -> ApiError:
    """The error for one parameter."""
    return ApiError(400, code, f"{param}: {problem}", param=param)


def api_error(error: HotslotError, param_of: ParamOf = str) -> ApiError:
    """The error as HTTP has it; `param_of` names the fields of our protocol."""
    row = row_for(error)
    http = HTTP_STATUSES[row.code]
    param, message = None, error.message
    if isinstance(error, InvalidRequestError) and error.fields:
        param, message = _fields(error, param_of)
    elif isinstance(error, errors.NotFoundError):
        param = "model"
    retry_after_s: float | None = None
    if http.status in (429, 503):
        asked_s = getattr(error, "retry_after_s", None)
        retry_after_s = RETRY_AFTER_S if asked_s is None else asked_s
    # Of what a tenant keeps there is not more room by waiting.
    is_lasting = isinstance(error, errors.TenantQuotaError) and error.retry_after_s is None
    return ApiError(
        http.status,
        row.reason,
        public_text(error) or _COMMANDS.sub("", message),
        param=param,
        kind=http.kind,
        retry_after_s=None if is_lasting else retry_after_s,
        is_retried=http.is_retried and not is_lasting,
    )


def public_text(error: HotslotError) -> str | None:
    """Text in the place of an error's own message; None where that may be told."""
    if isinstance(error, _SHOWN):
        return None
    for cls in type(error).__mro__:
        if cls in _PUBLIC_TEXTS and (cls is not HotslotError or type(error) is HotslotError):
            return _PUBLIC_TEXTS[cls]
    return None


def _fields(error: InvalidRequestError, param_of: ParamOf) -> tuple[str, str]:
    """The first field at fault, and a message that calls all of them as the request does."""
    named = [FieldViolation(param_of(field.field), field.description) for field in error.fields]
    if isinstance(error, errors.InvalidReferenceError | errors.InvalidEndpointError):
        return named[0].field, error.message
    shown = "; ".join(f"{field.field}: {field.description}" for field in named[:MAX_NAMED_FIELDS])
    rest = f"; and {len(named) - MAX_NAMED_FIELDS} more" if len(named) > MAX_NAMED_FIELDS else ""
    return named[0].field, shown + rest
