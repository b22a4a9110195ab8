"""`python -m tools.bench.engine_turns`: CPU time of the engine's thread for a decoding step, without a model's."""

import sys
import time
from collections.abc import Iterator, Sequence

from hotslot.contract.generation import Sampling
from worker_service.engine.core import EngineCore
from worker_service.engine.graph_counts import NO_GRAPHS
from worker_service.engine.limits import EngineLimits
from worker_service.engine.messages import (
    AdapterWeights,
    Computed,
    SampledToken,
    Segment,
    SequenceId,
    SliceState,
    StopRules,
    Submit,
)

ROWS = 8
WARM_TURNS, TURNS = 2, 300
ROUNDS = 12
"""The best one counts: the others had a core less."""
LIMITS = EngineLimits(
    num_slots=8, slot_rank=16, max_running=ROWS, max_waiting=64, num_blocks=1024, block_tokens=16,
    max_step_tokens=64, max_sequence_tokens=1000,
)  # fmt: skip


class NoModel:
    """A ModelRunner at depth 0 that computes nothing."""

    depth = 0
    recompiles = 0
    graphs = NO_GRAPHS

    def __init__(self) -> None:
        self._launched: list[list[Computed]] = []

    def write_slots(self, slots: Sequence[int], weights: AdapterWeights) -> Iterator[SliceState]:
        """Nothing has to be copied."""
        return iter(())

    def run(self, segments: Sequence[Segment]) -> list[Computed]:
        """The same token for each row."""
        return [Computed(SampledToken(5) if each.sampling is not None else None) for each in segments]

    def launch(self, segments: Sequence[Segment]) -> None:
        """As `TorchRunner` on CPU."""
        self._launched.append(self.run(segments))

    def collect(self) -> list[Computed]:
        """Results of the first step that was not collected yet."""
        return self._launched.pop(0)


def step_us() -> float:
    """Microseconds of a step, over TURNS of them."""
    core = EngineCore(NoModel(), LIMITS, lambda: 0.0)
    for number in range(ROWS):
        stop = StopRules(WARM_TURNS + TURNS + 1)
        core.handle(Submit(SequenceId(number + 1), (3, 4, number + 5), (), Sampling(), stop, arrival_s=0.0))
    for _ in range(WARM_TURNS):
        core.turn()
    began_s = time.thread_time()
    for _ in range(TURNS):
        core.turn()
    return (time.thread_time() - began_s) / TURNS * 1e6


def main() -> int:
    """Prints the least of ROUNDS."""
    print(f"{ROWS} rows: {min(step_us() for _ in range(ROUNDS)):.1f} µs a step")
    return 0


if __name__ == "__main__":
    sys.exit(main())
