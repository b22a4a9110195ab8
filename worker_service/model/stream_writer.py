"""Copies adapters into slots beside the steps: one copy of a stretch of host memory to the device, and there a scatter.

Shapes: P slots of one adapter (parts), M modules with slots, K ranks of one slot, N elements of a stretch.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence

import torch

from worker_service.engine.messages import PENDING, SliceState
from worker_service.model.slot_writer import SlotWriter
from worker_service.model.streams import DeviceStream, SlotReads, StreamEvent
from worker_service.model.weights import HostAdapter, HostModule


class StreamWriter:
    """Writes on a stream of its own, and says that an adapter is there when the device has done it.

    So no step waits for a copy, and none has a slot on that is not whole. The stretch is on its way at once; only the
    scatter waits, on the device, for the last step that reads what was in these slots.

    **Invariant**: what the device may still read is not written to by the host: an adapter's memory is kept until its
    copy is done, also where nothing wants the adapter any more.
    """

    def __init__(
        self, writer: SlotWriter, reads: SlotReads, copies: DeviceStream, staging_N: torch.Tensor, *, pins_memory: bool
    ) -> None:
        """`staging_N` is memory of the device, on which the slots are, for the largest adapter."""
        self._writer = writer
        self.reads = reads
        """Hears of every step that is launched."""
        self._copies = copies
        self._staging_N = staging_N
        num_modules, num_slots, slot_rank = writer.ones_MSK.shape
        most_parts = min(-(-staging_N.numel() // max(writer.feature_sum * slot_rank, 1)) + 1, num_slots)
        shape = (most_parts, num_modules, 1 + slot_rank)
        self._table_PMK = torch.zeros(shape, dtype=torch.float32, pin_memory=pins_memory)
        """Scaling of each module in each part, and which of its ranks has the input 1."""
        self._staged_table_PMK = torch.zeros(shape, dtype=torch.float32, device=staging_N.device)
        self._under_way: deque[tuple[StreamEvent, HostAdapter]] = deque()

    @torch.no_grad()
    def write(self, slots: Sequence[int], adapter: HostAdapter) -> Iterator[SliceState]:
        """Give the copies to the stream, and wait, item by item, until they are done."""
        while not self._is_done():
            yield PENDING  # an earlier one that was given up: the table is its own until then
        self._writer.note_ranks(slots, adapter.modules)
        self._fill_table(slots, self._writer.of_modules(adapter.modules))
        # From here on the device may read the adapter's memory, whether all could be given or not.
        try:
            self._give(slots, adapter)
        finally:
            self._under_way.append((self._copies.record_event(), adapter))
        while not self._is_done():
            yield PENDING

    def _is_done(self) -> bool:
        """True once all that was given has run; lets go of the memory of what has."""
        while self._under_way and self._under_way[0][0].query():
            self._under_way.popleft()
        return not self._under_way

    def _give(self, slots: Sequence[int], adapter: HostAdapter) -> None:
        num_parts = len(slots)
        stretch_N, staged = self._staged(adapter)

        def stage() -> None:
            if stretch_N is not None:
                self._staging_N[: stretch_N.numel()].copy_(stretch_N, non_blocking=True)
            else:
                for path, module in adapter.modules.items():
                    staged[path].a_RI.copy_(module.a_RI, non_blocking=True)
                    staged[path].b_RO.copy_(module.b_RO, non_blocking=True)
            self._staged_table_PMK[:num_parts].copy_(self._table_PMK[:num_parts], non_blocking=True)

        self._copies.give(stage)
        writes = self._writer.all_writes(slots, staged)

        def scatter() -> None:
            writes.write()
            for part, slot in enumerate(slots):
                self._writer.scales_MS[:, slot].copy_(self._staged_table_PMK[part, :, 0])
                self._writer.ones_MSK[:, slot].copy_(self._staged_table_PMK[part, :, 1:])

        self.reads.before_copy(self._copies, slots)
        self._copies.give(scatter)

    def _staged(self, adapter: HostAdapter) -> tuple[torch.Tensor | None, Mapping[str, HostModule]]:
        """The stretch to copy, and the adapter's modules as they lie behind it on the device."""
        staged: dict[str, HostModule] = {}
        stretch_N, end = adapter.stretch_N, 0
        for path, module in adapter.modules.items():
            views: list[torch.Tensor] = []
            for tensor in (module.a_RI, module.b_RO):
                begin = end if stretch_N is None else int(tensor.storage_offset()) - int(stretch_N.storage_offset())
                end = begin + tensor.numel()
                views.append(self._staging_N[begin:end].view(tensor.shape))
            staged[path] = HostModule(views[0], views[1], module.scaling, module.has_bias)
        return stretch_N, staged

    def _fill_table(self, slots: Sequence[int], modules: Sequence[HostModule | None]) -> None:
        slot_rank = self._writer.slot_rank
        table_PMK = self._table_PMK[: len(slots)]
        table_PMK.zero_()
        for part in range(len(slots)):
            first = part * slot_rank
            scales = [module.scaling if module is not None and module.num_ranks > first else 0.0 for module in modules]
            table_PMK[part, :, 0] = torch.tensor(scales)
        for index, module in enumerate(modules):
            if module is not None and module.has_bias:
                part, rank = divmod(module.num_ranks - 1, slot_rank)
                table_PMK[part, index, 1 + rank] = 1.0
