"""Placement messages to the client's types."""

from hotslot.contract.control import WorkerState
from hotslot.contract.placement import (
    Placement,
    PlacementEvent,
    Tier,
    Worker,
    WorkerCandidate,
    WorkerLoad,
    WorkerPick,
)
from hotslot.convert.scalars import enum_field, time_or_none
from hotslot.pb.hotslot.placement.v1 import placement_pb2 as pb
from hotslot.rpc.times import from_duration as seconds


def worker_from(message: pb.Worker) -> Worker:
    """Decode a worker."""
    load = message.load
    return Worker(
        worker_id=message.worker_id,
        endpoint=message.endpoint,
        base_model=message.base_model,
        base_model_digest=message.base_model_digest,
        state=enum_field(message, "state", WorkerState),
        load=WorkerLoad(
            running_sequences=load.running_sequences,
            waiting_sequences=load.waiting_sequences,
            max_sequences=load.max_sequences,
            free_slots=load.free_slots,
            num_slots=load.num_slots,
            kv_usage=load.kv_usage,
        ),
        start_time=time_or_none(message, "start_time"),
        lease_expire_time=time_or_none(message, "lease_expire_time"),
        epoch=message.epoch,
        residency_revision=message.residency_revision,
        dtype=message.dtype,
        slot_rank=message.slot_rank,
    )


def pick_from(message: pb.PickWorkersResponse) -> WorkerPick:
    """Decode a choice of workers."""
    return WorkerPick(
        candidates=tuple(
            WorkerCandidate(worker_from(c.worker), enum_field(c, "tier", Tier)) for c in message.candidates
        ),
        adapter_digests=tuple(message.adapter_digests),
        ttl_s=seconds(message.ttl),
        revision=message.revision,
    )


def placement_from(message: pb.Placement) -> Placement:
    """Decode a placement."""
    return Placement(
        adapter_digest=message.adapter_digest,
        worker_id=message.worker_id,
        tier=enum_field(message, "tier", Tier),
        pinned=message.pinned,
        adapter=message.adapter,
    )


def placement_event_from(message: pb.WatchPlacementsResponse) -> PlacementEvent:
    """Decode a change of a placement."""
    return PlacementEvent(message.revision, placement_from(message.placement), message.removed)
