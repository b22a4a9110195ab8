"""Copies of adapters into slots, taken forward a slice at a time so that no step waits for a whole adapter."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from hotslot.errors import HotslotError
from hotslot.ids import Digest
from worker_service.engine.messages import PENDING, Activated, AdapterWeights, ModelRunner, SliceState
from worker_service.engine.slots import Holder


@dataclass(slots=True, eq=False)
class Copy:
    """One adapter on its way into its slots."""

    holder: Holder
    slices: Iterator[SliceState]
    asked_s: float
    ahead: bool
    """True if no sequence waits for it yet."""
    copy_s: float = 0.0
    pending_since_s: float | None = None
    """Time from which a device copies by itself; None before."""
    waiters: list[tuple[float, Callable[[Activated | HotslotError], None]]] = field(default_factory=list)
    """Callbacks for the end of the copy, each with the time of its asking."""


@dataclass
class CopyQueue:
    """Copies under way, first come first served; those that a sequence waits for before those made ahead."""

    runner: ModelRunner
    clock: Callable[[], float]
    _copies: list[Copy] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._copies)

    def get(self, digest: Digest) -> Copy | None:
        """The copy of this adapter, if one is under way."""
        return next((copy for copy in self._copies if copy.holder.digest == digest), None)

    def add(self, holder: Holder, weights: AdapterWeights, *, ahead: bool = False) -> Copy:
        """Begin a copy; nothing is written before `advance`."""
        copy = Copy(holder, self.runner.write_slots(holder.slots, weights), self.clock(), ahead)
        self._copies.append(copy)
        return copy

    @property
    def is_pending(self) -> bool:
        """True if the current copy has nothing left to write and a device is at it."""
        return bool(self._copies) and self.current().pending_since_s is not None

    def current(self) -> Copy:
        """The copy that `advance` takes forward."""
        return next((copy for copy in self._copies if not copy.ahead), self._copies[0])

    def advance(self) -> Copy | None:
        """Write one slice of the current copy; returns the copy if that completed it.

        Whatever the runner raises is raised here; the copy stays the current one until `drop`.
        """
        copy = self.current()
        began_s = self.clock() if copy.pending_since_s is None else copy.pending_since_s
        try:
            state = next(copy.slices)
        except StopIteration:
            self._copies.remove(copy)
            copy.copy_s += self.clock() - began_s
            copy.holder.ready = True
            return copy
        if state == PENDING:
            copy.pending_since_s = began_s
        else:
            copy.copy_s += self.clock() - began_s
        return None

    def drop(self, copy: Copy) -> None:
        """Take off a copy that failed."""
        self._copies.remove(copy)
