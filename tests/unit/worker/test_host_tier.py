"""The host tier's bookkeeping, driven at random."""

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hotslot.errors import QuotaExceededError
from hotslot.ids import Digest
from worker_service.adapters.host_tier import HostTier, Reservation

BUDGET = 100
DIGESTS = [Digest(f"sha256:{index:064x}") for index in range(6)]


@dataclass(frozen=True)
class Weights:
    digest: Digest
    size_bytes: int
    max_rank: int = 8


class HostTierMachine(RuleBasedStateMachine):
    """Loads, uses, drops: what is held stays, and the budget holds."""

    def __init__(self) -> None:
        super().__init__()
        self.tier = HostTier(BUDGET)
        self.held: list[Digest] = []
        self.reservations: list[Reservation] = []

    @rule(digest=st.sampled_from(DIGESTS), size=st.integers(1, 60))
    def reserve(self, digest: Digest, size: int) -> None:
        try:
            self.reservations.append(self.tier.reserve(digest, size))
        except QuotaExceededError:
            in_use = sum(e.weights.size_bytes for e in self.tier.entries() if e.users)
            reserved = sum(r.size_bytes for r in self.reservations)
            assert in_use + reserved + size > BUDGET

    @precondition(lambda self: self.reservations)
    @rule(actual=st.integers(1, 70))
    def commit(self, actual: int) -> None:
        reservation = self.reservations.pop()
        try:
            self.tier.commit(reservation, Weights(reservation.digest, actual))
        except QuotaExceededError:
            assert reservation.digest not in self.tier

    @precondition(lambda self: self.reservations)
    @rule()
    def cancel(self) -> None:
        self.tier.cancel(self.reservations.pop())

    @rule(digest=st.sampled_from(DIGESTS))
    def acquire(self, digest: Digest) -> None:
        if self.tier.acquire(digest) is not None:
            self.held.append(digest)

    @precondition(lambda self: self.held)
    @rule()
    def release(self) -> None:
        self.tier.release(self.held.pop())

    @rule(digest=st.sampled_from(DIGESTS))
    def drop(self, digest: Digest) -> None:
        assert self.tier.drop(digest) == (digest not in self.held)

    @invariant()
    def what_is_held_is_there(self) -> None:
        for digest in self.held:
            entry = self.tier.peek(digest)
            assert entry is not None
            assert entry.users == self.held.count(digest)

    @invariant()
    def the_budget_holds(self) -> None:
        entries = sum(entry.weights.size_bytes for entry in self.tier.entries())
        assert self.tier.used_bytes == entries + sum(r.size_bytes for r in self.reservations)
        assert self.tier.used_bytes <= BUDGET


TestHostTier = HostTierMachine.TestCase
TestHostTier.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def fill(tier: HostTier, digest: Digest, size: int) -> None:
    tier.commit(tier.reserve(digest, size), Weights(digest, size))


def test_the_least_recently_used_goes_first() -> None:
    tier = HostTier(BUDGET)
    fill(tier, DIGESTS[0], 40)
    fill(tier, DIGESTS[1], 40)
    tier.acquire(DIGESTS[0])
    tier.release(DIGESTS[0])
    fill(tier, DIGESTS[2], 40)
    assert DIGESTS[0] in tier
    assert DIGESTS[1] not in tier


def test_one_that_alone_exceeds_the_budget_is_refused_and_drops_nothing() -> None:
    tier = HostTier(BUDGET)
    fill(tier, DIGESTS[0], 40)
    with pytest.raises(QuotaExceededError, match="HOTSLOT_HOST_CACHE_BYTES") as caught:
        tier.reserve(DIGESTS[1], BUDGET + 1)
    assert caught.value.retry_after_s is None
    assert DIGESTS[0] in tier


def test_no_room_beside_what_is_in_use_is_worth_a_retry() -> None:
    tier = HostTier(BUDGET)
    fill(tier, DIGESTS[0], 60)
    tier.acquire(DIGESTS[0])
    with pytest.raises(QuotaExceededError) as caught:
        tier.reserve(DIGESTS[1], 60)
    assert caught.value.retry_after_s is not None
