"""Errors of names and of the records behind them: adapters, tags, versions, policies, base models."""

from collections.abc import Sequence
from typing import ClassVar

from hotslot.errors.details import Detail
from hotslot.errors.kinds import (
    ConflictError,
    HotslotError,
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
    RangeError,
    UnavailableError,
)
from hotslot.errors.violations import FieldViolation


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


class AdapterNotFoundError(NotFoundError, reason="ADAPTER_NOT_FOUND"):
    """No adapter of that name for this tenant."""

    def __init__(self, name: str) -> None:
        super().__init__(f"adapter {name!r} not found", name)


class TagNotFoundError(NotFoundError, reason="TAG_NOT_FOUND"):
    """An adapter without that tag."""

    def __init__(self, name: str, tag: str) -> None:
        super().__init__(f"adapter {name!r} has no tag {tag!r}", f"{name}:{tag}")


class PolicyNotFoundError(NotFoundError, reason="POLICY_NOT_FOUND"):
    """An adapter without a policy of its own."""

    def __init__(self, name: str) -> None:
        super().__init__(f"adapter {name!r} has no policy; it goes by the defaults", name)


class VersionNotFoundError(NotFoundError, reason="VERSION_NOT_FOUND"):
    """An adapter without that version."""

    def __init__(self, name: str, digest: str) -> None:
        super().__init__(
            f"adapter {name!r} has no version {digest}",
            f"{name}@{digest}",
        )


class BaseModelNotFoundError(NotFoundError, reason="BASE_MODEL_NOT_FOUND"):
    """A base model that no tenant registered; `fitting` is the best of those that the adapter's tensors fit, if any."""

    carries: ClassVar = {**NotFoundError.carries, "fitting": Detail.TEXT}

    def __init__(self, name: str, fitting: Sequence[str] = ()) -> None:
        """`fitting` are registered base models that the adapter's tensors fit."""
        advice = "register it, as a worker that serves it does, or name another as base_model"
        if fitting:
            advice = (
                f"the adapter's tensors fit {', '.join(fitting)}: name one as base_model, or add this name as an alias "
                "of one"
            )
        super().__init__(f"base model {name!r} is not registered; {advice}", name)
        self.fitting = fitting[0] if fitting else ""


class EtagMismatchError(ConflictError, reason="ETAG_MISMATCH"):
    """The resource changed since the etag was read."""

    def __init__(self, resource: str, found: str, expected: str) -> None:
        super().__init__(
            f"{resource} changed since: its etag is {found!r}, the call expected {expected!r}; read it again"
        )


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
            "weights; give it a name of its own (a worker's is HOTSLOT_MODEL_NAME), or, if the name is to mean this "
            "one from now on, register it with move",
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


class CatalogDamagedError(HotslotError, reason="CATALOG_DAMAGED", code="DATA_LOSS"):
    """Something in the catalog is not what was written there."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the store's catalog is damaged: {what}; restore it from a backup (docs/backup.md)")


class RevisionCompactedError(RangeError, reason="REVISION_COMPACTED"):
    """A revision too old to watch from."""

    def __init__(self, found: int, oldest: int) -> None:
        super().__init__(f"revision {found} is gone, the oldest is {oldest}; list everything and watch from there")


class CatalogBehindError(UnavailableError, reason="CATALOG_BEHIND"):
    """A tenant's catalog that is not at the revision that a call needs.

    The store may yet come to it. Where it does not, the revision is another store's or tenant's, or that of a catalog
    which was lost: without it the call is served by what the catalog has.
    """

    def __init__(self, found: int, needed: int, *, retry_after_s: float | None = None) -> None:
        super().__init__(
            f"the tenant's catalog is at revision {found}, and min_revision asks for {needed}, which is another "
            "tenant's, or of another catalog; without it the call is served by what the catalog has",
            retry_after_s=retry_after_s,
        )
