"""Programs of whole steps: records them after the warm-up, and keeps those that answer like the compiled modules."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import structlog
import torch
from torch import nn

from hotslot.contract.generation import Sampling
from worker_service.engine.limits import EngineLimits
from worker_service.engine.messages import Segment
from worker_service.model.cpu.recording import Recording
from worker_service.model.programs import Programs
from worker_service.model.step_state import StepState

log = structlog.get_logger(__name__)

SCRATCH_BYTES = 256 << 20
"""Address space of the scratch; memory is taken for what programs use of it."""
MAX_TOKENS = 32
"""Larger steps take so long that what stands between their kernels does not count, and recording them would."""
FIRST_SLOT = ((0, 1.0),)
"""The slot is empty at the start, so turning it on changes nothing."""


class StepPrograms:
    """Programs of a model's layers and of its head."""

    def __init__(self, layers: Sequence[nn.Module], head: nn.Module, step: StepState, longest_segment: int) -> None:
        """All modules are compiled already; attention in programs computes segments of `longest_segment` at most."""
        scratch = torch.empty(SCRATCH_BYTES, dtype=torch.uint8)
        self._layers = Programs("layers", layers, step, scratch)
        self._head = Programs("head", [head], step, scratch)
        self._longest_segment = longest_segment
        self._is_on = True

    def num_runs(self) -> int:
        """Calls of the first layer that computed all layers."""
        return self._layers.num_runs

    @property
    def num_recorded(self) -> int:
        """Kinds of steps whose layers have a program."""
        return len(self._layers.keys)

    def begin_step(self, segments: Sequence[Segment]) -> None:
        """Decide how the next step is computed."""
        self._head.enabled = self._is_on
        self._layers.enabled = self._is_on and all(len(s.token_ids) <= self._longest_segment for s in segments)

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Compute steps by the modules as they are, compiled or not."""
        self._is_on = False
        try:
            yield
        finally:
            self._is_on = True

    def record(
        self,
        logits: Callable[[Sequence[Segment]], torch.Tensor],
        token_buckets: Sequence[int],
        limits: EngineLimits,
        num_embeddings: int,
    ) -> None:
        """Record one step of each kind; what then does not answer another step to the bit is forgotten."""
        draws = random.Random(7)

        def step_of(num_tokens: int, gates: tuple[tuple[int, float], ...]) -> list[Segment]:
            counts = _shares(num_tokens, min(num_tokens, limits.max_running))
            first_block, segments = 0, []
            for count in counts:
                blocks = tuple(range(first_block, first_block + limits.blocks_for(count)))
                first_block += len(blocks)
                tokens = tuple(draws.randrange(num_embeddings) for _ in range(count))
                segments.append(Segment(tokens, 0, blocks, gates, Sampling()))
            return segments

        kinds = [(n, gates) for n in token_buckets if n <= MAX_TOKENS for gates in ((), FIRST_SLOT)]
        with Recording().installed() as recording:
            for num_tokens, gates in kinds:
                segments = step_of(num_tokens, gates)
                if max(len(segment.token_ids) for segment in segments) > self._longest_segment:
                    continue
                with (
                    self._layers.recording(recording, (num_tokens, bool(gates))),
                    self._head.recording(recording, (len(segments), bool(gates))),
                ):
                    logits(segments)
        for num_tokens, gates in kinds:
            segments = step_of(num_tokens, gates)
            found_RV = logits(segments)[: len(segments)].clone()
            with self.set_aside():
                expected_RV = logits(segments)[: len(segments)]
            if not torch.equal(found_RV, expected_RV):
                log.warning(
                    "step_recorded_wrong", tokens=num_tokens, with_adapters=bool(gates), why="its logits differ"
                )
                self._layers.forget((num_tokens, bool(gates)))
                self._head.forget((len(segments), bool(gates)))


def _shares(total: int, parts: int) -> list[int]:
    """As many parts as equal as can be."""
    return [total // parts + (index < total % parts) for index in range(parts)]
