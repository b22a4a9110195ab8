"""Errors of calls and of the clients that make them, before and beneath any request."""

from hotslot.errors.kinds import InvalidRequestError, PreconditionError, UnavailableError
from hotslot.errors.violations import FieldViolation


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


class InvalidContextsError(InvalidRequestError, reason="INVALID_CONTEXTS"):
    """A file of contexts that cannot be read; nothing was sent."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__([FieldViolation(path, problem)], f"{path}: {problem}; mend it, or move it away")

    @property
    def problem(self) -> str:
        """Reason, without the path and what to do."""
        return self.fields[0].description


class InsecureTransportError(PreconditionError, reason="INSECURE_TRANSPORT"):
    """Plaintext between machines that was not asked for."""


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


class StreamStalledError(UnavailableError, reason="STREAM_STALLED"):
    """A stream whose caller took or sent nothing for too long; it can be gone on with."""
