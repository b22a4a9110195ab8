"""Who wants which version kept in its slots. Pure state.

A pin belongs to a tenant's reference and moves with it to a new version.
"""

from dataclasses import dataclass, field

from hotslot.ids import Digest, TenantId
from hotslot.references import Reference

PinOwner = tuple[TenantId, Reference]


@dataclass(slots=True)
class PinTable:
    """Pins by owner; a version is pinned while any owner's pin is on it."""

    _pins: dict[PinOwner, Digest] = field(default_factory=dict)

    def get(self, owner: PinOwner) -> Digest | None:
        """What the owner has pinned."""
        return self._pins.get(owner)

    def is_pinned(self, digest: Digest) -> bool:
        """Whether anybody pins this version."""
        return digest in self._pins.values()

    def is_pinned_by(self, tenant: TenantId, digest: Digest) -> bool:
        """Whether a reference of this tenant pins this version."""
        return any(owner[0] == tenant and pinned == digest for owner, pinned in self._pins.items())

    def put(self, owner: PinOwner, digest: Digest) -> tuple[bool, Digest | None]:
        """Pin, or move the owner's pin.

        Returns whether the version became pinned by this, and the version that lost its last pin.
        """
        if self._pins.get(owner) == digest:
            return False, None
        freed = self.remove(owner)
        became = not self.is_pinned(digest)
        self._pins[owner] = digest
        return became, freed

    def remove(self, owner: PinOwner) -> Digest | None:
        """End the owner's pin; returns the version when that was its last one."""
        digest = self._pins.pop(owner, None)
        return digest if digest is not None and not self.is_pinned(digest) else None
