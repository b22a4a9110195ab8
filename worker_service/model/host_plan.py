"""Plan of a step that the host computes, or has computed at once: written into the step's tensors through numpy.

On CPU arrays are the tensors' own memory, so nothing is copied; elsewhere each tensor is one copy.
Shapes: T tokens of the step's bucket, R segments or rows of logits, B KV blocks of one sequence, S slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from worker_service.engine.limits import EngineLimits
from worker_service.engine.messages import Segment
from worker_service.model.cuda.active_columns import GatedTokens
from worker_service.model.step_state import StepState

SCATTERED = -1
"""First cache position of a sequence whose blocks do not lie side by side."""


class _Written:
    """A tensor, and an array to write it through."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self._is_own = tensor.device.type == "cpu"
        self._host = tensor if self._is_own else torch.zeros_like(tensor, device="cpu")
        self.array = self._host.numpy()

    def send(self, count: int) -> None:
        """Have the first rows in the tensor, if they are not there already."""
        if not self._is_own:
            self.tensor[:count].copy_(self._host[:count])


@dataclass(frozen=True, slots=True)
class _Table:
    """Block table that is written to a row, and where its sequence begins in the cache if its blocks are contiguous."""

    blocks: tuple[int, ...]
    begin: int


class HostPlan:
    """Inputs of steps, at fixed addresses; those that layers read are in the step's state."""

    def __init__(
        self, step: StepState, limits: EngineLimits, max_tokens: int, max_rows: int, *, is_alone: bool
    ) -> None:
        """`is_alone` says that nobody else writes to the step's state, so that tables need not be written again."""

        def written(count: int) -> _Written:
            return _Written(torch.zeros(count, dtype=torch.int64, device=step.gates_TS.device))

        self._step = step
        self._limits = limits
        self._is_alone = is_alone
        self._input_ids, self._position_ids, self._last_tokens = (
            written(max_tokens),
            written(max_tokens),
            written(max_rows),
        )
        self._cache_positions, self._tables = _Written(step.cache_positions_T), _Written(step.block_tables_RB)
        self._gates = _Written(step.gates_TS)
        self._known: dict[int, _Table] = {}
        """Tables by row."""
        self._spans: list[GatedTokens] = []
        self.input_ids_T, self.position_ids_T = self._input_ids.tensor, self._position_ids.tensor
        self.last_tokens_R = self._last_tokens.tensor

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Tensors that are not the step's state."""
        return self.input_ids_T, self.position_ids_T, self.last_tokens_R

    def write(self, segments: Sequence[Segment], num_tokens: int, slot_ranks: Sequence[int]) -> list[int]:
        """Write a step of so many tokens, with padding; returns the last token of each segment that wants logits."""
        step, block_tokens = self._step, self._limits.block_tokens
        input_ids, position_ids, places = self._input_ids.array, self._position_ids.array, self._cache_positions.array
        rows: list[tuple[int, int, int, int]] = []
        last_tokens: list[int] = []
        first = 0
        for row, segment in enumerate(segments):
            count, start = len(segment.token_ids), segment.start
            table = self._table(row, segment.block_table)
            if count == 1:
                input_ids[first], position_ids[first] = segment.token_ids[0], start
                places[first] = table.blocks[start // block_tokens] * block_tokens + start % block_tokens
            else:
                here, positions = slice(first, first + count), np.arange(start, start + count)
                input_ids[here], position_ids[here] = segment.token_ids, positions
                blocks = self._tables.array[row].take(positions // block_tokens).astype(np.int64)
                places[here] = blocks * block_tokens + positions % block_tokens
            rows.append((first, count, start + count, table.begin))
            first += count
            if segment.sampling is not None:
                last_tokens.append(first - 1)
        if first < num_tokens:
            input_ids[first:num_tokens] = position_ids[first:num_tokens] = 0
            places[first:num_tokens] = self._limits.num_blocks * block_tokens
        for each in (self._input_ids, self._position_ids, self._cache_positions):
            each.send(num_tokens)
        self._tables.send(len(segments))
        step.describe(rows, num_tokens)
        step.with_adapters = any(segment.gates for segment in segments)
        if step.with_adapters:
            self._turn_on(segments, rows, num_tokens, slot_ranks)
        return last_tokens

    def point_at(
        self, positions: Sequence[int], num_rows: int, slot_ranks: Sequence[int], *, has_head_slots: bool
    ) -> None:
        """Have the head read these tokens of the step; padding rows read the first token.

        What an earlier step left there may lie beyond this one's tokens.
        """
        last_tokens, step = self._last_tokens.array, self._step
        last_tokens[: len(positions)] = positions
        last_tokens[len(positions) : num_rows] = 0
        self._last_tokens.send(num_rows)
        if step.with_adapters and has_head_slots:
            step.row_gates_RS[:num_rows].copy_(step.gates_TS[self.last_tokens_R[:num_rows]])
            if step.row_columns is not None:
                rows = [GatedTokens(row, 1, self._slots_at(position)) for row, position in enumerate(positions)]
                step.row_columns.fill(rows, num_rows, self._limits.slot_rank, slot_ranks)

    def _table(self, row: int, blocks: tuple[int, ...]) -> _Table:
        """Table of a row, written if it is another than before: a sequence in decoding has a new one once a block."""
        known = self._known.get(row)
        if known is not None and known.blocks == blocks and self._is_alone:
            return known
        written = self._tables.array[row, : len(blocks)]
        written[:] = blocks
        is_contiguous = bool((np.diff(written) == 1).all())
        found = self._known[row] = _Table(blocks, blocks[0] * self._limits.block_tokens if is_contiguous else SCATTERED)
        return found

    def _turn_on(
        self,
        segments: Sequence[Segment],
        rows: Sequence[tuple[int, int, int, int]],
        num_tokens: int,
        slot_ranks: Sequence[int],
    ) -> None:
        """Write the gates, and the lists of columns where there are any; steps without adapters read neither."""
        step, gates_TS = self._step, self._gates.array
        gates_TS[:num_tokens] = 0.0
        for (first, count, _, _), segment in zip(rows, segments, strict=True):
            for slot, weight in segment.gates:
                gates_TS[first : first + count, slot] = weight
        self._gates.send(num_tokens)
        if step.columns is not None:
            slots = [[slot for slot, _ in segment.gates] for segment in segments]
            self._spans = [GatedTokens(row[0], row[1], on) for row, on in zip(rows, slots, strict=True)]
            step.columns.fill(self._spans, num_tokens, self._limits.slot_rank, slot_ranks)

    def _slots_at(self, position: int) -> Sequence[int]:
        """Slots that are on for a token of the step."""
        return next(span.slots for span in self._spans if span.first <= position < span.first + span.count)
