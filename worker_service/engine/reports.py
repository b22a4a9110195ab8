"""Reports of the engine, made from its state at the moment."""

from hotslot.contract.generation import FinishReason
from hotslot.ids import Digest
from worker_service.engine.limits import EngineLimits
from worker_service.engine.listener import SequenceReport
from worker_service.engine.messages import ModelRunner
from worker_service.engine.residency import Residency
from worker_service.engine.scheduler import Scheduler
from worker_service.engine.sequence import Sequence
from worker_service.engine.snapshot import EngineSnapshot, SlotHolder


def sequence_report(sequence: Sequence, outcome: FinishReason | str, now_s: float) -> SequenceReport:
    """Report of a sequence that ends now."""
    submit, row_s, first_s = sequence.submit, sequence.row_s, sequence.first_token_s
    generated = sequence.num_generated
    return SequenceReport(
        sequence_id=submit.sequence_id,
        tenant=submit.tenant,
        mix=sequence.mix,
        outcome=outcome,
        queue_s=row_s - submit.arrival_s if row_s is not None else None,
        slots_s=sequence.adapters_ready_s - row_s if row_s is not None and sequence.gates is not None else None,
        time_to_first_token_s=first_s - submit.arrival_s if first_s is not None else None,
        time_per_token_s=(now_s - first_s) / (generated - 1) if first_s is not None and generated > 1 else None,
        prompt_tokens=sequence.num_prompt_tokens,
        cached_tokens=sequence.num_cached or 0,
        answer_tokens=generated,
        num_preemptions=sequence.num_preemptions,
        ended_s=now_s,
    )


def engine_snapshot(
    scheduler: Scheduler,
    residency: Residency,
    limits: EngineLimits,
    runner: ModelRunner,
    *,
    steps: int,
    generated_tokens: int,
    longest_stall_s: float,
) -> EngineSnapshot:
    """The state of everything at this moment, and the counts since the start."""
    users: dict[Digest, int] = {}
    for sequence in scheduler:
        for digest in sequence.weights:
            users[digest] = users.get(digest, 0) + 1
    slots, kv = residency.slots, scheduler.kv
    return EngineSnapshot(
        running=len(scheduler.running),
        waiting=len(scheduler.waiting),
        max_running=limits.max_running,
        max_waiting=limits.max_waiting,
        num_slots=limits.num_slots,
        slot_rank=limits.slot_rank,
        free_slots=slots.num_free,
        holders=tuple(SlotHolder(h.digest, h.slots, h.users, h.pinned, h.last_used_s, h.ready) for h in slots.holders),
        users=users,
        num_blocks=limits.num_blocks,
        free_blocks=kv.blocks.num_free,
        block_tokens=limits.block_tokens,
        steps=steps,
        generated_tokens=generated_tokens,
        activations=residency.num_activations,
        recompiles=runner.recompiles,
        graphs=runner.graphs,
        kept_blocks=kv.blocks.num_kept,
        prompt_tokens=kv.queried_tokens,
        cached_tokens=kv.hit_tokens,
        preemptions=scheduler.num_preemptions,
        longest_stall_s=longest_stall_s,
    )
