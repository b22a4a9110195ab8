"""A worker's control messages to and from the client's types."""

from collections.abc import Sequence

from hotslot.contract.control import (
    AdapterTier,
    CompiledBucket,
    KvStatus,
    LoadedAdapter,
    LoadResult,
    LoadTimings,
    QueueStatus,
    SlotStatus,
    StartupStage,
    WorkerAdapters,
    WorkerState,
    WorkerStatus,
)
from hotslot.contract.generation import AdapterSelection
from hotslot.convert.messages import Form, build
from hotslot.convert.scalars import enum_field, time_or_none
from hotslot.pb.hotslot.worker.v1 import adapter_control_pb2 as pb
from hotslot.rpc.times import from_duration as seconds


def loaded_from(message: pb.LoadedAdapter) -> LoadedAdapter:
    """Decode an adapter that a worker holds."""
    return LoadedAdapter(
        digest=message.digest,
        references=tuple(message.references),
        tier=enum_field(message, "tier", AdapterTier),
        max_rank=message.max_rank,
        slots=tuple(message.slots),
        users=message.users,
        pinned=message.pinned,
        host_size_bytes=message.host_size_bytes,
        last_used_time=time_or_none(message, "last_used_time"),
    )


def load_result_from(message: pb.LoadAdapterResponse) -> LoadResult:
    """Decode what a load did."""
    timings = message.timings
    return LoadResult(
        adapter=loaded_from(message.adapter),
        previous_digest=message.previous_digest,
        timings=LoadTimings(
            resolve_s=seconds(timings.resolve),
            fetch_s=seconds(timings.fetch),
            wait_s=seconds(timings.wait),
            activate_s=seconds(timings.activate),
            total_s=seconds(timings.total),
        ),
    )


def default_from(message: pb.DefaultAdapter) -> AdapterSelection:
    """Decode a default adapter."""
    return AdapterSelection(message.reference, message.weight if message.HasField("weight") else 1.0)


def defaults_to(adapters: Sequence[AdapterSelection]) -> pb.SetDefaultAdaptersRequest:
    """Encode the adapters of requests that name none; raises InvalidRequestError."""
    return build(pb.SetDefaultAdaptersRequest, {"adapters": adapters}, FORMS)


FORMS = {
    pb.DefaultAdapter.DESCRIPTOR: Form(AdapterSelection, lambda a: {"reference": a.reference, "weight": a.weight}),
}


def worker_adapters_from(message: pb.ListAdaptersResponse) -> WorkerAdapters:
    """Decode everything that a worker holds."""
    return WorkerAdapters(
        adapters=tuple(loaded_from(a) for a in message.adapters),
        default_adapters=tuple(default_from(d) for d in message.default_adapters),
        adapters_enabled=message.adapters_enabled,
    )


def status_from(message: pb.GetWorkerStatusResponse) -> WorkerStatus:
    """Decode how a worker is."""
    slots, kv, queue = message.slots, message.kv, message.queue
    return WorkerStatus(
        worker_id=message.worker_id,
        state=enum_field(message, "state", WorkerState),
        base_model_digest=message.base_model_digest,
        start_time=time_or_none(message, "start_time"),
        buckets=tuple(CompiledBucket(b.num_tokens, b.with_adapters, seconds(b.compile_time)) for b in message.buckets),
        recompiles=message.recompiles,
        slots=SlotStatus(slots.num_slots, slots.slot_rank, slots.free, slots.in_use, slots.pinned),
        kv=KvStatus(
            num_blocks=kv.num_blocks,
            free_blocks=kv.free_blocks,
            block_tokens=kv.block_tokens,
            cached_blocks=kv.cached_blocks,
            prompt_tokens=kv.prompt_tokens,
            cached_tokens=kv.cached_tokens,
            preemptions=kv.preemptions,
        ),
        queue=QueueStatus(
            running_sequences=queue.running_sequences,
            waiting_sequences=queue.waiting_sequences,
            loading_requests=queue.loading_requests,
            max_sequences=queue.max_sequences,
            max_waiting=queue.max_waiting,
        ),
        steps=message.steps,
        generated_tokens=message.generated_tokens,
        activations=message.activations,
        startup=tuple(StartupStage(s.name, seconds(s.duration)) for s in message.startup),
        longest_stall_s=seconds(message.longest_stall),
        drained=message.drained,
    )
