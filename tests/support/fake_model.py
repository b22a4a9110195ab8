"""A ModelRunner without a model: its tokens depend on everything that must be right, so that any mix-up shows."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from shared.ids import Digest
from worker_service.engine.limits import EngineLimits
from worker_service.engine.messages import AdapterWeights, SampledToken, Segment

VOCABULARY = 50


@dataclass(frozen=True, slots=True)
class FakeAdapter:
    """An AdapterWeights that holds nothing."""

    digest: Digest
    max_rank: int = 4
    size_bytes: int = 1000
    broken: bool = False
    """Copying it fails half-way."""


def next_token(token_ids: Sequence[int], mix: Sequence[tuple[Digest, float]]) -> int:
    """What the fake model answers after these tokens with these adapters."""
    text = repr((tuple(token_ids), sorted(mix)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) % VOCABULARY


@dataclass
class FakeRunner:
    """Keeps slots and a KV cache of its own and asserts that every step finds in them what it should.

    A cache position holds (token, mix) as the step that computed it saw them.
    """

    limits: EngineLimits
    recompiles: int = 0
    slots: dict[int, tuple[Digest, int, int]] = field(default_factory=dict)
    """Slot → (digest, which part of the adapter, number of parts)."""
    cache: dict[int, tuple[int, tuple[tuple[Digest, float], ...]]] = field(default_factory=dict)
    steps: list[list[Segment]] = field(default_factory=list)
    fail_next_step: bool = False

    def write_slots(self, slots: Sequence[int], weights: AdapterWeights) -> Iterator[None]:
        for part, slot in enumerate(slots):
            self.slots.pop(slot, None)
            yield
            if getattr(weights, "broken", False):
                raise RuntimeError("the copy broke")
            self.slots[slot] = (weights.digest, part, len(slots))

    def run(self, segments: Sequence[Segment]) -> list[SampledToken | None]:
        assert len(segments) <= self.limits.max_running
        assert sum(len(s.token_ids) for s in segments) <= self.limits.max_step_tokens
        if self.fail_next_step:
            self.fail_next_step = False
            raise RuntimeError("the step broke")
        self.steps.append(list(segments))
        used = [block for s in segments for block in s.block_table]
        assert len(used) == len(set(used)), "two sequences share a block"
        return [self._compute(segment) for segment in segments]

    def _compute(self, segment: Segment) -> SampledToken | None:
        mix = self._mix(segment)
        end = segment.start + len(segment.token_ids)
        history = list(segment.history[:end])
        assert history[segment.start :] == list(segment.token_ids)
        for position in range(segment.start, end):
            self.cache[self._place(segment, position)] = (history[position], mix)
        for position in range(end):
            found = self.cache.get(self._place(segment, position))
            assert found == (history[position], mix), f"position {position} of the cache holds {found}"
        return SampledToken(next_token(history, mix)) if segment.sampling is not None else None

    def _place(self, segment: Segment, position: int) -> int:
        block, offset = divmod(position, self.limits.block_tokens)
        assert segment.block_table[block] < self.limits.num_blocks
        return segment.block_table[block] * self.limits.block_tokens + offset

    def _mix(self, segment: Segment) -> tuple[tuple[Digest, float], ...]:
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
