"""Placements of another tenant's equal bytes change no answer."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hotslot.contract.control import WorkerState
from hotslot.contract.placement import Tier
from hotslot.ids import Digest, TenantId, WorkerId
from shared.fleet.policy import Fleet
from shared.fleet.records import PlacedVersion, ReportedLoad, Resident, WorkerInfo, WorkerRecord, placed_for

MINE, OTHER, THIRD = TenantId("mine"), TenantId("other"), TenantId("third")
VERSION = Digest(f"sha256:{7:064x}")


def worker(number: int) -> WorkerRecord:
    info: Any = WorkerInfo(
        WorkerId(f"w{number}"), f"127.0.0.1:{7500 + number}", Digest(f"sha256:{1:064x}"), "base", "float32", 8, 0.0, 1
    )
    return WorkerRecord(info, WorkerState.READY, ReportedLoad(), 1e9, 1)


def resident(tenant: TenantId, *others: TenantId) -> Resident:
    named = tuple((other, f"{other}-name") for other in others)
    return Resident(VERSION, Tier.SLOT, name=f"{tenant}-name", tenant=tenant, others=named)


FLEET = Fleet([worker(number) for number in range(6)], 0.0)
HELD = st.dictionaries(
    st.integers(0, 5), st.lists(st.sampled_from([MINE, OTHER, THIRD]), min_size=1, max_size=3, unique=True)
)


@given(HELD)
def test_a_pick_is_the_same_whatever_other_tenants_have_where(held: dict[int, list[TenantId]]) -> None:
    every = [PlacedVersion(WorkerId(f"w{number}"), resident(*tenants)) for number, tenants in held.items()]
    mine = [
        PlacedVersion(WorkerId(f"w{number}"), resident(MINE)) for number, tenants in held.items() if MINE in tenants
    ]
    seen = placed_for(MINE, every)
    assert seen == mine, "the name and the tenants of others"
    picked = FLEET.pick([VERSION], {VERSION: seen}, count=3, turn=0)
    assert picked == FLEET.pick([VERSION], {VERSION: mine}, count=3, turn=0)
    assert all(each.tier is Tier.NONE for each in picked) or any(MINE in tenants for tenants in held.values())
