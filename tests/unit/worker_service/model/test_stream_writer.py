"""Adapters are copied beside the steps, in whatever order a device runs: no step sees half of one, none another's."""

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random

import pytest
import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from torch import nn

from hotslot.ids import Digest
from tests.support.races import RaceError, RacyDevice, RacyEvent
from worker_service.engine.messages import SliceState
from worker_service.model.slot_linear import SlotLinear
from worker_service.model.slot_writer import SlotWriter
from worker_service.model.step_state import StepState
from worker_service.model.stream_writer import StreamWriter
from worker_service.model.streams import DeviceStream, SlotReads, StreamEvent
from worker_service.model.weights import HostAdapter, HostModule
from worker_service.pinned_arena import PIECE_BYTES, PinnedArena

SHAPES = {"q": (6, 5), "down": (4, 7)}
NUM_SLOTS, SLOT_RANK, MAX_RANK = 4, 2, 4
MOST_AHEAD = 2
"""Steps whose results the host does not know yet: the one that runs and the one after it."""


@dataclass
class Placed:
    """An adapter in slots, or on its way there."""

    slots: tuple[int, ...]
    wanted: list[torch.Tensor]
    """Contents of each slot: scaling, ones, A and B of each module that is on; copies, which nothing else writes to."""
    copy: Iterator[SliceState] | None


@dataclass
class CopyBench:
    """Two modules with slots on a device of streams."""

    device: RacyDevice = field(default_factory=RacyDevice)
    reads_type: type[SlotReads] = SlotReads
    writer_type: type[StreamWriter] = StreamWriter

    def __post_init__(self) -> None:
        self.steps, self.copies = self.device.stream("steps"), self.device.stream("copies")
        step = StepState.allocate(
            max_tokens=1, num_slots=NUM_SLOTS, max_segments=1, max_blocks=1, device=torch.device("cpu")
        )
        scales, ones = torch.zeros(len(SHAPES), NUM_SLOTS), torch.zeros(len(SHAPES), NUM_SLOTS, SLOT_RANK)
        self.modules = {
            path: SlotLinear(nn.Linear(*shape), scales[index], ones[index], step, step.gates_TS)
            for index, (path, shape) in enumerate(SHAPES.items())
        }
        self.slot_writer = SlotWriter(self.modules, scales, ones, has_kernels=False)
        self.reads = self.reads_type(self.steps)
        staging = torch.empty((MAX_RANK + 1) * self.slot_writer.feature_sum)
        self.writer = self.writer_type(self.slot_writer, self.reads, self.copies, staging, pins_memory=False)
        self.arena = PinnedArena(3 * PIECE_BYTES, lambda address, size: None)
        memory = torch.frombuffer(self.arena._block, dtype=torch.uint8)
        slots = [tensor for module in self.modules.values() for tensor in (module.a_CI, module.b_CO)]
        table = (self.writer._table_PMK, self.writer._staged_table_PMK)
        self.device.watched = [memory, staging, scales, ones, *slots, *table]

    def adapter(self, number: int, ranks: dict[str, int], *, is_biased: bool, is_apart: bool) -> HostAdapter:
        """One in the arena, whose values tell it from all others."""
        sizes = {path: rank * sum(SHAPES[path]) for path, rank in ranks.items()}
        memory = torch.frombuffer(self.arena.take(4 * sum(sizes.values())), dtype=torch.float32)
        modules, end = {}, 0
        with self.device.at_once():
            for path, rank in ranks.items():
                pair = []
                for features in SHAPES[path]:
                    begin, end = end, end + rank * features
                    pair.append(memory[begin:end].view(rank, features))
                    pair[-1].copy_(torch.arange(rank * features).view(rank, features) + 100.0 * (number + 1))
                modules[path] = HostModule(pair[0], pair[1], 1.0 + number, is_biased)
        digest = Digest(f"sha256:{number:064x}")
        return HostAdapter(digest, max(ranks.values()), memory.nbytes, modules, None if is_apart else memory)

    def wanted(self, adapter: HostAdapter, num_slots: int) -> list[torch.Tensor]:
        """What its slots must hold, by the definition of slots."""
        found = []
        for part in range(num_slots):
            first, values = part * SLOT_RANK, []
            for path, shape in SHAPES.items():
                module = adapter.modules.get(path)
                rows = 0 if module is None else min(max(module.num_ranks - first, 0), SLOT_RANK)
                values.append(torch.tensor([module.scaling if module is not None and rows else 0.0]))
                ones = torch.zeros(SLOT_RANK)
                if module is not None and module.has_bias and first <= module.num_ranks - 1 < first + SLOT_RANK:
                    ones[module.num_ranks - 1 - first] = 1.0
                values.append(ones)
                for index, features in enumerate(shape):
                    whole = torch.zeros(SLOT_RANK, features)
                    if module is not None:
                        whole[:rows] = (module.a_RI, module.b_RO)[index][first : first + rows]
                    values.append(whole.flatten() if rows else torch.tensor([]))
            found.append(torch.cat(values))
        return found

    def found(self, slot: int) -> torch.Tensor:
        """What a slot holds; of modules that its adapter does not target, that they are off."""
        values = []
        for index, module in enumerate(self.modules.values()):
            values += [self.slot_writer.scales_MS[index, slot : slot + 1], self.slot_writer.ones_MSK[index, slot]]
            if values[-2].item():
                values += [tensor.flatten() for tensor in module.slot(slot)]
        return torch.cat([value.clone() for value in values])


class CopiesMachine(RuleBasedStateMachine):
    """Copies, steps that read slots, evictions, and adapters that end, in any order."""

    bench_type: Callable[[], CopyBench] = CopyBench

    def __init__(self) -> None:
        super().__init__()
        self.bench = self.bench_type()
        self.placed: list[Placed] = []
        self.launched: list[RacyEvent] = []
        self.wrong: list[str] = []
        self.number = 0

    @property
    def ready(self) -> list[Placed]:
        return [placed for placed in self.placed if placed.copy is None]

    @property
    def under_way(self) -> Placed | None:
        return next((placed for placed in self.placed if placed.copy is not None), None)

    @precondition(lambda self: self.under_way is None)
    @rule(
        ranks=st.dictionaries(st.sampled_from(sorted(SHAPES)), st.integers(1, MAX_RANK), min_size=1),
        is_biased=st.booleans(),
        is_apart=st.sampled_from([False, False, True]),
        first=st.integers(0, NUM_SLOTS - 2),
    )
    def place(self, ranks: dict[str, int], is_biased: bool, is_apart: bool, first: int) -> None:
        """An adapter takes slots; those that were there leave, as nothing new uses them."""
        gc.collect(0)
        self.number += 1
        adapter = self.bench.adapter(self.number, ranks, is_biased=is_biased, is_apart=is_apart)
        slots = tuple(range(first, first - (-max(ranks.values()) // SLOT_RANK)))
        self.placed = [placed for placed in self.placed if not set(slots) & set(placed.slots)]
        copy = self.bench.writer.write(slots, adapter)
        self.placed.append(Placed(slots, self.bench.wanted(adapter, len(slots)), copy))

    @precondition(lambda self: self.under_way is not None)
    @rule(times=st.integers(1, 6))
    def advance(self, times: int) -> None:
        for _ in range(times):
            placed = self.under_way
            if placed is None:
                return
            assert placed.copy is not None
            with self.bench.device.at_once():
                try:
                    next(placed.copy)
                except StopIteration:
                    placed.copy = None

    @precondition(lambda self: self.under_way is not None)
    @rule()
    def give_up(self) -> None:
        """The sequence that waited for it has ended, or its copy failed: its slots are free, its memory is let go."""
        placed = self.under_way
        assert placed is not None
        self.placed.remove(placed)

    @precondition(lambda self: self.under_way is not None)
    @rule()
    def fail(self) -> None:
        """What is given to the copies' stream fails from now on, half-way."""
        placed = self.under_way
        assert placed is not None
        assert placed.copy is not None
        before_copy, self.bench.reads.before_copy = self.bench.reads.before_copy, _broken  # type: ignore[method-assign]
        with suppress(RuntimeError), self.bench.device.at_once():
            next(placed.copy, None)
        self.bench.reads.before_copy = before_copy  # type: ignore[method-assign]
        self.placed.remove(placed)

    @precondition(lambda self: self.ready and len(self.launched) < MOST_AHEAD)
    @rule(data=st.data())
    def launch(self, data: st.DataObject) -> None:
        self.launch_with(data.draw(st.lists(st.sampled_from(self.ready), min_size=1, unique_by=id)))

    def launch_with(self, on: list[Placed]) -> None:
        checks = [pair for each in on for pair in zip(each.slots, each.wanted, strict=True)]

        def step() -> None:
            for slot, wanted in checks:
                found = self.bench.found(slot)
                if not torch.equal(found, wanted):
                    self.wrong.append(f"slot {slot}: {found} for {wanted}")

        with self.bench.device.at_once():
            self.bench.steps.give(step)
            self.bench.reads.launched([slot for slot, _ in checks])
        self.launched.append(self.bench.steps.record_event())

    @precondition(lambda self: self.launched)
    @rule()
    def collect(self) -> None:
        self.bench.device.wait_for(self.launched.pop(0))

    @rule(count=st.integers(1, 6), seed=st.integers(0, 7))
    def let_the_device_run(self, count: int, seed: int) -> None:
        self.bench.device.random = Random(seed)
        self.bench.device.run_some(count)

    def check(self) -> None:
        if self.bench.device.race is not None:
            raise self.bench.device.race
        assert not self.wrong, self.wrong

    def teardown(self) -> None:
        with suppress(AssertionError):
            self.bench.device.finish()
        self.check()
        assert self.bench.writer._is_done()
        self.placed.clear()
        gc.collect(0)
        assert self.bench.arena.free_bytes == self.bench.arena.size_bytes, "the arena gets all of its memory back"


def _broken(copies: DeviceStream, slots: object) -> None:
    raise RuntimeError("the scatter broke")


SETTINGS = settings(max_examples=25, stateful_step_count=30, deadline=None, print_blob=True)
TestCopiesMachine = CopiesMachine.TestCase
TestCopiesMachine.settings = SETTINGS


class ForgetsReads(SlotReads):
    """Copies wait for no step."""

    def before_copy(self, copies: DeviceStream, slots: Iterable[int]) -> None:
        pass


class RecordsEarly(SlotReads):
    """Its event is of the step before."""

    before: StreamEvent | None = None

    def launched(self, slots: Iterable[int]) -> None:
        if self.before is not None:
            self._last.update(dict.fromkeys(slots, self.before))
        self.before = self._steps.record_event()


class ForgetsOneSlot(SlotReads):
    """Copies wait for the steps that read the first of their slots."""

    def before_copy(self, copies: DeviceStream, slots: Iterable[int]) -> None:
        super().before_copy(copies, tuple(slots)[:1])


class ForgetsMemory(StreamWriter):
    """Lets go of an adapter's memory as soon as its copy was given."""

    event: StreamEvent | None = None

    def _is_done(self) -> bool:
        if self._under_way:
            self.event = self._under_way[-1][0]
            self._under_way.clear()
        return self.event is None or self.event.query()


class IsReadyEarly(StreamWriter):
    """Says that an adapter is there when its copy was given, and writes over its own table."""

    def _is_done(self) -> bool:
        super()._is_done()
        return True


def play(machine: CopiesMachine) -> None:
    """Two adapters, a step of each on its way, and a third one that takes the slots of both."""
    for first in range(2):
        machine.place({"q": 1}, is_biased=False, is_apart=False, first=first)
        while machine.under_way is not None:
            machine.let_the_device_run(6, seed=0)
            machine.advance(1)
    for placed in tuple(machine.placed):
        machine.launch_with([placed])
    machine.place({"q": 3}, is_biased=False, is_apart=False, first=0)
    machine.advance(6)


@pytest.mark.parametrize("reads_type", [ForgetsReads, RecordsEarly, ForgetsOneSlot])
def test_a_copy_that_does_not_wait_for_every_step_of_its_slots_is_found(reads_type: type[SlotReads]) -> None:
    machines = [CopiesMachine(), CopiesMachine()]
    machines[1].bench = CopyBench(reads_type=reads_type)
    for machine in machines:
        play(machine)
    machines[0].teardown()
    with pytest.raises(RaceError):
        machines[1].teardown()


@pytest.mark.parametrize("writer_type", [ForgetsMemory, IsReadyEarly])
def test_memory_that_is_used_again_before_its_copy_is_done_is_found(writer_type: type[StreamWriter]) -> None:
    class BrokenMachine(CopiesMachine):
        @staticmethod
        def bench_type() -> CopyBench:
            return CopyBench(writer_type=writer_type)

    attempts = settings(SETTINGS, max_examples=100, phases=[Phase.generate], derandomize=True)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(BrokenMachine, settings=attempts)
