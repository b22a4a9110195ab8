"""AdapterControlService's messages to domain types and back."""

import time
from collections.abc import Iterable, Sequence

from hotslot.contract.control import AdapterTier
from hotslot.pb.hotslot.worker.v1 import adapter_control_pb2 as pb
from hotslot.rpc.times import to_duration, to_timestamp
from worker_service.adapters.control import LoadOutcome
from worker_service.adapters.holding import Held
from worker_service.adapters.policy import Selection
from worker_service.engine.snapshot import EngineSnapshot
from worker_service.front.requests import NamedAdapter
from worker_service.front.worker import State, WorkerStatus

_TIERS = {
    AdapterTier.SLOT: pb.ADAPTER_TIER_SLOT,
    AdapterTier.HOST: pb.ADAPTER_TIER_HOST,
    AdapterTier.DISK: pb.ADAPTER_TIER_DISK,
    AdapterTier.LOADING: pb.ADAPTER_TIER_LOADING,
}
_STATES = {
    State.STARTING: pb.WORKER_STATE_STARTING,
    State.READY: pb.WORKER_STATE_READY,
    State.DRAINING: pb.WORKER_STATE_DRAINING,
}


def decode_mix(messages: Iterable[pb.DefaultAdapter]) -> tuple[NamedAdapter, ...]:
    """A mix as it was written, unchecked."""
    return tuple(NamedAdapter(m.reference, m.weight if m.HasField("weight") else 1.0) for m in messages)


def encode_mix(selections: Sequence[Selection]) -> list[pb.DefaultAdapter]:
    """A mix with its weights written out."""
    return [pb.DefaultAdapter(reference=str(s.reference), weight=s.weight) for s in selections]


def encode_held(held: Held) -> pb.LoadedAdapter:
    """One adapter on this worker."""
    idle_s = time.monotonic() - held.last_used_s
    return pb.LoadedAdapter(
        digest=held.digest,
        references=held.references,
        tier=_TIERS[held.tier],
        max_rank=held.max_rank,
        slots=held.slots if held.tier is AdapterTier.SLOT else (),
        users=held.users,
        pinned=held.pinned,
        host_size_bytes=held.host_size_bytes,
        last_used_time=to_timestamp(time.time() - idle_s),
    )


def encode_load(outcome: LoadOutcome) -> pb.LoadAdapterResponse:
    """What a load did and took."""
    timings = outcome.timings
    return pb.LoadAdapterResponse(
        adapter=encode_held(outcome.held),
        previous_digest=outcome.previous_digest or "",
        timings=pb.LoadTimings(
            resolve=to_duration(timings.resolve_s),
            fetch=to_duration(timings.fetch_s),
            wait=to_duration(timings.wait_s),
            activate=to_duration(timings.activate_s),
            total=to_duration(timings.total_s),
        ),
    )


def encode_status(status: WorkerStatus) -> pb.GetWorkerStatusResponse:
    """The worker's state; while it starts, what there is of it."""
    response = pb.GetWorkerStatusResponse(
        worker_id=status.worker_id,
        state=_STATES[status.state],
        start_time=to_timestamp(status.start_time_s),
        drained=status.drained,
    )
    info, snapshot = status.info, status.snapshot
    if info is not None:
        response.base_model_digest = info.base_model_digest
        for bucket in info.buckets:
            response.buckets.add(
                num_tokens=bucket.num_tokens,
                with_adapters=bucket.with_adapters,
                compile_time=to_duration(bucket.compile_s),
            )
        for stage in info.startup:
            response.startup.add(name=stage.name, duration=to_duration(stage.duration_s))
    if snapshot is not None:
        _add_snapshot(response, snapshot, status.num_loading)
    return response


def _add_snapshot(response: pb.GetWorkerStatusResponse, snapshot: EngineSnapshot, num_loading: int) -> None:
    holders = snapshot.holders
    response.recompiles = snapshot.recompiles
    response.steps = snapshot.steps
    response.generated_tokens = snapshot.generated_tokens
    response.activations = snapshot.activations
    response.longest_stall.CopyFrom(to_duration(snapshot.longest_stall_s))
    response.slots.CopyFrom(
        pb.SlotStatus(
            num_slots=snapshot.num_slots,
            slot_rank=snapshot.slot_rank,
            free=snapshot.free_slots,
            in_use=sum(len(holder.slots) for holder in holders if holder.users),
            pinned=sum(len(holder.slots) for holder in holders if holder.pinned),
        )
    )
    response.kv.CopyFrom(
        pb.KvStatus(
            num_blocks=snapshot.num_blocks,
            free_blocks=snapshot.free_blocks,
            block_tokens=snapshot.block_tokens,
            cached_blocks=snapshot.kept_blocks,
            prompt_tokens=snapshot.prompt_tokens,
            cached_tokens=snapshot.cached_tokens,
            preemptions=snapshot.preemptions,
        )
    )
    response.queue.CopyFrom(
        pb.QueueStatus(
            running_sequences=snapshot.running,
            waiting_sequences=snapshot.waiting,
            loading_requests=num_loading,
            max_sequences=snapshot.max_running,
            max_waiting=snapshot.max_waiting,
        )
    )
