"""Slots: which adapter occupies which, who uses it, and which one makes room for another."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from hotslot.ids import Digest
from worker_service.engine.limits import EngineLimits
from worker_service.engine.messages import AdapterWeights

HALF_LIFE_S = 60.0
"""After this long without uses, an adapter's earlier uses count half."""


@dataclass(slots=True)
class Holder:
    """An adapter in slots."""

    digest: Digest
    slots: tuple[int, ...]
    reload_bytes: int
    """Bytes that bringing it back would copy."""
    last_used_s: float
    uses: float = 1.0
    """Uses of the adapter, each counting half after every half-life; as of `last_used_s`."""
    users: int = 0
    pinned: bool = False
    ready: bool = False
    """False while its weights are being copied."""

    @property
    def evictable(self) -> bool:
        """No sequence uses it, nothing keeps it, and no copy into it is under way."""
        return self.users == 0 and not self.pinned and self.ready

    @property
    def worth(self) -> float:
        """Saving of keeping it, for each slot that it takes; comparable between holders at any one time.

        Recency and frequency in one, as LRFU has them (Lee et al. 2001), times the cost of a reload over the room, as
        in GreedyDual-Size-Frequency (Cherkasova 1998). All uses fade at the same rate, so the logarithm of the worth
        only shifts with time and the order stays.
        """
        saved = self.uses * max(self.reload_bytes, 1) / len(self.slots)
        return math.log2(saved) + self.last_used_s / HALF_LIFE_S

    def use(self, now_s: float) -> None:
        """Note a use."""
        self.uses = 1.0 + self.uses * 2.0 ** ((self.last_used_s - now_s) / HALF_LIFE_S)
        self.last_used_s = now_s


@dataclass(frozen=True, slots=True)
class SlotReservation:
    """Slots taken for adapters that were not there; their weights must be copied now."""

    placed: tuple[Holder, ...]
    evicted: tuple[Digest, ...]


def choose_victims(holders: Iterable[Holder], num_needed: int) -> list[Holder] | None:
    """The adapters to evict for `num_needed` more free slots; None when even all evictable ones are too few.

    Those of least worth first. Those that turn out not to be needed (because a larger one follows) stay, the worthiest
    first.
    """
    victims: list[Holder] = []
    gained = 0
    for holder in sorted((h for h in holders if h.evictable), key=lambda h: (h.worth, h.digest)):
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
    """The state of all slots. **Invariant**: every slot is free or held by exactly one adapter.

    An adapter of several slots takes any: they need not lie side by side, so free slots never are in the wrong places.
    """

    limits: EngineLimits
    _holders: dict[Digest, Holder] = field(default_factory=dict)
    _free: list[int] = field(default_factory=list)
    _pinned: set[Digest] = field(default_factory=set)
    """Versions that must keep their slots, also once they have some again after they lost them."""

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

    def num_lacking(self, wanted: Mapping[Digest, AdapterWeights]) -> int:
        """Slots that must be emptied for `wanted` beside those that are free or that nothing uses."""
        unused = sum(len(h.slots) for h in self._holders.values() if h.evictable and h.digest not in wanted)
        return max(self._num_short(wanted) - unused, 0)

    def has_room(self, wanted: Mapping[Digest, AdapterWeights], keep: Collection[Digest] = ()) -> bool:
        """Tell whether `reserve` would succeed."""
        return self._victims_for(wanted, keep) is not None

    def reserve(
        self, wanted: Mapping[Digest, AdapterWeights], now_s: float, keep: Collection[Digest] = ()
    ) -> SlotReservation | None:
        """Take slots for all of these adapters that have none, evicting unused ones; all or nothing.

        None when too many slots are in use or pinned at the moment. Adapters in `wanted` are never evicted for each
        other, nor are those in `keep`.
        """
        victims = self._victims_for(wanted, keep)
        if victims is None:
            return None
        for victim in victims:
            self.remove(victim.digest)
        placed = []
        for digest, weights in wanted.items():
            if digest in self._holders:
                continue
            count = self.limits.slots_for(weights.max_rank)
            slots, self._free = tuple(self._free[:count]), self._free[count:]
            holder = Holder(digest, slots, weights.size_bytes, now_s, pinned=digest in self._pinned)
            self._holders[digest] = holder
            placed.append(holder)
        return SlotReservation(tuple(placed), tuple(v.digest for v in victims))

    def to_drain(self, wanted: Mapping[Digest, AdapterWeights], already: Collection[Digest]) -> frozenset[Digest]:
        """Adapters in use whose slots `wanted` can have once their users have ended.

        Those of `already` first, then those with the fewest users.
        """
        num_short = self._num_short(wanted)
        others = [h for h in self._holders.values() if h.digest not in wanted and not h.pinned]
        draining: set[Digest] = set()
        for holder in sorted(others, key=lambda h: (h.digest not in already, h.users, h.digest)):
            if num_short <= 0:
                break
            draining.add(holder.digest)
            num_short -= len(holder.slots)
        return frozenset(draining)

    def fits_ever(self, wanted: Mapping[Digest, AdapterWeights]) -> bool:
        """Tell whether these adapters fit together beside those that are pinned, if nothing else were there."""
        needed = sum(self.limits.slots_for(weights.max_rank) for weights in wanted.values())
        kept = sum(len(h.slots) for h in self._holders.values() if h.pinned and h.digest not in wanted)
        return needed + kept <= self.limits.num_slots

    def pin(self, digest: Digest) -> None:
        """Let an adapter in slots keep them."""
        self._pinned.add(digest)
        self._holders[digest].pinned = True

    def unpin(self, digest: Digest) -> None:
        """Let an adapter be evicted again; it may have no slots."""
        self._pinned.discard(digest)
        if digest in self._holders:
            self._holders[digest].pinned = False

    def acquire(self, digest: Digest, now_s: float) -> None:
        """One more user."""
        holder = self._holders[digest]
        holder.users += 1
        holder.use(now_s)

    def release(self, digest: Digest, now_s: float) -> None:
        """One user less."""
        holder = self._holders[digest]
        assert holder.users > 0, f"{digest} has no users"
        holder.users -= 1
        holder.use(now_s)

    def remove(self, digest: Digest) -> None:
        """Free the slots of an adapter that no sequence uses."""
        holder = self._holders.pop(digest)
        assert holder.users == 0, f"{digest} is in use"
        self._free.extend(holder.slots)
        self._free.sort()

    def _num_short(self, wanted: Mapping[Digest, AdapterWeights]) -> int:
        """Slots that are missing for those of `wanted` that have none."""
        missing = (w for d, w in wanted.items() if d not in self._holders)
        return sum(self.limits.slots_for(w.max_rank) for w in missing) - len(self._free)

    def _victims_for(self, wanted: Mapping[Digest, AdapterWeights], keep: Collection[Digest]) -> list[Holder] | None:
        num_short = self._num_short(wanted)
        if num_short <= 0 or all(digest in self._holders for digest in wanted):
            return []
        others = (h for h in self._holders.values() if h.digest not in wanted and h.digest not in keep)
        return choose_victims(others, num_short)
