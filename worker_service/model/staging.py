"""One stretch of memory on the host and one on the device, with areas at fixed places: a step takes one copy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from numpy.typing import NDArray

ALIGNMENT_BYTES = 64
"""Areas begin at multiples of it: compiled code may assume that addresses are multiples of 16."""
NUM_HALVES = 2
"""The host fills one while the device may still have to copy the other."""


@dataclass(frozen=True, slots=True)
class Area:
    """A tensor of the stretch."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size_bytes(self) -> int:
        """Bytes of its elements."""
        return prod(self.shape) * self.dtype.itemsize


class Staging:
    """Areas behind each other, those first that every step needs: what a step does not need is not copied.

    **Invariant**: no area ever moves; captured steps and compiled code hold their addresses.
    """

    def __init__(self, areas: Sequence[Area], device: torch.device) -> None:
        self._ends: dict[str, int] = {}
        places: dict[str, slice] = {}
        size = 0
        for area in areas:
            places[area.name] = slice(size, size + area.size_bytes)
            size = -(-places[area.name].stop // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
            self._ends[area.name] = places[area.name].stop
        self._device_N = torch.zeros(size, dtype=torch.uint8, device=device)
        pin = device.type == "cuda"
        self._halves = [torch.zeros(size, dtype=torch.uint8, pin_memory=pin) for _ in range(NUM_HALVES)]

        def views(whole_N: torch.Tensor) -> dict[str, torch.Tensor]:
            return {area.name: whole_N[places[area.name]].view(area.dtype).view(area.shape) for area in areas}

        self.on_device: Mapping[str, torch.Tensor] = views(self._device_N)
        self._on_host: list[dict[str, NDArray[Any]]] = [
            {name: view.numpy() for name, view in views(half_N).items()} for half_N in self._halves
        ]
        self._turn = 0

    def next_half(self) -> Mapping[str, NDArray[Any]]:
        """Areas to fill for the next copy; they hold what they held two copies ago."""
        self._turn = (self._turn + 1) % NUM_HALVES
        return self._on_host[self._turn]

    def send(self, last: str) -> None:
        """Copy the areas up to this one, after all that was launched; nothing waits for it."""
        end = self._ends[last]
        self._device_N[:end].copy_(self._halves[self._turn][:end], non_blocking=True)
