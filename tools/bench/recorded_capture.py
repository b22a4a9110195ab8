"""Captures steps on a CPU: keeps the operators of a step with all that they were given, and calls them again."""

# mypy: disable-error-code="no-untyped-call"
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from worker_service.model.capture_audit import LOOKED_INTO


@dataclass(frozen=True, slots=True)
class _Made:
    """Place of a tensor that a call of the recording makes."""

    number: int


@dataclass(frozen=True, slots=True)
class _RecordedCall:
    """One operator; its arguments are numbers, tensors that were there before, and places of what other calls make."""

    func: Any
    args: Any
    kwargs: Any
    results: tuple[int, ...]


class _Recorder(TorchDispatchMode):
    """Keeps every call; as in a graph, numbers of the host stay what they were."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_RecordedCall] = []
        self._numbers: dict[int, int] = {}
        self._kept: list[torch.Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inside = LOOKED_INTO.get(func.name())
        if inside is not None:
            with self:
                return inside(*args, **kwargs)

        def place(tensor: torch.Tensor) -> Any:
            number = self._numbers.get(id(tensor))
            return tensor if number is None else _Made(number)

        recorded_args, recorded_kwargs = tree_map_only(torch.Tensor, place, (args, kwargs))
        found = func(*args, **kwargs)
        results = []
        for leaf in tree_flatten(found)[0]:
            if isinstance(leaf, torch.Tensor):
                # What an operator writes in place is returned as it was given.
                self._numbers.setdefault(id(leaf), len(self._kept))
                self._kept.append(leaf)
                results.append(self._numbers[id(leaf)])
        self.calls.append(_RecordedCall(func, recorded_args, recorded_kwargs, tuple(results)))
        return found


class RecordedCapture:
    """A `Capture` whose graphs are lists of operators; what no graph can keep answers as wrong as it would on CUDA."""

    def __init__(self) -> None:
        self.num_captured = 0

    def capture(self, compute: Callable[[], None]) -> Callable[[], None]:
        """As `Capture`."""
        recorder = _Recorder()
        with recorder:
            compute()
        calls = recorder.calls
        self.num_captured += 1
        del recorder

        def replay() -> None:
            made: dict[int, torch.Tensor] = {}

            def tensor(place: _Made) -> torch.Tensor:
                return made[place.number]

            for call in calls:
                args, kwargs = tree_map_only(_Made, tensor, (call.args, call.kwargs))
                found = call.func(*args, **kwargs)
                leaves = [leaf for leaf in tree_flatten(found)[0] if isinstance(leaf, torch.Tensor)]
                made.update(zip(call.results, leaves, strict=True))

        return replay
