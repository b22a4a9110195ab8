"""Calls of whole forwards, for the kinds of steps whose layers and head have programs: noted, audited and compared."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import structlog
import torch

from hotslot.contract.generation import Sampling
from worker_service.engine.limits import EngineLimits
from worker_service.engine.messages import Segment
from worker_service.model.capture_audit import audit
from worker_service.model.cpu.recorder import NotRecordableError
from worker_service.model.forward_calls import ForwardCalls, noted
from worker_service.model.position_tables import PositionTables
from worker_service.model.step_programs import FIRST_SLOT, Gates, StepPrograms, tokens_of_rows

log = structlog.get_logger(__name__)

MAX_TOKENS = 32
"""Larger steps take so long that what stands around their programs does not count."""


class ForwardKind(NamedTuple):
    """Sizes of a step, for which everything was compiled."""

    num_tokens: int
    num_rows: int
    """Rows of logits."""
    with_adapters: bool


@dataclass(eq=False)
class WholeForwards:
    """Kinds of steps of which nothing goes through the model's forward."""

    programs: StepPrograms
    prepare: Callable[[Sequence[Segment]], ForwardKind]
    """Writes a step down."""
    forward: Callable[[ForwardKind], torch.Tensor]
    """Computes its logits by the model's own forward."""
    _calls: dict[ForwardKind, ForwardCalls] = field(default_factory=dict)
    _age: int = 0
    """Age of the programs that the calls are of."""

    @property
    def kinds(self) -> frozenset[ForwardKind]:
        """Kinds that have calls."""
        return frozenset(self._calls) if self.programs.age == self._age else frozenset()

    def forget(self) -> None:
        """Leave all steps to the forward."""
        self._calls.clear()

    def run(self, kind: ForwardKind, segments: Sequence[Segment]) -> torch.Tensor | None:
        """Logits of a step that was written down; None where the model's own forward has to compute them.

        What the decoder put out is kept for prompts that are scored by its own forward alone.
        """
        are_these = self.programs.compute_layers and self.programs.age == self._age
        calls = self._calls.get(kind) if are_these else None
        if calls is None or any(each.scoring is not None for each in segments):
            return None
        self.programs.num_whole_runs += 1
        return calls.run()

    def note(
        self,
        lasting: Sequence[torch.Tensor],
        tables: PositionTables,
        token_buckets: Sequence[int],
        limits: EngineLimits,
        num_embeddings: int,
        kept: Iterable[ForwardKind] | None = None,
    ) -> None:
        """Note a step of each kind that has programs; what then answers another step with other bits is forgotten.

        `lasting` are the tensors of the model and of a step, which never move. Of the kinds that an earlier start
        `kept`, which passed the audit there, those are not compared whose answers will be held against the start's own.
        """
        self.forget()  # calls of programs that were recorded before
        self._age, draws = self.programs.age, random.Random(9)
        kinds = [(n, gates) for n in token_buckets if n <= MAX_TOKENS for gates in ((), FIRST_SLOT)]
        steps = [partial(_step_of, draws, limits, num_embeddings, *kind) for kind in kinds]
        found = self._noted(steps, [*lasting, *self.programs.tensors()], None if kept is None else frozenset(kept))
        for kind in sorted(found, reverse=True):  # the largest fills the tables, in the fewest calls
            found[kind] = tables.put_into(found[kind], kind.num_tokens)
        compared_later = self.programs.compared(token_buckets, limits, num_embeddings) if kept is not None else ()
        answered = {self.prepare(segments) for segments in compared_later}
        for step in steps:
            segments = step()
            kind = self.prepare(segments)
            if kind not in found or not self.programs.compute_layers:
                continue
            if kind in answered:
                self._calls[kind] = found[kind]
                continue
            expected_RV = self.forward(kind)[: len(segments)].clone()
            self.prepare(segments)
            if torch.equal(found[kind].run()[: len(segments)], expected_RV):
                self._calls[kind] = found[kind]
            else:
                log.warning("step_noted_wrong", **kind._asdict(), why="its logits differ")

    def _noted(
        self,
        steps: Sequence[Callable[[], list[Segment]]],
        lasting: Sequence[torch.Tensor],
        kept: frozenset[ForwardKind] | None,
    ) -> dict[ForwardKind, ForwardCalls]:
        findings: dict[bool, list[str]] = {}
        found: dict[ForwardKind, ForwardCalls] = {}
        for step in steps:
            kind = self.prepare(step())
            has_programs = self.programs.have(kind.num_tokens, kind.num_rows, with_adapters=kind.with_adapters)
            if not (has_programs and self.programs.compute_layers) or (kept is not None and kind not in kept):
                continue
            forward = partial(self.forward, kind)
            if kept is None and kind.with_adapters not in findings:  # the smallest of its form is audited, for all
                findings[kind.with_adapters] = audit(partial(_write, step, self.prepare), forward, lasting)
            try:
                if findings.get(kind.with_adapters):
                    raise NotRecordableError(findings[kind.with_adapters][0])
                found[kind] = noted(forward, lasting)
            except NotRecordableError as exc:
                log.info("step_not_noted", **kind._asdict(), why=str(exc))
        return found


def _write(step: Callable[[], list[Segment]], prepare: Callable[[Sequence[Segment]], object]) -> None:
    prepare(step())


def _step_of(
    draws: random.Random, limits: EngineLimits, num_embeddings: int, num_tokens: int, gates: Gates
) -> list[Segment]:
    """A step whose first row goes on anywhere in a sequence, while the others begin."""
    counts = tokens_of_rows(num_tokens, limits)
    left = limits.num_blocks - sum(map(limits.blocks_for, counts[1:]))
    most = min(left * limits.block_tokens, limits.max_sequence_tokens)
    first_block, segments = 0, []
    for row, count in enumerate(counts):
        start = draws.randint(0, max(0, most - count)) if row == 0 else 0
        blocks = tuple(range(first_block, first_block + limits.blocks_for(start + count)))
        first_block += len(blocks)
        tokens = tuple(draws.randrange(num_embeddings) for _ in range(count))
        segments.append(Segment(tokens, start, blocks, gates, Sampling()))
    return segments
