"""Compilation that is put off until a module is called: preparing it takes seconds, and programs may spare it."""

from typing import Any

import torch
from torch import nn


class DeferredCompilation:
    """Stands for a module's compiled call; the first call compiles, if the stance of the compiler lets it."""

    def __init__(self, module: nn.Module, **options: Any) -> None:
        """`options` are those of `torch.compile`."""
        self._module = module
        self._options = options
        self._compiled: Any = None

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if self._compiled is None:
            self._compiled = torch.compile(self._module._call_impl, **self._options)
        return self._compiled(*arguments, **named)


def compile_when_called(module: nn.Module, **options: Any) -> None:
    """Have a module compiled by its first call, as `module.compile` has it compiled by that too."""
    object.__setattr__(module, "_compiled_call_impl", DeferredCompilation(module, **options))
