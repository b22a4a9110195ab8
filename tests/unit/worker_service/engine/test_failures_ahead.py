"""One step ahead, each launch and each step may fail, at whatever moment sequences end, are cancelled or give way.

The schedules are enumerated, so that each decision about what was launched is met with what could go wrong at it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from random import Random

import pytest

from hotslot.contract.generation import Sampling
from tests.support.engine_bench import adapter, expected, small_limits
from tests.support.fake_model import FakeAdapter, FakeRunner
from tests.support.stream_runner import StreamRunner
from worker_service.engine.core import EngineCore
from worker_service.engine.messages import (
    AdapterUse,
    Cancel,
    Computed,
    Segment,
    SequenceFailed,
    SequenceFinished,
    SequenceId,
    StopRules,
    Submit,
    TokenReady,
)

MOST_TURNS = 200
NUM_SCHEDULES = 60
"""With a cancelled sequence, of each workload, taken evenly from all that there are."""
FAIL_AT = range(18)
CANCEL_AT = (1, 2, 3, 5, 7, 9)


@dataclass(frozen=True)
class Asked:
    """One sequence."""

    prompt: tuple[int, ...]
    max_tokens: int
    uses: tuple[FakeAdapter, ...] = ()
    stop_at: int | None = None
    """Index of the answer's token that ends it; the host knows that one step late."""
    sampling: Sampling = Sampling()  # noqa: RUF009 (frozen)
    after_turns: int = 0

    @property
    def answer(self) -> list[int]:
        tokens = expected(self.prompt, self.max_tokens, *self.uses)
        return tokens if self.stop_at is None else tokens[: self.stop_at + 1]

    def submit(self, number: int) -> Submit:
        stops = frozenset() if self.stop_at is None else frozenset({self.answer[-1]})
        uses = tuple(AdapterUse(use, 1.0) for use in self.uses)
        return Submit(SequenceId(number), self.prompt, uses, self.sampling, StopRules(self.max_tokens, 0, stops), 0.0)


def first_seen(prompt: tuple[int, ...], *uses: FakeAdapter) -> int:
    """Index of a token of the answer that was not in it before, some way in."""
    answer = expected(prompt, 8, *uses)
    return next(index for index in range(3, 8) if answer[index] not in answer[:index])


ALIKE = (1, 2, 3, 4, 5)
WORKLOADS = {
    "roomy": (
        Asked((1, 2, 3), 6),
        Asked((4, 5), 8, (adapter(1),), first_seen((4, 5), adapter(1))),
        Asked((6, 7, 8, 9, 10), 5, (adapter(2),)),
    ),
    # Blocks for one and a half of them: rows are taken back while what they computed is on its way.
    "tight": (Asked((1, 2, 3), 11), Asked((4, 5, 6), 12, (adapter(1),)), Asked((7, 8), 12)),
    # The last ones begin as the first one's prompt and answer, some of it computed and some not known to be.
    "alike": (
        Asked(ALIKE, 7),
        Asked((*ALIKE, *expected(ALIKE, 3)), 6, after_turns=4),
        Asked((*ALIKE, *expected(ALIKE, 5), 9), 5, after_turns=6),
    ),
    "with the host": (
        Asked((1, 2, 3), 12),
        Asked((4, 5), 7, (), None, Sampling(logit_bias={3: 0.0}), 4),
        Asked((6, 7), 9),
    ),
}
NUM_BLOCKS = {"roomy": 30, "tight": 12, "alike": 16, "with the host": 30}


class CountedRunner(FakeRunner):
    """Fails its runs of these numbers."""

    fail_at: frozenset[int] = frozenset()

    def run(self, segments: list[Segment]) -> list[Computed]:  # type: ignore[override]
        self.fail_next_step = self.num_runs in self.fail_at
        return super().run(segments)


@dataclass
class Schedule:
    """One run of a workload."""

    workload: str
    fail_runs: frozenset[int] = frozenset()
    fail_launches: frozenset[int] = frozenset()
    cancel: tuple[int, int] | None = None
    """After so many turns, this sequence."""
    seed: int = 0
    eagerness: int = 0
    """Pieces of work that the device does between turns, at most."""
    tokens: dict[int, list[int]] = field(default_factory=dict)
    failed: set[int] = field(default_factory=set)

    def play(self) -> "Schedule":
        limits = small_limits(
            num_blocks=NUM_BLOCKS[self.workload], block_tokens=2, max_running=3, num_slots=2, max_step_tokens=6
        )
        self.model = CountedRunner(limits)
        self.model.fail_at = self.fail_runs
        self.device = StreamRunner(self.model)
        self.device.device.random = random = Random(self.seed)
        self.core = EngineCore(self.device, limits, lambda: 0.0)
        asked = WORKLOADS[self.workload]
        last = max(each.after_turns for each in asked)
        for turn in range(MOST_TURNS):
            for number, each in enumerate(asked):
                if each.after_turns == turn:
                    self.core.handle(each.submit(number))
            if self.core.idle and turn >= last:
                break
            self.device.fail_next_launch = self.device.num_launches in self.fail_launches
            self.take_turn()
            self.device.device.run_some(random.randint(0, self.eagerness))
            if self.cancel is not None and self.cancel[0] == turn:
                self.core.handle(Cancel(SequenceId(self.cancel[1])))
        return self

    def take_turn(self) -> None:
        for event in self.core.turn():
            match event:
                case TokenReady(sequence_id=number, token=token):
                    self.tokens.setdefault(number, []).append(token.token_id)
                case SequenceFailed(sequence_id=number):
                    self.failed.add(number)
                case SequenceFinished():
                    pass

    def check(self) -> None:
        assert self.core.idle, "the engine is never done"
        assert self.model.mix_up is None, self.model.mix_up
        assert self.device.device.race is None, self.device.device.race
        assert len(self.failed) <= self.model.num_broke_alone, "only a step of one sequence ends it"
        cancelled = {self.cancel[1]} if self.cancel is not None else set()
        for number, each in enumerate(WORKLOADS[self.workload]):
            found = self.tokens.get(number, [])
            assert found == each.answer[: len(found)], "a token that is another's, twice, or missing"
            assert found == each.answer or number in self.failed | cancelled
        assert not self.device._launched, "results that are left would be taken for those of the next step"
        assert not self.core._scheduler.kv.blocks.users
        assert self.core.lost is None


def schedules(workload: str) -> Iterator[Schedule]:
    """Every failure and every two that follow each other; some of them with a cancelled sequence."""
    failures: list[tuple[set[int], set[int]]] = [({at}, set()) for at in FAIL_AT] + [(set(), {at}) for at in FAIL_AT]
    failures += [({at, at + apart}, set()) for at in FAIL_AT for apart in (1, 2)]
    alone = [(failure, None, 0) for failure in failures]
    cancelled = Random(1).sample(list(product(failures, product(CANCEL_AT, range(3)), (0, 4))), NUM_SCHEDULES)
    for (runs, launches), cancel, eagerness in [*alone, *cancelled]:
        yield Schedule(workload, frozenset(runs), frozenset(launches), cancel, len(runs) + eagerness, eagerness)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_nothing_that_fails_or_ends_changes_a_token_of_another(workload: str) -> None:
    unbroken = Schedule(workload).play()
    unbroken.check()
    for schedule in schedules(workload):
        schedule.play()
        schedule.check()
        # One that failed, one that was thrown away after it, and the halves, for each; the rest is what gave way.
        num_failures = len(schedule.fail_runs) + len(schedule.fail_launches)
        assert schedule.model.num_runs <= unbroken.model.num_runs + 9 * num_failures


def test_workloads_meet_what_they_are_for() -> None:
    tight = Schedule("tight").play()
    assert tight.core._scheduler.num_preemptions > 0
    assert tight.device.num_fed > 0
    assert Schedule("alike").play().core._scheduler.kv.hit_tokens > 0
    host = Schedule("with the host").play()
    assert 0 < host.device.num_fed < sum(map(len, host.tokens.values()))
