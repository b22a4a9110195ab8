"""Every error that hotslot raises on purpose, as one tree.

HotslotError
├── InvalidRequestError           the caller's message is wrong; lists the fields
│   ├── InvalidReferenceError
│   ├── InvalidPageTokenError
│   ├── InvalidEndpointError      text that is no host:port
│   ├── InvalidContextsError      a user's file of contexts that cannot be read
│   ├── EmptyPromptError
│   └── PromptTooLongError
├── InvalidAdapterError           a checkpoint is broken; lists every violation
│   ├── UnsupportedAdapterError   sound, but cannot be served exactly
│   ├── BaseModelMismatchError    made for another base model
│   ├── RankTooLargeError
│   └── SignatureRefusedError     not signed as the tenant's policy asks
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
│   ├── CompilerMissingError      nor code that others compiled
│   ├── InsecureTransportError    plaintext that would leave the machine
│   └── ClientMisuseError         a client object used where it cannot be
│       ├── ClientClosedError
│       ├── ForkedClientError
│       └── WrongLoopError        made in another event loop
├── UnauthenticatedError          who calls is not known
│   ├── TokenExpiredError
│   └── TokenRevokedError
├── ForbiddenError
│   ├── ScopeMissingError         the caller may not make such calls
│   ├── TenantForbiddenError      the caller names a tenant that is not its own
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
│   │   └── TenantQuotaError      one of the calling tenant's own
│   ├── SlotsFullError
│   └── QueueFullError
├── UnavailableError
│   ├── DrainingError
│   ├── StoreUnavailableError
│   │   └── StoreBusyError        more calls than it can answer
│   ├── CatalogBehindError        the store answers, at a smaller revision than the call needs
│   ├── SourceUnavailableError
│   │   └── SourceThrottledError   it takes no more requests for now
│   ├── CoordinationUnavailableError
│   │   └── CoordinationForbiddenError  its access rules refuse what we need
│   ├── AuditUnavailableError     no change is made that the audit log cannot tell of
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

The modules of this package have them by subject; all are imported from here. Messages say what failed, which id, what
was found against what was expected, and what to do. `hotslot.rpc.status` makes gRPC statuses of them, and back.
"""

# ruff: noqa: F403 (each class of these modules is an error, and each error is here)

from hotslot.errors.access import *
from hotslot.errors.admission import *
from hotslot.errors.catalog import *
from hotslot.errors.content import *
from hotslot.errors.generation import *
from hotslot.errors.kinds import *
from hotslot.errors.kinds import HotslotError as HotslotError
from hotslot.errors.placement import *
from hotslot.errors.transport import *
from hotslot.errors.violations import FieldViolation as FieldViolation
from hotslot.errors.violations import Violation as Violation

__all__ = [name for name, value in vars().items() if isinstance(value, type) and issubclass(value, HotslotError)]
__all__ += ["FieldViolation", "Violation"]


def __dir__() -> list[str]:
    return sorted(__all__)
