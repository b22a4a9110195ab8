"""Errors of checkpoints: refused by admission, or not to be had from their source."""

from collections.abc import Sequence
from typing import ClassVar

from hotslot.errors.details import Detail
from hotslot.errors.kinds import ConflictError, ForbiddenError, HotslotError, NotFoundError, UnavailableError
from hotslot.errors.violations import Violation, grouped

MAX_NAMED_VIOLATIONS = 8
"""In the message of an error; its attributes have all of them."""


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


class SignatureRefusedError(InvalidAdapterError, reason="SIGNATURE_REFUSED", code="FAILED_PRECONDITION"):
    """An adapter that is not signed as its tenant's policy asks."""


class SourceNotFoundError(NotFoundError, reason="SOURCE_NOT_FOUND"):
    """A source that has no such checkpoint."""


class SourceChangedError(ConflictError, reason="SOURCE_CHANGED"):
    """A source that was written to while it was read."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} changed while it was read; import it when its save is complete")


class SourceForbiddenError(ForbiddenError, reason="SOURCE_FORBIDDEN"):
    """A source outside of what the store may read."""


class SourceUnavailableError(UnavailableError, reason="SOURCE_UNAVAILABLE"):
    """A source that does not answer."""


class SourceThrottledError(SourceUnavailableError, reason="SOURCE_THROTTLED"):
    """A source that takes no more requests for now, however often the store has tried."""
