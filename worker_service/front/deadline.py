"""Deadlines of calls: a call's own, less the time that answering takes."""

from shared.server.deadline import HasDeadline

DEFAULT_TIMEOUT_S = 60.0
MARGIN_S = 0.05


def timeout_of(context: HasDeadline) -> float:
    """Seconds that a handler may wait, so that its own error arrives before the caller's clock runs out."""
    remaining_s = less_margin(context.time_remaining())
    return DEFAULT_TIMEOUT_S if remaining_s is None else remaining_s


def less_margin(remaining_s: float | None) -> float | None:
    """Time for a call to another server when the answer must still be passed on; None stays None."""
    return None if remaining_s is None else max(remaining_s - min(MARGIN_S, remaining_s / 2), 0.0)
