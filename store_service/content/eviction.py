"""Eviction from the local disk: the least recently used blobs of those that are not needed and can be had again."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from store_service.content.keys import BlobKey


@dataclass(frozen=True, slots=True)
class LocalBlob:
    """Blob on the local disk, as eviction looks at it."""

    key: BlobKey
    size_bytes: int
    last_used_s: float
    """Seconds since the epoch."""
    is_pinned: bool
    is_leased: bool
    """Being read or published, or about to be."""
    is_recoverable: bool
    """The object store has it too, or its source pins its content."""

    @property
    def is_evictable(self) -> bool:
        """True if losing the local copy harms no reader."""
        return self.is_recoverable and not (self.is_pinned or self.is_leased)


@dataclass(frozen=True, slots=True)
class Eviction:
    """Blobs to evict, in this order."""

    victims: tuple[LocalBlob, ...]
    fits: bool
    """True if the budget holds once they are gone."""


def choose_victims(blobs: Collection[LocalBlob], room_bytes: int) -> Eviction:
    """The least recently used blobs without which the others fit into the room; as many as there are, if none do."""
    excess_bytes = sum(blob.size_bytes for blob in blobs) - room_bytes
    victims: list[LocalBlob] = []
    for blob in sorted(_evictable(blobs), key=lambda blob: (blob.last_used_s, blob.key)):
        if excess_bytes <= 0:
            break
        victims.append(blob)
        excess_bytes -= blob.size_bytes
    return Eviction(tuple(victims), excess_bytes <= 0)


def _evictable(blobs: Iterable[LocalBlob]) -> Iterable[LocalBlob]:
    return (blob for blob in blobs if blob.is_evictable)
