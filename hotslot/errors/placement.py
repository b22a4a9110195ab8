"""Errors of the fleet: workers that leave, pools without one, leases, Redis."""

from hotslot.errors.kinds import ConflictError, UnavailableError


class StaleEpochError(ConflictError, reason="STALE_EPOCH"):
    """A newer holder of the same lease exists."""

    def __init__(self, resource: str, found: int, expected: int) -> None:
        super().__init__(
            f"{resource} has moved on to epoch {found}; this caller holds epoch {expected} and must restart"
        )


class DrainingError(UnavailableError, reason="DRAINING"):
    """A worker that is on its way out."""

    def __init__(self, worker_id: str) -> None:
        super().__init__(f"worker {worker_id} is draining; call another worker")


class CoordinationUnavailableError(UnavailableError, reason="COORDINATION_UNAVAILABLE"):
    """Redis cannot be reached."""


class CoordinationForbiddenError(CoordinationUnavailableError, reason="COORDINATION_FORBIDDEN"):
    """Redis answers, and refuses this user a command, a key or the login.

    Unavailable like a Redis that is away, so that whatever goes on without one goes on here.
    """


class NoWorkersError(UnavailableError, reason="NO_WORKERS"):
    """A pool without a worker that takes requests."""
