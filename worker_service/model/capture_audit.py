"""The capture audit: a step that is run twice with different plans must launch the same, so that a graph may keep it.

What a graph cannot keep changes nothing where it is captured and answers wrong where it is replayed: a number or a
tensor made by the host, a branch on a value, memory that is replaced. All of that shows when two runs are compared.
"""

# mypy: disable-error-code="no-untyped-call"
import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from worker_service.model.cuda.add_slots import add_slots
from worker_service.model.masked_attention import attend_masked
from worker_service.model.varlen_attention import attend_varlen

MOST_FINDINGS = 10
"""Findings of one kind of step that are told; the first is mostly the cause of the others."""
_READS = {
    getattr(torch.Tensor, name): name
    for name in ("tolist", "numpy", "item", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__")
}
"""Functions that hand a tensor's values to the host, and so wait for the device."""
_MAKES = {
    torch.tensor: "tensor",
    torch.as_tensor: "as_tensor",
    torch.asarray: "asarray",
    torch.from_numpy: "from_numpy",
}
"""Functions that make a tensor of the host's values."""
_INDEXING = ("aten.index.Tensor", "aten.index_put", "aten._index_put")
_READING_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
LOOKED_INTO: Mapping[str, Callable[..., Any]] = {
    "hotslot::attend_masked": attend_masked,
    "hotslot::attend_varlen": attend_varlen,
    "hotslot_cuda::add_slots": add_slots,
}
"""Operators of ours that are written in Python: what they call is audited, too."""


@dataclass(frozen=True, slots=True)
class AuditedTensor:
    """A tensor as a graph knows it: where it lies, or which call made it."""

    is_persistent: bool
    address: int
    """That of a persistent one; else the number of the call that made its memory."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class LaunchedCall:
    """One operator with all that it was given."""

    name: str
    arguments: tuple[Any, ...]


@dataclass(eq=False)
class StepTrace:
    """Calls of one run, and what no graph can keep of them."""

    persistent: frozenset[int]
    calls: list[LaunchedCall] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    made: dict[int, tuple[StorageWeakRef, int]] = field(default_factory=dict)
    """Memory that calls made, with their numbers; a weak reference keeps its identity from being used again."""
    constants: dict[int, tuple[StorageWeakRef, Any]] = field(default_factory=dict)
    """Numbers that the host made; they are part of a launch, not of memory."""

    def describe(self, name: str, argument: Any) -> Any:
        """Argument in a form that can be compared."""
        if not isinstance(argument, torch.Tensor):
            return argument
        identity = argument.untyped_storage()._cdata
        shape, stride = tuple(argument.shape), tuple(argument.stride())
        if identity in self.persistent:
            return AuditedTensor(True, argument.data_ptr(), shape, stride, 0, argument.dtype)
        if identity in self.constants:
            return self.constants[identity][1]
        if identity not in self.made:
            self.findings.append(f"{name} reads a tensor {list(shape)} that is no part of the model or of the plan")
            self.note_made(argument)
        return AuditedTensor(
            False, self.made[identity][1], shape, stride, int(argument.storage_offset()), argument.dtype
        )

    def note_made(self, tensor: torch.Tensor) -> None:
        """Remember memory that the last call made, unless it was there before."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.persistent:
            self.made.setdefault(storage._cdata, (StorageWeakRef(storage), len(self.calls)))

    def note_constant(self, tensor: torch.Tensor) -> None:
        """Remember a number of the host's by its value."""
        storage = tensor.untyped_storage()
        self.constants[storage._cdata] = (StorageWeakRef(storage), repr(tensor))

    def add(self, func: Any, arguments: Any) -> None:
        """Note a call before it is made."""
        name = str(func)
        if reads_values(func, arguments):
            self.findings.append(f"{name} hands values to the host, which waits for the device")
        tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors if tensor.untyped_storage()._cdata not in self.constants}
        if len(devices) > 1:
            self.findings.append(f"{name} copies between {' and '.join(sorted(devices))}")
        described = tuple(self.describe(name, leaf) for leaf in tree_leaves(arguments))
        self.calls.append(LaunchedCall(name, described))


class _AuditedOperators(TorchDispatchMode):
    """Notes every operator, and those that our own operators call."""

    def __init__(self, trace: StepTrace) -> None:
        super().__init__()
        self._trace = trace

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._trace.add(func, (args, kwargs))
        inside = LOOKED_INTO.get(func.name())
        if inside is None:
            found = func(*args, **kwargs)
        else:
            with self, _AuditedFunctions(self._trace):
                found = inside(*args, **kwargs)
        tree_map_only(torch.Tensor, self._trace.note_made, found)
        return found


class _AuditedFunctions(TorchFunctionMode):
    """Notes what operators do not show: values that go to the host, and tensors that are made of its values."""

    def __init__(self, trace: StepTrace) -> None:
        super().__init__()
        self._trace = trace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _READS:
            self._trace.findings.append(f"Tensor.{_READS[func]} hands values to the host, which waits for the device")
        if func not in _MAKES:
            return func(*args, **kwargs)
        with torch.utils._python_dispatch._disable_current_modes():
            found = func(*args, **kwargs)
        if found.dim() == 0 and kwargs.get("device") is None:
            self._trace.note_constant(found)
        else:
            self._trace.findings.append(f"torch.{_MAKES[func]} makes a tensor of the host's values")
            self._trace.note_made(found)
        return found


def reads_values(func: Any, arguments: Any) -> bool:
    """Tell whether an operator hands values to the host, given all arguments, those by name last."""
    if str(func).startswith(_INDEXING):
        return _selects_by_mask(arguments)
    return bool(_READING_TAGS & set(func.tags))


def _selects_by_mask(arguments: Any) -> bool:
    """Tell whether an index is a mask, of which the host must know how many are set."""
    indices = [leaf for leaf in tree_leaves(arguments[0][1]) if isinstance(leaf, torch.Tensor)]
    return any(index.dtype in (torch.bool, torch.uint8) for index in indices)


def traced(compute: Callable[[], object], persistent: Iterable[torch.Tensor]) -> StepTrace:
    """Run a step and note what it launches; `persistent` are the tensors that a graph may hold the addresses of."""
    storages = [tensor.untyped_storage() for tensor in persistent]
    trace = StepTrace(frozenset(storage._cdata for storage in storages))
    with _AuditedFunctions(trace), _AuditedOperators(trace):
        compute()
    if any(not reference.expired() for reference, _ in trace.made.values()):
        gc.collect()
    for reference, number in trace.made.values():
        if not reference.expired():
            name = trace.calls[number - 1].name if number else "the step"
            trace.findings.append(f"memory that {name} makes lives on after the step")
    return trace


def differences(first: StepTrace, second: StepTrace) -> list[str]:
    """Calls of two runs that are not the same."""
    found = []
    for number, (one, other) in enumerate(zip_longest(first.calls, second.calls)):
        if one is None or other is None:
            found.append(f"one run makes {len(first.calls)} calls, another {len(second.calls)}")
            break
        if one.name != other.name:
            found.append(f"call {number} is {one.name} in one run and {other.name} in another")
            break
        if one.arguments != other.arguments:
            pairs = zip_longest(one.arguments, other.arguments)
            told = next(f"{a!r} and {b!r}" for a, b in pairs if a != b)
            found.append(f"call {number}, {one.name}, is given {told}")
    return found


def audit(plan: Callable[[], object], compute: Callable[[], object], persistent: Sequence[torch.Tensor]) -> list[str]:
    """Findings of one kind of step, which is computed after each of two plans; none means that a graph may keep it.

    A first run, which is not noted, does what is done once: fills Python's caches and loads libraries.
    """
    plan()
    compute()
    traces = []
    for _ in range(2):
        plan()
        traces.append(traced(compute, persistent))
    found = [finding for trace in traces for finding in trace.findings]
    return list(dict.fromkeys([*found, *differences(*traces)]))[:MOST_FINDINGS]
