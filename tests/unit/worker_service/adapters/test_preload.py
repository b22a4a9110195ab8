"""What a starting worker is to bring into memory."""

from hotslot.contract.control import WorkerState
from hotslot.contract.placement import Tier
from hotslot.ids import DEFAULT_TENANT, TenantId, WorkerId, digest_of
from shared.fleet.records import PlacedVersion, ReportedLoad, Resident, WorkerInfo, WorkerRecord
from worker_service.adapters.preload import share_of

ACME, ZETA = TenantId("acme"), TenantId("zeta")
DIGEST = digest_of(b"one")


def record(name: str) -> WorkerRecord:
    info = WorkerInfo(WorkerId(name), name, digest_of(b"base"), "org/model", "float32", 8, 0.0, 1, 4, 8, 512)
    return WorkerRecord(info, WorkerState.READY, ReportedLoad(), 100.0, 1)


def test_a_version_comes_with_its_users_on_all_workers_that_hold_it() -> None:
    first = Resident(DIGEST, Tier.HOST, name="a", tenant=ACME, others=((ZETA, "z"),))
    second = Resident(DIGEST, Tier.HOST, name="d", tenant=DEFAULT_TENANT, others=((ZETA, "z"),))
    placements = {DIGEST: [PlacedVersion(WorkerId("w-8"), first), PlacedVersion(WorkerId("w-9"), second)]}
    (resident,) = share_of(record("w-1"), [], placements, 0.0)
    assert (resident.tenant, resident.name) == (ACME, "a")
    assert resident.others == ((ZETA, "z"), (DEFAULT_TENANT, "d"))
