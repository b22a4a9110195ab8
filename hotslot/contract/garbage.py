"""Garbage of a store: what goes, or would, why, and when."""

from dataclasses import dataclass
from enum import StrEnum


class RemovalKind(StrEnum):
    """Kind of what is removed."""

    UNSPECIFIED = "unspecified"
    ADAPTER = "adapter"
    """A deleted adapter, with its versions and tags: it cannot be undeleted any more."""
    VERSION = "version"
    BLOB = "blob"
    """Weights on the disk of the store that was asked."""
    OBJECT = "object"
    """Weights in object storage."""
    UPLOAD = "upload"
    """A file on its way to admission, on the disk or, as a part, in object storage."""


class RemovalReason(StrEnum):
    """Reason of a removal."""

    UNSPECIFIED = "unspecified"
    DELETED = "deleted"
    """It was deleted, and its grace is over."""
    RETENTION = "retention"
    """The retention of its adapter does not keep it."""
    RELEASED = "released"
    """Only versions that retention removed referred to it."""
    UNREFERENCED = "unreferenced"
    """No version refers to it."""
    REMOVED_ELSEWHERE = "removed_elsewhere"
    """It was removed from object storage, of which this is a copy."""
    INTERRUPTED = "interrupted"
    """A removal that had begun did not end."""
    IDLE = "idle"
    """An upload that nothing has asked for or gone on with."""


@dataclass(frozen=True, slots=True)
class Removal:
    """One thing that goes, or would."""

    kind: RemovalKind
    reason: RemovalReason
    tenant: str
    name: str = ""
    """Adapter of an adapter or version, file or object of the others."""
    digest: str = ""
    """Digest of a version, or of bytes."""
    size_bytes: int = 0
    """Bytes of weights or of a file; of an adapter those of all its versions, which go once nothing refers to them."""
    age_s: float = 0.0
    """Time for which the reason has held, as far as stores that ran have seen."""
    wait_s: float = 0.0
    """Time for which it stays; 0 for what a pass removes now."""


@dataclass(frozen=True, slots=True)
class GarbageReport:
    """Outcome of a pass of collection, or of a dry run of one."""

    removals: tuple[Removal, ...] = ()
    objects_elsewhere: bool = False
    """Another store of the catalog removes from object storage; a dry run goes by what that one wrote down last."""

    @property
    def due(self) -> tuple[Removal, ...]:
        """Without what stays for now."""
        return tuple(removal for removal in self.removals if not removal.wait_s)
