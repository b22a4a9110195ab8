"""Slots: which adapter occupies which, who uses it, and which one makes room for another."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from shared.ids import Digest
from worker_service.engine.limits import EngineLimits


@dataclass(slots=True)
class Holder:
    """An adapter in slots."""

    digest: Digest
    slots: tuple[int, ...]
    last_used_s: float
    users: int = 0
    pinned: bool = False
    ready: bool = False
    """False while its weights are being copied."""

    @property
    def evictable(self) -> bool:
        """Nobody uses it, nothing keeps it, and no copy into it is under way."""
        return self.users == 0 and not self.pinned and self.ready


@dataclass(frozen=True, slots=True)
class Reservation:
    """Slots taken for adapters that were not there; their weights must be copied now."""

    placed: tuple[Holder, ...]
    evicted: tuple[Digest, ...]


def choose_victims(holders: Iterable[Holder], num_needed: int) -> list[Holder] | None:
    """The adapters to evict for `num_needed` more free slots; None when even all evictable ones are too few.

    Least recently used first. Those that turn out not to be needed (because a larger one follows) stay, the most
    recently used first.
    """
    victims: list[Holder] = []
    gained = 0
    for holder in sorted((h for h in holders if h.evictable), key=lambda h: (h.last_used_s, h.digest)):
        if gained >= num_needed:
            break
        victims.append(holder)
        gained += len(holder.slots)
    if gained < num_needed:
        return None
    for holder in reversed(victims[:-1]):
        if gained - len(holder.slots) >= num_needed:
            victims.remove(holder)
            gained -= len(holder.slots)
    return victims


@dataclass
class SlotTable:
    """The state of all slots. **Invariant**: every slot is free or held by exactly one adapter."""

    limits: EngineLimits
    _holders: dict[Digest, Holder] = field(default_factory=dict)
    _free: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._free = list(range(self.limits.num_slots))

    @property
    def holders(self) -> tuple[Holder, ...]:
        """All adapters in slots."""
        return tuple(self._holders.values())

    @property
    def num_free(self) -> int:
        """Slots that hold nothing."""
        return len(self._free)

    def get(self, digest: Digest) -> Holder | None:
        """The holder of this adapter, if it is in slots."""
        return self._holders.get(digest)

    def reserve(self, ranks: dict[Digest, int], now_s: float) -> Reservation | None:
        """Take slots for all of these adapters that have none, evicting unused ones; all or nothing.

        `ranks` maps each adapter that must be in slots together to its rank. None when too many slots are in use or
        pinned at the moment. Adapters named in `ranks` are never evicted for each other.
        """
        missing = {d: self.limits.slots_for(r) for d, r in ranks.items() if d not in self._holders}
        num_short = sum(missing.values()) - len(self._free)
        victims: list[Holder] | None = []
        if num_short > 0:
            victims = choose_victims((h for h in self._holders.values() if h.digest not in ranks), num_short)
        if victims is None:
            return None
        for victim in victims:
            self.remove(victim.digest)
        placed = []
        for digest, count in missing.items():
            slots, self._free = tuple(self._free[:count]), self._free[count:]
            holder = Holder(digest, slots, last_used_s=now_s)
            self._holders[digest] = holder
            placed.append(holder)
        return Reservation(tuple(placed), tuple(v.digest for v in victims))

    def fits_ever(self, ranks: dict[Digest, int]) -> bool:
        """Whether these adapters fit together beside what is pinned, if nothing else were there."""
        needed = sum(self.limits.slots_for(rank) for rank in ranks.values())
        kept = sum(len(h.slots) for h in self._holders.values() if h.pinned and h.digest not in ranks)
        return needed + kept <= self.limits.num_slots

    def acquire(self, digest: Digest) -> None:
        """One more user."""
        self._holders[digest].users += 1

    def release(self, digest: Digest, now_s: float) -> None:
        """One user less."""
        holder = self._holders[digest]
        assert holder.users > 0, f"{digest} has no users"
        holder.users -= 1
        holder.last_used_s = now_s

    def remove(self, digest: Digest) -> None:
        """Free the slots of an adapter that nobody uses."""
        holder = self._holders.pop(digest)
        assert holder.users == 0, f"{digest} is in use"
        self._free.extend(holder.slots)
        self._free.sort()
