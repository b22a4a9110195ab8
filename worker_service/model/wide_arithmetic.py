"""Runs a model with wider numbers than its weights have, without a second copy of the weights.

Every operation gets its operands in the wide type, so what it computes has that type's rounding alone. Weights are
widened where they are read, and large matrices piece by piece: a machine on which the model just fits has room for it.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

MAX_PIECE_ELEMENTS = 2**24
"""Elements of a matrix that are widened at a time: 64 MiB in fp32."""

_aten = torch.ops.aten
_CHOOSING = frozenset({
    _aten.embedding.default, _aten.index.Tensor, _aten.index_select.default, _aten.gather.default,
})  # fmt: skip
"""Operations that only choose elements: their results are widened instead of a whole weight."""
_AT_MOST_FP32 = frozenset({_aten._grouped_mm.default})
"""Operations that torch does not have in fp64."""


class WideArithmetic(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not annotate it
    """While it is entered, floating-point operations of the thread compute in `dtype` at the least."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._dtype = dtype

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation, below autograd and above the kernels."""
        named = {name: self._wide_dtype(value) for name, value in (kwargs or {}).items()}
        if func.is_view:
            return func(*args, **named)
        if func in _CHOOSING:
            return self._widened(func(*args, **named))
        if func in (_aten.mm.default, _aten.addmm.default):
            return self._product(func, args, named)
        if func in _AT_MOST_FP32:
            args, named = _converted((args, named), torch.float32)
            return self._widened(func(*args, **named))
        # An argument that is written to must stay the tensor that it is.
        is_written = [a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments]
        wide_args = [a if written else self._widened(a) for a, written in zip(args, is_written, strict=False)]
        outputs = {a.name for a, written in zip(func._schema.arguments, is_written, strict=True) if written}
        wide_named = {name: v if name in outputs else self._widened(v) for name, v in named.items()}
        return func(*wide_args, **wide_named)

    def _product(self, func: Callable[..., Any], args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """A matrix product; one with a large narrow matrix on its right goes by groups of that one's columns."""
        *others, right = args
        if not self._is_narrow(right) or right.numel() <= MAX_PIECE_ELEMENTS:
            return func(*self._widened(args), **named)
        *bias, left = self._widened(others)
        width = max(1, MAX_PIECE_ELEMENTS // right.shape[0])
        pieces = []
        for first in range(0, right.shape[1], width):
            columns = slice(first, first + width)
            its_bias = [part[..., columns] if part.shape[-1] > 1 else part for part in bias]
            pieces.append(func(*its_bias, left, self._widened(right[:, columns]), **named))
        return torch.cat(pieces, dim=1)

    def _widened(self, values: Any) -> Any:
        return tree_map(lambda value: value.to(self._dtype) if self._is_narrow(value) else value, values)

    def _is_narrow(self, value: Any) -> bool:
        return isinstance(value, torch.Tensor) and self._wide_dtype(value.dtype) != value.dtype

    def _wide_dtype(self, value: Any) -> Any:
        """The wide type instead of a narrower floating-point type; anything else as it is."""
        is_narrow = isinstance(value, torch.dtype) and value.is_floating_point and value.itemsize < self._dtype.itemsize
        return self._dtype if is_narrow else value


def _converted(values: Any, dtype: torch.dtype) -> Any:
    def convert(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return tree_map(convert, values)
