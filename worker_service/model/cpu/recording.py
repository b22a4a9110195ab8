"""Stands in the modules of compiled code, so that what they call is noted."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from worker_service.model import attention  # noqa: F401  (defines hotslot::attend)
from worker_service.model.cpu.kernels_to_come import KERNEL_PREFIX
from worker_service.model.cpu.recorder import NotRecordableError, Recorder

SEED = 5
LINEAR_OPERATORS = ("linear", "slot_linear", "linear_int8", "slot_linear_int8")
"""Operators of the kernels that have a method of their name in the recorder."""


@dataclass
class Recording:
    """Stands in the modules of compiled code, and hands what they call to the recorder of the moment."""

    recorder: Recorder | None = None
    draws: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(SEED))
    """Makes what stands for values that are not computed."""
    _replaced: list[tuple[ModuleType, dict[str, Any]]] = field(default_factory=list)

    @contextmanager
    def installed(self) -> Iterator["Recording"]:
        """Replace what the modules call; back to what it was at the end."""
        from torch._inductor.codecache import PyCodeCache  # by then the compiler has been imported to compile

        try:
            for module in PyCodeCache.modules:
                self._replace(module)
            yield self
        finally:
            for module, names in self._replaced:
                module.__dict__.update(names)
            self._replaced.clear()

    def _replace(self, module: ModuleType) -> None:
        names = module.__dict__
        if "empty_strided_cpu" not in names:
            return
        ours: dict[str, Any] = {
            "empty_strided_cpu": self._allocate(names["empty_strided_cpu"]),
            "torch": _Torch(self),
        }
        for foreign in ("aten", "extern_kernels", "inductor_ops", "_quantized", "alloc_from_pool"):
            if foreign in names:
                ours[foreign] = _Foreign(self, names[foreign], foreign)
        for name, value in names.items():
            if name.startswith(KERNEL_PREFIX) and callable(value):
                ours[name] = self._kernel(value)
        self._replaced.append((module, {name: names[name] for name in ours}))
        names.update(ours)

    def note(self, own: Callable[[Recorder], Any], plain: Callable[[], Any]) -> Any:
        """Have a call noted, and made; what cannot be noted is only made."""
        recorder = self.recorder
        if recorder is None or recorder.problem:
            return plain()
        try:
            return own(recorder)
        except NotRecordableError as exc:
            recorder.problem = str(exc)
            return plain()

    def refuse(self, name: str) -> None:
        """Note that something is called which no program calls."""
        if self.recorder is not None and not self.recorder.problem:
            self.recorder.problem = f"it calls {name}"

    def _allocate(self, plain: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def allocate(*arguments: Any, **named: Any) -> Any:
            return self.note(lambda r: r.allocate(*arguments, **named), lambda: plain(*arguments, **named))

        return allocate

    def _kernel(self, plain: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            self.note(lambda recorder: recorder.kernel(plain, *arguments), lambda: plain(*arguments))

        return call


class _Foreign:
    """Stands for something whose calls no program makes."""

    def __init__(self, recording: Recording, real: Any, name: str) -> None:
        self._recording, self._real, self._name = recording, real, name

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        return _Foreign(self._recording, found, f"{self._name}.{name}") if callable(found) else found

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self._recording.refuse(self._name)
        return self._real(*arguments, **named)


class _Torch:
    """Stands for torch in a compiled module, which takes nothing but element types and operators from it."""

    def __init__(self, recording: Recording) -> None:
        def own(operator: Any, name: str) -> SimpleNamespace:
            def call(*arguments: Any, **named: Any) -> Any:
                return recording.note(
                    lambda recorder: getattr(recorder, name)(*arguments, **named),
                    lambda: operator(*arguments, **named),
                )

            return SimpleNamespace(default=call)

        kernels, hotslot = torch.ops.hotslot_cpu, torch.ops.hotslot
        noted = {name: own(getattr(kernels, name).default, name) for name in LINEAR_OPERATORS}
        of_kernels = _Operators(recording, kernels, "hotslot_cpu.", noted)
        of_ours = _Operators(recording, hotslot, "hotslot.", {"attend": own(hotslot.attend.default, "attend")})
        self.ops = _Operators(recording, torch.ops, "", {"hotslot_cpu": of_kernels, "hotslot": of_ours})

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


class _Operators:
    """Stands for operators, of which some are noted; calls of all others are made by no program."""

    def __init__(self, recording: Recording, real: Any, prefix: str, own: Mapping[str, Any]) -> None:
        self._recording, self._real, self._prefix, self._own = recording, real, prefix, own

    def __getattr__(self, name: str) -> Any:
        found = self._own.get(name)
        return found if found is not None else _Foreign(self._recording, getattr(self._real, name), self._prefix + name)
