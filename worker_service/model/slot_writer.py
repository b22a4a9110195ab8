"""Copies adapters from host memory into slots, in bounded slices and with few calls.

Shapes: M modules with slots, S slots, K ranks of one slot, I in_features, O out_features.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from worker_service.model.slot_linear import SlotLinear
from worker_service.model.weights import HostAdapter, HostModule

SLICE_BYTES = 8 << 20
"""How much one slice writes: a millisecond or two, which is less than a step."""


@dataclass
class _Slice:
    """What to write at once. Many small copies in one call cost a fraction of as many calls."""

    targets: list[torch.Tensor] = field(default_factory=list)
    sources: list[torch.Tensor] = field(default_factory=list)
    zeros: list[torch.Tensor] = field(default_factory=list)
    size_bytes: int = 0

    def write(self) -> None:
        if self.targets:
            torch._foreach_copy_(self.targets, self.sources, non_blocking=True)
        if self.zeros:
            torch._foreach_zero_(self.zeros)


class SlotWriter:
    """Knows where every slot of every module lies."""

    def __init__(self, slot_linears: dict[str, SlotLinear], scales_MS: torch.Tensor) -> None:
        """`scales_MS` holds the scaling of all modules, in the order of `slot_linears`."""
        self._scales_MS = scales_MS
        self._modules = {
            path: [linear.slot(slot) for slot in range(linear.num_slots)] for path, linear in slot_linears.items()
        }

    @torch.no_grad()
    def write(self, slots: Sequence[int], adapter: HostAdapter) -> Iterator[None]:
        """Overwrite slots with an adapter, one slice for each item taken; what it does not target becomes zero."""
        modules = adapter.modules
        scales_M = torch.tensor([modules[p].scaling if p in modules else 0.0 for p in self._modules])
        for slot in slots:
            self._scales_MS[:, slot] = scales_M
        pending = _Slice()
        for path, views in self._modules.items():
            module = modules.get(path)
            for part, slot in enumerate(slots):
                a_KI, b_OK = views[slot]
                _plan(pending, a_KI, b_OK, module, part * a_KI.shape[0])
                pending.size_bytes += a_KI.nbytes + b_OK.nbytes
            if pending.size_bytes >= SLICE_BYTES:
                pending.write()
                pending = _Slice()
                yield
        pending.write()


def _plan(pending: _Slice, a_KI: torch.Tensor, b_OK: torch.Tensor, module: HostModule | None, first: int) -> None:
    """Add one slot of one module, which takes the ranks from `first` on, as many as there are."""
    slot_rank = a_KI.shape[0]
    count = min(slot_rank, module.a_RI.shape[0] - first) if module is not None else 0
    if module is None or count <= 0:
        pending.zeros += (a_KI, b_OK)
        return
    if count < slot_rank:
        pending.zeros += (a_KI[count:], b_OK[:, count:])
        a_KI, b_OK = a_KI[:count], b_OK[:, :count]
    pending.targets += (a_KI, b_OK)
    if module.a_RI.shape[0] == count:
        pending.sources += (module.a_RI, module.b_OR)
    else:
        pending.sources += (module.a_RI[first : first + count], module.b_OR[:, first : first + count])
