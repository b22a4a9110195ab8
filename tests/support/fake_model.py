"""A ModelRunner without a model: its tokens depend on everything that must be right, so that any mix-up shows."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from hotslot.ids import Digest
from tests.support.steps_at_once import StepsAtOnce
from worker_service.engine.graph_counts import NO_GRAPHS, GraphCounts
from worker_service.engine.limits import EngineLimits
from worker_service.engine.messages import AdapterWeights, Computed, SampledToken, Segment

VOCABULARY = 50
POISON = 48
"""Where a runner is told so, a step that computes this token fails."""
NON_FINITE = 49
"""Where a runner is told so, what follows this token has logits that are not finite."""


@dataclass(frozen=True, slots=True)
class FakeAdapter:
    """An AdapterWeights that holds nothing."""

    digest: Digest
    max_rank: int = 4
    size_bytes: int = 1000
    broken: bool = False
    """Copying it fails half-way."""


Mix = tuple[tuple[Digest, float], ...]


@lru_cache(maxsize=2**16)
def state_after(before: bytes, token_id: int, mix: Mix) -> bytes:
    """What computing a token leaves in the cache: it depends on all before it and on the mix."""
    return hashlib.sha256(before + repr((token_id, mix)).encode()).digest()


def token_from(state: bytes) -> int:
    """What the fake model answers in this state."""
    return int.from_bytes(state[:4]) % VOCABULARY


def logprob_from(state: bytes, token_id: int) -> float:
    """How likely the fake model finds a token in this state."""
    return -float(state[5] + token_id)


def states(token_ids: Sequence[int], mix: Sequence[tuple[Digest, float]]) -> list[bytes]:
    """The state after each of these tokens, with these adapters, from nothing."""
    found, state, sorted_mix = [], b"", tuple(sorted(mix))
    for token_id in token_ids:
        state = state_after(state, token_id, sorted_mix)
        found.append(state)
    return found


def next_token(token_ids: Sequence[int], mix: Sequence[tuple[Digest, float]]) -> int:
    """What the fake model answers after these tokens with these adapters."""
    return token_from(states(token_ids, mix)[-1])


@dataclass
class FakeRunner(StepsAtOnce):
    """Keeps slots and a KV cache of its own and asserts that every step finds in them what it should.

    A cache position holds the state after it, as the step that computed it found it: made from the state in the
    position before, so whatever is wrong there shows in every token that follows.
    """

    limits: EngineLimits
    recompiles: int = 0
    graphs: GraphCounts = NO_GRAPHS
    slots: dict[int, tuple[Digest, int, int]] = field(default_factory=dict)
    """Slot → (digest, which part of the adapter, number of parts)."""
    cache: dict[int, bytes] = field(default_factory=dict)
    steps: list[list[Segment]] = field(default_factory=list)
    fail_next_step: bool = False
    num_broke_alone: int = 0
    """Steps of one segment that `fail_next_step` failed, and of whose failure nobody has heard yet."""
    is_fragile: bool = False
    """Whether POISON and NON_FINITE do what they say."""
    is_lost: bool = False
    """Whether every step fails, one of nothing too."""
    lost_by: Exception | None = None
    """What every step raises, where the model is lost and its runner knows."""
    num_runs: int = 0
    """Those that failed included."""
    on_step: Callable[[], None] = lambda: None
    mix_up: AssertionError | None = None
    """What a step found wrong; the engine takes it for a failure of the model, so whoever drives it must look."""

    def write_slots(self, slots: Sequence[int], weights: AdapterWeights) -> Iterator[None]:
        for part, slot in enumerate(slots):
            self.slots.pop(slot, None)
            yield
            if getattr(weights, "broken", False):
                raise RuntimeError("the copy broke")
            self.slots[slot] = (weights.digest, part, len(slots))

    def run(self, segments: Sequence[Segment]) -> list[Computed]:
        self.num_runs += 1
        self._check_room(segments)
        if self.fail_next_step:
            self.fail_next_step = False
            self.num_broke_alone += len(segments) == 1
            raise RuntimeError("the step broke")
        if self.lost_by is not None:
            raise self.lost_by
        if self.is_lost:
            raise RuntimeError("the device is gone")
        if self.is_fragile:
            self._break(segments)
        self.steps.append(list(segments))
        self.on_step()
        try:
            return self._run(segments)
        except AssertionError as exc:
            self.mix_up = exc
            raise

    def _check_room(self, segments: Sequence[Segment]) -> None:
        """A device writes wherever a table says, whether the step fails or not."""
        for segment in segments:
            num_needed = self.limits.blocks_for(segment.start + len(segment.token_ids))
            if len(segment.block_table) < num_needed:
                self.mix_up = AssertionError(f"{len(segment.block_table)} blocks for a segment of {num_needed}")
                raise self.mix_up

    def _run(self, segments: Sequence[Segment]) -> list[Computed]:
        assert len(segments) <= self.limits.max_running
        assert sum(len(s.token_ids) for s in segments) <= self.limits.max_step_tokens
        written = [p for s in segments for p in self._places(s)[s.start :]]
        read = [p for s in segments for p in self._places(s)[: s.start]]
        assert len(written) == len(set(written)), "two sequences write to one position"
        assert not set(written) & set(read), "a sequence writes to what another one reads"
        return [self._compute(segment) for segment in segments]

    def _break(self, segments: Sequence[Segment]) -> None:
        """Fail half-way where a segment is poisoned: what all of them write is there in part, and wrong."""
        if any(POISON in segment.token_ids for segment in segments):
            for number, segment in enumerate(segments):
                for place in self._places(segment)[segment.start :: 2]:
                    self.cache[place] = b"half-way %d" % number
            raise RuntimeError("a segment broke the step")

    def _compute(self, segment: Segment) -> Computed:
        mix = self._mix(segment)
        places = self._places(segment)
        history = list(segment.history[: len(places)])
        assert history[segment.start :] == list(segment.token_ids)
        state = self.cache[places[segment.start - 1]] if segment.start else b""
        fresh = []
        for token_id, place in zip(segment.token_ids, places[segment.start :], strict=True):
            state = self.cache[place] = state_after(state, token_id, mix)
            fresh.append(state)
        expected = states(history, mix)
        for position, place in enumerate(places):
            assert self.cache.get(place) == expected[position], f"position {position} of the cache is another's"
        scoring = segment.scoring.token_ids if segment.scoring is not None else ()
        if self.is_fragile and NON_FINITE in history and (scoring or segment.sampling is not None):
            return Computed(is_finite=False)
        scores = tuple(SampledToken(t, logprob_from(s, t)) for t, s in zip(scoring, fresh, strict=False))
        return Computed(SampledToken(token_from(state)) if segment.sampling is not None else None, scores)

    def _places(self, segment: Segment) -> list[int]:
        return [self._place(segment, position) for position in range(segment.start + len(segment.token_ids))]

    def _place(self, segment: Segment, position: int) -> int:
        block, offset = divmod(position, self.limits.block_tokens)
        assert segment.block_table[block] < self.limits.num_blocks
        return segment.block_table[block] * self.limits.block_tokens + offset

    def _mix(self, segment: Segment) -> Mix:
        """The adapters whose slots are on; all parts of each, with one weight."""
        found: dict[Digest, list[tuple[int, int, float]]] = {}
        for slot, weight in segment.gates:
            digest, part, count = self.slots[slot]
            found.setdefault(digest, []).append((part, count, weight))
        mix = []
        for digest, parts in found.items():
            weights = {weight for _, _, weight in parts}
            assert sorted(part for part, _, _ in parts) == list(range(parts[0][1])), "a part is missing or twice"
            assert len(weights) == 1
            mix.append((digest, weights.pop()))
        return tuple(sorted(mix))
