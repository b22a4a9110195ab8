"""A part of the slots stays for others, whatever is pinned, and what is kept is not all one tenant's."""

from hypothesis import given
from hypothesis import strategies as st

from hotslot.errors import QuotaExceededError
from hotslot.ids import AdapterName, Digest, TenantId
from shared.fleet.replica_policy import DEFAULT_REPLICA_POLICY
from worker_service.adapters.keeper import in_turns
from worker_service.adapters.pin_shares import check_pins
from worker_service.adapters.version import WantedVersion

TENANTS = [TenantId(name) for name in "abcd"]


def may_pin(pinned: dict[TenantId, int], tenant: TenantId, num_more: int, num_slots: int) -> bool:
    try:
        check_pins(pinned, tenant, num_more, num_slots)
    except QuotaExceededError as refusal:
        assert refusal.subject == "pinned_slots"  # noqa: PT017 (the refusal is one of two outcomes)
        return False
    return True


@given(st.integers(2, 64), st.lists(st.tuples(st.sampled_from(TENANTS), st.integers(1, 8)), max_size=60))
def test_however_tenants_pin_a_quarter_stays_and_one_has_half_at_most(
    num_slots: int, asked: list[tuple[TenantId, int]]
) -> None:
    pinned: dict[TenantId, int] = {}
    for tenant, num_more in asked:
        if may_pin(pinned, tenant, num_more, num_slots):
            pinned[tenant] = pinned.get(tenant, 0) + num_more
    assert sum(pinned.values()) <= num_slots - max(num_slots // 4, 1)
    assert max(pinned.values(), default=0) <= max(num_slots // 2, 1)


def test_a_tenant_pins_half_and_another_one_still_pins_beside_it() -> None:
    assert may_pin({}, TENANTS[0], 4, 8)
    assert not may_pin({TENANTS[0]: 4}, TENANTS[0], 1, 8)
    assert may_pin({TENANTS[0]: 4}, TENANTS[1], 2, 8)
    assert not may_pin({TENANTS[0]: 4, TENANTS[1]: 2}, TENANTS[2], 1, 8)
    assert may_pin({}, TENANTS[0], 1, 1)


@given(st.lists(st.sampled_from(TENANTS), max_size=30))
def test_tenants_take_turns_at_the_room_for_what_is_pinned(order: list[TenantId]) -> None:
    wanted = [
        WantedVersion(tenant, AdapterName(f"a{number}"), Digest(f"sha256:{number:064x}"), DEFAULT_REPLICA_POLICY)
        for number, tenant in enumerate(order)
    ]
    turns = in_turns(wanted)
    assert sorted(turns, key=wanted.index) == wanted
    for index in range(len(turns)):
        counts = [sum(each.tenant == tenant for each in turns[:index]) for tenant in set(order)]
        left = [any(each.tenant == tenant for each in turns[index:]) for tenant in set(order)]
        waiting = [count for count, waits in zip(counts, left, strict=True) if waits]
        assert max(counts) - min(waiting) <= 1
