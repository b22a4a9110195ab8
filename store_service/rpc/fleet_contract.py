"""The contract's values of workers and placements, from the records of the fleet."""

from hotslot.contract import placement as contract
from hotslot.contract.moments import moment
from shared.fleet.records import PlacedVersion, WorkerRecord
from store_service.placement.queries import Pick
from store_service.placement.watch import WatchEvent


def worker_of(record: WorkerRecord) -> contract.Worker:
    """A worker with its lease and load."""
    info, load = record.info, record.load
    return contract.Worker(
        worker_id=info.worker_id,
        endpoint=info.endpoint,
        base_model=info.base_model,
        base_model_digest=info.base_model_digest,
        state=record.state,
        load=contract.WorkerLoad(
            running_sequences=load.running_sequences,
            waiting_sequences=load.waiting_sequences,
            max_sequences=load.max_sequences,
            free_slots=load.free_slots,
            num_slots=load.num_slots,
            kv_usage=load.kv_usage,
        ),
        start_time=moment(info.start_time_s),
        lease_expire_time=moment(record.lease_expire_time_s),
        epoch=info.epoch,
        residency_revision=record.residency_revision,
        dtype=info.dtype,
        slot_rank=info.slot_rank,
    )


def placement_of(placement: PlacedVersion) -> contract.Placement:
    """A version on a worker."""
    resident = placement.resident
    return contract.Placement(resident.digest, placement.worker_id, resident.tier, resident.pinned, resident.name)


def pick_of(pick: Pick) -> contract.WorkerPick:
    """Candidates in order."""
    candidates = (contract.WorkerCandidate(worker_of(c.worker), c.tier) for c in pick.candidates)
    return contract.WorkerPick(tuple(candidates), pick.digests, pick.ttl_s, pick.revision)


def event_of(event: WatchEvent) -> contract.PlacementEvent:
    """A message of a watch."""
    return contract.PlacementEvent(event.revision, placement_of(event.placement), event.removed)
