"""A slot with random weights in every linear, while steps with adapters are compared: an empty one computes nothing."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from worker_service.model.slot_linear import SlotLinear

SEED = 11
SHARE = 0.02
"""Size of an element of B, as of trained adapters; what the slot adds then neither vanishes nor drowns the base."""


@contextmanager
@torch.no_grad()
def filled_slot(linears: Iterable[SlotLinear], slot: int = 0) -> Iterator[None]:
    """Fill an empty slot, the same in every process, and empty it at the end."""
    modules = tuple(linears)
    generator = torch.Generator().manual_seed(SEED)
    try:
        for module in modules:
            a_KI, b_KO = module.slot(slot)
            a_KI.copy_(torch.randn(a_KI.shape, generator=generator) / a_KI.shape[1] ** 0.5)
            b_KO.copy_(torch.randn(b_KO.shape, generator=generator) * SHARE)
            module.scale_S[slot] = 1.0
        yield
    finally:
        for module in modules:
            for part in module.slot(slot):
                part.zero_()
            module.scale_S[slot] = 0.0
