"""Programs of whole steps: records them after the warm-up, and keeps those that answer like the compiled modules."""

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import structlog
import torch
from torch import nn

from hotslot.contract.generation import Sampling
from worker_service.engine.limits import EngineLimits
from worker_service.engine.messages import Segment
from worker_service.model.buckets import bucket_for
from worker_service.model.cpu.recording import Recording
from worker_service.model.kept_programs import Libraries, bound, kept
from worker_service.model.programs import Programs
from worker_service.model.step_state import StepState

log = structlog.get_logger(__name__)

SCRATCH_BYTES = 256 << 20
"""Address space of the scratch; memory is taken for what programs use of it."""
MAX_TOKENS = 512
"""Recording larger steps would take long. A program serves a step faster by what stands between its kernels, and spares
the next start from compiling it."""
Gates = tuple[tuple[int, float], ...]
StepKind = tuple[int, Gates]
Logits = Callable[[Sequence[Segment]], torch.Tensor]
FIRST_SLOT: Gates = ((0, 1.0),)


class StepPrograms:
    """Programs of a model's layers and of its head."""

    def __init__(self, layers: Sequence[nn.Module], head: nn.Module, step: StepState, longest_segment: int) -> None:
        """All modules are compiled already; attention in programs computes segments of `longest_segment` at most."""
        scratch = torch.empty(SCRATCH_BYTES, dtype=torch.uint8)
        self._layers = Programs("layers", layers, step, scratch)
        self._head = Programs("head", [head], step, scratch)
        self._longest_segment = longest_segment
        self._is_on = True
        self.num_whole_runs = 0
        """Programs of layers that ran without a call of the first layer."""
        self.age = 0
        """Times that programs were recorded or bound; calls of those before are not made any more."""

    def num_runs(self) -> int:
        """Steps whose layers were computed by one program."""
        return self._layers.num_runs + self.num_whole_runs

    @property
    def num_recorded(self) -> int:
        """Kinds of steps whose layers have a program."""
        return len(self._layers.keys)

    @property
    def compute_layers(self) -> bool:
        """True if programs compute the layers of the step that was begun, where it is of a kind that has one."""
        return self._layers.enabled

    def have(self, num_tokens: int, num_rows: int, *, with_adapters: bool) -> bool:
        """Tell whether layers and head of a kind of step have programs."""
        has_head = (num_rows, with_adapters) in self._head.programs
        return has_head and (num_tokens, with_adapters) in self._layers.programs

    def tensors(self) -> list[torch.Tensor]:
        """All programs, as they are handed to the kernels, and their scratch."""
        return [*self._layers.tensors(), *self._head.tensors()]

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
        logits: Logits,
        token_buckets: Sequence[int],
        limits: EngineLimits,
        num_embeddings: int,
    ) -> dict[str, str]:
        """Record one step of each kind; what then does not answer another step to the bit is forgotten.

        Returns the digests of what the compiled modules answer to these other steps.
        """
        self.age += 1
        steps = _Steps(token_buckets, limits, num_embeddings, random.Random(7))
        with Recording().installed() as recording:
            for num_tokens, gates in steps.kinds:
                segments = steps.step_of(num_tokens, gates)
                if max(len(segment.token_ids) for segment in segments) > self._longest_segment:
                    continue
                with (
                    self._layers.recording(recording, (num_tokens, bool(gates))),
                    self._head.recording(recording, (bucket_for(token_buckets, len(segments)), bool(gates))),
                ):
                    logits(segments)
        answers: dict[str, str] = {}
        for (num_tokens, gates), segments in _compared(token_buckets, limits, num_embeddings):
            found_RV = logits(segments)[: len(segments)].clone()
            with self.set_aside():
                expected_RV = logits(segments)[: len(segments)]
            answers[_name(num_tokens, gates)] = digest_of_logits(expected_RV)
            if not torch.equal(found_RV, expected_RV):
                log.warning(
                    "step_recorded_wrong", tokens=num_tokens, with_adapters=bool(gates), why="its logits differ"
                )
                self._layers.forget((num_tokens, bool(gates)))
                self._head.forget((bucket_for(token_buckets, len(segments)), bool(gates)))
        return answers

    def compared(
        self, token_buckets: Sequence[int], limits: EngineLimits, num_embeddings: int
    ) -> Iterator[list[Segment]]:
        """Steps that `record` compares and `answers` answers."""
        return (segments for _, segments in _compared(token_buckets, limits, num_embeddings))

    def answers(
        self, logits: Logits, token_buckets: Sequence[int], limits: EngineLimits, num_embeddings: int
    ) -> dict[str, str]:
        """Digests of what is answered to the steps that `record` compares, by programs where there are any."""
        return {
            _name(num_tokens, gates): digest_of_logits(logits(segments)[: len(segments)])
            for (num_tokens, gates), segments in _compared(token_buckets, limits, num_embeddings)
        }

    def kept(self, libraries: Libraries) -> dict[str, Any]:
        """Form of all programs that outlives the process; raises ProgramsNotKeptError."""
        return {part.name: kept(part, libraries) for part in (self._layers, self._head)}

    def bind(self, found: Mapping[str, Any], libraries: Libraries) -> None:
        """Have kept programs run in this process; raises ProgramsNotKeptError, and then none does."""
        parts = (self._layers, self._head)
        for part, programs in [(part, bound(found.get(part.name, {}), part, libraries)) for part in parts]:
            part.adopt(programs)
        self.age += 1

    def serves(self, num_tokens: int, *, with_adapters: bool) -> bool:
        """Tell whether programs compute all steps of a bucket, so that its layers need not be compiled."""
        return num_tokens <= self._longest_segment and (num_tokens, with_adapters) in self._layers.programs

    def serves_head(self, num_rows: int) -> bool:
        """Tell whether programs compute the head for a number of rows."""
        return all((num_rows, with_adapters) in self._head.programs for with_adapters in (False, True))


@dataclass(frozen=True, slots=True)
class _Steps:
    """Draws steps of every kind that may have a program."""

    token_buckets: Sequence[int]
    limits: EngineLimits
    num_embeddings: int
    draws: random.Random

    @property
    def kinds(self) -> list[StepKind]:
        return [(n, gates) for n in self.token_buckets if n <= MAX_TOKENS for gates in ((), FIRST_SLOT)]

    def step_of(self, num_tokens: int, gates: Gates) -> list[Segment]:
        limits, draws = self.limits, self.draws
        first_block, segments = 0, []
        for count in tokens_of_rows(num_tokens, limits):
            blocks = tuple(range(first_block, first_block + limits.blocks_for(count)))
            first_block += len(blocks)
            tokens = tuple(draws.randrange(self.num_embeddings) for _ in range(count))
            segments.append(Segment(tokens, 0, blocks, gates, Sampling()))
        return segments


def _compared(
    token_buckets: Sequence[int], limits: EngineLimits, num_embeddings: int
) -> Iterator[tuple[StepKind, list[Segment]]]:
    """Steps in which programs are compared, the same in every process."""
    steps = _Steps(token_buckets, limits, num_embeddings, random.Random(8))
    for kind in steps.kinds:
        yield kind, steps.step_of(*kind)


def digest_of_logits(logits_RV: torch.Tensor) -> str:
    """SHA-256 of the logits' bits."""
    return hashlib.sha256(logits_RV.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def _name(num_tokens: int, gates: Gates) -> str:
    return f"{num_tokens} tokens, {'with adapters' if gates else 'base only'}"


def tokens_of_rows(num_tokens: int, limits: EngineLimits) -> list[int]:
    """Tokens of each row of a step of as many rows as there may be, whose blocks the cache has."""
    num_rows = min(num_tokens, limits.max_running)
    while num_rows > 1 and sum(map(limits.blocks_for, _shares(num_tokens, num_rows))) > limits.num_blocks:
        num_rows -= 1
    return _shares(num_tokens, num_rows)


def _shares(total: int, parts: int) -> list[int]:
    """As many parts as equal as can be."""
    return [total // parts + (index < total % parts) for index in range(parts)]
