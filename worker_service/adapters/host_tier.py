"""Which adapters are in host memory: a byte budget, least recently used first out. Pure bookkeeping.

Bytes are reserved before a load begins and become an entry when it ends, so that loads under way count too.
Weights that a request holds are never dropped; the budget is never exceeded.
"""

from collections import OrderedDict
from dataclasses import dataclass

from hotslot.errors import QuotaExceededError
from hotslot.ids import Digest
from worker_service.engine.messages import AdapterWeights

RETRY_AFTER_S = 0.5


@dataclass(slots=True)
class HostEntry:
    """One adapter in host memory."""

    weights: AdapterWeights
    users: int = 0


@dataclass(eq=False, slots=True)
class Reservation:
    """Room for an adapter that is being loaded."""

    digest: Digest
    size_bytes: int


class HostTier:
    """The entries and reservations under one budget."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._entries: OrderedDict[Digest, HostEntry] = OrderedDict()
        self._reservations: set[Reservation] = set()
        self._entry_bytes = 0
        self._reserved_bytes = 0

    @property
    def budget_bytes(self) -> int:
        """The most that entries and reservations take together."""
        return self._budget_bytes

    @property
    def used_bytes(self) -> int:
        """What entries and reservations take now."""
        return self._entry_bytes + self._reserved_bytes

    def __contains__(self, digest: Digest) -> bool:
        return digest in self._entries

    def peek(self, digest: Digest) -> HostEntry | None:
        """The entry, without counting as a use."""
        return self._entries.get(digest)

    def entries(self) -> tuple[HostEntry, ...]:
        """All entries, least recently used first."""
        return tuple(self._entries.values())

    def acquire(self, digest: Digest) -> AdapterWeights | None:
        """Hold an entry for one more user and make it the most recent; None when it is not there."""
        entry = self._entries.get(digest)
        if entry is None:
            return None
        entry.users += 1
        self._entries.move_to_end(digest)
        return entry.weights

    def release(self, digest: Digest) -> None:
        """End one `acquire`."""
        entry = self._entries[digest]
        assert entry.users > 0, digest
        entry.users -= 1

    def reserve(self, digest: Digest, size_bytes: int) -> Reservation:
        """Make room, dropping what was used least recently and is in nobody's hands.

        Raises QuotaExceededError when the size alone exceeds the budget, or when the rest is in use.
        """
        self._make_room(digest, size_bytes)
        reservation = Reservation(digest, size_bytes)
        self._reservations.add(reservation)
        self._reserved_bytes += size_bytes
        return reservation

    def commit(self, reservation: Reservation, weights: AdapterWeights) -> None:
        """Turn a reservation into an entry of the adapter's true size; raises QuotaExceededError like `reserve`.

        The reservation is over either way. An entry that is there already stays as it is.
        """
        self.cancel(reservation)
        if weights.digest in self._entries:
            return
        self._make_room(weights.digest, weights.size_bytes)
        self._entries[weights.digest] = HostEntry(weights)
        self._entry_bytes += weights.size_bytes

    def cancel(self, reservation: Reservation) -> None:
        """Give the room back; again is harmless."""
        if reservation in self._reservations:
            self._reservations.remove(reservation)
            self._reserved_bytes -= reservation.size_bytes

    def drop(self, digest: Digest) -> bool:
        """Forget an entry unless somebody holds it; says whether it is gone."""
        entry = self._entries.get(digest)
        if entry is None:
            return True
        if entry.users:
            return False
        self._forget(digest)
        return True

    def _make_room(self, digest: Digest, size_bytes: int) -> None:
        if size_bytes > self._budget_bytes:
            raise QuotaExceededError(
                f"adapter {digest} takes {size_bytes} bytes of host memory, the worker's whole budget is "
                f"{self._budget_bytes}; raise HOTSLOT_HOST_CACHE_BYTES",
                subject="host_cache_bytes",
            )
        needed = self.used_bytes + size_bytes - self._budget_bytes
        victims: list[Digest] = []
        for candidate, entry in self._entries.items():
            if needed <= 0:
                break
            if entry.users == 0:
                victims.append(candidate)
                needed -= entry.weights.size_bytes
        if needed > 0:
            raise QuotaExceededError(
                f"no room in host memory for adapter {digest}: {self.used_bytes} of {self._budget_bytes} bytes are "
                "taken by adapters in use; try again, or raise HOTSLOT_HOST_CACHE_BYTES",
                subject="host_cache_bytes",
                retry_after_s=RETRY_AFTER_S,
            )
        for victim in victims:
            self._forget(victim)

    def _forget(self, digest: Digest) -> None:
        self._entry_bytes -= self._entries.pop(digest).weights.size_bytes
