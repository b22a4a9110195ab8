"""Ways on from each error: what a caller does, by the error's class or the nearest of its ancestors that has one."""

from collections.abc import Mapping

from hotslot import errors
from hotslot.errors import HotslotError

REMEDIES: Mapping[type[HotslotError], str] = {
    HotslotError: "Look at the log of the process that answered: it has the reason.",
    errors.InvalidRequestError: "Correct the fields that the error lists, and send the request again.",
    errors.InvalidReferenceError: "Write `name[:tag][@sha256:…]`, in the letters that the message names.",
    errors.InvalidPageTokenError: "List from the first page, with the same filters for all pages.",
    errors.InvalidEndpointError: "Write host:port, an IPv6 address in brackets, or unix:/path.",
    errors.InvalidContextsError: "Mend the file that it names, or move it away; `hotslot context set` makes another.",
    errors.EmptyPromptError: "Give text, messages or token ids.",
    errors.PromptTooLongError: "Shorten the prompt, or ask a worker with a larger HOTSLOT_MAX_SEQUENCE_TOKENS.",
    errors.InvalidAdapterError: "Correct every violation, and push again; `hotslot validate DIR` finds them too.",
    errors.UnsupportedAdapterError: "Train without the named feature, or merge it into the base model.",
    errors.BaseModelMismatchError: "Name the base model that the adapter was trained on, with --base.",
    errors.SignatureRefusedError: "Sign the folder as it is pushed, by a signer that the store's operator allows.",
    errors.RankTooLargeError: "Train with a smaller rank, or raise HOTSLOT_MAX_RANK of store and workers.",
    errors.NotFoundError: "Look at the spelling and the tenant; list what there is.",
    errors.SourceNotFoundError: "Look at name, revision and folder; private ones need HOTSLOT_HUB_TOKEN_TENANTS.",
    errors.BaseModelNotFoundError: "Register it with `hotslot base add`, or name a registered one with --base.",
    errors.ConflictError: "Read the current state, and decide again.",
    errors.SourceThrottledError: "Import again after the time that the error carries; import fewer at the same time.",
    errors.SourceChangedError: "Import it again when what writes it has finished.",
    errors.StaleEpochError: "Restart the process: a newer one has taken its place.",
    errors.UploadBusyError: "Wait for the other upload, and ask GetWriteStatus.",
    errors.PreconditionError: "Change the state that the message names first.",
    errors.ModelNotServableError: "Choose a model of the list of base models.",
    errors.ClientMisuseError: "Make a client where it is used: in this process, in this event loop, and not closed.",
    errors.ForbiddenError: "Ask the operator, who decides by the store's settings what is allowed.",
    errors.DigestMismatchError: "Send or read the bytes again; if it happens again, look for a broken disk or network.",
    errors.BlobLostError: "Push or import the adapter again, or restore a backup of the store.",
    errors.CompiledCodeRefusedError: "Compare compiled_code_secret of the workers; this one compiles instead.",
    errors.CatalogDamagedError: "Restore a backup of the store.",
    errors.RangeError: "Go on from the position that the error names.",
    errors.RevisionCompactedError: "List everything, and watch from the revision of the listing.",
    errors.ExhaustedError: "Try again after the time that the error carries; without one, ask for less.",
    errors.TenantQuotaError: "Wait for as long as the error says; where it names no time, delete something.",
    errors.SlotsFullError: "Try again later, unpin adapters, or raise HOTSLOT_NUM_SLOTS.",
    errors.QueueFullError: "Try again after the time that the error carries, or add workers.",
    errors.AuditUnavailableError: "Make room for HOTSLOT_AUDIT_FILE, or let changes go on with HOTSLOT_AUDIT_FAILURE.",
    errors.UnavailableError: "Try again, after the time that the error carries where there is one.",
    errors.DrainingError: "Call another worker.",
    errors.CoordinationForbiddenError: "Give Redis's user the right that the message names.",
    errors.AdaptersDisabledError: "`hotslot enable` takes the adapters back, or call another worker.",
    errors.StreamStalledError: "Go on from what has arrived, and read or send without long pauses.",
    errors.NoWorkersError: "Start a worker for the base model, or wait for one to be ready.",
    errors.RequestDeadlineError: "Give more time, or ask for fewer tokens.",
    errors.RequestCancelledError: "Nothing, where the caller has cancelled; otherwise call again.",
    errors.NotImplementedYetError: "Update the server, or do without.",
    errors.InternalError: "Report it with the log's entry; a retry may fail again.",
    errors.StepFailedError: "Look at the worker's log; do not send the same request again and again.",
    errors.NonFiniteLogitsError: "Give the adapters smaller weights, or serve with a larger HOTSLOT_DTYPE.",
}


def remedy(error: type[HotslotError]) -> str:
    """The way on from an error."""
    return next(REMEDIES[kind] for kind in error.__mro__ if issubclass(kind, HotslotError) and kind in REMEDIES)
