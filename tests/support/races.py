"""A device of streams that runs what it was given late, in any order that they allow, and finds races by their clocks.

Order is what events make of it, not what happened: each piece of work has a vector clock (Fidge 1988, Mattern 1989)
from the moment in which it is given, with one part for the host and one for each stream. Two accesses to the same
thing, one of which writes, must be in order by these clocks; so a missing wait is found in any schedule.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HOST = "host"
Clock = dict[str, int]


def _merge(into: Clock, other: Clock) -> None:
    for actor, time in other.items():
        into[actor] = max(into.get(actor, 0), time)


@dataclass(frozen=True)
class Moment:
    """One piece of work of one actor, and what came before it."""

    actor: str
    clock: Clock

    def is_before(self, other: "Moment") -> bool:
        return other.clock.get(self.actor, 0) >= self.clock[self.actor]


@dataclass(frozen=True)
class _Access:
    moment: Moment
    is_write: bool
    what: str


class RaceError(AssertionError):
    """Two accesses that no event keeps in order."""


@dataclass(eq=False)
class RacyEvent:
    """A StreamEvent; asking for it lets the device go on."""

    device: "RacyDevice"
    clock: Clock
    has_happened: bool = False

    def query(self) -> bool:
        """True only at times when the device has come so far; it goes on while it is asked."""
        self.device.run_some(self.device.random.randint(0, 1))
        if self.has_happened:
            _merge(self.device.host, self.clock)
        return self.has_happened

    def happen(self) -> None:
        self.has_happened = True


@dataclass(eq=False)
class RacyStream:
    """A DeviceStream whose work waits until the device runs it."""

    device: "RacyDevice"
    name: str
    clock: Clock = field(default_factory=dict)
    queue: list[tuple[Moment, Callable[[], object]] | RacyEvent] = field(default_factory=list)
    """Work in order, and events to wait for."""

    def give(self, work: Callable[[], object]) -> None:
        self.queue.append((self._moment(), work))

    def record_event(self) -> RacyEvent:
        moment = self._moment()
        event = RacyEvent(self.device, moment.clock)
        self.queue.append((moment, event.happen))
        return event

    def wait_event(self, event: Any) -> None:
        assert isinstance(event, RacyEvent)
        _merge(self.clock, event.clock)
        self.queue.append(event)

    def _moment(self) -> Moment:
        _merge(self.clock, self.device.host)
        self.clock[self.name] = self.clock.get(self.name, 0) + 1
        return Moment(self.name, dict(self.clock))

    @property
    def can_run(self) -> bool:
        while self.queue and isinstance(self.queue[0], RacyEvent) and self.queue[0].has_happened:
            self.queue.pop(0)
        return bool(self.queue) and not isinstance(self.queue[0], RacyEvent)


@dataclass(eq=False)
class RacyDevice:
    """Streams, the host beside them, and all that they have accessed."""

    random: Random = field(default_factory=lambda: Random(0))
    streams: list[RacyStream] = field(default_factory=list)
    host: Clock = field(default_factory=lambda: {HOST: 1})
    race: RaceError | None = None
    """The first that was found; work may swallow what it raises, so whoever drives the device must look."""
    watched: list[torch.Tensor] = field(default_factory=list)
    """Tensors whose memory matters: other memory is taken and left at any time."""
    _now: Moment | None = None
    """Work that runs; None while the host does."""
    _is_watching: bool = False
    _things: dict[Hashable, list[_Access]] = field(default_factory=dict)
    _memory: list[tuple[int, int, _Access]] = field(default_factory=list)

    def stream(self, name: str) -> RacyStream:
        self.streams.append(RacyStream(self, name))
        return self.streams[-1]

    def run_some(self, count: int) -> bool:
        """Run so much of what may run; tells whether there was anything."""
        for _ in range(count):
            streams = [stream for stream in self.streams if stream.can_run]
            if not streams:
                return False
            entry = self.random.choice(streams).queue.pop(0)
            assert not isinstance(entry, RacyEvent)
            moment, work = entry
            with self._at(moment):
                work()
        return True

    def wait_for(self, event: RacyEvent) -> None:
        """Let the host wait."""
        while not event.has_happened:
            assert self.run_some(1), "streams wait for each other"
        _merge(self.host, event.clock)

    def finish(self) -> None:
        while self.run_some(1):
            pass
        assert not any(stream.queue for stream in self.streams), "streams wait for each other"

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """What the host accesses itself."""
        self.host[HOST] += 1
        with self._at(None):
            yield

    @contextmanager
    def _at(self, moment: Moment | None) -> Iterator[None]:
        before, self._now = self._now, moment
        was_watching, self._is_watching = self._is_watching, bool(self.watched)
        try:
            with _Watching(self) if self._is_watching and not was_watching else nullcontext():
                yield
        finally:
            self._now, self._is_watching = before, was_watching

    def _access(self, what: str, *, is_write: bool) -> _Access:
        return _Access(self._now or Moment(HOST, dict(self.host)), is_write, what)

    def touch(self, thing: Hashable, what: str, *, is_write: bool) -> None:
        """Note an access to something that is not a tensor."""
        access = self._access(what, is_write=is_write)
        accesses = self._things.setdefault(thing, [])
        for other in accesses:
            self._compare(other, access, str(thing))
        self._things[thing] = [other for other in accesses if not _replaces(access, other)] + [access]

    def touch_memory(self, begin: int, end: int, what: str, *, is_write: bool) -> None:
        """Note an access to memory, where it is watched."""
        ranges = ((tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in self.watched)
        if not any(low < end and begin < high for low, high in ranges):
            return
        access = self._access(what, is_write=is_write)
        kept = []
        for low, high, other in self._memory:
            if low < end and begin < high:
                self._compare(other, access, f"memory at {begin:#x}")
                if begin <= low and high <= end and _replaces(access, other):
                    continue
            kept.append((low, high, other))
        self._memory = [*kept, (begin, end, access)]

    def _compare(self, first: _Access, second: _Access, where: str) -> None:
        if not (first.is_write or second.is_write):
            return
        if not (first.moment.is_before(second.moment) or second.moment.is_before(first.moment)):
            race = RaceError(f"{where}: {_told(first)} and {_told(second)} are in no order")
            self.race = self.race or race
            raise race


def _replaces(access: _Access, other: _Access) -> bool:
    """True if whatever races with the other access races with this one as well."""
    return other.moment.is_before(access.moment) and (access.is_write or not other.is_write)


def _told(access: _Access) -> str:
    return f"{access.moment.actor} {'writes' if access.is_write else 'reads'} ({access.what})"


class _Watching(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the memory that each operator of torch reads and writes."""

    def __init__(self, device: RacyDevice) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        found = func(*args, **(kwargs or {}))
        if not is_view:
            for argument, value in zip(func._schema.arguments, args, strict=False):
                is_write = argument.alias_info is not None and argument.alias_info.is_write
                for tensor in tree_leaves(value):
                    if isinstance(tensor, torch.Tensor) and tensor.numel():
                        self._touch(tensor, str(func), is_write=is_write)
        return found

    def _touch(self, tensor: torch.Tensor, what: str, *, is_write: bool) -> None:
        """Row by row, where rows lie apart: what is between them is another's."""
        if tensor.dim() and not tensor.is_contiguous():
            for row in tensor.detach().unbind(0):
                self._touch(row, what, is_write=is_write)
            return
        begin = tensor.data_ptr()
        self._device.touch_memory(begin, begin + tensor.nbytes, what, is_write=is_write)
