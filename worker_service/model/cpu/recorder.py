"""Notes of the calls that compiled code makes, with their addresses, so that a program can make them again.

Compiled code of a module is straight: C++ kernels and our operators, one after the other, on memory that it allocates
(torch's `output_code`). While a recorder is at work, that memory comes from one scratch buffer that outlives the call,
so every address is that of a weight, a slot, the cache, an input, or an offset in the scratch. Anything else that the
code calls makes it not recordable.
"""

import ctypes
import functools
import struct
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

ALIGNMENT_BYTES = 64
MAX_KERNEL_ARGUMENTS = 32
"""As in `program.h`."""
ProgramValue = tuple[int, int]
"""Base and offset: 0 for the value itself, 1 for the scratch, 2 + i for input i. In notes, values that are addresses of
lasting memory or of kernels have bases of their own."""
VALUE, SCRATCH, FIRST_INPUT = 0, 1, 2
LASTING, CODE = -1, -2
KERNEL, LINEARS, ATTEND = 0, 1, 2


class NotRecordableError(Exception):
    """A call that a program cannot make; its message says which."""


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """One call of a program; the values of a kernel begin with its address, of others with their element type."""

    kind: int
    values: tuple[ProgramValue, ...]


@dataclass(frozen=True, slots=True)
class LinearCall:
    """A linear of a program, until those of one input are put together."""

    input_bytes: bytes
    """A copy of its input's values."""
    element_bytes: int
    head: tuple[ProgramValue, ...]
    """Element type, tokens, in_features and the input's address."""
    values: tuple[ProgramValue, ...]


class LastingMemory:
    """Memory that stays where it is while the model does: of weights, slots, caches and a step's inputs."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        self._ranges = sorted({(each.data_ptr(), each.data_ptr() + extent_bytes(each)) for each in tensors})

    def __contains__(self, address: int) -> bool:
        # Ranges overlap where tensors are views of one; the last that begins before is the shortest way to most.
        place = bisect_right(self._ranges, (address, sys.maxsize))
        return any(begin <= address < end for begin, end in self._ranges[max(place - 8, 0) : place])


def extent_bytes(tensor: torch.Tensor) -> int:
    """Bytes from the first element of a tensor to its last."""
    if not tensor.numel():
        return 0
    extent = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return extent * tensor.element_size()


class Recorder:
    """Notes of one call of a compiled module.

    Its kernels are called, so that values which are equal are seen to be. Linears and attention are only noted, since
    they take nearly all of the time: random values, never the same twice, stand for theirs.
    """

    def __init__(
        self,
        scratch: torch.Tensor,
        lasting: "LastingMemory",
        inputs: Sequence[torch.Tensor],
        draws: torch.Generator,
    ) -> None:
        """`draws` makes what stands for the values of linears and attention, other ones for each."""
        self._scratch = scratch
        self._lasting = lasting
        self._inputs = inputs
        self._draws = draws
        self.allocations: dict[int, int] = {}
        """Bytes of each piece of the scratch, by its first byte."""
        self.end_byte = 0
        self._calls: list[RecordedCall | LinearCall] = []
        self.problem = ""

    def calls(self) -> list[RecordedCall]:
        """Everything that was called, linears of equal inputs as one call."""
        found: list[RecordedCall | list[LinearCall]] = []
        for call in self._calls:
            if isinstance(call, RecordedCall):
                found.append(call)
                continue
            group = next((g for g in found if isinstance(g, list) and _same_input(g[0], call)), None)
            # Its output's memory is its own, so it may be computed as soon as its input's values are there.
            if group is not None:
                group.append(call)
            else:
                found.append([call])
        return [_together(each) if isinstance(each, list) else each for each in found]

    def allocate(self, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Memory of the scratch, in place of `empty_strided_cpu`."""
        extent = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        begin, num_bytes = self.end_byte, extent * dtype.itemsize
        self.end_byte = -(-(begin + num_bytes) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        if self.end_byte > self._scratch.nbytes:
            raise NotRecordableError("it needs more memory than the scratch has")
        self.allocations[begin] = num_bytes
        return self._scratch[begin : begin + num_bytes].view(dtype).as_strided(size, stride)

    def kernel(self, function: Callable[..., None], *arguments: Any) -> None:
        """Note a call of a C++ kernel, and make it."""
        if not all(isinstance(each, torch.Tensor) for each in arguments) or len(arguments) > MAX_KERNEL_ARGUMENTS:
            raise NotRecordableError(f"a kernel takes {len(arguments)} arguments that are not all tensors")
        values = ((CODE, _address_of(function)), *map(self._address, arguments))
        self._calls.append(RecordedCall(KERNEL, values))
        function(*arguments)

    def linear(self, x_TI: torch.Tensor, w_OI: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
        """Note `hotslot_cpu.linear`."""
        return self._linear(x_TI, w_OI, None, bias_O, ())

    def slot_linear(
        self, x_TI: torch.Tensor, w_OI: torch.Tensor, bias_O: torch.Tensor | None, *slots: torch.Tensor
    ) -> torch.Tensor:
        """Note `hotslot_cpu.slot_linear`."""
        return self._linear(x_TI, w_OI, None, bias_O, slots)

    def linear_int8(
        self, x_TI: torch.Tensor, q_OI: torch.Tensor, scale_O: torch.Tensor, bias_O: torch.Tensor | None
    ) -> torch.Tensor:
        """Note `hotslot_cpu.linear_int8`."""
        return self._linear(x_TI, q_OI, scale_O, bias_O, ())

    def slot_linear_int8(
        self,
        x_TI: torch.Tensor,
        q_OI: torch.Tensor,
        scale_O: torch.Tensor,
        bias_O: torch.Tensor | None,
        *slots: torch.Tensor,
    ) -> torch.Tensor:
        """Note `hotslot_cpu.slot_linear_int8`."""
        return self._linear(x_TI, q_OI, scale_O, bias_O, slots)

    def attend(self, *arguments: Any, softcap: float = 0.0) -> torch.Tensor:
        """Note `hotslot.attend`."""
        q_THD, k_TGD, v_TGD, k_cache, v_cache, positions_T, segments_R4, tables_RB, *numbers = arguments
        block_tokens, scale, window, kernel_tokens = numbers[:4]
        softcap = numbers[4] if len(numbers) > 4 else softcap
        in_rows = all(each.stride(2) == 1 and each.stride(1) == each.shape[2] for each in (k_TGD, v_TGD))
        if not kernel_tokens or not q_THD.is_contiguous() or not in_rows:
            raise NotRecordableError("an attention is not computed by the kernels alone")
        out_THD = self.allocate(q_THD.shape, q_THD.stride(), q_THD.dtype)
        tensors = (q_THD, k_TGD, v_TGD, k_cache, v_cache, out_THD, positions_T, segments_R4, tables_RB)
        sizes = (
            *q_THD.shape[:2], k_cache.shape[1], q_THD.shape[2], segments_R4.shape[0], tables_RB.shape[1],
            block_tokens, kernel_tokens, k_TGD.stride(0), v_TGD.stride(0), _bits(scale), _bits(softcap), window,
        )  # fmt: skip
        values = (_element_type(q_THD), *map(self._address, tensors), *((VALUE, size) for size in sizes))
        self._calls.append(RecordedCall(ATTEND, values))
        return self._any_values(out_THD)

    def _linear(
        self,
        x_TI: torch.Tensor,
        weight_OI: torch.Tensor,
        weight_scale_O: torch.Tensor | None,
        bias_O: torch.Tensor | None,
        slots: tuple[torch.Tensor, ...],
    ) -> torch.Tensor:
        """Values of one linear, as `run_linears` of `program.h` reads them; a scale is that of a weight in 8 bits."""
        if not x_TI.is_contiguous():
            raise NotRecordableError("a linear's input is not contiguous")
        num_tokens, num_out = x_TI.shape[0], weight_OI.shape[0]
        y_TO = self.allocate((num_tokens, num_out), (num_out, 1), x_TI.dtype)
        weight, none = self._address(weight_OI), (VALUE, 0)
        values = [weight, none, none] if weight_scale_O is None else [none, weight, self._address(weight_scale_O)]
        bias = self._address(bias_O) if bias_O is not None else none
        values += [bias, none, (VALUE, num_out), self._address(y_TO)]
        if slots:
            a_CI, b_CO, scale_S, one_SK, gates_TS = slots
            values += [(VALUE, scale_S.numel()), (VALUE, a_CI.shape[0] // scale_S.numel())]
            values += map(self._address, (a_CI, b_CO, scale_S, one_SK, gates_TS))
            values.append((VALUE, gates_TS.stride(0)))
        else:
            values += [(VALUE, 0)] * 8
        head = (_element_type(x_TI), (VALUE, num_tokens), (VALUE, x_TI.shape[1]), self._address(x_TI))
        self._calls.append(LinearCall(_bytes_of(x_TI), x_TI.element_size(), head, tuple(values)))
        return self._any_values(y_TO)

    def _any_values(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.uniform_(-1.0, 1.0, generator=self._draws)

    def _address(self, tensor: torch.Tensor) -> ProgramValue:
        address = tensor.data_ptr()
        offset = address - self._scratch.data_ptr()
        if 0 <= offset < self._scratch.nbytes:
            return SCRATCH, offset
        for index, each in enumerate(self._inputs):
            offset = address - each.data_ptr()
            if 0 <= offset < extent_bytes(each):
                return FIRST_INPUT + index, offset
        if address not in self._lasting:
            raise NotRecordableError("it reads memory that may not last")
        return LASTING, address


def _same_input(first: LinearCall, second: LinearCall) -> bool:
    """Tell whether two linears have one input, as its values show; values that are all alike show nothing."""
    values, size = first.input_bytes, first.element_bytes
    return (
        first.head[:3] == second.head[:3]
        and values == second.input_bytes
        and values != values[:size] * (len(values) // size)
    )


def _bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.flatten().view(torch.uint8).numpy().tobytes()


def _together(group: Sequence[LinearCall]) -> RecordedCall:
    values = [value for each in group for value in each.values]
    return RecordedCall(LINEARS, (*group[0].head, (VALUE, len(group)), *values))


def _element_type(tensor: torch.Tensor) -> ProgramValue:
    return VALUE, int(tensor.dtype == torch.bfloat16)


def _bits(value: float) -> int:
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


@functools.cache
def _address_of(kernel: Callable[..., None]) -> int:
    """Address of the C++ function behind a compiled kernel, whose library is loaded already."""
    library = getattr(getattr(kernel, "__self__", None), "__file__", None)
    if library is None:
        raise NotRecordableError(f"a kernel is a {type(kernel).__name__} that comes from no library")
    address = ctypes.cast(ctypes.CDLL(library).kernel, ctypes.c_void_p).value
    assert address is not None
    return address
