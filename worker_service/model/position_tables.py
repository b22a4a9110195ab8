"""Tables of what a forward makes of positions alone: rotary angles, learned positions.

Some ten of a step's operators compute it, one after the other, each time for positions that are known beforehand. The
model's own operators fill the tables once, for every position that a sequence may have.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch.utils._pytree import tree_leaves

from worker_service.model.cores import torch_threads
from worker_service.model.forward_calls import ForwardCalls, KeptCall

MAX_POSITIONS = 2**15
"""More are not written down: the memory would be read from as far away as the weights."""


@dataclass(slots=True)
class _ByPosition:
    """Calls that read nothing but positions and what never changes, and the tensors that other calls take from them."""

    calls: list[KeptCall] = field(default_factory=list)
    others: list[KeptCall] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)


class PositionTables:
    """Tables of one model, filled from the calls of its largest kind of step; other kinds read them too."""

    def __init__(self, positions_T: torch.Tensor, fixed: Iterable[torch.Tensor], num_positions: int) -> None:
        """`positions_T` are a step's; `fixed` are tensors whose values never change."""
        self._positions_T = positions_T
        self._fixed = {each.untyped_storage()._cdata for each in fixed}
        self._num_positions = num_positions
        self._tables: list[torch.Tensor] = []

    def put_into(self, calls: ForwardCalls, num_tokens: int) -> ForwardCalls:
        """The calls of a step of so many tokens, with tables where they compute by position; the same, where not."""
        found = self._by_position(calls)
        if not found.taken or self._num_positions > MAX_POSITIONS:
            return calls
        with torch_threads(1):  # for so few numbers, waiting for others took all of the time
            return self._put_into(calls, found, num_tokens)

    def _put_into(self, calls: ForwardCalls, found: _ByPosition, num_tokens: int) -> ForwardCalls:
        made = self._made(found, calls.num_made, 0, num_tokens)
        if any(each.shape[:2] != (1, num_tokens) or not each.is_contiguous() for each in made):
            return calls
        self._tables = self._tables or self._filled(found, calls.num_made, num_tokens)
        kept = [(table.shape[1:], table.dtype) for table in self._tables]
        if kept != [(each.shape[2:], each.dtype) for each in made]:
            return calls
        if not self._agree(found, calls.num_made, num_tokens):
            return calls
        positions_1T = self._positions_T[None, :num_tokens]
        look_ups = [
            KeptCall(torch.ops.aten.index.Tensor._op, [table, [positions_1T]], {}, (), number)
            for number, table in zip(found.taken, self._tables, strict=True)
        ]
        return ForwardCalls([*look_ups, *found.others], calls.num_made, calls.result)

    def _by_position(self, calls: ForwardCalls) -> _ByPosition:
        positions, found = self._positions_T.untyped_storage()._cdata, _ByPosition()
        made: dict[int, bool] = {}
        """Tensors that such calls make, and whether a position is in them."""
        for call in calls.calls:
            leaves = tree_leaves((call.arguments, call.named))
            storages = {leaf.untyped_storage()._cdata for leaf in leaves if isinstance(leaf, torch.Tensor)}
            numbers = {number for _, _, number in call.filled}
            is_pure = isinstance(call.results, int) and not call.writes and bool(storages or numbers)
            if is_pure and numbers <= made.keys() and storages <= self._fixed | {positions}:
                assert isinstance(call.results, int)
                made[call.results] = positions in storages or any(made[number] for number in numbers)
                found.calls.append(call)
            else:
                found.others.append(call)
                found.taken += sorted(numbers & made.keys() - set(found.taken))
        if calls.result in made or not all(made[number] for number in found.taken):
            return _ByPosition()
        return found

    def _made(self, found: _ByPosition, num_made: int, first: int, num_tokens: int) -> list[torch.Tensor]:
        """Results of the calls for some positions."""
        last = self._num_positions - 1
        self._positions_T[:num_tokens] = torch.arange(first, first + num_tokens).clamp(max=last)
        return [ForwardCalls(found.calls, num_made, number).run() for number in found.taken]

    def _agree(self, found: _ByPosition, num_made: int, num_tokens: int) -> bool:
        """Tell whether the tables say what the calls make, at the first, last and some other positions."""
        for first in (0, self._num_positions // 3 + 1, self._num_positions - num_tokens):
            computed = self._made(found, num_made, max(first, 0), num_tokens)
            positions_1T = self._positions_T[None, :num_tokens]
            if not all(map(torch.equal, computed, [table[positions_1T] for table in self._tables])):
                return False
        return True

    def _filled(self, found: _ByPosition, num_made: int, num_tokens: int) -> list[torch.Tensor]:
        firsts: Sequence[int] = range(0, self._num_positions, num_tokens)
        parts = [self._made(found, num_made, first, num_tokens) for first in firsts]
        return [torch.cat([each[0] for each in one])[: self._num_positions] for one in zip(*parts, strict=True)]
