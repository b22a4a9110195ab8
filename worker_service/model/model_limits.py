"""The engine's bounds, from the options and the model's config."""

from dataclasses import replace

import structlog
import torch
from transformers import PretrainedConfig

from hotslot.capacity import ELEMENT_BYTES, device_memory
from hotslot.device_sizes import CPU_BLOCK_TOKENS, CUDA, WorkerSizes, sizes_for
from hotslot.errors import FieldViolation, InvalidRequestError, ModelNotServableError
from hotslot.formats.model_sizes import ModelSizes
from worker_service.engine.limits import EngineLimits
from worker_service.model import varlen_attention
from worker_service.model.options import ModelOptions

log = structlog.get_logger(__name__)


def with_sizes(options: ModelOptions, config: PretrainedConfig, model: ModelSizes, block_tokens: int) -> ModelOptions:
    """The options with all sizes, those of the device where none is given; called before the weights are loaded.

    Raises InvalidRequestError where the device has too little memory.
    """
    element_bytes = ELEMENT_BYTES[options.dtype]
    device = torch.device(options.device)
    total_bytes = torch.cuda.mem_get_info(device)[0] if device.type == CUDA else 0
    context_tokens = options.max_sequence_tokens or _context(config.get_text_config())
    memory = device_memory(
        device.type,
        total_bytes,
        model,
        element_bytes,
        options.slot_rank,
        options.max_rank,
        block_tokens,
        context_tokens,
    )
    wanted = WorkerSizes(options.token_buckets, options.num_slots, options.max_sequences, options.kv_tokens)
    found = sizes_for(memory, wanted)
    log.info(
        "sizes_chosen",
        device=device.type,
        buckets=list(found.token_buckets),
        slots=found.num_slots,
        rows=found.max_sequences,
        kv_tokens=found.kv_tokens,
        block_tokens=block_tokens,
        pinned_bytes=options.pinned_bytes if device.type == CUDA else 0,
        free_bytes=memory.free_bytes if device.type == CUDA else None,
    )
    return replace(
        options,
        token_buckets=found.token_buckets,
        num_slots=found.num_slots,
        max_sequences=found.max_sequences,
        kv_tokens=found.kv_tokens,
    )


def block_tokens(options: ModelOptions, with_flash: bool) -> int:
    """Tokens of one KV block. Raises InvalidRequestError for blocks that attention does not take."""
    if with_flash and options.block_tokens:
        varlen_attention.check_block_tokens(options.block_tokens)
    return options.block_tokens or (varlen_attention.BLOCK_TOKENS if with_flash else CPU_BLOCK_TOKENS)


def engine_limits(options: ModelOptions, config: PretrainedConfig, block_tokens: int) -> EngineLimits:
    """The engine's bounds; checks the options against each other and against the model."""
    context = _context(config.get_text_config())
    max_sequence_tokens = options.max_sequence_tokens or min(context, options.kv_tokens)
    if max_sequence_tokens > context:
        raise _bad("max_sequence_tokens", f"found {max_sequence_tokens}, the model's context has {context}")
    if max_sequence_tokens > options.kv_tokens:
        raise _bad("kv_tokens", f"found {options.kv_tokens}, one sequence may take {max_sequence_tokens}")
    buckets = options.token_buckets
    if not buckets or list(buckets) != sorted(set(buckets)) or buckets[0] < 1:
        raise _bad("token_buckets", f"found {list(buckets)}, expected positive numbers that ascend")
    num_blocks = -(-options.kv_tokens // block_tokens)
    num_rows = options.max_sequences
    if buckets[-1] < num_rows:
        raise _bad("token_buckets", f"the last is {buckets[-1]}, at least max_sequences = {num_rows}")
    if buckets[-1] > max_sequence_tokens:
        raise _bad("token_buckets", f"the last is {buckets[-1]}, at most max_sequence_tokens = {max_sequence_tokens}")
    if options.max_rank > options.num_slots * options.slot_rank:
        total = options.num_slots * options.slot_rank
        raise _bad("max_rank", f"found {options.max_rank}, all slots together have {total} ranks")
    if num_blocks < num_rows:
        problem = f"found {options.kv_tokens}, that is {num_blocks} blocks of {block_tokens} tokens"
        raise _bad("kv_tokens", f"{problem}, at least max_sequences = {num_rows} are needed")
    return EngineLimits(
        num_slots=options.num_slots,
        slot_rank=options.slot_rank,
        max_running=num_rows,
        max_waiting=options.max_waiting,
        num_blocks=num_blocks,
        block_tokens=block_tokens,
        max_step_tokens=buckets[-1],
        max_sequence_tokens=max_sequence_tokens,
    )


def _context(config: PretrainedConfig) -> int:
    """The most tokens of a sequence for which positions mean the same whatever its length is.

    "longrope" (Phi-3 with 128k) takes other frequencies from a length on, for whatever else is in the batch and for
    keys that are cached already, so only what comes before that length is exact.
    """
    ropes = getattr(config, "rope_parameters", None) or {}
    by_layer = [rope for rope in ropes.values() if isinstance(rope, dict)] or [ropes]
    switches = [r["original_max_position_embeddings"] for r in by_layer if r.get("rope_type") == "longrope"]
    bound = getattr(config, "max_position_embeddings", None)
    if bound is None:
        raise ModelNotServableError(
            f"{config.model_type}: its config has no max_position_embeddings, so its positions are not those of rotary "
            "or learned embeddings (ALiBi, state spaces); it cannot be served",
            config.model_type,
        )
    return int(min([bound, *switches]))


def _bad(field_name: str, problem: str) -> InvalidRequestError:
    return InvalidRequestError([FieldViolation(field_name, problem)])
