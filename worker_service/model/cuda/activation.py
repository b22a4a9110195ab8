"""Copies of adapters on CUDA: a stream of their own, memory of the device to land in, and an arena to come from."""

import torch

from worker_service.model.slot_writer import SlotWriter
from worker_service.model.stream_writer import StreamWriter
from worker_service.model.streams import CudaStream, SlotReads, pin
from worker_service.pinned_arena import PinnedArena


def staging_elements(writer: SlotWriter, max_rank: int) -> int:
    """Elements of the largest adapter: `max_rank` in every module, and a rank more where that has a bias."""
    return (max_rank + 1) * writer.feature_sum


def beside_steps(writer: SlotWriter, device: torch.device, max_rank: int) -> StreamWriter:
    """A writer on a stream of its own, beside the stream that steps are launched on."""
    steps = CudaStream(torch.cuda.current_stream(device))
    staging_N = torch.empty(staging_elements(writer, max_rank), dtype=writer.dtype, device=device)
    copies = CudaStream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
    return StreamWriter(writer, SlotReads(steps), copies, staging_N, pins_memory=True)


def host_memory(device: torch.device, pinned_bytes: int) -> PinnedArena | None:
    """Memory that a GPU copies from; None for a device that reads the host's own."""
    return PinnedArena(pinned_bytes, pin) if device.type == "cuda" and pinned_bytes else None
