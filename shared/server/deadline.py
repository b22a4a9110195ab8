"""The deadline of a call, as a servicer's context tells it."""

from typing import Protocol


class HasDeadline(Protocol):
    """The part of a servicer's context that knows the deadline."""

    def time_remaining(self) -> float | None:
        """Seconds until the call's deadline; None when it has none."""
