"""Programs of the compiled layers on CPU: one call a step makes what all layers' compiled code makes.

What stands between a step and its kernels, for each layer, costs more than a third of a step of one row: the compiler's
guards, its wrappers around a graph, and the generated Python that allocates and calls. So after the warm-up every layer
is run once more while its calls are recorded (`cpu/recording.py`), and from then on these are made again, for a step of
the same number of tokens. A step whose layers cannot be recorded goes through the compiled layers as before.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import structlog
import torch
from torch import nn

from worker_service.model.cpu.recorder import (
    ALIGNMENT_BYTES,
    CODE,
    FIRST_INPUT,
    LASTING,
    SCRATCH,
    VALUE,
    LastingMemory,
    NotRecordableError,
    ProgramValue,
    RecordedCall,
    Recorder,
)
from worker_service.model.cpu.recording import Recording
from worker_service.model.step_state import StepState

log = structlog.get_logger(__name__)

Path = tuple[int | str, ...]
"""Place of a tensor among the arguments of a module: position or name, then indices inside."""
Key = tuple[int, bool]
"""Tokens of a step, and whether adapters are computed."""


@dataclass(frozen=True, slots=True)
class ProgramInput:
    """Tensor among the arguments of the first module, as a program was recorded with it."""

    path: Path
    shape: torch.Size
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Recorded:
    """Calls of one module for one key, and the tensors that it was called with, which are kept meanwhile."""

    calls: tuple[RecordedCall, ...]
    inputs: tuple[tuple[Path, torch.Tensor], ...]
    output: torch.Tensor
    """Its memory in the scratch."""
    handed_on: torch.Tensor
    """Copy that the next module was given."""
    others: tuple[None, ...] | None
    """Rest of what the module returns; None where it returns a tensor alone."""
    end_byte: int


@dataclass(frozen=True, slots=True)
class Program:
    """Calls of all modules for one kind of step; `program.h` says of which words."""

    words: torch.Tensor
    lasting_at: tuple[int, ...]
    """Words that are addresses of weights, slots, caches and a step's tensors."""
    code_at: tuple[int, ...]
    """Words that are addresses of compiled kernels."""
    inputs: tuple[ProgramInput, ...]
    output_shape: torch.Size
    others: tuple[None, ...] | None

    def returned(self, output: torch.Tensor) -> Any:
        return output if self.others is None else (output, *self.others)


class Programs:
    """Programs of modules that a model calls one after the other, each with the output of the one before."""

    def __init__(self, name: str, modules: Sequence[nn.Module], step: StepState, scratch: torch.Tensor) -> None:
        """`modules` are compiled already; `name` is for the log, and for programs that are kept."""
        self.name = name
        self._step = step
        self._scratch = scratch
        self.enabled = True
        """False leaves a step to the compiled modules."""
        self._programs: dict[Key, Program] = {}
        self._recorded: list[_Recorded | str] = []
        self._recording: Recording | None = None
        self.lasting = dict(_lasting(modules, step))
        """Memory that programs may hold the addresses of, by names that are the same in another process."""
        self._lasting = LastingMemory(self.lasting.values())
        self._under_way: Program | None = None
        self.num_runs = 0
        """Calls of the first module that computed all of them."""
        self._num_modules = len(modules)
        for index, module in enumerate(modules):
            compiled = module._compiled_call_impl
            assert compiled is not None, "modules are compiled before their calls are recorded"
            object.__setattr__(module, "_compiled_call_impl", self._caller(index, compiled))

    @property
    def keys(self) -> frozenset[Key]:
        """Steps that have programs."""
        return frozenset(self._programs)

    @contextmanager
    def recording(self, recording: Recording, key: Key) -> Iterator[None]:
        """Record the modules' calls of one step, and have a program of them from then on, where one can be made."""
        self._recording, self._recorded = recording, []
        try:
            yield
            self._programs[key] = self._built()
        except NotRecordableError as exc:
            log.info("step_not_recorded", part=self.name, tokens=key[0], with_adapters=key[1], why=str(exc))
        finally:
            self._recording, self._recorded = None, []

    @property
    def programs(self) -> Mapping[Key, Program]:
        """All programs that there are."""
        return self._programs

    @property
    def scratch_bytes(self) -> int:
        """Size of the memory that offsets in the scratch may reach."""
        return self._scratch.nbytes

    def tensors(self) -> list[torch.Tensor]:
        """All programs, as they are handed to the kernels, and their scratch."""
        return [self._scratch, *(program.words for program in self._programs.values())]

    def adopt(self, programs: Mapping[Key, Program]) -> None:
        """Have programs that were recorded by another process and bound to this one's addresses."""
        self._programs.update(programs)

    def forget(self, key: Key) -> None:
        """Leave a kind of step to the compiled modules."""
        self._programs.pop(key, None)

    def _caller(self, index: int, compiled: Callable[..., Any]) -> Callable[..., Any]:
        def call_first(*arguments: Any, **named: Any) -> Any:
            self._under_way = None
            if self._recording is not None:
                return self._record(compiled, arguments, named)
            program = self._programs.get((arguments[0].shape[-2], self._step.with_adapters)) if self.enabled else None
            if program is None:
                return compiled(*arguments, **named)
            inputs = [_at(each.path, arguments, named) for each in program.inputs]
            for found, expected in zip(inputs, program.inputs, strict=True):
                if found.shape != expected.shape or found.stride() != expected.stride:
                    return compiled(*arguments, **named)
            output = torch.empty(program.output_shape, dtype=arguments[0].dtype)
            torch.ops.hotslot_cpu.run_program(program.words, self._scratch, [*inputs, output])
            self._under_way = program
            self.num_runs += 1
            return program.returned(output)

        def call_next(*arguments: Any, **named: Any) -> Any:
            if self._under_way is not None:
                return self._under_way.returned(arguments[0])  # the first one's call made this one's too
            if self._recording is not None:
                return self._record(compiled, arguments, named)
            return compiled(*arguments, **named)

        return call_next if index else call_first

    def _record(self, compiled: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        assert self._recording is not None
        inputs = tuple(_tensors_in({**dict(enumerate(arguments)), **named}))
        recorder = Recorder(self._scratch, self._lasting, [tensor for _, tensor in inputs], self._recording.draws)
        self._recording.recorder = recorder
        try:
            returned = compiled(*arguments, **named)
        finally:
            self._recording.recorder = None
        output, *others = returned if isinstance(returned, tuple) else (returned,)
        if not isinstance(output, torch.Tensor) or any(other is not None for other in others):
            self._recorded.append("it returns more than one tensor")
            return returned
        handed_on = output.clone()
        if recorder.problem:
            self._recorded.append(recorder.problem)
        elif recorder.allocations.get(output.data_ptr() - self._scratch.data_ptr()) != output.nbytes:
            self._recorded.append("it returns memory that is not its own")
        else:
            kept = tuple(others) if isinstance(returned, tuple) else None
            calls = tuple(recorder.calls())
            self._recorded.append(_Recorded(calls, inputs, output, handed_on, kept, recorder.end_byte))
        return handed_on if not isinstance(returned, tuple) else (handed_on, *others)

    def _built(self) -> Program:
        """One program of what was recorded."""
        if len(self._recorded) != self._num_modules:
            raise NotRecordableError(f"{len(self._recorded)} of {self._num_modules} modules were called")
        recorded: list[_Recorded] = []
        for each in self._recorded:
            if isinstance(each, str):
                raise NotRecordableError(each)
            recorded.append(each)
        first, last = recorded[0], recorded[-1]
        # Outputs between two modules lie behind what they use of the scratch, in two places by turns.
        size = -(-first.output.nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        end = max(each.end_byte for each in recorded)
        if end + 2 * size > self._scratch.nbytes:
            raise NotRecordableError("it needs more memory than the scratch has")
        output: ProgramValue = FIRST_INPUT + len(first.inputs), 0
        words: list[int] = []
        marked: dict[int, list[int]] = {LASTING: [], CODE: []}
        handed_on: ProgramValue | None = None
        for index, module in enumerate(recorded):
            if module.output.nbytes != first.output.nbytes or module.others != first.others:
                raise NotRecordableError("modules return different things")
            to = output if module is last else (SCRATCH, end + index % 2 * size)
            moved = self._places(module, recorded[:index], handed_on)
            begin = module.output.data_ptr() - self._scratch.data_ptr()
            for call in module.calls:
                words += (call.kind, len(call.values))
                for base, offset in call.values:
                    if base == SCRATCH and begin <= offset < begin + module.output.nbytes:
                        words += (to[0], to[1] + offset - begin)
                    elif base >= FIRST_INPUT:
                        place = moved[base - FIRST_INPUT]
                        words += (place[0], place[1] + offset)
                    elif base in marked:
                        words += (VALUE, offset)
                        marked[base].append(len(words))  # one word more stands before them all
                    else:
                        words += (base, offset)
            handed_on = to
        num_calls = sum(len(module.calls) for module in recorded)
        inputs = tuple(ProgramInput(path, tensor.shape, tensor.stride()) for path, tensor in first.inputs)
        lasting_at, code_at = tuple(marked[LASTING]), tuple(marked[CODE])
        return Program(torch.tensor([num_calls, *words]), lasting_at, code_at, inputs, first.output.shape, first.others)

    def _places(
        self, module: _Recorded, before: Sequence[_Recorded], handed_on: ProgramValue | None
    ) -> list[ProgramValue]:
        """Places of a module's inputs in the program: an input of the first module, or the output of the last one.

        Raises NotRecordableError where one that it uses is neither, so was computed between the modules.
        """
        known = {
            tensor.data_ptr(): (FIRST_INPUT + index, 0)
            for index, (_, tensor) in enumerate(self._inputs(module, before))
        }
        if before and handed_on is not None:
            known[before[-1].handed_on.data_ptr()] = handed_on
        used = {base - FIRST_INPUT for call in module.calls for base, _ in call.values if base >= FIRST_INPUT}
        places: list[ProgramValue] = []
        for index, (_, tensor) in enumerate(module.inputs):
            place = known.get(tensor.data_ptr())
            if place is None and index in used:
                raise NotRecordableError("what a module reads is computed between the modules")
            places.append(place or (VALUE, 0))
        return places

    def _inputs(self, module: _Recorded, before: Sequence[_Recorded]) -> tuple[tuple[Path, torch.Tensor], ...]:
        return before[0].inputs if before else module.inputs


def _lasting(modules: Sequence[nn.Module], step: StepState) -> Iterator[tuple[str, torch.Tensor]]:
    for index, module in enumerate(modules):
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            yield f"{index}.{name}", tensor
    for name in ("gates_TS", "row_gates_RS", "cache_positions_T", "segments_R4", "block_tables_RB"):
        yield f"step.{name}", getattr(step, name)


def _tensors_in(found: Any, path: Path = ()) -> Iterator[tuple[Path, torch.Tensor]]:
    """All tensors among arguments, with their places."""
    if isinstance(found, torch.Tensor):
        yield path, found
    elif isinstance(found, dict):
        for name, each in found.items():
            yield from _tensors_in(each, (*path, name))
    elif isinstance(found, tuple | list):
        for index, each in enumerate(found):
            yield from _tensors_in(each, (*path, index))


def _at(path: Path, arguments: tuple[Any, ...], named: dict[str, Any]) -> torch.Tensor:
    first, *rest = path
    found = arguments[first] if isinstance(first, int) else named[first]
    for index in rest:
        found = found[index]
    assert isinstance(found, torch.Tensor)
    return found
