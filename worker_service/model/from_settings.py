"""Options of the model, from the worker's settings."""

from worker_service.model.options import ModelOptions
from worker_service.settings import WorkerSettings


def model_options(settings: WorkerSettings) -> ModelOptions:
    """The part of the settings that loading a model needs."""
    return ModelOptions(
        model=settings.model,
        model_name=settings.model_name,
        dtype=settings.dtype,
        weights=settings.weights,
        device=settings.device,
        num_slots=settings.num_slots,
        slot_rank=settings.slot_rank,
        max_rank=settings.max_rank,
        max_sequences=settings.max_sequences,
        max_waiting=settings.max_waiting,
        kv_tokens=settings.kv_tokens,
        block_tokens=settings.block_tokens,
        max_sequence_tokens=settings.max_sequence_tokens,
        token_buckets=settings.buckets,
        target_modules=settings.target_modules,
        cache_dir=settings.cache_dir,
        compile=settings.compile,
        cpu_kernels=settings.cpu_kernels,
        cuda_kernels=settings.cuda_kernels,
        cuda_graphs=settings.cuda_graphs,
        varlen_attention=settings.varlen_attention,
        pinned_bytes=settings.host_cache_bytes + settings.host_cache_bytes // 8,
        num_threads=settings.num_threads,
    )
