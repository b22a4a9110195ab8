"""Plan of a step for a device: everything that differs from step to step, written on the host and sent in one copy.

Shapes: T tokens of the step's bucket, R rows of logits, S slots, B KV blocks of one sequence, G segments.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from worker_service.engine.limits import EngineLimits
from worker_service.engine.messages import Segment
from worker_service.model.cuda.active_columns import ActiveColumns, GatedTokens, list_columns
from worker_service.model.sampling import draw_counts, draw_factors, options_of
from worker_service.model.staging import Area, Staging
from worker_service.model.step_graphs import GraphKey
from worker_service.model.step_state import StepState
from worker_service.model.varlen_attention import VarlenRows

NOT_FED = -1
"""Place of a token that the host knows."""
LAST_OF_BASE = "tables"
LAST_OF_ADAPTERS = "row_columns"
NEUTRAL_FACTORS = (1.0, 1.0, 0.0)
"""Temperature, top-p and min-p of rows that are not drawn."""


@dataclass(frozen=True)
class DevicePlan:
    """Areas of the plan, and the step's state that reads them on the device."""

    staging: Staging
    step: StepState
    limits: EngineLimits

    @classmethod
    def allocate(cls, step: StepState, limits: EngineLimits) -> "DevicePlan":
        """All areas, once; `step` is as `StepState.allocate` made it, with rows that attention reads on the device."""
        assert step.varlen is not None, "attention reads the plan on the device"
        (max_tokens, num_slots), (max_segments, max_blocks) = step.gates_TS.shape, step.block_tables_RB.shape
        lists = {"": step.columns, "row_": step.row_columns}
        staging = Staging(
            [
                Area("input_ids", (max_tokens,), torch.int64),
                Area("fed", (max_tokens,), torch.int64),
                Area("positions", (max_tokens,), torch.int64),
                Area("cache_positions", (max_tokens,), torch.int64),
                Area("last_tokens", (max_segments,), torch.int64),
                Area("counts", (max_segments, 3), torch.int64),
                Area("factors", (max_segments, 3), torch.float32),
                Area("is_greedy", (max_segments,), torch.bool),
                Area("cu_tokens", (max_segments + 1,), torch.int32),
                Area("cu_keys", (max_segments + 1,), torch.int32),
                Area("num_keys", (max_segments,), torch.int32),
                Area(LAST_OF_BASE, (max_segments, max_blocks), torch.int32),
                Area("gates", (max_tokens, num_slots), torch.float32),
                *(
                    Area(f"{kind}{name}", tuple(tensor.shape) if tensor is not None else (0,), torch.int32)
                    for kind, each in lists.items()
                    for name, tensor in (
                        ("begins", each.begins_U1 if each is not None else None),
                        ("columns", each.columns_P if each is not None else None),
                    )
                ),
            ],
            step.gates_TS.device,
        )
        areas = staging.on_device

        def columns(kind: str) -> ActiveColumns | None:
            return ActiveColumns(areas[f"{kind}begins"], areas[f"{kind}columns"]) if lists[kind] is not None else None

        rows = VarlenRows(areas["cu_tokens"], areas["cu_keys"], areas["num_keys"], step.varlen.counted_R1)
        staged = replace(
            step,
            gates_TS=areas["gates"],
            cache_positions_T=areas["cache_positions"],
            block_tables_RB=areas["tables"],
            varlen=rows,
            columns=columns(""),
            row_columns=columns("row_"),
        )
        return cls(staging, staged, limits)

    def write(
        self,
        segments: Sequence[Segment],
        key: GraphKey,
        rows_before: Sequence[int | None],
        slot_ranks: Sequence[int],
        *,
        has_head_slots: bool,
    ) -> list[int | None]:
        """Write a step and send it; returns each segment's row of logits.

        `rows_before` are the rows of the segments of the step before, which may feed this one; `slot_ranks` the ranks
        that each slot's adapter fills.
        """
        areas = self.staging.next_half()
        num_segments, spans = len(segments), self._write_tokens(areas, segments, key, rows_before)
        num_keys = areas["num_keys"]
        num_keys[:num_segments] = [segment.start + len(segment.token_ids) for segment in segments]
        num_keys[num_segments:] = 0
        total = spans[-1].first + spans[-1].count if spans else 0
        areas["cu_tokens"][:num_segments] = [span.first for span in spans]
        areas["cu_tokens"][num_segments:-1] = total
        areas["cu_tokens"][-1] = key.num_tokens
        areas["cu_keys"][0] = 0
        np.cumsum(num_keys, out=areas["cu_keys"][1:])
        rows = self._write_rows(areas, segments, spans, key)
        if not key.with_adapters:
            self.staging.send(LAST_OF_BASE)
            return rows
        gates_TS = areas["gates"][: key.num_tokens]
        gates_TS.fill(0.0)
        for segment, span in zip(segments, spans, strict=True):
            for slot, weight in segment.gates:
                gates_TS[span.first : span.first + span.count, slot] = weight
        if self.step.columns is not None:
            self._write_columns(areas, "", spans, key.num_tokens, slot_ranks)
            if has_head_slots:
                heads = [
                    GatedTokens(row, 1, span.slots) for row, span in zip(rows, spans, strict=True) if row is not None
                ]
                self._write_columns(areas, "row_", heads, key.num_rows, slot_ranks)
        self.staging.send(LAST_OF_ADAPTERS)
        return rows

    def _write_tokens(
        self,
        areas: Mapping[str, NDArray[Any]],
        segments: Sequence[Segment],
        key: GraphKey,
        rows_before: Sequence[int | None],
    ) -> list[GatedTokens]:
        """Tokens of all segments side by side, and padding behind them."""
        block_tokens, first, spans = self.limits.block_tokens, 0, []
        areas["fed"][: key.num_tokens] = NOT_FED
        for row, segment in enumerate(segments):
            num_tokens = len(segment.token_ids)
            here = slice(first, first + num_tokens)
            areas["input_ids"][here] = segment.token_ids
            if segment.fed_by is not None:
                fed_row = rows_before[segment.fed_by]
                assert fed_row is not None, "the step before chose the token that feeds this one"
                areas["fed"][first] = fed_row
            positions = areas["positions"][here]
            positions[:] = np.arange(segment.start, segment.start + num_tokens)
            table = areas["tables"][row, : len(segment.block_table)]
            table[:] = segment.block_table
            blocks, offsets = np.divmod(positions, block_tokens)
            areas["cache_positions"][here] = table[blocks].astype(np.int64) * block_tokens + offsets
            spans.append(GatedTokens(first, num_tokens, [slot for slot, _ in segment.gates]))
            first += num_tokens
        padding = slice(first, key.num_tokens)
        areas["input_ids"][padding] = areas["positions"][padding] = 0
        areas["cache_positions"][padding] = self.limits.num_blocks * block_tokens
        return spans

    def _write_rows(
        self,
        areas: Mapping[str, NDArray[Any]],
        segments: Sequence[Segment],
        spans: Sequence[GatedTokens],
        key: GraphKey,
    ) -> list[int | None]:
        """Rows of logits that are wanted, and of padding, which reads the first token."""
        numbers = count()
        rows = [next(numbers) if segment.sampling is not None else None for segment in segments]
        areas["last_tokens"][: key.num_rows] = 0
        areas["is_greedy"][: key.num_rows] = True
        areas["factors"][: key.num_rows] = NEUTRAL_FACTORS
        areas["counts"][: key.num_rows] = 0
        for row, segment, span in zip(rows, segments, spans, strict=True):
            if row is None:
                continue
            areas["last_tokens"][row] = span.first + span.count - 1
            if not options_of(segment).is_greedy:
                areas["is_greedy"][row] = False
                areas["counts"].view(np.uint64)[row] = draw_counts(segment)
                areas["factors"][row] = draw_factors(segment)
        return rows

    def _write_columns(
        self,
        areas: Mapping[str, NDArray[Any]],
        kind: str,
        spans: Sequence[GatedTokens],
        num_tokens: int,
        slot_ranks: Sequence[int],
    ) -> None:
        begins, columns = list_columns(spans, num_tokens, self.limits.slot_rank, slot_ranks)
        areas[f"{kind}begins"][: len(begins)] = begins
        areas[f"{kind}columns"][: len(columns)] = columns
