"""The list of a decoder's layers, as long as its forward has to go through it."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn


class DecoderLayers(nn.ModuleList):
    """Stands in the place of a model's list of layers; ends behind a layer whose call computed the others too.

    A model's forward takes a slice of the list, which makes a list of modules for each step, and calls each layer,
    which costs microseconds even where it has nothing to do.
    """

    def __init__(self, layers: nn.ModuleList, num_computed: Callable[[], int]) -> None:
        """`num_computed` counts the calls of a layer that computed all."""
        super().__init__(layers)
        self._num_computed = num_computed

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, slice):
            return super().__getitem__(index)
        is_whole = range(len(self))[index] == range(len(self))
        return self if is_whole else nn.ModuleList(list(self._modules.values())[index])

    def __iter__(self) -> Iterator[nn.Module]:
        before = self._num_computed()
        for layer in self._modules.values():
            assert layer is not None
            yield layer
            if self._num_computed() != before:
                return
