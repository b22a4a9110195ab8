"""Copies adapters from host memory into slots, in bounded slices and with few calls.

Shapes: M modules with slots, S slots, K ranks of one slot, I in_features, O out_features.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from worker_service.engine.messages import SliceState
from worker_service.model.slot_embedding import SlotEmbedding
from worker_service.model.slot_linear import SlotLinear
from worker_service.model.weights import HostAdapter, HostModule

SLICE_BYTES = 8 << 20
"""Bytes that one slice writes: a millisecond or two, which is less than a step."""


@dataclass(frozen=True, slots=True)
class _SlotOfModule:
    """Memory of one slot of one module."""

    a_KI: torch.Tensor
    b_KO: torch.Tensor
    size_bytes: int


@dataclass
class SlotWrites:
    """Writes that are made at once. Many small copies in one call cost a fraction of as many calls."""

    targets: list[torch.Tensor] = field(default_factory=list)
    sources: list[torch.Tensor] = field(default_factory=list)
    zeros: list[torch.Tensor] = field(default_factory=list)
    size_bytes: int = 0

    def add_whole(self, slot: "_SlotOfModule", module: HostModule) -> None:
        """Plan to overwrite all of a slot; the plain case, in a tenth of the time of the general one."""
        self.targets += (slot.a_KI, slot.b_KO)
        self.sources += (module.a_RI, module.b_RO)
        self.size_bytes += slot.size_bytes

    def add(self, target: torch.Tensor, source: torch.Tensor | None) -> None:
        """Plan to overwrite `target` with `source`, or with zeros."""
        if source is None:
            self.zeros.append(target)
        else:
            self.targets.append(target)
            self.sources.append(source)
        self.size_bytes += target.nbytes

    def write(self, *, has_kernels: bool = False) -> None:
        """Make them."""
        if self.targets and has_kernels:
            torch.ops.hotslot_cpu.copy_all(self.targets, self.sources)
        elif self.targets:
            torch._foreach_copy_(self.targets, self.sources, non_blocking=True)
        if self.zeros:
            torch._foreach_zero_(self.zeros)


class SlotWriter:
    """Knows where every slot of every module lies."""

    def __init__(
        self,
        modules: Mapping[str, SlotLinear | SlotEmbedding],
        scales_MS: torch.Tensor,
        ones_MSK: torch.Tensor,
        *,
        has_kernels: bool,
    ) -> None:
        """`scales_MS` and `ones_MSK` hold the `scale_S` and `one_SK` of all modules, in the order of `modules`."""
        self.scales_MS = scales_MS
        self.ones_MSK = ones_MSK
        self._has_kernels = has_kernels
        self.slot_rank = ones_MSK.shape[2]
        self.num_ranks = [0] * ones_MSK.shape[1]
        """Ranks of each slot that its adapter fills in any module; what lies beyond them is never on."""
        self._modules = {
            path: [
                _SlotOfModule(a_KI, b_KO, a_KI.nbytes + b_KO.nbytes)
                for a_KI, b_KO in map(module.slot, range(module.num_slots))
            ]
            for path, module in modules.items()
        }

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the slots."""
        return next(iter(self._modules.values()))[0].a_KI.dtype

    @property
    def feature_sum(self) -> int:
        """Elements of one rank in all modules: `in_features + out_features` of each."""
        return sum((p[0].a_KI.numel() + p[0].b_KO.numel()) // self.slot_rank for p in self._modules.values())

    def of_modules(self, modules: Mapping[str, HostModule]) -> list[HostModule | None]:
        """An adapter's modules in the order of all that have slots; None where it has nothing."""
        return [modules.get(path) for path in self._modules]

    def note_ranks(self, slots: Sequence[int], modules: Mapping[str, HostModule]) -> None:
        """Note how many ranks of these slots an adapter fills, for the steps that are planned from now on."""
        most = max((module.num_ranks for module in modules.values()), default=0)
        for part, slot in enumerate(slots):
            self.num_ranks[slot] = min(max(most - part * self.slot_rank, 0), self.slot_rank)

    def all_writes(self, slots: Sequence[int], modules: Mapping[str, HostModule]) -> SlotWrites:
        """Writes of all of an adapter's weights at once, for memory that is as fast as the slots."""
        writes = SlotWrites()
        for path, places in self._modules.items():
            module = modules.get(path)
            if module is not None:
                for part, index in enumerate(slots):
                    for target, source in _pieces(places[index], module, part * self.slot_rank):
                        writes.add(target, source)
        return writes

    @torch.no_grad()
    def write(self, slots: Sequence[int], adapter: HostAdapter) -> Iterator[SliceState]:
        """Overwrite slots with an adapter, one slice for each item taken.

        Modules that it does not target are turned off by a scaling of 0 and keep what they had.
        """
        modules = adapter.modules
        self.note_ranks(slots, modules)
        self._write_scales(slots, self.of_modules(modules))
        pending = SlotWrites()
        for path, places in self._modules.items():
            module = modules.get(path)
            if module is None:
                continue
            is_whole = module.num_ranks == self.slot_rank
            for part, index in enumerate(slots):
                slot = places[index]
                if pending.size_bytes and pending.size_bytes + slot.size_bytes > SLICE_BYTES:
                    pending = self._write_slice(pending)
                    yield None
                if is_whole and part == 0 and slot.size_bytes <= SLICE_BYTES:
                    pending.add_whole(slot, module)
                    continue
                for target, source in _pieces(slot, module, part * self.slot_rank):
                    pending.add(target, source)
                    if pending.size_bytes >= SLICE_BYTES:
                        pending = self._write_slice(pending)
                        yield None
        self._write_slice(pending)

    def _write_slice(self, pending: SlotWrites) -> SlotWrites:
        """Write what is planned; returns an empty plan."""
        pending.write(has_kernels=self._has_kernels)
        return SlotWrites()

    def _write_scales(self, slots: Sequence[int], modules: Sequence[HostModule | None]) -> None:
        """Each module's scaling in each slot, and which rank is its bias; 0 where the adapter has nothing there."""
        for part, slot in enumerate(slots):
            first = part * self.slot_rank
            scales = [module.scaling if module is not None and module.num_ranks > first else 0.0 for module in modules]
            self.scales_MS[:, slot] = torch.tensor(scales)
            self.ones_MSK[:, slot].zero_()
        for index, module in enumerate(modules):
            if module is not None and module.has_bias:
                part, rank = divmod(module.num_ranks - 1, self.slot_rank)
                self.ones_MSK[index, slots[part], rank] = 1.0


def _pieces(slot: _SlotOfModule, module: HostModule, first: int) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Pairs of destination and source for one slot of one module, which takes the ranks from `first` on, if there are
    any.
    """
    a_KI, b_KO = slot.a_KI, slot.b_KO
    slot_rank = a_KI.shape[0]
    count = min(slot_rank, module.num_ranks - first)
    if count <= 0:
        return []
    pieces: list[tuple[torch.Tensor, torch.Tensor | None]] = []
    if count < slot_rank:
        pieces += (a_KI[count:], None), (b_KO[count:], None)
        a_KI, b_KO = a_KI[:count], b_KO[:count]
    a_RI, b_RO = module.a_RI, module.b_RO
    if count < module.num_ranks:
        a_RI, b_RO = a_RI[first : first + count], b_RO[first : first + count]
    for target, source in ((a_KI, a_RI), (b_KO, b_RO)):
        # The head's and the embedding's can be larger than a slice by themselves.
        rows = max(1, SLICE_BYTES * target.shape[0] // target.nbytes)
        if rows < target.shape[0]:
            pieces += zip(torch.split(target, rows), torch.split(source, rows), strict=True)
        else:
            pieces.append((target, source))
    return pieces
