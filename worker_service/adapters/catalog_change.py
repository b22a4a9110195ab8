"""One change of a tenant's catalog, and the references that it may alter: its own, and others' to it. Pure."""

from dataclasses import dataclass
from enum import Enum

from hotslot.ids import AdapterName, Digest, TagName
from hotslot.references import OWNER_MARK, Reference, split_owner

ChangeScope = tuple[AdapterName, str]
"""References of an adapter that one change may alter: those by a tag, by a digest, or (the empty text) all of them."""


class ChangeKind(Enum):
    """Kind of a change to an adapter, as far as it matters to workers."""

    TAG_MOVED = "tag_moved"
    TAG_DELETED = "tag_deleted"
    VERSION_DELETED = "version_deleted"
    ADAPTER_DELETED = "adapter_deleted"
    POLICY_CHANGED = "policy_changed"
    ADAPTER_UNSHARED = "adapter_unshared"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class CatalogChange:
    """One change at its revision."""

    revision: int
    kind: ChangeKind
    adapter: AdapterName
    tag: TagName
    digest: Digest

    def concerns(self, reference: Reference, digest: Digest | None) -> bool:
        """True if it may alter what is known of a reference, which stands for `digest` as far as is known."""
        if self.adapter != split_owner(reference.name)[1]:
            return False
        match self.kind:
            case ChangeKind.ADAPTER_UNSHARED:
                return OWNER_MARK in reference.name
            case ChangeKind.ADAPTER_DELETED | ChangeKind.POLICY_CHANGED:
                return True
            case ChangeKind.VERSION_DELETED:
                return digest is None or self.digest == digest
            case ChangeKind.TAG_MOVED | ChangeKind.TAG_DELETED:
                return reference.digest is None and self.tag == reference.tag
            case _:
                return False

    @property
    def scope(self) -> ChangeScope | None:
        """References that the store may answer otherwise since; None where there are none.

        A version under a tag is deleted after the tag, which is a change of its own.
        """
        match self.kind:
            case ChangeKind.ADAPTER_DELETED | ChangeKind.POLICY_CHANGED | ChangeKind.ADAPTER_UNSHARED:
                return self.adapter, ""
            case ChangeKind.VERSION_DELETED:
                return self.adapter, self.digest
            case ChangeKind.TAG_MOVED | ChangeKind.TAG_DELETED:
                return self.adapter, self.tag
            case _:
                return None


def scopes_of(reference: Reference) -> tuple[ChangeScope, ChangeScope]:
    """Scopes of the changes that may alter what a reference stands for."""
    name = split_owner(reference.name)[1]
    return (name, ""), (name, str(reference.digest or reference.tag))
