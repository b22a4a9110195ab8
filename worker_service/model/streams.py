"""Streams of a device, and the events between them: CUDA's in production, fakes with clocks in tests."""

from collections.abc import Callable, Iterable
from typing import Protocol

import torch


class StreamEvent(Protocol):
    """Happens when all that was given to its stream before it has run."""

    def query(self) -> bool:
        """True once it has happened; never waits."""
        ...


class DeviceStream(Protocol):
    """A queue of work for the device, which runs in order beside that of other streams."""

    def give(self, work: Callable[[], None]) -> None:
        """Have this run after all that was given before; what it launches reads host memory at some later time."""
        ...

    def record_event(self) -> StreamEvent:
        """Event that happens when all that was given so far has run."""
        ...

    def wait_event(self, event: StreamEvent) -> None:
        """Let what is given from now on run after the event; never waits itself."""
        ...


class CudaStream:
    """A stream of CUDA's; a DeviceStream."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream

    def give(self, work: Callable[[], None]) -> None:
        """Launch on this stream."""
        with torch.cuda.stream(self._stream):
            work()

    def record_event(self) -> torch.cuda.Event:
        """One without a time, which costs less."""
        event: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event

    def wait_event(self, event: StreamEvent) -> None:
        """Let the device wait, not the host."""
        assert isinstance(event, torch.cuda.Event)
        self._stream.wait_event(event)


class SlotReads:
    """Last step that reads each slot, as an event of the steps' stream.

    **Invariant**: a copy into slots runs after every step that was launched before it was given and reads one of them.
    Nothing else has to be ordered: no step has a slot on before its copy is known to be done, and copies are in order
    among themselves.
    """

    def __init__(self, steps: DeviceStream) -> None:
        self._steps = steps
        self._last: dict[int, StreamEvent] = {}

    def launched(self, slots: Iterable[int]) -> None:
        """Call after the last launch of a step that has these slots on, or after a launch of it that failed."""
        read = tuple(slots)
        if read:
            self._last.update(dict.fromkeys(read, self._steps.record_event()))

    def before_copy(self, copies: DeviceStream, slots: Iterable[int]) -> None:
        """Let what is given to the copies' stream from now on run after the last steps that read these slots."""
        events = [self._last.pop(slot) for slot in slots if slot in self._last]
        for event in {id(event): event for event in events}.values():
            copies.wait_event(event)


def pin(address: int, size_bytes: int) -> None:
    """Register memory with CUDA, so that copies from it run beside everything else. Raises torch.AcceleratorError."""
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    torch.cuda.check_error(runtime.cudaHostRegister(address, size_bytes, 0))
