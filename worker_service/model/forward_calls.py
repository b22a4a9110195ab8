"""Operators that a model's forward calls in a step, noted once and called again without the forward.

Around the programs of layers and head stand some twenty operators (embedding, rotary angles, last norm), and hundreds
of Python calls that lead to them: modules in modules, masks that are not made, outputs that become dictionaries. In
steps of one kind these are the same operators on the same memory, so they are kept, and called one after the other. An
architecture's own code says which: a scale of its embedding and a cap of its logits are among them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from worker_service.model.capture_audit import reads_values
from worker_service.model.cpu.recorder import NotRecordableError

_RUNS_PROGRAM = "hotslot_cpu::run_program"
"""Operator that answers what its callers know beforehand; what it computes is in a tensor that it was given."""
_Container = list[Any] | dict[str, Any]


@dataclass(slots=True)
class KeptCall:
    """One operator, with its arguments but for those that earlier calls make."""

    function: Callable[..., Any]
    arguments: list[Any]
    named: dict[str, Any]
    filled: tuple[tuple[_Container, int | str, int], ...]
    """Places among the arguments, each with the number of the tensor that belongs there."""
    results: int | tuple[int, ...]
    """Number of the tensor that it makes, or of each of several."""
    writes: bool = False
    """True if it writes to an argument."""


class ForwardCalls:
    """Operators of one forward, called again; what they make is made anew each time."""

    def __init__(self, calls: Sequence[KeptCall], num_made: int, result: int) -> None:
        """`result` is the number of the tensor that the forward returned."""
        self.calls = tuple(calls)
        self.num_made = num_made
        self.result = result

    def __len__(self) -> int:
        """Number of the calls."""
        return len(self.calls)

    def run(self) -> torch.Tensor:
        """Make all calls; returns what the forward would."""
        made: list[Any] = [None] * self.num_made
        for call in self.calls:
            for container, place, number in call.filled:
                container[place] = made[number]  # type: ignore[index]
            found, results = call.function(*call.arguments, **call.named), call.results
            if isinstance(results, int):
                made[results] = found
            elif results:
                for number, each in zip(results, found, strict=True):
                    made[number] = each
        result: torch.Tensor = made[self.result]
        return result


@dataclass(eq=False)
class _Notes:
    """Calls of one forward so far."""

    lasting: frozenset[int]
    """Storages that stay where they are."""
    calls: list[KeptCall] = field(default_factory=list)
    numbers: dict[int, int] = field(default_factory=dict)
    """Numbers of the tensors that calls made, by identity."""
    kept: list[torch.Tensor] = field(default_factory=list)
    """These tensors, so that no identity is used again."""
    constants: dict[int, torch.Tensor] = field(default_factory=dict)
    """Tensors that the forward made of numbers of the host, by identity."""
    problem: str = ""

    def add(self, function: Any, arguments: Sequence[Any], named: dict[str, Any], found: Any) -> None:
        """Note a call with what it returned, or why it cannot be made again."""
        tensors = [leaf for leaf in tree_leaves((arguments, named)) if isinstance(leaf, torch.Tensor)]
        is_program = function.name() == _RUNS_PROGRAM
        results = () if is_program else tuple(found) if isinstance(found, tuple | list) else (found,)
        if function is torch.ops.aten.lift_fresh.default:
            self.constants[id(found)] = found
        elif reads_values(function, (arguments, named)) or not all(isinstance(each, torch.Tensor) for each in results):
            self._refuse(f"{function} hands values to the host")
        elif torch.Tag.nondeterministic_seeded in function.tags:
            self._refuse(f"{function} draws numbers")
        elif not all(self._is_known(each) for each in tensors):
            self._refuse(f"{function} reads a tensor that is no part of the model or of the step")
        elif function._schema.is_mutable and any(id(each) in self.constants for each in tensors):
            self._refuse(f"{function} writes to a number of the host")
        elif not (function.is_view and all(map(self._is_lasting, tensors))):  # such a view stays, too
            filled: list[tuple[_Container, int | str, int]] = []
            kept, kept_named = self._kept(list(arguments), filled), self._kept(dict(named), filled)
            numbers = tuple(map(self._number, results))
            is_one = not is_program and isinstance(found, torch.Tensor)
            made, writes = numbers[0] if is_one else numbers, bool(function._schema.is_mutable)
            self.calls.append(KeptCall(function._op, kept, kept_named, tuple(filled), made, writes))

    def _refuse(self, problem: str) -> None:
        self.problem = self.problem or problem

    def _is_lasting(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self.lasting

    def _is_known(self, tensor: torch.Tensor) -> bool:
        return id(tensor) in self.numbers or id(tensor) in self.constants or self._is_lasting(tensor)

    def _kept(self, container: Any, filled: list[tuple[_Container, int | str, int]]) -> Any:
        """Copy of arguments, with places in it for the tensors that earlier calls make."""
        for place, each in list(container.items() if isinstance(container, dict) else enumerate(container)):
            if isinstance(each, tuple | list):
                container[place] = self._kept(list(each), filled)
            elif isinstance(each, torch.Tensor) and id(each) in self.numbers:
                container[place] = None
                filled.append((container, place, self.numbers[id(each)]))
        return container

    def _number(self, tensor: torch.Tensor) -> int:
        """Number of a tensor; one that a call writes to and returns has the number that it had."""
        number = self.numbers.setdefault(id(tensor), len(self.kept))
        if number == len(self.kept):
            self.kept.append(tensor)
        return number


class _Noting(TorchDispatchMode):
    """Notes every operator that is called."""

    def __init__(self, notes: _Notes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._notes = notes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func.name() == _RUNS_PROGRAM:
            args[-1][-1].zero_()
            found = True
        else:
            found = func(*args, **named)
        self._notes.add(func, args, named, found)
        return found


def noted(forward: Callable[[], torch.Tensor], lasting: Iterable[torch.Tensor]) -> ForwardCalls:
    """Run a forward and keep its calls; `lasting` are the tensors that never move.

    Programs, which take nearly all of its time, are only noted: what they put out is zeros, and the calls are the same.

    Raises NotRecordableError where one of them cannot be made without the forward. What a forward does with values on
    the host is not seen here; the audit (capture_audit.py) sees it.
    """
    notes = _Notes(frozenset(each.untyped_storage()._cdata for each in lasting))
    with _Noting(notes):
        result = forward()
    if notes.problem:
        raise NotRecordableError(notes.problem)
    if id(result) not in notes.numbers:
        raise NotRecordableError("it returns what no call made")
    return ForwardCalls(notes.calls, len(notes.kept), notes.numbers[id(result)])
