"""Placement messages to and from what the use cases speak."""

from collections.abc import Iterable

from hotslot.contract.control import WorkerState
from hotslot.contract.placement import Tier
from hotslot.errors import FieldViolation, InvalidRequestError
from hotslot.pb.hotslot.placement.v1 import placement_pb2 as pb
from hotslot.references import Reference, parse_reference
from hotslot.rpc.times import to_duration, to_timestamp
from shared.fleet.records import PlacedVersion, WorkerRecord
from store_service.placement.queries import Pick
from store_service.placement.watch import WatchEvent

_TIERS = {
    Tier.SLOT: pb.TIER_SLOT,
    Tier.HOST: pb.TIER_HOST,
    Tier.DISK: pb.TIER_DISK,
    Tier.NONE: pb.TIER_NONE,
}
_STATES = {
    WorkerState.STARTING: pb.WORKER_STATE_STARTING,
    WorkerState.READY: pb.WORKER_STATE_READY,
    WorkerState.DRAINING: pb.WORKER_STATE_DRAINING,
}


def decode_references(texts: Iterable[str]) -> list[Reference]:
    """All references of a request; raises InvalidReferenceError for the first that is none."""
    return [parse_reference(text) for text in texts]


def encode_pick(pick: Pick) -> pb.PickWorkersResponse:
    """Candidates in order."""
    return pb.PickWorkersResponse(
        candidates=[pb.WorkerCandidate(worker=encode_worker(c.worker), tier=_TIERS[c.tier]) for c in pick.candidates],
        adapter_digests=pick.digests,
        ttl=to_duration(pick.ttl_s),
        revision=pick.revision,
    )


def encode_worker(record: WorkerRecord) -> pb.Worker:
    """A worker with its lease and load."""
    info, load = record.info, record.load
    return pb.Worker(
        worker_id=info.worker_id,
        endpoint=info.endpoint,
        base_model_digest=info.base_model_digest,
        base_model=info.base_model,
        state=_STATES[record.state],
        load=pb.WorkerLoad(
            running_sequences=load.running_sequences,
            waiting_sequences=load.waiting_sequences,
            max_sequences=load.max_sequences,
            free_slots=load.free_slots,
            num_slots=load.num_slots,
            kv_usage=load.kv_usage,
        ),
        start_time=to_timestamp(info.start_time_s),
        lease_expire_time=to_timestamp(record.lease_expire_time_s),
        epoch=info.epoch,
        residency_revision=record.residency_revision,
        dtype=info.dtype,
        slot_rank=info.slot_rank,
    )


def encode_placement(placement: PlacedVersion) -> pb.Placement:
    """A version on a worker."""
    resident = placement.resident
    return pb.Placement(
        adapter_digest=resident.digest,
        worker_id=placement.worker_id,
        tier=_TIERS[resident.tier],
        pinned=resident.pinned,
        adapter=resident.name,
    )


def encode_event(event: WatchEvent) -> pb.WatchPlacementsResponse:
    """A message of a watch."""
    return pb.WatchPlacementsResponse(
        revision=event.revision,
        placement=encode_placement(event.placement),
        removed=event.removed,
    )


def decode_revision(revision: int) -> int:
    """Revision to watch from; raises InvalidRequestError."""
    if revision < 0:
        raise InvalidRequestError([FieldViolation("from_revision", f"found {revision}, must not be negative")])
    return revision
