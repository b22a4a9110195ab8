"""The holdings' bookkeeping, driven at random beside a naive model."""

from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hotslot.contract.control import AdapterTier
from hotslot.contract.placement import Tier
from hotslot.errors import QuotaExceededError
from hotslot.formats.manifest import AdapterModule, Manifest
from hotslot.ids import DEFAULT_TENANT, Digest, TenantId, digest_of
from hotslot.references import parse_reference
from worker_service.adapters import holdings as module
from worker_service.adapters.holding import MAX_REFERENCES, HostRoom, PinOwner
from worker_service.adapters.holdings import Holdings
from worker_service.adapters.version import AdapterVersion
from worker_service.engine.snapshot import SlotHolder

BUDGET = 100
NONE, LOADING, DISK, HOST, SLOT = (
    AdapterTier.UNSPECIFIED,
    AdapterTier.LOADING,
    AdapterTier.DISK,
    AdapterTier.HOST,
    AdapterTier.SLOT,
)
MANIFESTS = [
    Manifest(digest_of(b"base"), digest_of(b"%d" % seed), 10, "F32", (AdapterModule("q_proj", 8 + seed, 1.0),))
    for seed in range(6)
]
DIGESTS = [manifest.digest for manifest in MANIFESTS]
BY_DIGEST = {manifest.digest: manifest for manifest in MANIFESTS}
TENANTS = [TenantId("acme"), TenantId("zeta"), TenantId("yoyo")]
NAMES = ["a", "b:stable", "c"]
OWNERS: list[PinOwner] = [(tenant, parse_reference(name)) for tenant in TENANTS[:2] for name in NAMES[:2]]

# Host memory is reached through a load only, slots through host memory; a version that is evicted while its slots hold
# it comes back to them by a load. `loading` is also a copy into slots.
EDGES = {
    NONE: {LOADING, DISK},
    DISK: {LOADING, NONE},
    LOADING: {NONE, DISK, HOST, SLOT},
    HOST: {NONE, DISK, LOADING, SLOT},
    SLOT: {NONE, DISK, LOADING, HOST},
}


@dataclass(frozen=True)
class Weights:
    digest: Digest
    size_bytes: int
    max_rank: int = 8


def version(digest: Digest, tenant: TenantId, name: str = "a") -> AdapterVersion:
    return AdapterVersion(tenant, parse_reference(name), digest, BY_DIGEST[digest])


class HoldingsMachine(RuleBasedStateMachine):
    """Loads, uses, pins, drops, looks: beside lists and sets that say the same in the plainest way."""

    def __init__(self) -> None:
        super().__init__()
        self.blobs: set[Digest] = set()
        self.holdings = Holdings(BUDGET, lambda tenant, digest: digest in self.blobs)
        self.now_s = 0.0
        self.users: list[Digest] = []
        self.pins: dict[PinOwner, Digest] = {}
        self.policies: set[tuple[TenantId, Digest]] = set()
        self.pinning: list[tuple[Digest, ExitStack]] = []
        self.host: list[Weights] = []
        """Least recently used first."""
        self.readers: set[tuple[TenantId, Digest]] = set()
        self.rooms: list[HostRoom] = []
        self.uses: dict[tuple[TenantId, Digest], dict[str, float]] = {}
        self.slots: dict[Digest, SlotHolder] = {}
        self.tiers = dict.fromkeys(DIGESTS, NONE)

    def in_host(self, digest: Digest) -> bool:
        return any(weights.digest == digest for weights in self.host)

    def is_kept(self, digest: Digest) -> bool:
        pinned_or_kept = digest in self.pins.values() or any(kept == digest for _, kept in self.policies)
        return digest in self.users or pinned_or_kept

    def keeps_slots(self, digest: Digest) -> bool:
        return digest in self.pins.values() or any(pinning == digest for pinning, _ in self.pinning)

    def tier(self, digest: Digest) -> AdapterTier:
        if self.in_host(digest):
            if digest not in self.slots:
                return HOST
            return SLOT if self.slots[digest].ready else LOADING
        if digest in self.users:
            return LOADING
        is_used = any(used == digest for _, used in self.uses)
        return DISK if is_used and BY_DIGEST[digest].weights_digest in self.blobs else NONE

    def make_room(self, size: int) -> bool:
        """Evict in order until it fits; False, and nothing, where it never would."""
        left = list(self.host)
        taken = sum(weights.size_bytes for weights in left) + sum(room.size_bytes for room in self.rooms)
        for weights in [weights for weights in self.host if not self.is_kept(weights.digest)]:
            if taken + size <= BUDGET:
                break
            left.remove(weights)
            taken -= weights.size_bytes
        if size > BUDGET or taken + size > BUDGET:
            return False
        self.host = left
        self.forget_readers()
        return True

    def forget_readers(self) -> None:
        """What left host memory is to be brought anew by every tenant."""
        self.readers = {(tenant, digest) for tenant, digest in self.readers if self.in_host(digest)}

    @rule(digest=st.sampled_from(DIGESTS))
    def hold(self, digest: Digest) -> None:
        weights = self.holdings.hold(digest, TENANTS[0])
        assert (weights is not None) == self.in_host(digest)
        self.users.append(digest)
        self.host.sort(key=lambda weights: weights.digest == digest)

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        digest = data.draw(st.sampled_from(self.users))
        self.holdings.release(digest, TENANTS[0])
        self.users.remove(digest)

    @rule(digest=st.sampled_from(DIGESTS), size=st.integers(1, 30), tenant=st.sampled_from(TENANTS))
    def load(self, digest: Digest, size: int, tenant: TenantId) -> None:
        """A whole load by a request that ends."""
        self.hold(digest)
        if not self.in_host(digest) and self.make_room(size):
            room = self.holdings.reserve(digest, size)
            self.holdings.commit(room, Weights(digest, size))
            self.host.append(Weights(digest, size))
            self.tiers[digest] = LOADING
        if self.in_host(digest):
            self.holdings.note_read(tenant, digest)
            self.readers.add((tenant, digest))
        self.holdings.release(digest, TENANTS[0])
        self.users.remove(digest)

    @precondition(lambda self: self.users)
    @rule(data=st.data(), size=st.integers(1, 60))
    def reserve(self, data: st.DataObject, size: int) -> None:
        digest = data.draw(st.sampled_from(self.users))
        fits = self.make_room(size)
        try:
            self.rooms.append(self.holdings.reserve(digest, size))
            assert fits
        except QuotaExceededError:
            assert not fits

    @precondition(lambda self: any(room.digest in self.users for room in self.rooms))
    @rule(data=st.data(), actual=st.integers(1, 70))
    def commit(self, data: st.DataObject, actual: int) -> None:
        """A load whose last user has left is cancelled, so only what has users is committed."""
        room = data.draw(st.sampled_from([room for room in self.rooms if room.digest in self.users]))
        self.rooms.remove(room)
        weights = Weights(room.digest, actual)
        is_there = self.in_host(room.digest)
        fits = is_there or self.make_room(actual)
        try:
            found = self.holdings.commit(room, weights)
        except QuotaExceededError:
            assert not fits
            return
        assert fits
        assert (found is weights) is not is_there
        if not is_there:
            self.host.append(weights)

    @precondition(lambda self: self.rooms)
    @rule(data=st.data(), again=st.booleans())
    def cancel(self, data: st.DataObject, again: bool) -> None:
        room = data.draw(st.sampled_from(self.rooms))
        self.rooms.remove(room)
        self.holdings.cancel(room)
        if again:
            self.holdings.cancel(room)

    @rule(digest=st.sampled_from(DIGESTS))
    def drop(self, digest: Digest) -> None:
        stays = self.in_host(digest) and self.is_kept(digest)
        assert self.holdings.drop(digest) is not stays
        if not stays:
            self.host = [weights for weights in self.host if weights.digest != digest]

    @precondition(lambda self: self.host)
    @rule(data=st.data(), owner=st.sampled_from(OWNERS))
    def pin(self, data: st.DataObject, owner: PinOwner) -> None:
        digest = data.draw(st.sampled_from([weights.digest for weights in self.host]))
        before = self.pins.get(owner)
        freed = self.holdings.pin(owner, digest)
        self.pins[owner] = digest
        assert freed == (before if before not in (None, digest) and not self.keeps_slots(before) else None)

    @rule(owner=st.sampled_from(OWNERS))
    def unpin(self, owner: PinOwner) -> None:
        before = self.pins.pop(owner, None)
        assert self.holdings.unpin(owner) == (before if before is not None and not self.keeps_slots(before) else None)

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def begin_pinning(self, data: st.DataObject) -> None:
        digest, stack = data.draw(st.sampled_from(self.users)), ExitStack()
        stack.enter_context(self.holdings.pinning(digest))
        self.pinning.append((digest, stack))

    @precondition(lambda self: self.pinning)
    @rule()
    def end_pinning(self) -> None:
        self.pinning.pop(0)[1].close()

    @precondition(lambda self: self.host)
    @rule(data=st.data(), tenant=st.sampled_from(TENANTS))
    def keep(self, data: st.DataObject, tenant: TenantId) -> None:
        digest = data.draw(st.sampled_from([weights.digest for weights in self.host]))
        self.holdings.keep(tenant, digest)
        self.policies.add((tenant, digest))

    @precondition(lambda self: self.policies)
    @rule(data=st.data())
    def stop_keeping(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.policies)))
        self.holdings.stop_keeping(*key)
        self.policies.remove(key)

    @rule(digest=st.sampled_from(DIGESTS), tenant=st.sampled_from(TENANTS), name=st.sampled_from(NAMES))
    def note(self, digest: Digest, tenant: TenantId, name: str) -> None:
        self.now_s += 1.0
        noted = version(digest, tenant, name)
        self.holdings.note(noted, self.now_s)
        references = self.uses.setdefault((tenant, digest), {})
        references.pop(str(noted.reference), None)
        references[str(noted.reference)] = self.now_s

    @rule(digest=st.sampled_from(DIGESTS), tenant=st.sampled_from(TENANTS))
    def forget(self, digest: Digest, tenant: TenantId) -> None:
        self.holdings.forget(tenant, digest)
        self.uses.pop((tenant, digest), None)

    @rule(holders=st.dictionaries(st.sampled_from(DIGESTS), st.booleans(), max_size=4))
    def see_slots(self, holders: dict[Digest, bool]) -> None:
        self.slots = {digest: SlotHolder(digest, (1,), 0, False, 0.0, ready) for digest, ready in holders.items()}
        self.holdings.see_slots(self.slots.values())

    @rule(digest=st.sampled_from(DIGESTS))
    def change_disk(self, digest: Digest) -> None:
        self.blobs ^= {BY_DIGEST[digest].weights_digest}

    @rule(tenant=st.sampled_from(TENANTS))
    def look(self, tenant: TenantId) -> None:
        listed = self.holdings.of_tenant(tenant)
        self.uses = {key: references for key, references in self.uses.items() if self.tier(key[1]) is not NONE}
        mine = {digest: references for (user, digest), references in self.uses.items() if user == tenant}
        assert [held.digest for held in listed] == sorted(mine, key=lambda digest: -max(mine[digest].values()))
        sizes = {weights.digest: weights.size_bytes for weights in self.host}
        for held in listed:
            references = mine[held.digest]
            owners = [owner for owner, digest in self.pins.items() if digest == held.digest]
            assert held.references == tuple(references)
            assert held.last_used_s == max(references.values())
            assert held.max_rank == BY_DIGEST[held.digest].max_rank
            num_own = self.users.count(held.digest) if tenant == TENANTS[0] else 0
            if (tenant, held.digest) in self.readers:
                assert held.tier is self.tier(held.digest)
                assert held.users == num_own
                assert held.host_size_bytes == sizes[held.digest]
            else:
                # As if nothing of other tenants were here.
                on_disk = BY_DIGEST[held.digest].weights_digest in self.blobs and not num_own
                assert held.tier is (DISK if on_disk else LOADING)
                assert (held.users, held.host_size_bytes, held.slots) == (0, 0, ())
            kept_for_me = (tenant, held.digest) in self.policies
            assert held.pinned is (kept_for_me or any(owner == tenant for owner, _ in owners))

    @invariant()
    def the_budget_holds_and_bytes_are_the_sum(self) -> None:
        entries = sum(self.holdings.of(digest).size_bytes for digest in DIGESTS)
        assert entries == sum(weights.size_bytes for weights in self.host)
        assert self.holdings.used_bytes == entries + sum(room.size_bytes for room in self.rooms)
        assert self.holdings.used_bytes <= BUDGET

    @invariant()
    def candidates_are_what_nothing_keeps_least_recently_used_first(self) -> None:
        unkept = [weights.digest for weights in self.host if not self.is_kept(weights.digest)]
        assert list(self.holdings.evictable()) == unkept

    @invariant()
    def what_is_pinned_or_held_stays(self) -> None:
        for digest in {*self.pins.values(), *(kept for _, kept in self.policies)}:
            assert self.holdings.is_resident(digest)
        assert self.holdings.kept() == self.policies
        for digest in DIGESTS:
            holding = self.holdings.of(digest)
            assert holding.users == self.users.count(digest)
            assert holding.keeps_slots == self.keeps_slots(digest)
            assert holding.is_at_hand == (self.in_host(digest) or digest in self.users)
            for tenant in TENANTS:
                owns = any(owner[0] == tenant and pinned == digest for owner, pinned in self.pins.items())
                assert holding.is_protected_from(tenant) == (owns or any(kept == digest for _, kept in self.policies))
                others = {user for user, used in self.uses if used == digest and user != tenant}
                assert holding.is_shared_by(tenant) == bool(others)
        for owner in OWNERS:
            assert self.holdings.pinned(owner) == self.pins.get(owner)

    @invariant()
    def tiers_move_along_edges_only(self) -> None:
        for digest in DIGESTS:
            holding = self.holdings.of(digest)
            on_disk = bool(holding.uses) and BY_DIGEST[digest].weights_digest in self.blobs
            tier = holding.tier(self.slots.get(digest), on_disk=on_disk)
            assert tier is self.tier(digest)
            assert tier is self.tiers[digest] or tier in EDGES[self.tiers[digest]], (self.tiers[digest], tier)
            self.tiers[digest] = tier

    @invariant()
    def the_fleet_is_told_of_what_can_be_served_without_the_store(self) -> None:
        told = {
            resident.digest: resident
            for resident in self.holdings.residency(2, lambda digest: 0.5, lambda ranks: ranks)
        }
        assert list(told) == sorted(told)
        assert {digest for digest, it in told.items() if it.tier is not Tier.DISK} == {w.digest for w in self.host}
        for digest, resident in told.items():
            users = {user: references for (user, used), references in self.uses.items() if used == digest}
            latest = sorted(users, key=lambda user: -max(users[user].values()))[:2]
            names = [(user, list(users[user])[-1].partition(":")[0]) for user in sorted(latest)]
            brought = [(tenant, "") for tenant, read in sorted(self.readers) if read == digest][:2]
            assert [(resident.tenant, resident.name), *resident.others] == (names or brought or [(DEFAULT_TENANT, "")])
            assert resident.pinned == (digest in self.pins.values() or any(kept == digest for _, kept in self.policies))
            if resident.tier is not Tier.DISK:
                is_ready = digest in self.slots and self.slots[digest].ready
                assert resident.tier is (Tier.SLOT if is_ready else Tier.HOST)


TestHoldings = HoldingsMachine.TestCase
TestHoldings.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def fill(holdings: Holdings, digest: Digest, size: int) -> None:
    holdings.commit(holdings.reserve(digest, size), Weights(digest, size))


def use(holdings: Holdings, digest: Digest) -> None:
    holdings.hold(digest)
    holdings.release(digest)


def test_the_least_recently_used_goes_first() -> None:
    holdings = Holdings(BUDGET)
    fill(holdings, DIGESTS[0], 40)
    fill(holdings, DIGESTS[1], 40)
    use(holdings, DIGESTS[0])
    fill(holdings, DIGESTS[2], 40)
    assert holdings.is_resident(DIGESTS[0])
    assert not holdings.is_resident(DIGESTS[1])


def test_one_that_alone_exceeds_the_budget_is_refused_and_drops_nothing() -> None:
    holdings = Holdings(BUDGET)
    fill(holdings, DIGESTS[0], 40)
    with pytest.raises(QuotaExceededError, match="HOTSLOT_HOST_CACHE_BYTES") as caught:
        holdings.reserve(DIGESTS[1], BUDGET + 1)
    assert caught.value.retry_after_s is None
    assert holdings.is_resident(DIGESTS[0])


def test_no_room_beside_what_is_in_use_is_worth_a_retry() -> None:
    holdings = Holdings(BUDGET)
    fill(holdings, DIGESTS[0], 60)
    holdings.hold(DIGESTS[0])
    with pytest.raises(QuotaExceededError) as caught:
        holdings.reserve(DIGESTS[1], 60)
    assert caught.value.retry_after_s is not None


def test_what_a_pin_of_either_kind_kept_is_a_candidate_once_its_last_pinner_lets_go() -> None:
    holdings = Holdings(BUDGET)
    digest = DIGESTS[0]
    fill(holdings, digest, 40)
    for owner in OWNERS[:2]:
        holdings.pin(owner, digest)
    assert list(holdings.evictable()) == []
    holdings.keep(TENANTS[0], digest)
    assert holdings.unpin(OWNERS[0]) is None
    assert holdings.unpin(OWNERS[1]) == digest
    assert list(holdings.evictable()) == []
    holdings.stop_keeping(TENANTS[0], digest)
    assert list(holdings.evictable()) == [digest]


def test_only_the_references_used_last_are_remembered() -> None:
    holdings = Holdings(BUDGET)
    fill(holdings, DIGESTS[0], 40)
    for number in range(MAX_REFERENCES + 4):
        holdings.note(version(DIGESTS[0], TENANTS[0], f"a{number}"), float(number))
    (held,) = holdings.of_tenant(TENANTS[0])
    assert held.references == tuple(f"a{number}:latest" for number in range(4, MAX_REFERENCES + 4))


def test_memory_of_what_was_used_follows_what_the_worker_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PRUNE_ABOVE", 3)
    holdings = Holdings(BUDGET)
    fill(holdings, DIGESTS[0], 40)
    for digest in DIGESTS:
        holdings.note(version(digest, TENANTS[0]), 0.0)
    remembered = [digest for digest in DIGESTS if holdings.of(digest).uses]
    assert DIGESTS[0] in remembered
    assert len(remembered) <= 3
    assert [held.digest for held in holdings.of_tenant(TENANTS[0])] == [DIGESTS[0]]
