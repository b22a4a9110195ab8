"""Every error that hotslot raises on purpose, as one tree.

HotslotError
├── InvalidRequestError           the caller's message is wrong; lists the fields
│   ├── InvalidReferenceError
│   ├── InvalidPageTokenError
│   ├── InvalidEndpointError      text that is no host:port
│   ├── EmptyPromptError
│   └── PromptTooLongError
├── InvalidAdapterError           a checkpoint is broken; lists every violation
│   ├── UnsupportedAdapterError   sound, but cannot be served exactly
│   ├── BaseModelMismatchError    made for another base model
│   └── RankTooLargeError
├── NotFoundError
│   ├── AdapterNotFoundError      (also: another tenant's)
│   ├── TagNotFoundError
│   ├── VersionNotFoundError
│   ├── PolicyNotFoundError       (the adapter goes by the defaults)
│   ├── BlobNotFoundError
│   ├── BaseModelNotFoundError
│   ├── SourceNotFoundError
│   ├── CompiledCodeNotFoundError
│   └── AdapterNotLoadedError
├── ConflictError                 try again from the current state
│   ├── EtagMismatchError
│   ├── SourceChangedError        written to while it was read
│   ├── StaleEpochError
│   └── UploadBusyError
├── PreconditionError             the state does not allow it
│   ├── VersionInUseError
│   ├── BaseModelNameTakenError   the name stands for another base model
│   ├── BaseModelInUseError       there are adapters for it
│   ├── NotDeletedError
│   ├── AdapterPinnedError
│   ├── CompiledCodeMismatchError compiled for something else
│   ├── ModelNotServableError
│   └── ClientMisuseError         a client object used where it cannot be
│       ├── ClientClosedError
│       ├── ForkedClientError
│       └── WrongLoopError        made in another event loop
├── ForbiddenError
│   └── SourceForbiddenError
├── DigestMismatchError           bytes are not what their digest says
│   └── BlobLostError             and they cannot be had again
├── CompiledCodeRefusedError      an archive of compiled code that is not to be trusted
├── CatalogDamagedError           a row is not what was written
├── RangeError
│   ├── BadOffsetError
│   └── RevisionCompactedError
├── ExhaustedError                a bound is reached; carries when to retry
│   ├── QuotaExceededError
│   ├── SlotsFullError
│   └── QueueFullError
├── UnavailableError
│   ├── DrainingError
│   ├── StoreUnavailableError
│   │   └── StoreBusyError        more calls than it can answer
│   ├── SourceUnavailableError
│   ├── CoordinationUnavailableError
│   │   └── CoordinationForbiddenError  its access rules refuse what we need
│   ├── AdaptersDisabledError     by one tenant, for itself, on one worker
│   ├── StreamStalledError        its caller took or sent nothing for too long
│   ├── EngineFailedError         a worker's engine ended or hangs; another worker's may not
│   └── NoWorkersError
├── RequestDeadlineError
├── RequestCancelledError
├── NotImplementedYetError
└── InternalError                 our own fault; details are in the log
    ├── StepFailedError           a request's step failed; the same request may fail every worker's
    └── NonFiniteLogitsError      the model and its adapters leave their element type's range

Messages say what failed, which id, what was found against what was expected, and what to do.
`hotslot.rpc.status` makes gRPC statuses of them, and back.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from hotslot.error_details import Detail
from hotslot.violations import FieldViolation as FieldViolation  # noqa: PLC0414 (errors are imported with what they list)
from hotslot.violations import Violation as Violation  # noqa: PLC0414
from hotslot.violations import grouped

MAX_NAMED_FIELDS = 32
"""In the message of an error; its attributes have all of them."""
MAX_NAMED_VIOLATIONS = 8


class HotslotError(Exception):
    """Base of all errors that hotslot raises on purpose.

    A class names its reason, which is stable and stands for no other, its gRPC status unless that is its base's, and
    the attributes that travel. One without a reason of its own travels as its base.
    """

    reason: ClassVar[str] = "UNKNOWN"
    code: ClassVar[str] = "UNKNOWN"
    carries: ClassVar[Mapping[str, Detail]] = {}

    def __init_subclass__(cls, *, reason: str | None = None, code: str | None = None) -> None:
        cls.reason = reason or cls.reason
        cls.code = code or cls.code

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidRequestError(HotslotError, reason="INVALID_REQUEST", code="INVALID_ARGUMENT"):
    """The caller's message is wrong."""

    carries: ClassVar = {"fields": Detail.FIELDS}

    def __init__(self, fields: Sequence[FieldViolation], message: str | None = None) -> None:
        named = "; ".join(f"{f.field}: {f.description}" for f in fields[:MAX_NAMED_FIELDS])
        rest = f"; and {len(fields) - MAX_NAMED_FIELDS} more" if len(fields) > MAX_NAMED_FIELDS else ""
        super().__init__(message or f"invalid request: {named}{rest}")
        self.fields = tuple(fields)


class InvalidReferenceError(InvalidRequestError, reason="INVALID_REFERENCE"):
    """Text that is not a reference, a name or a tag."""

    def __init__(self, text: str, problem: str) -> None:
        shown = text if len(text) <= 120 else text[:117] + "…"
        super().__init__([FieldViolation("reference", problem)], f"invalid reference {shown!r}: {problem}")


class InvalidPageTokenError(InvalidRequestError, reason="INVALID_PAGE_TOKEN"):
    """A page token that this server did not issue."""

    def __init__(self) -> None:
        problem = "not a token from a previous page of the same listing; start again without it"
        super().__init__([FieldViolation("page_token", problem)])


class InvalidEndpointError(InvalidRequestError, reason="INVALID_ENDPOINT"):
    """Text that is no endpoint."""

    def __init__(self, text: str, problem: str) -> None:
        # With an @ it may be a URL with a password, in the wrong place.
        shown = "text with an @" if "@" in text else repr(text if len(text) <= 120 else text[:117] + "…")
        joint = ", " if problem.startswith("expected") else ": "
        super().__init__([FieldViolation("endpoint", problem)], f"found {shown}{joint}{problem}")

    @property
    def problem(self) -> str:
        """Reason, without the text itself."""
        return self.fields[0].description


class EmptyPromptError(InvalidRequestError, reason="EMPTY_PROMPT"):
    """A prompt without a single token."""

    def __init__(self) -> None:
        super().__init__([FieldViolation("prompt", "the prompt has no tokens; give text, chat messages or token ids")])


class PromptTooLongError(InvalidRequestError, reason="PROMPT_TOO_LONG"):
    """A prompt that leaves no room for an answer."""

    def __init__(self, num_tokens: int, max_tokens: int, *, at_least: bool = False) -> None:
        """`at_least` says that the prompt has so many tokens or more."""
        found = f"found {'at least ' * at_least}{num_tokens} tokens"
        super().__init__([FieldViolation("prompt", f"{found}, at most {max_tokens} fit; shorten the prompt")])


class InvalidAdapterError(HotslotError, reason="INVALID_ADAPTER", code="INVALID_ARGUMENT"):
    """A checkpoint that admission refuses, with all of its violations; the message has the first ones."""

    carries: ClassVar = {"violations": Detail.VIOLATIONS}

    def __init__(self, violations: Sequence[Violation], message: str | None = None) -> None:
        count = f"{len(violations)} violation{'s' * (len(violations) != 1)}"
        shown = grouped(violations) if len(violations) > MAX_NAMED_VIOLATIONS else violations
        named = "; ".join(violation.message for violation in shown[:MAX_NAMED_VIOLATIONS])
        super().__init__(message or f"the adapter is invalid ({count}): {named}")
        self.violations = tuple(violations)


class UnsupportedAdapterError(InvalidAdapterError, reason="UNSUPPORTED_ADAPTER", code="FAILED_PRECONDITION"):
    """A sound checkpoint that cannot be served exactly."""


class BaseModelMismatchError(InvalidAdapterError, reason="BASE_MODEL_MISMATCH", code="FAILED_PRECONDITION"):
    """An adapter for another base model."""


class RankTooLargeError(InvalidAdapterError, reason="RANK_TOO_LARGE", code="FAILED_PRECONDITION"):
    """An adapter of a larger rank than the receiver takes."""


class NotFoundError(HotslotError, reason="NOT_FOUND", code="NOT_FOUND"):
    """Something that does not exist, for this tenant."""

    carries: ClassVar = {"resource": Detail.RESOURCE}

    def __init__(self, message: str, resource: str) -> None:
        super().__init__(message)
        self.resource = resource


class AdapterNotFoundError(NotFoundError, reason="ADAPTER_NOT_FOUND"):
    """No adapter of that name for this tenant."""

    def __init__(self, name: str) -> None:
        super().__init__(f"adapter {name!r} not found; `hotslot ls` lists the adapters that exist", name)


class TagNotFoundError(NotFoundError, reason="TAG_NOT_FOUND"):
    """An adapter without that tag."""

    def __init__(self, name: str, tag: str) -> None:
        super().__init__(f"adapter {name!r} has no tag {tag!r}; `hotslot show {name}` lists its tags", f"{name}:{tag}")


class PolicyNotFoundError(NotFoundError, reason="POLICY_NOT_FOUND"):
    """An adapter without a policy of its own."""

    def __init__(self, name: str) -> None:
        super().__init__(f"adapter {name!r} has no policy; `hotslot policy set {name}` gives it one", name)


class VersionNotFoundError(NotFoundError, reason="VERSION_NOT_FOUND"):
    """An adapter without that version."""

    def __init__(self, name: str, digest: str) -> None:
        super().__init__(
            f"adapter {name!r} has no version {digest}; `hotslot show {name}` lists its versions",
            f"{name}@{digest}",
        )


class BlobNotFoundError(NotFoundError, reason="BLOB_NOT_FOUND"):
    """Bytes that are not stored, or not for this tenant."""

    def __init__(self, digest: str) -> None:
        super().__init__(f"blob {digest} not found", digest)


class BaseModelNotFoundError(NotFoundError, reason="BASE_MODEL_NOT_FOUND"):
    """A base model that no tenant registered."""

    def __init__(self, name: str, fitting: Sequence[str] = ()) -> None:
        """`fitting` are registered base models that the adapter's tensors fit."""
        advice = "`hotslot base add` registers it, and so does a worker that serves it; or name another with --base"
        if fitting:
            advice = (
                f"the adapter's tensors fit {', '.join(fitting)}: name one with --base, or let this name stand for one "
                f"with `hotslot base alias {fitting[0]} {name}`"
            )
        super().__init__(f"base model {name!r} is not registered; {advice}", name)


class SourceNotFoundError(NotFoundError, reason="SOURCE_NOT_FOUND"):
    """A source that has no such checkpoint."""


class CompiledCodeNotFoundError(NotFoundError, reason="COMPILED_CODE_NOT_FOUND"):
    """A key that the store has no compiled code for."""

    def __init__(self, key: str) -> None:
        super().__init__(f"no compiled code is kept for key {key}", key)


class AdapterNotLoadedError(NotFoundError, reason="ADAPTER_NOT_LOADED"):
    """An adapter that this worker does not hold."""

    def __init__(self, reference: str) -> None:
        super().__init__(f"adapter {reference!r} is not loaded on this worker", reference)


class ConflictError(HotslotError, reason="CONFLICT", code="ABORTED"):
    """Another caller was first: read the current state and try again."""


class EtagMismatchError(ConflictError, reason="ETAG_MISMATCH"):
    """The resource changed since the etag was read."""

    def __init__(self, resource: str, found: str, expected: str) -> None:
        super().__init__(
            f"{resource} changed since: its etag is {found!r}, the call expected {expected!r}; read it again"
        )


class SourceChangedError(ConflictError, reason="SOURCE_CHANGED"):
    """A source that was written to while it was read."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} changed while it was read; import it when its save is complete")


class StaleEpochError(ConflictError, reason="STALE_EPOCH"):
    """A newer holder of the same lease exists."""

    def __init__(self, resource: str, found: int, expected: int) -> None:
        super().__init__(
            f"{resource} has moved on to epoch {found}; this caller holds epoch {expected} and must restart"
        )


class UploadBusyError(ConflictError, reason="UPLOAD_BUSY"):
    """Another stream is writing the same blob."""

    def __init__(self, digest: str) -> None:
        super().__init__(f"another stream is uploading {digest}; wait for it, then ask GetWriteStatus")


class PreconditionError(HotslotError, reason="FAILED_PRECONDITION", code="FAILED_PRECONDITION"):
    """The state does not allow the operation."""

    carries: ClassVar = {"subject": Detail.PRECONDITION}

    def __init__(self, message: str, subject: str) -> None:
        super().__init__(message)
        self.subject = subject


class VersionInUseError(PreconditionError, reason="VERSION_IN_USE"):
    """A version that tags point at."""

    def __init__(self, name: str, digest: str, tags: Sequence[str]) -> None:
        super().__init__(
            f"version {digest} of {name!r} is tagged {', '.join(tags)}; move the tags first, or force the deletion",
            f"{name}@{digest}",
        )


class BaseModelNameTakenError(PreconditionError, reason="BASE_MODEL_NAME_TAKEN"):
    """A base model under a name that stands for another one."""

    def __init__(self, name: str, digest: str, taken_by: str) -> None:
        super().__init__(
            f"the name {name!r} stands for base model {taken_by}, and this one is {digest}: another model, or other "
            "weights; give it a name of its own (--name, HOTSLOT_MODEL_NAME), or, if the name is to mean this one from "
            "now on, move it with `hotslot base add --move`",
            name,
        )


class BaseModelInUseError(PreconditionError, reason="BASE_MODEL_IN_USE"):
    """A base model that adapters were admitted for."""

    def __init__(self, name: str, num_adapters: int) -> None:
        adapters = f"{num_adapters} adapter{' was' if num_adapters == 1 else 's were'}"
        super().__init__(
            f"base model {name!r} is in use: {adapters} admitted for it (deleted ones count until they are purged); "
            "remove them first",
            name,
        )


class NotDeletedError(PreconditionError, reason="NOT_DELETED"):
    """An undelete of something that is there."""

    def __init__(self, name: str) -> None:
        super().__init__(f"adapter {name!r} is not deleted", name)


class AdapterPinnedError(PreconditionError, reason="ADAPTER_PINNED"):
    """An unload of something pinned."""

    def __init__(self, reference: str) -> None:
        super().__init__(
            f"adapter {reference!r} is pinned on this worker; unpin it, or change its policy, first", reference
        )


class CompiledCodeMismatchError(PreconditionError, reason="COMPILED_CODE_MISMATCH"):
    """An archive of code that was compiled for something else than this worker."""

    def __init__(self, what: str, differences: Sequence[str]) -> None:
        super().__init__(
            f"{what} was compiled for something else: {'; '.join(differences)}; compile it here instead", what
        )


class ModelNotServableError(PreconditionError, reason="MODEL_NOT_SERVABLE"):
    """A base model that this version cannot answer for exactly; the subject is the layer at fault, or the model."""


class ClientMisuseError(PreconditionError, reason="CLIENT_MISUSE"):
    """A client object that cannot be used here and now; nothing was sent."""


class ClientClosedError(ClientMisuseError, reason="CLIENT_CLOSED"):
    """A client that was closed."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is closed: make a new one, or close it after its last call", what)


class ForkedClientError(ClientMisuseError, reason="CLIENT_FORKED"):
    """A client of a parent process, in a child that was forked from it."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} was in use when this process was forked, and gRPC does not survive that: make the first call "
            "after the fork, close every client before it, or start processes by spawn instead of fork",
            what,
        )


class WrongLoopError(ClientMisuseError, reason="CLIENT_IN_ANOTHER_LOOP"):
    """A client in another event loop than the one that it was first used in."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} belongs to the event loop in which it was first used, and this is another: make one in each loop "
            "(each asyncio.run is one), or use the blocking client",
            what,
        )


class ForbiddenError(HotslotError, reason="FORBIDDEN", code="PERMISSION_DENIED"):
    """Something that this caller may not do."""


class SourceForbiddenError(ForbiddenError, reason="SOURCE_FORBIDDEN"):
    """A source outside of what the store may read."""


class DigestMismatchError(HotslotError, reason="DIGEST_MISMATCH", code="DATA_LOSS"):
    """Bytes that are not what their digest says."""

    carries: ClassVar = {"found": Detail.TEXT, "expected": Detail.TEXT}

    def __init__(self, what: str, found: str, expected: str) -> None:
        super().__init__(
            f"{what}: the bytes have digest {found}, expected {expected}; they were discarded, fetch them again"
        )
        self.found = found
        self.expected = expected


class BlobLostError(DigestMismatchError, reason="BLOB_LOST"):
    """A published blob of which no whole copy is left."""

    def __init__(self, digest: str, problems: Sequence[str]) -> None:
        tried = "; ".join(problems) or "no object storage has it, and its source does not pin its content"
        HotslotError.__init__(self, f"blob {digest} is lost: {tried}; push or import the adapter again")
        self.found = "no whole copy"
        self.expected = digest


class CompiledCodeRefusedError(HotslotError, reason="COMPILED_CODE_REFUSED", code="DATA_LOSS"):
    """An archive of compiled code that is damaged, not sealed with the secret, or reaches out of its place."""

    def __init__(self, what: str, problem: str) -> None:
        super().__init__(f"{what}: {problem}; nothing of it is used, make it again")


class CatalogDamagedError(HotslotError, reason="CATALOG_DAMAGED", code="DATA_LOSS"):
    """Something in the catalog is not what was written there."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the store's catalog is damaged: {what}; restore it from a backup (docs/backup.md)")


class RangeError(HotslotError, reason="OUT_OF_RANGE", code="OUT_OF_RANGE"):
    """A position outside of what exists."""


class BadOffsetError(RangeError, reason="BAD_OFFSET"):
    """An offset that does not continue what is there."""

    carries: ClassVar = {"found": Detail.NUMBER, "expected": Detail.NUMBER}

    def __init__(self, what: str, found: int, expected: int) -> None:
        super().__init__(f"{what}: offset {found} does not fit, expected {expected}")
        self.found = found
        self.expected = expected


class RevisionCompactedError(RangeError, reason="REVISION_COMPACTED"):
    """A revision too old to watch from."""

    def __init__(self, found: int, oldest: int) -> None:
        super().__init__(f"revision {found} is gone, the oldest is {oldest}; list everything and watch from there")


class ExhaustedError(HotslotError, reason="RESOURCE_EXHAUSTED", code="RESOURCE_EXHAUSTED"):
    """A bound is reached."""

    carries: ClassVar = {"subject": Detail.QUOTA, "retry_after_s": Detail.RETRY}

    def __init__(self, message: str, *, subject: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.subject = subject
        self.retry_after_s = retry_after_s


class QuotaExceededError(ExhaustedError, reason="QUOTA_EXCEEDED"):
    """A size, count or rate limit."""


class SlotsFullError(ExhaustedError, reason="SLOTS_FULL"):
    """All slots hold adapters that are in use or pinned."""


class QueueFullError(ExhaustedError, reason="QUEUE_FULL"):
    """Too many requests wait already."""


class UnavailableError(HotslotError, reason="UNAVAILABLE", code="UNAVAILABLE"):
    """Something that should be there again soon."""

    carries: ClassVar = {"retry_after_s": Detail.RETRY}

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StreamStalledError(UnavailableError, reason="STREAM_STALLED"):
    """A stream whose caller took or sent nothing for too long; it can be gone on with."""


class DrainingError(UnavailableError, reason="DRAINING"):
    """A worker that is on its way out."""

    def __init__(self, worker_id: str) -> None:
        super().__init__(f"worker {worker_id} is draining; call another worker")


class StoreUnavailableError(UnavailableError, reason="STORE_UNAVAILABLE"):
    """The store, or its catalog, cannot be reached."""


class StoreBusyError(StoreUnavailableError, reason="STORE_BUSY"):
    """The store has more calls than it can answer in time."""


class SourceUnavailableError(UnavailableError, reason="SOURCE_UNAVAILABLE"):
    """A source that does not answer."""


class CoordinationUnavailableError(UnavailableError, reason="COORDINATION_UNAVAILABLE"):
    """Redis cannot be reached."""


class CoordinationForbiddenError(CoordinationUnavailableError, reason="COORDINATION_FORBIDDEN"):
    """Redis answers, and refuses this user a command, a key or the login.

    Unavailable like a Redis that is away, so that whatever goes on without one goes on here.
    """


class AdaptersDisabledError(UnavailableError, reason="ADAPTERS_DISABLED"):
    """A worker on which the tenant has switched its adapters off."""


class EngineFailedError(UnavailableError, reason="ENGINE_FAILED"):
    """A worker's engine could not compute, or does not answer."""


class NoWorkersError(UnavailableError, reason="NO_WORKERS"):
    """A pool without a worker that takes requests."""


class RequestDeadlineError(HotslotError, reason="DEADLINE_EXCEEDED", code="DEADLINE_EXCEEDED"):
    """The caller's deadline passed, or cannot be met."""


class RequestCancelledError(HotslotError, reason="CANCELLED", code="CANCELLED"):
    """The caller went away."""


class NotImplementedYetError(HotslotError, reason="NOT_IMPLEMENTED", code="UNIMPLEMENTED"):
    """Something that the protocol has and this version does not serve."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is not implemented in this version")


class InternalError(HotslotError, reason="INTERNAL", code="INTERNAL"):
    """Our own fault."""


class StepFailedError(InternalError, reason="STEP_FAILED"):
    """A request whose step of the model failed, also when it was computed alone.

    Not UnavailableError: the request may be what broke it, and would break others' steps wherever it is tried again.
    """


class NonFiniteLogitsError(InternalError, reason="NON_FINITE_LOGITS"):
    """A request for which the model's logits are NaN or infinite, so that no token can be chosen.

    Not UnavailableError: another worker would compute the same.
    """

    def __init__(self, num_tokens: int, adapters: Sequence[str]) -> None:
        names = ", ".join(adapters)
        blame = f"the model with {names}" if names else "the model"
        cure = "give the adapters smaller weights, or have it" if names else "have it"
        super().__init__(
            f"after {num_tokens} tokens of prompt and answer the logits are not finite, so no token can be chosen: "
            f"{blame} leaves the range of its element type; {cure} served in one with more (HOTSLOT_DTYPE)"
        )
