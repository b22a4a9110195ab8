"""Adapters on their way into slots, in them, and out of them again."""

from collections.abc import Callable, Collection, Iterable

import structlog

from hotslot.errors import AdapterPinnedError, EngineFailedError, HotslotError, SlotsFullError
from hotslot.ids import Digest
from worker_service.engine.copies import Copy, CopyQueue
from worker_service.engine.giving_way import Hold
from worker_service.engine.limits import EngineLimits
from worker_service.engine.listener import ActivationReport, EngineListener
from worker_service.engine.messages import Activate, Activated, AdapterWeights, Deactivate, ModelRunner
from worker_service.engine.mix_size import mix_too_large
from worker_service.engine.sequence import Sequence
from worker_service.engine.slots import SlotReservation, SlotTable

log = structlog.get_logger(__name__)

SLOTS_RETRY_AFTER_S = 1.0


class Residency:
    """The slots and the copies into them.

    **Invariant**: while a sequence holds its adapters, each counts it as a user, so none of them leaves its slots.
    """

    def __init__(
        self, limits: EngineLimits, runner: ModelRunner, clock: Callable[[], float], listener: EngineListener
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._listener = listener
        self.slots = SlotTable(limits)
        self._copies = CopyQueue(runner, clock)
        self._deactivations: dict[Digest, list[Deactivate]] = {}
        self.num_activations = 0

    @property
    def num_copying(self) -> int:
        """Adapters on their way."""
        return len(self._copies)

    @property
    def awaits_device(self) -> bool:
        """True if the current copy is left to a device, so that looking at it again at once is in vain."""
        return self._copies.is_pending

    @property
    def can_bring_ahead(self) -> bool:
        """Tell whether an adapter could be brought that no sequence uses yet."""
        return not self._copies and (self.slots.num_free > 0 or any(h.evictable for h in self.slots.holders))

    def is_resident(self, sequence: Sequence) -> bool:
        """Tell whether all adapters of a sequence are in slots or on their way."""
        return sequence.holds_slots or all(self.slots.get(digest) is not None for digest in sequence.weights)

    def can_hold(self, sequence: Sequence, keep: Collection[Digest]) -> bool:
        """Tell whether `hold` would succeed now."""
        return sequence.holds_slots or self.slots.has_room(sequence.weights, keep)

    def num_lacking(self, sequence: Sequence) -> int:
        """Slots that must be emptied for a sequence."""
        return 0 if self.is_resident(sequence) else self.slots.num_lacking(sequence.weights)

    def holds(self, sequences: Iterable[Sequence], wanted: Collection[Digest]) -> list[tuple[Hold, list[Sequence]]]:
        """Slots of each adapter in use, with its users; an amount of 0 where several owners use it.

        Those of `wanted` cannot be taken back, nor those that a pin keeps, or into which is being copied.
        """
        using: dict[Digest, list[Sequence]] = {}
        for sequence in sequences:
            if sequence.holds_slots:
                for digest in sequence.weights:
                    using.setdefault(digest, []).append(sequence)
        found: list[tuple[Hold, list[Sequence]]] = []
        for digest, users in using.items():
            holder = self.slots.get(digest)
            assert holder is not None, "held adapters are in slots"
            may_end = holder.ready and not holder.pinned and digest not in wanted
            is_one_owners = all(user.owner == users[0].owner for user in users)
            found.append((Hold(users[0].owner, len(holder.slots) if is_one_owners else 0, may_end), users))
        return found

    def hold(self, sequence: Sequence, keep: Collection[Digest]) -> None:
        """Make a sequence a user of its adapters; those without slots get them, but not those of `keep`."""
        if sequence.holds_slots:
            return
        reservation = self.slots.reserve(sequence.weights, self._clock(), keep)
        assert reservation is not None, "asked before"
        self._begin_copies(reservation, sequence.weights.values())
        for digest in sequence.weights:
            self.slots.acquire(digest, self._clock())
            copy = self._copies.get(digest)
            if copy is not None:
                copy.ahead = False
        sequence.holds_slots = True

    def gates(self, sequence: Sequence) -> tuple[tuple[int, float], ...] | None:
        """The slots of a sequence that holds its adapters, with their weights; None while one is being copied."""
        gates: list[tuple[int, float]] = []
        for use in sequence.submit.adapters:
            holder = self.slots.get(use.weights.digest)
            assert holder is not None, "held adapters are in slots"
            if not holder.ready:
                return None
            if use.weight != 0.0:
                gates += [(slot, use.weight) for slot in holder.slots]
        return tuple(gates)

    def release(self, sequence: Sequence) -> None:
        """A sequence has ended; its adapters stay until their slots are wanted."""
        if sequence.holds_slots:
            for digest in sequence.weights:
                self.slots.release(digest, self._clock())
            sequence.holds_slots = False

    def bring_ahead(self, sequences: Iterable[Sequence]) -> None:
        """Begin to copy the first adapter that one of these needs and that finds slots.

        Takes nothing from a sequence that comes before it.
        """
        kept: set[Digest] = set()
        for sequence in sequences:
            for digest, weights in sequence.weights.items():
                if self.slots.get(digest) is None:
                    reservation = self.slots.reserve({digest: weights}, self._clock(), {*kept, *sequence.weights})
                    if reservation is not None:
                        self._begin_copies(reservation, (weights,), ahead=True)
                        return
            kept.update(sequence.weights)

    def advance(self) -> tuple[Digest, HotslotError] | None:
        """Take the current copy forward by a slice; returns an adapter that could not be copied, with the reason."""
        copy = self._copies.current()
        try:
            finished = self._copies.advance()
        except Exception as exc:
            log.exception("activation_failed", digest=copy.holder.digest)
            error = exc if isinstance(exc, HotslotError) else None
            error = error or EngineFailedError(
                f"adapter {copy.holder.digest} could not be activated; the worker's log has the details"
            )
            self._copies.drop(copy)
            for _, done in copy.waiters:
                done(error)
            return copy.holder.digest, error
        if finished is not None:
            self._report(finished)
        return None

    def activate(self, command: Activate) -> None:
        """Bring an adapter into slots, or say why not."""
        weights = command.weights
        holder = self.slots.get(weights.digest)
        if holder is None:
            reservation = self.slots.reserve({weights.digest: weights}, self._clock())
            if reservation is None:
                command.done(self.refusal([weights]))
                return
            self._begin_copies(reservation, (weights,))
            holder = reservation.placed[0]
        if command.pin:
            self.slots.pin(weights.digest)
        copy = self._copies.get(weights.digest)
        if copy is None:
            holder.use(self._clock())
            command.done(Activated(weights.digest, holder.slots, True, 0.0, 0.0))
        else:
            copy.ahead = False
            copy.waiters.append((self._clock(), command.done))

    def unpin(self, digest: Digest) -> None:
        """Let an adapter be evicted again."""
        self.slots.unpin(digest)

    def ask_to_leave(self, command: Deactivate) -> None:
        """Free an adapter's slots once no sequence needs it; refused when it is pinned, even if that comes later."""
        self._deactivations.setdefault(command.digest, []).append(command)

    def let_stay(self, digest: Digest) -> None:
        """Withdraw `ask_to_leave`."""
        self._deactivations.pop(digest, None)

    def let_go(self, waiting: Iterable[Sequence]) -> bool:
        """Free adapters that were asked to leave and that no sequence uses any more; tells whether there was any."""
        if not self._deactivations:
            return False
        needed = {digest for sequence in waiting for digest in sequence.weights}
        any_left = False
        for digest in list(self._deactivations):
            holder = self.slots.get(digest)
            if holder is not None and holder.pinned:
                for command in self._deactivations.pop(digest):
                    command.done(AdapterPinnedError(digest))
                continue
            if digest in needed or (holder is not None and (holder.users > 0 or not holder.ready)):
                continue
            if holder is not None:
                self.slots.remove(digest)
                any_left = True
            for command in self._deactivations.pop(digest):
                command.done(None)
        return any_left

    def refusal(self, wanted: Collection[AdapterWeights]) -> HotslotError:
        """Error for adapters that do not fit: now (SlotsFullError), or ever (InvalidRequestError)."""
        error = mix_too_large({weights.digest: weights.max_rank for weights in wanted}, self._limits)
        if error is not None:
            return error
        needed = sum(self._limits.slots_for(weights.max_rank) for weights in wanted)
        in_use = sum(len(h.slots) for h in self.slots.holders if not h.evictable)
        return SlotsFullError(
            f"{needed} slots are needed, but {in_use} of {self._limits.num_slots} are in use or pinned; "
            "try again when requests have finished, unpin an adapter, or raise HOTSLOT_NUM_SLOTS",
            subject="slots",
            retry_after_s=SLOTS_RETRY_AFTER_S,
        )

    def _begin_copies(
        self, reservation: SlotReservation, weights: Iterable[AdapterWeights], *, ahead: bool = False
    ) -> None:
        for digest in reservation.evicted:
            self._listener.evicted(digest)
        by_digest = {w.digest: w for w in weights}
        for holder in reservation.placed:
            self._copies.add(holder, by_digest[holder.digest], ahead=ahead)

    def _report(self, copy: Copy) -> None:
        self.num_activations += 1
        now_s, holder = self._clock(), copy.holder
        for asked_s, done in copy.waiters:
            wait_s = max(now_s - asked_s - copy.copy_s, 0.0)
            done(Activated(holder.digest, holder.slots, False, wait_s, copy.copy_s))
        self._listener.activated(
            ActivationReport(
                holder.digest,
                len(holder.slots),
                holder.reload_bytes,
                copy.ahead,
                max(now_s - copy.asked_s - copy.copy_s, 0.0),
                copy.copy_s,
                now_s,
            )
        )
